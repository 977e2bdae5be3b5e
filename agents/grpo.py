"""GRPO: several masks a face, each judged against the others of its face."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from agents.learner import Batch, Learner, LearnerOptions


@dataclass
class GrpoOptions(LearnerOptions):
    """Options of GRPO."""

    group: int = 8
    """Masks sampled of every face; they are scored in one batch, equal ones once."""
    std: bool = True
    """Divide a face's advantages by their standard deviation, as published. Without (Liu et al.,
    2025, arXiv 2503.20783), faces whose masks differ more in reward count for more."""
    clip: float = 0.2
    """How far the probability of a bit may move within the epochs on a batch before its gradient
    stops."""
    kl: float = 0.0
    """Weight of the Kullback-Leibler divergence from a reference policy: the untrained one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise ValueError(f"group must be at least 2, got {self.group}")


class Grpo(Learner):
    """Group relative policy optimization (Shao et al., 2024, arXiv 2402.03300).

    The advantage of a mask is its reward less the mean of its face's group, for all its bits alike.
    Bits are what tokens are to a language model: the ratio is clipped bit by bit. The divergence
    from the reference policy is computed exactly. Bits of regions that the face does not have get
    no credit.

    Args:
        env: a vector environment with `MultiBinary` actions and `evaluate(indices, masks)`.
        options: size of the group, clipping, divergence, and network.
        seed: of the network's weights, of sampling and of the environment.
        device: of the network.
    """

    name = "grpo"
    Options: ClassVar[Any] = GrpoOptions

    def __init__(
        self, env: Any, options: GrpoOptions | None = None, seed: int = 0, device: str = "cpu"
    ):
        super().__init__(env, options, seed, device)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def _score(self, batch: Batch, logits: Tensor) -> float:
        batch.masks = self._sample(logits[:, None].expand(-1, self.options.group, -1))
        rewards = self._rewards(batch.index, batch.masks)
        # All masks are scored: on to the next faces without a step, which would score one again.
        self._obs, self._info = self.env.reset()
        batch.advantage = self._advantages(rewards)[:, :, None] * batch.present[:, None]
        return float(rewards.mean())

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Advantages `(N, G)` of rewards `(N, G)`."""
        advantage = rewards - rewards.mean(1, keepdim=True)
        if self.options.std:
            advantage = advantage / rewards.std(1, keepdim=True).clamp_min(1e-6)
        return advantage

    def _surrogate(self, ratio: Tensor, credit: Tensor) -> Tensor:
        clipped = ratio.clamp(1 - self.options.clip, 1 + self.options.clip)
        return torch.minimum(credit * ratio, credit * clipped)

    def _penalty(self, batch: Batch, logits: Tensor) -> Tensor | float:
        if not self.options.kl:
            return 0.0
        with torch.no_grad():
            reference = Bernoulli(logits=self.reference(batch.obs))
        present = batch.present.to(logits.device)
        divergence = kl_divergence(Bernoulli(logits=logits), reference) * present
        return self.options.kl * divergence.sum(1).mean()

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        return super().training_state() | {"reference": self.reference.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self.reference.load_state_dict(state["reference"])
