"""Rewards: pure functions of the full image's score, the masked image's score and what was kept.

A reward may have `bound(full)`, the most that any mask can earn on a face with this full score;
oracles stop searching a face when they reach it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sarface_env.scorers import Score

Judge = Literal["margin_correct", "correct"]


@dataclass(frozen=True)
class Flip:
    """SARFace's reward: +1 when masking makes a wrong face right, -1 for the reverse.

    Attributes:
        judge: which flag of the score means right; the published code uses `correct`.
        sparsity: added in proportion to the pixels dropped when the masked face is right. (The
            published term, 0.05 over the number of kept pixels, is about 4e-6.)
    """

    judge: Judge = "margin_correct"
    sparsity: float = 0.0

    def __call__(self, full: Score, masked: Score, kept: Tensor) -> Tensor:
        """Reward `(N,)` float32; `kept` is the fraction of pixels kept, `(N,)`."""
        after = getattr(masked, self.judge).float()
        before = getattr(full, self.judge).float()
        gain = after - before
        return gain + self.sparsity * (1 - kept) * after if self.sparsity else gain

    def bound(self, full: Score) -> Tensor:
        """The most a mask can earn, `(N,)`."""
        return 1 - getattr(full, self.judge).float() + self.sparsity


@dataclass(frozen=True)
class MarginGain:
    """Gain in margin by masking, clipped to [-1, 1] after scaling.

    Attributes:
        scale: gain per unit of margin; a margin is a difference of cosines, mostly within 0.2.
    """

    scale: float = 5.0

    def __call__(self, full: Score, masked: Score, kept: Tensor) -> Tensor:
        """Reward `(N,)` float32."""
        return (self.scale * (masked.margin - full.margin)).clamp(-1, 1)

    def bound(self, full: Score) -> Tensor:
        """The most a mask can earn, `(N,)`."""
        return full.margin.new_ones(full.margin.shape)


@dataclass(frozen=True)
class ContrastGain:
    """Gain in contrast by masking, clipped to [-1, 1] after scaling.

    A steadier relative of `MarginGain`: on occluded photographs, what covering a patch gains stands
    out of the spread from face to face several times as clearly.

    Attributes:
        scale: gain per unit of contrast.
    """

    scale: float = 5.0

    def __call__(self, full: Score, masked: Score, kept: Tensor) -> Tensor:
        """Reward `(N,)` float32."""
        return (self.scale * (masked.contrast - full.contrast)).clamp(-1, 1)

    def bound(self, full: Score) -> Tensor:
        """The most a mask can earn, `(N,)`."""
        return full.contrast.new_ones(full.contrast.shape)


@dataclass(frozen=True)
class PatchDrop:
    """PatchDrop's reward: `1 - kept^2` when the masked face is right, a penalty when it is not.

    Attributes:
        judge: which flag of the score means right.
        penalty: what a wrong face costs (Uzkent and Ermon, 2020, arXiv 2003.00425).
    """

    judge: Judge = "margin_correct"
    penalty: float = 0.5

    def __call__(self, full: Score, masked: Score, kept: Tensor) -> Tensor:
        """Reward `(N,)` float32; `kept` is the fraction of pixels kept, `(N,)`."""
        right = getattr(masked, self.judge).float()
        return right * (1 - kept.square()) - (1 - right) * self.penalty


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of rewards."""

    terms: tuple[tuple[float, "Reward"], ...]

    def __call__(self, full: Score, masked: Score, kept: Tensor) -> Tensor:
        """Reward `(N,)` float32."""
        total = kept.new_zeros(kept.shape)
        for weight, reward in self.terms:
            total = total + weight * reward(full, masked, kept)
        return total


Reward = Callable[[Score, Score, Tensor], Tensor]
REWARDS: dict[str, Callable[[], Reward]] = {
    "flip": Flip,
    "flip_plain": lambda: Flip(judge="correct"),
    "margin": MarginGain,
    "contrast": ContrastGain,
    "patchdrop": PatchDrop,
}


def make_reward(name: str | Reward) -> Reward:
    """Reward by name, or a weighted sum such as `flip+0.5*margin`.

    Names: `flip`, `flip_plain` (judged by the plain arg-max, as published), `margin`, `contrast`,
    `patchdrop`.

    Raises:
        ValueError: a name is none of these, or the sum does not parse.
    """
    if not isinstance(name, str):
        return name
    terms = []
    for term in name.split("+"):
        match = re.fullmatch(r"\s*(?:([\d.]+)\s*\*\s*)?(\w+)\s*", term)
        if match is None or match[2] not in REWARDS:
            raise ValueError(
                f"unknown reward {term.strip()!r} in {name!r}; there are {', '.join(REWARDS)} "
                "and sums such as flip+0.5*margin"
            )
        terms.append((float(match[1] or 1), REWARDS[match[2]]()))
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return WeightedSum(tuple(terms))
