"""What agents share that try masks on faces, remember the outcome, and learn from it again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.learner import UpdatingAgent

# Augmentation: largest shift as a share of the side, largest change of a colour's brightness.
_SHIFT, _LIGHT = 0.04, 0.2


@dataclass
class TriedMasksOptions:
    """Options of agents that learn from remembered masks."""

    lr: float = 2e-3
    """Learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; the faces to train on are few."""
    masks: int = 4
    """Masks tried on every face: recognizer calls a step, besides the full image's."""
    epochs: int = 8
    """Gradient steps for every batch of faces, each on as many remembered faces: scoring a mask
    costs more than learning from it again."""
    block: float = 0.7
    """Side of the largest block, as a share of the face's."""
    augment: bool = False
    """Learn from faces that are mirrored, shifted and lit otherwise at random. Regions keep their
    numbers, so what was tried on them stays true. Worth it in long trainings."""
    width: int = 24
    """Channels of the policy network's first layer."""
    depth: int = 0
    """Further layers of the policy network, each seeing twice as far as the last: for what covers
    real faces."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this length."""

    def __post_init__(self) -> None:
        for name in ("masks", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.block <= 1:
            raise ValueError(f"block must lie in [0, 1], got {self.block}")


class TriedMasks(UpdatingAgent):
    """An agent that remembers what it tried; subclasses say what that is and what is learned.

    Blocks are tried, because regions that belong together, such as the cells of a grid under a
    scarf, gain little one by one. A block is a random rectangle of the image: the regions whose
    middle lies in it.

    Args:
        env: a vector environment with `MultiBinary` actions and `evaluate(indices, masks)`.
        options: learning rate, what is tried, and network.
        seed: of the network's weights, of what is tried and of the environment.
        device: of the network.
        keep: probability with which every region is kept before training.
    """

    def __init__(self, env: Any, options: Any, seed: int, device: str, keep: float = 0.5):
        super().__init__(env, options, seed, device, keep)
        # One entry a batch of faces: tensors whose rows are faces, their numbers first.
        self._memory: list[tuple[Tensor, ...]] = []

    def _evaluate(self, masks: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Rewards `(N,)` or `(N, M)` of masks `(N, K)` or `(N, M, K)` of faces shown, by row."""
        index = self._info.get("index")
        return self._rewards(None if index is None else torch.as_tensor(index)[rows], masks)

    def _next_faces(self) -> None:
        self.steps += len(self._obs)
        self._obs, self._info = self.env.reset()

    def _shown(self, obs: Tensor) -> Tensor:
        """Observations as they are learned from, on the network's device."""
        if self.options.augment and self.layout.regions:
            obs = self._augmented(obs)
        return obs.to(self.device)

    def _augmented(self, obs: Tensor) -> Tensor:
        """Observations `(N, C, H, W)`: half mirrored, all shifted, each in its own light."""
        n, _, height, width = obs.shape
        mirrored = torch.rand(n, generator=self.generator) < 0.5
        obs = torch.where(mirrored[:, None, None, None], obs.flip(3), obs)
        dy, dx = (2 * torch.rand(2, generator=self.generator) - 1) * _SHIFT
        rows = (torch.arange(height) + round(float(dy * height))).clamp(0, height - 1)
        columns = (torch.arange(width) + round(float(dx * width))).clamp(0, width - 1)
        obs = obs[:, :, rows][:, :, :, columns]
        light = 1 + _LIGHT * (2 * torch.rand((n, 3, 1, 1), generator=self.generator) - 1)
        if obs.shape[1] == 1:  # no image
            return obs
        image = (obs[:, -3:] * light).clamp(0, 255).to(torch.uint8)
        return torch.cat([obs[:, :-3], image], 1)

    def _remembered(self) -> tuple[Tensor, ...]:
        """As many random faces as are shown.

        Returns:
            Their observations, their places in the memory `(N,)`, and what else was remembered.
        """
        n = self.env.num_envs
        size = len(self._memory[0][0])
        chosen = torch.randint(len(self._memory) * size, (n,), generator=self.generator)
        entries = [self._memory[i // size] for i in chosen.tolist()]
        rows = (chosen % size).tolist()
        index, *parts = (
            torch.stack([entry[part][row] for entry, row in zip(entries, rows, strict=True)])
            for part in range(len(self._memory[0]))
        )
        # Seen again, because observations take a hundred times the memory of all else.
        obs, _ = self.env.reset(options={"index": index.numpy()})
        return torch.as_tensor(obs), chosen, *parts

    def _blocks(self, obs: Tensor, m: int, largest: float, alike: int = 1) -> Tensor:
        """Which regions lie in m random rectangles of every face `(N, M, K)`.

        So many faces in a row have the same rectangles as `alike` says.
        """

        def rand(*shape: int) -> Tensor:
            drawn = torch.rand((len(obs) // alike, m, *shape), generator=self.generator)
            return drawn.repeat_interleave(alike, 0)

        if not self.layout.regions:
            share = rand(1) * largest
            return rand(self.layout.bits) < share
        middle = self._middles(obs[:, 0])[:, None]
        centre, half = rand(1, 2), rand(1, 2)
        half = half * largest / 2
        inside = ((middle - centre).abs() <= half.clamp_min(0.05)).all(3)
        # At least the region nearest to the centre.
        nearest = (middle - centre).square().sum(3).argmin(2, keepdim=True)
        inside = inside.scatter(2, nearest, True)
        return inside

    def _middles(self, regions: Tensor) -> Tensor:
        """Middle of every selectable region `(N, K, 2)`, 0 to 1; far away if it is absent."""
        n, h, w = regions.shape
        every, device = self.layout.regions, regions.device
        flat = regions.flatten(1).long() + every * torch.arange(n, device=device)[:, None]
        y, x = torch.arange(h, device=device) + 0.5, torch.arange(w, device=device) + 0.5
        y = y.div(h)[:, None].expand(h, w).flatten().repeat(n)
        x = x.div(w).expand(h, w).flatten().repeat(n)
        sums = [
            torch.bincount(flat.flatten(), weight, n * every).view(n, every)
            for weight in (None, y.double(), x.double())
        ]
        middle = torch.stack(sums[1:], 2) / sums[0][:, :, None]
        middle = torch.nan_to_num(middle.float(), nan=-10.0)
        return middle[:, list(self.layout.selectable)]

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        return super().training_state() | {
            "memory": [torch.cat(part) for part in zip(*self._memory, strict=True)]
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        parts = [part.split(self.env.num_envs) for part in state["memory"]]
        self._memory = list(zip(*parts, strict=True))
