"""Scores of masked faces that are remembered, for policies that have made up their minds."""

import numpy as np
import torch
from torch import Tensor

from sarface_env.hashing import GOLDEN
from sarface_env.scorers import Score

_HALF = np.uint64(32)
FIELDS = ("correct", "margin_correct", "margin", "contrast")
SCORE = np.dtype(list(zip(FIELDS, (np.bool_, np.bool_, np.float32, np.float32), strict=True)))
"""A `Score` of one image, for arrays of them."""


def as_array(score: Score, out: np.ndarray | None = None) -> np.ndarray:
    """A `Score` of N images as `(N,)` of type `SCORE`, in `out` if it is given."""
    array = np.empty(len(score.margin), SCORE) if out is None else out
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
        self.bits = bits
        self._one_word = bits + faces.bit_length() <= 63
        self._words = -(-bits // 64) + (not self._one_word)
        self.size = size
        self._shift = np.uint64(64 - (size.bit_length() - 1))
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # Untouched pages of zeros take no memory.
        self._keys = np.zeros((self.size, self._words), np.int64)
        self._scores = np.zeros(self.size, SCORE)

    def keys(self, faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """One row a pair of face `(N,)` and mask `(N, K)` bool: int64 `(N, W)`."""
        # Faces are counted from one: a key of zeros is an empty place.
        keys = np.zeros((len(faces), self._words), np.int64)
        packed = np.packbits(masks, 1, "little")
        if self._one_word:
            keys.view(np.uint8)[:, : packed.shape[1]] = packed
            keys[:, 0] |= faces + 1 << self.bits
        else:
            keys[:, 0] = faces + 1
            keys[:, 1:].view(np.uint8)[:, : packed.shape[1]] = packed
        return keys

    def slots(self, keys: np.ndarray) -> np.ndarray:
        """Where keys `(N, W)` belong in the table, `(N,)`; equal keys have equal slots."""
        state = np.zeros(len(keys), np.uint64)
        for word in keys.view(np.uint64).T:
            state = (state ^ (state >> _HALF) ^ word) * GOLDEN
        return state >> self._shift

    def find(self, keys: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which keys `(N, W)` are known, `(N,)` bool, and what is in their slots, known or not."""
        return (self._keys[slots] == keys).all(1), self._scores[slots]

    def add(self, keys: np.ndarray, slots: np.ndarray, scores: np.ndarray) -> None:
        """Remember the scores `(N,)` of keys `(N, W)`, all different, in their slots."""
        # Of two keys with one slot the last stays, in both tables.
        self._keys[slots] = keys
        self._scores[slots] = scores

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered, as tensors."""
        used = self._keys[:, 0].nonzero()[0]
        keys = torch.from_numpy(self._keys[used])
        return {"keys": keys, **vars(as_score(self._scores[used]))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.clear()
        scores = Score(*(state[field] for field in FIELDS))
        keys = state["keys"].numpy()
        self.add(keys, self.slots(keys), as_array(scores))
