"""REINFORCE for one-step keep/drop decisions, with a choice of baselines."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from agents.learner import Batch, Learner, LearnerOptions

Baseline = Literal["none", "moving_average", "self_critical", "full", "per_bit", "counterfactual"]


@dataclass
class ReinforceOptions(LearnerOptions):
    """Options of REINFORCE."""

    epochs: int = 8
    """Gradient steps on every batch: the first is the policy gradient, the others reweight what was
    sampled by how likely it has become, because scoring a mask costs more than a gradient step."""
    replay: int = 16
    """Past batches kept; all gradient steps on a batch but the first are then taken on it or on one
    of these, drawn at random."""
    entropy: float = 0.05
    """Weight of the entropy bonus at the start, in units of the advantages' spread; it falls to
    zero with the learning rate."""
    baseline: Baseline = "counterfactual"
    """What a sampled mask's reward is compared with. For the whole mask: nothing, a moving average
    of rewards, the reward of the most likely mask (`self_critical`), or that of the full image
    (`full`). Bit by bit: the reward with this bit at its most likely value (`per_bit`), or with
    this bit flipped (`counterfactual`)."""
    bits: int = 4
    """Counterfactual: how many of a face's bits, drawn at random, are flipped; one recognizer call
    each."""
    samples: int = 1
    """Masks sampled of every face at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in get_args(Baseline):
            raise ValueError(
                f"unknown baseline {self.baseline!r}; there are {', '.join(get_args(Baseline))}"
            )
        for name in ("bits", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Reinforce(Learner):
    """REINFORCE (Williams, 1992); by default every bit is compared with its flip.

    With baseline `per_bit`, the advantage of a sampled bit is the reward of the sampled mask minus
    that of the same mask with this bit at its most likely value: the greedy baseline of Rennie et
    al. (2017, arXiv 1612.00563), taken bit by bit. The baseline of a bit does not depend on how the
    bit was sampled, so the gradient stays unbiased, and bits that were sampled as they most likely
    are have no advantage and cost no recognizer call. (One baseline for the whole mask credits
    every region for what the others did; on the embedded world such a policy settled on keeping
    everything.)

    With `counterfactual`, the advantage of a bit is the difference to the reward with it flipped,
    times the probability of the bit as sampled. This is the expected gradient of the bit given the
    others (as in Foerster et al., 2018, arXiv 1705.08926), without the noise of its sampling; a
    random subset of bits, weighted by the inverse of their share, keeps it unbiased.

    Bits of regions that the face does not have change nothing and get no credit.

    Args:
        env: a vector environment with `MultiBinary` actions and `evaluate(indices, masks)`.
        options: baseline, learning rate, entropy bonus and network.
        seed: of the network's weights, of sampling and of the environment.
        device: of the network.
    """

    name = "reinforce"
    Options: ClassVar[Any] = ReinforceOptions

    def __init__(
        self,
        env: Any,
        options: ReinforceOptions | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        super().__init__(env, options, seed, device)
        self.average = 0.0

    def _score(self, batch: Batch, logits: Tensor) -> float:
        # (N, S, K): S masks a face. The first is the episode's, the others are scored beside it.
        batch.masks = self._sample(logits[:, None].expand(-1, self.options.samples, -1))
        actions = batch.masks[:, 0].numpy().astype(np.int8)
        self._obs, reward, _, _, self._info = self.env.step(actions)
        self._advantages(batch, logits, torch.as_tensor(reward, dtype=torch.float32))
        return float(reward.mean())

    def _advantages(self, batch: Batch, logits: Tensor, first: Tensor) -> None:
        """Set the advantages of the batch's masks, given the rewards `(N,)` of the first ones."""
        masks, present, baseline = batch.masks, batch.present, self.options.baseline
        n, samples, _ = masks.shape
        # The faces and samples that something is compared with, and the masks that do it.
        if baseline in ("per_bit", "counterfactual"):
            weight = self._bit_weights(masks, logits, present)
            face, sample, bit = weight.nonzero(as_tuple=True)
            compared = masks[face, sample]
            compared[torch.arange(len(bit)), bit] ^= True
        else:
            greedy = logits > 0 if baseline == "self_critical" else torch.ones_like(present)
            face = torch.arange(n if baseline in ("self_critical", "full") else 0)
            compared = greedy[face]
        others = masks[:, 1:].flatten(0, 1)
        asked = torch.cat([torch.arange(n).repeat_interleave(samples - 1), face])
        rewards = self._rewards(
            None if batch.index is None else batch.index[asked], torch.cat([others, compared])
        )
        sampled = torch.cat([first[:, None], rewards[: len(others)].view(n, -1)], 1)
        rewards = rewards[len(others) :]
        if baseline in ("per_bit", "counterfactual"):
            batch.advantage = torch.zeros(masks.shape)
            gain = sampled[face, sample] - rewards
            batch.advantage[face, sample, bit] = weight[face, sample, bit] * gain
            return
        if len(rewards):
            sampled = sampled - rewards[:, None]
        elif baseline == "moving_average":
            before, mean = self.average, float(sampled.mean())
            self.average += 0.05 * (mean - self.average)
            sampled = sampled - before
        batch.advantage = sampled[:, :, None] * present[:, None]

    def _bit_weights(self, masks: Tensor, logits: Tensor, present: Tensor) -> Tensor:
        """Weight of every bit's difference to its flip `(N, S, K)`; zeros need not be scored."""
        present = present[:, None].expand(masks.shape)
        if self.options.baseline == "per_bit":
            return ((masks != (logits > 0)[:, None]) & present).float()
        draws = torch.rand(masks.shape, generator=self.generator).masked_fill(~present, 2)
        chosen = (draws.argsort(2).argsort(2) < self.options.bits) & present
        share = chosen.sum(2, keepdim=True) / present.sum(2, keepdim=True).clamp_min(1)
        keep = torch.sigmoid(logits)[:, None]
        likely = torch.where(masks, keep, 1 - keep)
        return (chosen * likely / share.clamp_min(1e-6)).float()

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        return super().training_state() | {"average": self.average}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self.average = state["average"]
