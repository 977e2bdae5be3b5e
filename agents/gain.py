"""Learns what dropping each region gains, by regression on the rewards of masks that were tried."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.learner import UpdatingAgent

# Augmentation: largest shift as a share of the side, largest change of a colour's brightness.
_SHIFT, _LIGHT = 0.04, 0.2


@dataclass
class GainOptions:
    """Options of gain regression."""

    lr: float = 2e-3
    """Learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; the faces to train on are few."""
    masks: int = 4
    """Masks tried on every face: recognizer calls a step, besides the full image's."""
    epochs: int = 8
    """Gradient steps for every batch of faces, each on as many remembered faces: scoring a mask
    costs more than learning from it again."""
    around: float = 0.5
    """Share of the masks that differ from the policy's own by one block, once it has one; the
    others drop blocks of the full face."""
    own: float = 0.0
    """Share of the masks around the policy's own that are just that one: it may not be as good as
    believed."""
    block: float = 0.7
    """Side of the largest block, as a share of the face's."""
    kin: float = 0.0
    """Share of the blocks in which only regions of one family are dropped, such as what there is of
    the background: so that regions which gain are not hidden by what lies beside them."""
    threshold: float = 0.0
    """A region is dropped when its predicted gain is above this, in units of the rewards' spread:
    more than 0 where dropping for nothing is worse than keeping for nothing."""
    floor: float | None = None
    """If given, losses count up to this many spreads of rewards: how bad a bad mask is matters
    little, and squares of large losses drown small gains."""
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
        for name in ("around", "own", "block", "kin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


class Gain(UpdatingAgent):
    """Predicts what dropping each region of a face gains, and drops those that gain.

    The reward of a mask, less that of keeping everything, is taken to be the sum of the gains of
    what it drops, and the gains are fitted to all masks tried so far by least squares: the direct
    method of contextual bandits (Dudik et al., 2011, arXiv 1103.4601) with a linear model of the
    action. It learns from every mask many times, and a mask teaches about each of its regions.

    What is tried: blocks, because regions that belong together, such as the cells of a grid under
    a scarf, gain little one by one. A block is a random rectangle of the image; the regions whose
    middle lies in it are dropped from the full face, or dropped from or given back to the face as
    the policy would mask it. The latter corrects the sum where regions do not add up. With `kin`,
    some blocks take only the regions of one family: what covers a face often is of one.

    Args:
        env: a vector environment with `MultiBinary` actions and `evaluate(indices, masks)`.
        options: learning rate, what is tried, and network.
        seed: of the network's weights, of what is tried and of the environment.
        device: of the network.
    """

    name = "gain"
    Options: ClassVar[Any] = GainOptions

    def __init__(
        self, env: Any, options: GainOptions | None = None, seed: int = 0, device: str = "cpu"
    ):
        options = GainOptions() if options is None else options
        super().__init__(env, options, seed, device, keep=0.5)
        # What was tried: observations, masks and rewards, one entry a batch of faces.
        self._memory: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale = 1.0
        families = self.layout.families
        self._family = (
            torch.tensor([families.index(family) for family in families]) if families else None
        )

    @torch.no_grad()
    def logits(self, obs: Any) -> Tensor:
        """Keep logits `(N, K)`: gains of keeping beyond the threshold, ten to the rewards' spread.

        Only their sign matters, but where masks are sampled, as in alternating training.
        """
        return 10 * (super().logits(obs) + self.options.threshold)

    def _update(self, progress: float) -> dict[str, float]:
        self._anneal(progress)
        obs = torch.as_tensor(self._obs)
        present = self._info.get("action_mask", np.ones((len(obs), self.layout.bits), bool))
        present = torch.as_tensor(present)
        masks = self._try(obs, present)
        scored = torch.cat([torch.ones_like(masks[:, :1]), masks], 1)
        rewards = self.env.unwrapped.evaluate(self._info["index"], scored).reward
        rewards = rewards[:, 1:] - rewards[:, :1]
        self._memory.append((obs, masks, rewards))
        if len(self._memory) == 1:
            # In units of their spread, so that one learning rate suits every reward.
            self._scale = float(rewards.square().mean().sqrt().clamp_min(1e-6))
        for _ in range(self.options.epochs):
            loss, norm = self._fit(*self._remembered(len(obs)))
        self._obs, self._info = self.env.reset()
        self.steps += len(obs)
        return {
            "charts/episodic_return": float(rewards.mean()),
            "losses/value_loss": loss,
            "losses/grad_norm": norm,
        }

    def _fit(self, obs: Tensor, masks: Tensor, rewards: Tensor) -> tuple[float, float]:
        """One gradient step on faces `(N, ...)`, masks `(N, M, K)` and rewards `(N, M)`."""
        shown = self._augmented(obs) if self.options.augment and self.layout.regions else obs
        predicted = self._predicted(shown.to(self.device), ~masks.to(self.device))
        target = rewards.to(self.device) / self._scale
        if self.options.floor is not None:
            target = target.clamp_min(-self.options.floor)
        loss = (predicted - target).square().mean()
        if not torch.isfinite(loss):
            self.diverged({"obs": obs, "masks": masks, "rewards": rewards})
        self.optimizer.zero_grad()
        loss.backward()
        limit = self.options.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        self.optimizer.step()
        return loss.item(), float(norm)

    def _predicted(self, obs: Tensor, dropped: Tensor) -> Tensor:
        """Rewards `(N, M)`, in units of their spread, for dropping regions `(N, M, K)`."""
        return (dropped.float() * -self.policy(obs)[:, None]).sum(2)

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

    def _remembered(self, n: int) -> tuple[Tensor, ...]:
        """Faces, masks and rewards of n random entries of the memory."""
        size = len(self._memory[0][0])
        chosen = torch.randint(len(self._memory) * size, (n,), generator=self.generator)
        entries = [self._memory[i // size] for i in chosen.tolist()]
        rows = (chosen % size).tolist()
        return tuple(
            torch.stack([entry[part][row] for entry, row in zip(entries, rows, strict=True)])
            for part in range(3)
        )

    def _try(self, obs: Tensor, present: Tensor) -> Tensor:
        """Masks to try `(N, M, K)`; regions that a face lacks are kept, so that they count not."""
        n, m = len(obs), self.options.masks
        base = torch.ones((n, m, self.layout.bits), dtype=torch.bool)
        if self._memory:
            own = self.logits(obs).cpu() > 0
            pick = torch.rand((n, m, 1), generator=self.generator) < self.options.around
            base = torch.where(pick, own[:, None], base)
        block = self._blocks(obs, m)
        give_back = torch.rand((n, m, 1), generator=self.generator) < 0.5
        # Nothing can be given back to a full face.
        whole = base.all(2, keepdim=True)
        masks = torch.where(block, give_back & ~whole, base)
        if self.options.own:
            as_it_is = torch.rand((n, m, 1), generator=self.generator) < self.options.own
            masks = torch.where(as_it_is & ~whole, base, masks)
        return masks | ~present[:, None]

    def _blocks(self, obs: Tensor, m: int) -> Tensor:
        """Which regions lie in m random rectangles of every face `(N, M, K)`."""
        n, k = len(obs), self.layout.bits
        if not self.layout.regions:
            share = torch.rand((n, m, 1), generator=self.generator) * self.options.block
            return torch.rand((n, m, k), generator=self.generator) < share
        middle = self._middles(obs[:, 0])[:, None]
        centre, half = (torch.rand((n, m, 1, 2), generator=self.generator) for _ in range(2))
        half = half * self.options.block / 2
        inside = ((middle - centre).abs() <= half.clamp_min(0.05)).all(3)
        # At least the region nearest to the centre.
        nearest = (middle - centre).square().sum(3).argmin(2, keepdim=True)
        inside = inside.scatter(2, nearest, True)
        if self.options.kin and self._family is not None:
            # That of a random region inside.
            chosen = (inside * torch.rand((n, m, k), generator=self.generator)).argmax(2)
            alike = self._family[chosen][:, :, None] == self._family
            alone = torch.rand((n, m, 1), generator=self.generator) < self.options.kin
            inside &= alike | ~alone
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
            "memory": [torch.cat(part) for part in zip(*self._memory, strict=True)],
            "scale": self._scale,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self._scale = state["scale"]
        parts = [part.split(self.env.num_envs) for part in state["memory"]]
        self._memory = list(zip(*parts, strict=True))
