"""Scores of masked faces that are remembered, for policies that have made up their minds."""

import numpy as np
import torch
from torch import Tensor

from sarface_env.hashing import GOLDEN
from sarface_env.scorers import Score

_HALF = np.uint64(32)
FIELDS = ("correct", "margin_correct", "margin", "contrast")
"""Of a `Score`; the first two are flags."""


def as_array(score: Score) -> np.ndarray:
    """A `Score` of N images as float32 `(4, N)`, one row a field; flags are 0 and 1."""
    return torch.stack([getattr(score, field).float() for field in FIELDS]).cpu().numpy()


def as_score(array: np.ndarray) -> Score:
    """The `Score` in `as_array`'s form, which it may share memory with."""
    flags, numbers = torch.from_numpy(array[:2].astype(np.bool_)), torch.from_numpy(array[2:])
    return Score(*flags.unbind(), *numbers.unbind())


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
        # Key and score side by side, four numbers of 32 bits: one look-up finds both.
        self._table = np.zeros((self.size, self._words + 2), np.int64)

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
        """Which keys `(N, W)` are known, `(N,)` bool, and the scores in their slots, `(4, N)`."""
        found = self._table[slots]
        return (found[:, : self._words] == keys).all(1), self._scores(found)

    def add(self, keys: np.ndarray, slots: np.ndarray, scores: np.ndarray) -> None:
        """Remember the scores `(4, N)` of keys `(N, W)`, all different, in their slots."""
        entries = np.empty((len(keys), self._words + 2), np.int64)
        entries[:, : self._words] = keys
        self._scores(entries)[:] = scores
        self._table[slots] = entries

    def _scores(self, entries: np.ndarray) -> np.ndarray:
        """The scores, `(4, N)`, in entries `(N, W + 2)` of the table."""
        return entries[:, self._words :].view(np.float32).T

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered, as tensors."""
        used = self._table[self._table[:, 0] != 0]
        keys = torch.from_numpy(used[:, : self._words].copy())
        return {"keys": keys, **vars(as_score(self._scores(used)))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.clear()
        scores = Score(*(state[field] for field in FIELDS))
        keys = state["keys"].numpy()
        self.add(keys, self.slots(keys), as_array(scores))
