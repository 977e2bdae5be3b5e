"""One-step episodes over a batch of faces: what the single and the vector environment share."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.utils import seeding
from torch import Tensor

from sarface_env.core import RegionSelection
from sarface_env.hashing import GOLDEN, mix

CHANNELS = {"regions": 1, "parsing": 1, "image": 3}  # of the parts of an observation
_AHEAD = 64  # steps whose faces are drawn at once


class Episodes:
    """Which faces are shown, what is observed of them, and what deciding on them gives.

    The t-th face of environment i is a hash of (its key, t). Unlike one generator an environment,
    this needs no Python loop, and the whole random state is two small arrays. Of faces that are
    covered alike in groups of G, G environments in a row show one group.

    Args:
        core: scores the decisions.
        num_envs: faces shown at once.
        observation: parts in the order of `CHANNELS`, such as `regions` or `regions+image`.
        obs_size: side of the observation; None for that of the faces.

    Attributes:
        alike: G, 1 where every face is covered by itself.

    Raises:
        ValueError: the faces have no parsing maps that could be shown.
    """

    def __init__(
        self, core: RegionSelection, num_envs: int, observation: str, obs_size: int | None
    ):
        self.core, self.num_envs = core, num_envs
        self._labels = core.faces.labels.numpy()
        self._groups = None if core.faces.alike is None else core.faces.alike.numpy()
        self.alike = 1 if self._groups is None else self._groups.shape[1]
        self.observation, self.obs_size = observation, obs_size
        h, w = core.faces.images.shape[2:]
        self.shape = (h, w) if obs_size is None else (obs_size, obs_size)
        self._parts = observation.split("+")
        if "parsing" in self._parts and core.faces.parsing is None:
            raise ValueError(f"observation {observation!r} shows parsing maps; the faces have none")
        channels = sum(CHANNELS[part] for part in self._parts)
        # 0-255 even for region numbers: it is what image tools, SB3's among them, take for granted.
        self.observation_space = spaces.Box(0, 255, (channels, *self.shape), np.uint8)
        self.action_space = spaces.MultiBinary(core.bits)
        self.keys = np.zeros(num_envs, np.uint64)
        self.count = np.zeros(num_envs, np.uint64)  # faces drawn, those of `_ahead` as well
        self._ahead: list[np.ndarray] = []
        self.indices: Tensor | None = None
        self.masks: Tensor | None = None
        self._info: dict[str, Any] = {}

    def seed(self, seeds: list[int | None]) -> None:
        """Start the stream of faces of every environment from its seed."""
        for i, seed in enumerate(seeds):
            generator, _ = seeding.np_random(seed)
            self.keys[i] = generator.integers(2**63)
        self.count[:] = 0
        self._ahead = []

    def begin(self, index: Any = None) -> dict[str, Any]:
        """Show the next faces, or the given ones; returns the info of a reset.

        Raises:
            ValueError: an index is out of range, or their number is not that of environments.
        """
        n = len(self.core)
        if index is None:
            chosen = self._draw()
        else:
            chosen = np.asarray(index)
            if chosen.ndim == 0:
                chosen = np.full(self.num_envs, chosen)
            if chosen.shape != (self.num_envs,) or not np.issubdtype(chosen.dtype, np.integer):
                raise ValueError(
                    f"options['index'] must be an integer or {self.num_envs} of them, got {index!r}"
                )
            if chosen.min() < 0 or chosen.max() >= n:
                raise ValueError(f"options['index'] must lie in 0..{n - 1}, got {index!r}")
            chosen = chosen.astype(np.int64)
        self._show(chosen)
        return self.info()

    def _draw(self) -> np.ndarray:
        """The next face of every environment's stream, `(N,)`; many steps are hashed at once."""
        if not self._ahead:
            count = self.count + np.arange(_AHEAD, dtype=np.uint64)[:, None]
            drawn = mix(self.keys + count * GOLDEN) % np.uint64(len(self.core))
            drawn = drawn.astype(np.int64)
            if self._groups is not None:
                first, member = np.divmod(np.arange(self.num_envs), self.alike)
                drawn = self._groups[drawn[:, first * self.alike], member]
            self._ahead = list(drawn[::-1])
            self.count += np.uint64(_AHEAD)
        return self._ahead.pop()

    def _show(self, faces: np.ndarray) -> None:
        self.indices, self.masks = torch.from_numpy(faces), None
        self._info = {
            "index": faces,
            "label": self._labels[faces],
            "action_mask": self.core.present(self.indices).numpy(),
        }

    def info(self) -> dict[str, Any]:
        """Which faces are shown, `(N,)`, their labels, and which regions they have, `(N, K)`."""
        return {key: value.copy() for key, value in self._info.items()}

    def observe(self) -> np.ndarray:
        """What the agent sees of the faces shown: uint8 `(N, C, h, w)`, freshly allocated."""
        assert self.indices is not None
        faces, whole = self.core.faces, self.obs_size is None
        if self.observation == "regions" and whole:
            return self.core.regions(self.indices).unsqueeze(1).numpy()
        obs = torch.empty(
            (self.num_envs, *self.observation_space.shape),
            dtype=torch.uint8,
        )
        first = 0
        for part in self._parts:
            seen = obs[:, first : first + CHANNELS[part]]
            first += CHANNELS[part]
            if part == "image":
                if whole:  # straight to where it is seen, without a copy in between
                    torch.index_select(faces.images, 0, self.indices, out=seen)
                else:
                    shown = faces.images.index_select(0, self.indices).float()
                    seen[:] = F.interpolate(shown, self.shape, mode="area").round()
                continue
            if part == "regions":
                maps = self.core.regions(self.indices, out=seen[:, 0] if whole else None)
            else:
                assert faces.parsing is not None
                maps = faces.parsing[self.indices]
            if part == "parsing" or not whole:
                seen[:] = F.interpolate(maps[:, None], self.shape, mode="nearest-exact")
        return obs.numpy()

    def decide(self, actions: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Apply masks `(N, K)` to the faces shown: rewards `(N,)` float32 and the info of a step.

        Raises:
            ValueError: wrong shape, or values other than 0 and 1.
        """
        if self.indices is None:
            raise RuntimeError("call reset() before step()")
        masks = np.asarray(actions)
        if masks.shape != (self.num_envs, self.core.bits):
            raise ValueError(
                f"actions must be ({self.num_envs}, {self.core.bits}) keep bits, got {masks.shape}"
            )
        bits = masks.astype(np.bool_)
        if not (bits == masks).all():
            raise ValueError("actions are keep bits, 0 (drop) or 1 (keep); found other values")
        self.masks = torch.from_numpy(bits)
        info = self.info()
        outcome = self.core.decide(self.indices.numpy(), bits)
        info["kept"] = outcome.kept.numpy()
        for name, score in (("full", outcome.full), ("masked", outcome.masked)):
            info[f"{name}_correct"] = score.correct.numpy()
            info[f"{name}_margin_correct"] = score.margin_correct.numpy()
            info[f"{name}_margin"] = score.margin.numpy()
        return outcome.reward.numpy(), info

    def state_dict(self) -> dict[str, Any]:
        """Everything random or in progress, as plain numbers."""
        return {
            "keys": self.keys.tolist(),
            "count": (self.count - np.uint64(len(self._ahead))).tolist(),
            "indices": None if self.indices is None else self.indices.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.keys = np.array(state["keys"], np.uint64)
        self.count = np.array(state["count"], np.uint64)
        indices = state["indices"]
        self._ahead = []
        self.indices = self.masks = None
        if indices is not None:
            self._show(np.array(indices, np.int64))
