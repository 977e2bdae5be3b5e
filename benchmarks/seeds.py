"""Statistics over training seeds, which are the unit of replication."""

from collections.abc import Callable

import numpy as np


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis: a quarter of the seeds is cut off at either end.

    As in Agarwal et al. (2021, arXiv 2108.13264). Of 5 seeds, the middle 3 remain.
    """
    cut = len(values) // 4
    return np.sort(values, 0)[cut : len(values) - cut].mean(0)


def interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = iqm,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of a statistic of the first axis, resampling seeds."""
    rows = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.stack([statistic(values[row]) for row in rows]), [0.025, 0.975], 0)
    return low, high


def summary(values: list[float] | np.ndarray) -> dict[str, float | list[float]]:
    """Interquartile mean, its interval, mean and every seed's value, for JSON."""
    array = np.asarray(values, np.float64)
    low, high = interval(array)
    return {
        "iqm": float(iqm(array)),
        "interval": [float(low), float(high)],
        "mean": float(array.mean()),
        "seeds": array.tolist(),
    }


def first_reached(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """The first of `x` `(T,)` at which the curve `y` `(T,)` is at `target`; inf if it never is."""
    reached = np.flatnonzero(y >= target)
    return float(x[reached[0]]) if len(reached) else float("inf")
