"""Timings that can be compared: taken in turn, so that a slow moment is slow for all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Timing:
    """Seconds of every round of one contender.

    Attributes:
        seconds: `(R,)`, in the order of the rounds.
        work: items (faces, masks) a call deals with.
    """

    seconds: np.ndarray
    work: int

    @property
    def rate(self) -> float:
        """Items a second: of the median round."""
        return self.work / float(np.median(self.seconds))

    def ratio(self, base: "Timing") -> float:
        """How many times the rate of `base`: the median over rounds of ratios within a round."""
        mine, theirs = self.seconds / self.work, base.seconds / base.work
        return float(np.median(theirs / mine))

    def summary(self, base: "Timing | None" = None) -> dict[str, Any]:
        """Median rate with its quartiles and the number of rounds; ratio to a base, if given."""
        low, high = np.quantile(self.work / self.seconds, [0.25, 0.75])
        out = {"per_second": self.rate, "quartiles": [low, high], "rounds": len(self.seconds)}
        if base is not None:
            out["ratio"] = self.ratio(base)
        return out


def interleaved(
    contenders: Mapping[str, tuple[Callable[[], Any], int]],
    seconds: float,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time contenders in turn, in another order every round, each right after an untimed call.

    Args:
        contenders: by name, what to call and how many items one call deals with. A call that
            returns a float has timed itself (in another process, for example).
        seconds: go on with further rounds until so much time has passed.
        least: rounds at any rate.
        clock: tells the time.
        seed: of the orders.
    """
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    random = np.random.default_rng(seed)
    for call, _ in contenders.values():
        call()
    begin = clock()
    while clock() - begin < seconds or len(next(iter(spent.values()))) < least:
        # What ran before decides what the caches hold, so a fixed order would favour some. The
        # untimed call brings everyone into its own steady state, as it is in use.
        for name in random.permutation(list(contenders)):
            call, _ = contenders[name]
            call()
            start = clock()
            own = call()
            spent[name].append(own if isinstance(own, float) else clock() - start)
    return {name: Timing(np.array(spent[name]), work) for name, (_, work) in contenders.items()}
