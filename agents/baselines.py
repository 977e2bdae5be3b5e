"""Policies that any claim must beat: constants, chance, the best fixed mask, and oracles.

Every policy here and every trained agent has Stable-Baselines3's signature
`predict(obs, state=None, episode_start=None, deterministic=False) -> (actions, state)`.
"""

from collections.abc import Iterator
from itertools import combinations, islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents.ranked import best_mask, best_masks, worth

MANY = 16  # bits above which searches must be cheap


class MaskPolicy:
    """A policy for region selection; subclasses give `masks(n)` for the n faces observed.

    Args:
        env: the vector environment, for the number of bits; oracles also ask it which faces are
            shown and what masks are worth.
    """

    name = ""

    def __init__(self, env):
        self.env = env.unwrapped
        self.bits: int = self.env.single_action_space.n

    def predict(
        self,
        obs: np.ndarray,
        state=None,
        episode_start=None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """Keep bits `(N, K)` int8 for observations `(N, ...)`; the state is always None."""
        return self.masks(len(obs)).numpy().astype(np.int8), None

    def masks(self, n: int) -> Tensor:
        """Keep bits `(n, K)` bool."""
        raise NotImplementedError


class KeepAll(MaskPolicy):
    """Drops nothing: the recognizer as it is."""

    name = "keep-all"

    def masks(self, n: int) -> Tensor:
        return torch.ones((n, self.bits), dtype=torch.bool)


class DropAll(MaskPolicy):
    """Drops every selectable region."""

    name = "drop-all"

    def masks(self, n: int) -> Tensor:
        return torch.zeros((n, self.bits), dtype=torch.bool)


class Random(MaskPolicy):
    """Keeps every region with probability one half."""

    name = "random"

    def __init__(self, env, seed: int = 0):
        super().__init__(env)
        self._generator = torch.Generator().manual_seed(seed)

    def masks(self, n: int) -> Tensor:
        return torch.rand((n, self.bits), generator=self._generator) < 0.5


class FixedMask(MaskPolicy):
    """One mask for all faces.

    Args:
        env: the environment it is used in.
        mask: keep bits `(K,)`.
    """

    name = "best fixed mask"

    def __init__(self, env, mask: Tensor):
        super().__init__(env)
        self.mask = mask.bool()

    def masks(self, n: int) -> Tensor:
        return self.mask.expand(n, -1)

    @classmethod
    def dropping(cls, env, names: list[str]) -> "FixedMask":
        """The mask that drops the selectable regions with these names and keeps all others.

        Raises:
            ValueError: a name is not a selectable region; the message lists what exists.
        """
        mask = torch.ones(env.unwrapped.single_action_space.n, dtype=torch.bool)
        mask[env.unwrapped.partition.bits_by_name(names)] = False
        return cls(env, mask)

    @classmethod
    def search(cls, env, faces: int = 256, seed: int = 0) -> "FixedMask":
        """The best mask for random faces of the environment's split, by coordinate ascent.

        From keep-all and from drop-all, flip the bit that raises the mean reward most (the mean
        margin breaking ties) until none does. With many bits, `ranked.best_mask`.
        """
        inner = env.unwrapped
        n = len(inner.core)
        indices = np.random.default_rng(seed).permutation(n)[: min(faces, n)]
        bits: int = inner.single_action_space.n
        if bits > MANY:
            return cls(env, best_mask(inner.evaluate, torch.from_numpy(indices), bits))
        best = max(
            (_ascend(inner, indices, torch.full((bits,), start)) for start in (True, False)),
            key=lambda result: result[0],
        )
        return cls(env, best[1])


def _worth(env, indices: np.ndarray, masks: Tensor) -> list[tuple[float, float]]:
    """Mean reward and margin over faces `(N,)` of each of the masks `(M, K)`."""
    outcome = env.evaluate(indices, masks.expand(len(indices), *masks.shape))
    return list(
        zip(outcome.reward.mean(0).tolist(), outcome.masked.margin.mean(0).tolist(), strict=True)
    )


def _ascend(env, indices: np.ndarray, mask: Tensor) -> tuple[tuple[float, float], Tensor]:
    best = _worth(env, indices, mask[None])[0]
    while True:
        flips = mask ^ torch.eye(len(mask), dtype=torch.bool)
        worth = _worth(env, indices, flips)
        top = max(range(len(flips)), key=worth.__getitem__)
        if worth[top] <= best:
            return best, mask
        best, mask = worth[top], flips[top]


class GreedyOracle(MaskPolicy):
    """Looks at the reward: from keep-all, flips the best bit of each face until none helps.

    With many bits it ranks them once: `ranked.best_masks`.
    """

    name = "greedy oracle"

    def masks(self, n: int) -> Tensor:
        indices = self.env.indices
        if self.bits > MANY:
            return best_masks(self.env.evaluate, torch.from_numpy(indices), self.bits)
        mask = torch.ones((n, self.bits), dtype=torch.bool)
        best = worth(self.env.evaluate(indices, mask))
        active = torch.ones(n, dtype=torch.bool)
        eye = torch.eye(self.bits, dtype=torch.bool)
        while active.any():
            rows = active.nonzero().squeeze(1)
            flips = mask[rows, None] ^ eye
            top, which = worth(self.env.evaluate(indices[rows.numpy()], flips)).max(1)
            better = top > best[rows] + 1e-9
            mask[rows[better]] = flips[better, which[better]]
            best[rows[better]] = top[better]
            active[rows[~better]] = False
        return mask


class ExhaustiveOracle(MaskPolicy):
    """Looks at the reward: the best of all `2^K` masks of each face.

    Masks are tried with the fewest dropped regions first, and a face is done as soon as its reward
    cannot be beaten, so that ties go to the smallest intervention.

    Args:
        env: with at most 16 bits.
        progress: show a progress bar.
    """

    name = "exhaustive oracle"

    def __init__(self, env, progress: bool = False):
        super().__init__(env)
        if self.bits > MANY:
            raise ValueError(
                f"the exhaustive oracle tries 2^K masks a face; K = {self.bits} is too many "
                f"({MANY} at most), use the greedy oracle"
            )
        self.progress = progress

    def masks(self, n: int) -> Tensor:
        indices = self.env.indices
        best_mask = torch.ones((n, self.bits), dtype=torch.bool)
        outcome = self.env.evaluate(indices, best_mask)
        best = outcome.reward.clone()
        bound = self.env.core.reward_bound(outcome.full)
        with tqdm(total=n, desc=self.name, disable=not self.progress, leave=False) as bar:
            for group in _chunks(self.bits, 64):
                rows = (best < bound).nonzero().squeeze(1)
                bar.update(n - len(rows) - bar.n)
                if not len(rows):
                    break
                tried = self.env.evaluate(
                    indices[rows.numpy()], group.expand(len(rows), -1, -1)
                ).reward
                # argmax gives the first of equal rewards: it drops the fewest regions.
                which = tried.argmax(1)
                top = tried.gather(1, which[:, None]).squeeze(1)
                better = top > best[rows]
                best[rows[better]] = top[better]
                best_mask[rows[better]] = group[which[better]]
        return best_mask


def _chunks(bits: int, size: int) -> Iterator[Tensor]:
    """All masks `(<= size, bits)` but keep-all, fewest dropped first."""
    drops = (c for dropped in range(1, bits + 1) for c in combinations(range(bits), dropped))
    while chunk := list(islice(drops, size)):
        masks = torch.ones((len(chunk), bits), dtype=torch.bool)
        for row, dropped in zip(masks, chunk, strict=True):
            row[list(dropped)] = False
        yield masks
