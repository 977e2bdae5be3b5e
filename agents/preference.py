"""Learns from comparisons: with or without this block, which way is the face recognized better?"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.tried_masks import TriedMasks, TriedMasksOptions
from segmenter.features import ParserFeatures

_GIVE_BACK = 0.4  # share of the blocks that are given back, once something is dropped
_SMALL = 0.6  # every other block is at most this part of the largest


@dataclass
class PreferenceOptions(TriedMasksOptions):
    """Options of learning from comparisons."""

    masks: int = 32
    """Masks tried on every face, one after another: recognizer calls a step, besides the full
    image's. Where only all of an occluder is worth dropping, few do not get that far."""
    epochs: int = 10
    """Gradient steps for every batch of faces, on average, each on as many remembered faces."""
    collect: float = 0.6
    """Share of the training that only tries masks. What is tried does not depend on the network,
    and a network that learned from few faces for long has learned them by heart."""

    finish: float = 1.0
    """Share of the faces that are climbed to the end: those that have gained most after half of the
    masks. Faces that nothing covers have little to gain, and the calls are better spent on more
    faces."""
    weigh: bool = False
    """Comparisons count by how much was gained or lost: learns what gains on average instead of
    what gains more often than not. Where most blocks hide nothing, dropping one of those gains
    little as often as it loses much."""
    trunk: str = ""
    """Name or file of a face parser (`light`) whose features the policy network learns from,
    instead of from pixels: after fewer faces it sees what covers a face. Needs an image to observe,
    as large as there is, and 120 KB of memory for every face; `augment` has no effect then."""
    threshold: float = 0.0
    """A region is kept when its logit is above minus this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.collect < 1:
            raise ValueError(f"collect must lie in [0, 1), got {self.collect}")
        if not 0 < self.finish <= 1:
            raise ValueError(f"finish must lie in (0, 1], got {self.finish}")


class Preference(TriedMasks):
    """Learns which of two masks a face is recognized better by.

    On every training face a hill climb begins with the full face: one random block after another is
    dropped or given back, and what earns more stays. Every such comparison is one of masks a and b;
    the network's keep logits are to say how it ended. By the policy's own log-probabilities,

        log p(a) - log p(b) = sum of the logits of what a keeps and b drops, less those of the
        reverse,

    and the loss is the logistic one of this difference: the model of Bradley and Terry (1952), as
    in direct preference optimization (Rafailov et al., 2023, arXiv 2305.18290) without a reference
    policy. How much was gained plays no part, so faces that gain or lose much do not drown others,
    unless `weigh` says so.
    Faces that the environment covers alike (its `alike`) are climbed together, by what their masks
    gain on average: that is due to what covers them, while what is gained on one face is mostly
    that photograph's alone.
    Later blocks meet faces whose occluder is partly gone already, when the rest of it is worth
    dropping too; but as a sum over regions, it cannot learn what helps only all together.

    Args:
        env, options, seed, device: see `TriedMasks`.
    """

    name = "preference"
    Options: ClassVar[Any] = PreferenceOptions

    def __init__(
        self, env: Any, options: PreferenceOptions | None = None, seed: int = 0, device: str = "cpu"
    ):
        options = PreferenceOptions() if options is None else options
        # More than 0.5: until it has learned something, the policy keeps everything.
        super().__init__(env, options, seed, device, keep=0.525)
        self._alike: int = getattr(self.env.unwrapped, "alike", 1)
        self._seen: dict[int, Tensor] = {}  # by the trunk, of the entries of the memory
        if self.env.num_envs % self._alike:
            raise ValueError(
                f"{self.env.num_envs} environments cannot show whole groups of {self._alike} faces "
                "that are covered alike"
            )

    @torch.no_grad()
    def logits(self, obs: Any) -> Tensor:
        """Keep logits `(N, K)`, beyond the threshold."""
        return super().logits(obs) + self.options.threshold

    def _update(self, progress: float) -> dict[str, float]:
        learned = (progress - self.options.collect) / (1 - self.options.collect)
        self._anneal(max(0.0, learned))
        obs = torch.as_tensor(self._obs)
        change, gain, reward = self._climb(obs, self._present())
        self._memory.append((torch.as_tensor(self._info["index"]), change, gain))
        metrics = {"charts/episodic_return": float(reward.mean())}
        if learned >= 0:
            for _ in range(round(self.options.epochs / (1 - self.options.collect))):
                loss, norm = self._fit(*self._remembered())
            metrics |= {"losses/policy_loss": loss, "losses/grad_norm": norm}
        self._next_faces()
        return metrics

    def _climb(self, obs: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Climb from the full faces, by blocks.

        Returns:
            What every block changed `(N, M, K)` int8, 1 where it gave back and -1 where it dropped;
            what that gained, on average over faces that are covered alike `(N, M)`; and the reward
            of the masks found `(N,)`. Faces whose climb ended before the block have zeros.
        """
        n, m, alike = len(obs), self.options.masks, self._alike
        best = torch.ones_like(present)
        full = reward = self._evaluate(best)
        rows = groups = torch.arange(n).view(-1, alike)  # of the faces that are still climbed
        blocks = self._blocks(obs, m, self.options.block, alike)
        blocks[:, ::2] = self._blocks(obs, m - m // 2, self.options.block * _SMALL, alike)
        changes, gains = [], []
        for step, block in enumerate(blocks.unbind(1)):
            if step == m // 2:
                gained = (reward - full).view(-1, alike).mean(1)
                most = gained.topk(math.ceil(len(gained) * self.options.finish)).indices
                rows = groups[most.sort()[0]]
            give_back = torch.rand((len(groups), 1), generator=self.generator) < _GIVE_BACK
            # Nothing can be given back to full faces.
            give_back &= ~best.view(len(groups), -1).all(1, keepdim=True)
            tried = torch.where(block, give_back.repeat_interleave(alike, 0), best) | ~present
            climbed = rows.flatten()
            gained, change = torch.zeros_like(reward), torch.zeros_like(best, dtype=torch.int8)
            gained[climbed] = self._evaluate(tried[climbed], climbed) - reward[climbed]
            change[climbed] = tried[climbed].to(torch.int8) - best[climbed].to(torch.int8)
            on_average = gained.view(-1, alike).mean(1).repeat_interleave(alike)
            changes.append(change)
            gains.append(on_average)
            better = on_average > 0
            best = torch.where(better[:, None], tried, best)
            reward = torch.where(better, reward + gained, reward)
        return torch.stack(changes, 1), torch.stack(gains, 1), reward

    def _fit(
        self, obs: Tensor, places: Tensor, change: Tensor, gain: Tensor
    ) -> tuple[float, float]:
        """One gradient step on faces `(N, ...)`, from the memory's places, as of `_climb`."""
        change, gain = change.to(self.device).float(), gain.to(self.device)
        if self.options.trunk:
            logits = self.policy(obs.to(self.device), self._by_trunk(places))
        else:
            logits = self.policy(self._shown(obs))
        logits = (change * logits[:, None]).sum(2)
        losses = F.binary_cross_entropy_with_logits(logits, (gain > 0).float(), reduction="none")
        weight = gain.abs() if self.options.weigh else (gain != 0).float()
        loss = (losses * weight).sum() / weight.sum().clamp_min(1e-6)
        return self._step(loss, {"obs": obs, "change": change, "gain": gain})

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self._seen.clear()  # of another memory

    def _by_trunk(self, places: Tensor) -> Tensor:
        """What the policy's trunk sees of remembered faces: it never changes, and takes long."""
        assert isinstance(self.policy.trunk, ParserFeatures)
        size = self.env.num_envs
        for entry in (places // size).unique().tolist():
            if entry not in self._seen:
                # As a whole: rounding depends on the batch, and resumed trainings must agree.
                obs, _ = self.env.reset(options={"index": self._memory[entry][0].numpy()})
                image = torch.as_tensor(obs)[:, -3:].to(self.device)
                self._seen[entry] = self.policy.trunk(image).half().cpu()
        seen = [self._seen[place // size][place % size] for place in places.tolist()]
        return torch.stack(seen).to(self.device).float()
