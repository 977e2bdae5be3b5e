"""Scores of masked faces that are remembered, for policies that have made up their minds."""

import numpy as np
import torch
from torch import Tensor

from sarface_env.hashing import mix
from sarface_env.scorers import Score

_WORD = 62  # bits of a key that are used of every int64


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
        first = _WORD - faces.bit_length()
        self._splits = np.arange(first, bits, _WORD)
        self._words = 1 + len(self._splits)
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # Untouched pages of zeros take no memory.
        self._keys = np.zeros((self.size, self._words), np.int64)
        self._flags = np.zeros((self.size, 2), np.bool_)
        self._margin = np.zeros(self.size, np.float32)

    def keys(self, faces: Tensor, masks: Tensor) -> np.ndarray:
        """One row a pair of face `(N,)` and mask `(N, K)` bool: int64 `(N, W)`."""
        words = [faces.numpy() + 1]
        parts = np.split(masks.numpy(), self._splits, 1)
        for i, part in enumerate(parts):
            places = np.int64(1) << np.arange(part.shape[1])[::-1]
            value = part @ places
            if i:
                words.append(value)
            else:
                words[0] = (words[0] << part.shape[1]) | value
        return np.stack(words, 1)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, Score]:
        """Which keys `(N, W)` are known, `(N,)` bool, and what is in their slots, known or not."""
        slots = self._slots(keys)
        known = (self._keys[slots] == keys).all(1)
        correct, margin_correct = torch.from_numpy(self._flags[slots]).unbind(1)
        return known, Score(correct, margin_correct, torch.from_numpy(self._margin[slots]))

    def add(self, keys: np.ndarray, score: Score) -> None:
        """Remember the scores of keys `(N, W)`, all different."""
        slots = self._slots(keys)
        # Of two keys with one slot the last stays, in all three tables.
        self._keys[slots] = keys
        self._flags[slots] = torch.stack([score.correct, score.margin_correct], 1).numpy()
        self._margin[slots] = score.margin.numpy()

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        state = np.zeros(len(keys), np.uint64)
        for word in keys.view(np.uint64).T:
            state = mix(state ^ word)
        return (state & np.uint64(self.size - 1)).astype(np.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered, as tensors."""
        used = self._keys[:, 0].nonzero()[0]
        tables = {"keys": self._keys, "flags": self._flags, "margin": self._margin}
        return {name: torch.from_numpy(table[used]) for name, table in tables.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.clear()
        correct, margin_correct = state["flags"].unbind(1)
        self.add(state["keys"].numpy(), Score(correct, margin_correct, state["margin"]))
