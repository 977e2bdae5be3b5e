"""Scores of masked faces that are remembered, for policies that have made up their minds."""

import numpy as np
import torch
from torch import Tensor

from sarface_env.hashing import mix
from sarface_env.scorers import Score

_WORD = 62  # bits of a key that are used of every int64
FIELDS = ("correct", "margin_correct", "margin")
SCORE = np.dtype(list(zip(FIELDS, (np.bool_, np.bool_, np.float32), strict=True)))
"""A `Score` of one image, for arrays of them."""


def as_array(score: Score) -> np.ndarray:
    """A `Score` of N images as `(N,)` of type `SCORE`."""
    array = np.empty(len(score.margin), SCORE)
    for field in FIELDS:
        array[field] = getattr(score, field).cpu().numpy()
    return array


def as_score(array: np.ndarray) -> Score:
    """The `Score` in an array of type `SCORE`."""
    return Score(*(torch.from_numpy(array[field].copy()) for field in FIELDS))


class MaskScores:
    """A table of scores by face and mask, bounded: a new entry takes the place of an old one.

    Every (face, mask) has one slot, a hash of both; nothing loops in Python. The table is exact:
    whole keys are compared.

    Args:
        faces: how many there are.
        bits: length of a mask.
        size: entries, a power of two.
    """

    def __init__(self, faces: int, bits: int, size: int = 1 << 16):
        # The first word holds the face and the first bits. Keys begin at one: zero is "empty".
        self._first = min(bits, _WORD - faces.bit_length())
        self._starts = [0, *range(self._first, bits, _WORD)]
        ends = [*self._starts[1:], bits]
        self._values = [
            np.int64(1) << np.arange(end - start)[::-1]
            for start, end in zip(self._starts, ends, strict=True)
        ]
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # Untouched pages of zeros take no memory.
        self._keys = np.zeros((self.size, len(self._starts)), np.int64)
        self._scores = np.zeros(self.size, SCORE)

    def keys(self, faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """One row a pair of face `(N,)` and mask `(N, K)` bool: int64 `(N, W)`."""
        first, *others = (
            masks[:, start : start + len(values)] @ values
            for start, values in zip(self._starts, self._values, strict=True)
        )
        return np.stack([(faces + 1 << self._first) | first, *others], 1)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which keys `(N, W)` are known, `(N,)` bool, and what is in their slots, known or not."""
        slots = self._slots(keys)
        return (self._keys[slots] == keys).all(1), self._scores[slots]

    def add(self, keys: np.ndarray, scores: np.ndarray) -> None:
        """Remember the scores `(N,)` of keys `(N, W)`, all different."""
        slots = self._slots(keys)
        # Of two keys with one slot the last stays, in both tables.
        self._keys[slots] = keys
        self._scores[slots] = scores

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        state = np.zeros(len(keys), np.uint64)
        for word in keys.view(np.uint64).T:
            state = mix(state ^ word)
        return (state & np.uint64(self.size - 1)).astype(np.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered, as tensors."""
        used = self._keys[:, 0].nonzero()[0]
        keys = torch.from_numpy(self._keys[used])
        return {"keys": keys, **vars(as_score(self._scores[used]))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.clear()
        scores = Score(*(state[field] for field in FIELDS))
        self.add(state["keys"].numpy(), as_array(scores))
