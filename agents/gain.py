"""Learns what dropping each region gains, by regression on the rewards of masks that were tried."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.tried_masks import TriedMasks, TriedMasksOptions


@dataclass
class GainOptions(TriedMasksOptions):
    """Options of gain regression."""

    around: float = 0.5
    """Share of the masks that differ from the policy's own by one block, once it has one; the
    others drop blocks of the full face."""
    own: float = 0.0
    """Share of the masks around the policy's own that are just that one: it may not be as good as
    believed."""
    kin: float = 0.0
    """Share of the blocks in which only regions of one family are dropped, such as what there is of
    the background: so that regions which gain are not hidden by what lies beside them."""
    threshold: float = 0.0
    """A region is dropped when its predicted gain is above this, in units of the rewards' spread:
    more than 0 where dropping for nothing is worse than keeping for nothing."""
    floor: float | None = None
    """If given, losses count up to this many spreads of rewards: how bad a bad mask is matters
    little, and squares of large losses drown small gains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("around", "own", "kin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


class Gain(TriedMasks):
    """Predicts what dropping each region of a face gains, and drops those that gain.

    The reward of a mask, less that of keeping everything, is taken to be the sum of the gains of
    what it drops, and the gains are fitted to all masks tried so far by least squares: the direct
    method of contextual bandits (Dudik et al., 2011, arXiv 1103.4601) with a linear model of the
    action. It learns from every mask many times, and a mask teaches about each of its regions.

    What is tried: blocks are dropped from the full face, or dropped from or given back to the face
    as the policy would mask it. The latter corrects the sum where regions do not add up. With
    `kin`, some blocks take only the regions of one family: what covers a face often is of one.

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
        super().__init__(env, options, seed, device)
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
        obs, present = torch.as_tensor(self._obs), self._present()
        masks = self._try(obs, present)
        rewards = self._evaluate(torch.cat([torch.ones_like(masks[:, :1]), masks], 1))
        rewards = rewards[:, 1:] - rewards[:, :1]
        self._memory.append((torch.as_tensor(self._info["index"]), masks, rewards))
        if len(self._memory) == 1:
            # In units of their spread, so that one learning rate suits every reward.
            self._scale = float(rewards.square().mean().sqrt().clamp_min(1e-6))
        for _ in range(self.options.epochs):
            seen, _, *tried = self._remembered()
            loss, norm = self._fit(seen, *tried)
        self._next_faces()
        return {
            "charts/episodic_return": float(rewards.mean()),
            "losses/value_loss": loss,
            "losses/grad_norm": norm,
        }

    def _fit(self, obs: Tensor, masks: Tensor, rewards: Tensor) -> tuple[float, float]:
        """One gradient step on faces `(N, ...)`, masks `(N, M, K)` and rewards `(N, M)`."""
        predicted = self._predicted(self._shown(obs), ~masks.to(self.device))
        target = rewards.to(self.device) / self._scale
        if self.options.floor is not None:
            target = target.clamp_min(-self.options.floor)
        loss = (predicted - target).square().mean()
        return self._step(loss, {"obs": obs, "masks": masks, "rewards": rewards})

    def _predicted(self, obs: Tensor, dropped: Tensor) -> Tensor:
        """Rewards `(N, M)`, in units of their spread, for dropping regions `(N, M, K)`."""
        return (dropped.float() * -self.policy(obs)[:, None]).sum(2)

    def _try(self, obs: Tensor, present: Tensor) -> Tensor:
        """Masks to try `(N, M, K)`; regions that a face lacks are kept, so that they count not."""
        n, m = len(obs), self.options.masks
        base = torch.ones((n, m, self.layout.bits), dtype=torch.bool)
        if self._memory:
            own = self.logits(obs).cpu() > 0
            pick = torch.rand((n, m, 1), generator=self.generator) < self.options.around
            base = torch.where(pick, own[:, None], base)
        block = self._blocks(obs, m, self.options.block)
        give_back = torch.rand((n, m, 1), generator=self.generator) < 0.5
        # Nothing can be given back to a full face.
        whole = base.all(2, keepdim=True)
        masks = torch.where(block, give_back & ~whole, base)
        if self.options.own:
            as_it_is = torch.rand((n, m, 1), generator=self.generator) < self.options.own
            masks = torch.where(as_it_is & ~whole, base, masks)
        return masks | ~present[:, None]

    def _blocks(self, obs: Tensor, m: int, largest: float, alike: int = 1) -> Tensor:
        inside = super()._blocks(obs, m, largest, alike)
        if self.options.kin and self._family is not None:
            # That of a random region inside.
            chosen = (inside * torch.rand(inside.shape, generator=self.generator)).argmax(2)
            same = self._family[chosen][:, :, None] == self._family
            alone = torch.rand((*inside.shape[:2], 1), generator=self.generator) < self.options.kin
            inside &= same | ~alone
        return inside

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        return super().training_state() | {"scale": self._scale}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self._scale = state["scale"]
