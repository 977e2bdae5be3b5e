"""Policy gradients with respect to masks that were scored: what REINFORCE and GRPO share."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli

from agents.agent import Agent, Callback
from agents.policy import make_policy


@dataclass
class LearnerOptions:
    """Options of every agent that is trained by our own gradient steps."""

    lr: float = 3e-3
    """Learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; the faces to train on are few."""
    epochs: int = 4
    """Gradient steps on every batch. The first is the policy gradient; the others reweight what was
    sampled by how likely it has become, because scoring a mask costs more than a gradient step."""
    replay: int = 0
    """Past batches kept; all gradient steps on a batch but the first are then taken on it or on one
    of these, drawn at random."""
    entropy: float = 0.15
    """Weight of the entropy bonus at the start, in units of the advantages' spread; it falls to
    zero with the learning rate. Without it the policy settles on keeping everything, because most
    random drops hurt."""
    bound: float = 1.0
    """PatchDrop's bound a on probabilities: a region is sampled as kept with probability
    pa + (1 - p)(1 - a), so never more surely than a. 1 does not bound."""
    bound_end: float | None = None
    """Where the bound goes, in a line, until the end of training: an exploration schedule."""
    width: int = 24
    """Channels of the policy network's first layer."""
    keep: float = 0.75
    """Probability with which every region is kept before training."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this length."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("replay", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("bound", "bound_end"):
            value = getattr(self, name)
            if value is not None and not 0.5 < value <= 1:
                raise ValueError(f"{name} must lie in (0.5, 1], got {value}")


@dataclass
class Batch:
    """What one update learns from.

    Attributes:
        obs: observations `(N, ...)`.
        index: faces `(N,)`, or None if the environment does not say.
        present: which regions the faces have `(N, K)`.
        masks: sampled keep bits `(N, S, K)`.
        advantage: of every sampled bit `(N, S, K)`.
        log_prob: of every sampled bit when it was sampled `(N, S, K)`.
    """

    obs: Tensor
    index: Tensor | None
    present: Tensor
    masks: Tensor
    advantage: Tensor
    log_prob: Tensor


class UpdatingAgent(Agent):
    """What agents share that train a policy network of ours, one update a batch of faces.

    Subclasses say what an update is (`_update`).

    Args:
        env, options, seed, device: see `Agent`.
        keep: probability with which every region is kept before training.
    """

    def __init__(self, env: Any, options: Any, seed: int, device: str, keep: float):
        super().__init__(env, options, seed, device)
        torch.manual_seed(seed)
        options = self.options
        depth, trunk = getattr(options, "depth", 0), getattr(options, "trunk", "")
        policy = make_policy(self.layout, options.width, keep, depth, trunk)
        self.policy = policy.to(self.device)
        self.optimizer = self._make_optimizer()
        self._obs: Any = None
        self._info: dict[str, Any] = {}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        decay = self.options.weight_decay
        return torch.optim.AdamW(self.policy.parameters(), self.options.lr, weight_decay=decay)

    def learn(self, steps: int, callback: Callback | None = None, total: int | None = None) -> Self:
        """See `Agent.learn`; schedules end at `total`."""
        if self._obs is None:
            self._obs, self._info = self.env.reset(seed=self.env_seed)
        while self.steps < steps:
            metrics = self._update(min(1.0, self.steps / (total or steps)))
            if callback is not None:
                callback(self.steps, metrics)
        return self

    def _update(self, progress: float) -> dict[str, float]:
        """One batch of faces; `progress` is the fraction of training that is over."""
        raise NotImplementedError

    def _anneal(self, progress: float) -> float:
        """Set the learning rate on its cosine to zero; returns the fraction that is left of it."""
        left = (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * left
        return left

    def _present(self) -> Tensor:
        """Which regions the faces shown have `(N, K)`."""
        default = np.ones((len(self._obs), self.layout.bits), bool)
        return torch.as_tensor(self._info.get("action_mask", default))

    def _rewards(self, indices: Tensor | None, masks: Tensor) -> Tensor:
        """Rewards of masks `(M, K)` or `(N, G, K)` on faces, without touching the episodes."""
        if not len(masks):
            return torch.empty(0)
        evaluate = getattr(self.env.unwrapped, "evaluate", None)
        if evaluate is None or indices is None:
            raise TypeError(
                f"{self.name} scores further masks of a face: the environment must have "
                "`evaluate(indices, masks)` and say which faces it shows in info['index']"
            )
        return evaluate(indices, masks).reward

    def _step(self, loss: Tensor, batch: dict[str, Any]) -> tuple[float, float]:
        """One gradient step; returns loss and gradient's length. A loss that is no number stops."""
        if not torch.isfinite(loss):
            self.diverged(batch)
        self.optimizer.zero_grad()
        loss.backward()
        limit = self.options.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        self.optimizer.step()
        return loss.item(), float(norm)

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        return super().training_state() | {
            "optimizer": self.optimizer.state_dict(),
            "env": None if self._obs is None else self.env.unwrapped.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["env"] is not None:
            self._obs, self._info = self.env.unwrapped.resume(state["env"])


class Learner(UpdatingAgent):
    """Samples masks, gives each bit its advantage, and follows the gradient for some epochs.

    Subclasses say what the advantages are (`_score`) and may change the surrogate objective.
    """

    Options: ClassVar[Any] = LearnerOptions

    def __init__(self, env: Any, options: Any = None, seed: int = 0, device: str = "cpu"):
        options = self.Options() if options is None else options
        super().__init__(env, options, seed, device, options.keep)
        self._batches: deque[Batch] = deque(maxlen=1 + self._replay)

    @property
    def _replay(self) -> int:
        return getattr(self.options, "replay", 0)

    def _update(self, progress: float) -> dict[str, float]:
        """See `UpdatingAgent._update`; learning rate and entropy bonus reach zero at the end."""
        options = self.options
        left = self._anneal(progress)
        obs = torch.as_tensor(self._obs, device=self.device)
        logits = self.explore(self.policy(obs), progress)
        batch, reward = self._collect(obs, logits.detach().cpu())
        # In units of its own spread, so that one entropy bonus suits every reward.
        scale = batch.advantage.square().sum() / batch.advantage.count_nonzero().clamp_min(1)
        batch.advantage = batch.advantage / scale.sqrt().clamp_min(1e-6)

        self._batches.append(batch)
        for epoch in range(options.epochs):
            if epoch:
                if len(self._batches) > 1:
                    drawn = torch.randint(len(self._batches), (), generator=self.generator)
                    batch = self._batches[int(drawn)]
                logits = self.explore(self.policy(batch.obs), progress)
            sampled, credit = batch.masks.to(self.device).float(), batch.advantage.to(self.device)
            log_prob = -F.binary_cross_entropy_with_logits(
                logits[:, None].expand(sampled.shape), sampled, reduction="none"
            )
            if epoch == 0:
                batch.log_prob = log_prob.detach()
            # One in the first epoch: then the gradient is the policy gradient.
            ratio = (log_prob - batch.log_prob).exp()
            objective = self._surrogate(ratio, credit).sum(2).mean()
            present = batch.present.to(self.device)
            entropy = (Bernoulli(logits=logits).entropy() * present).sum(1).mean()
            policy_loss = self._penalty(batch, logits) - objective
            loss = policy_loss - options.entropy * left * entropy
            _, norm = self._step(loss, vars(batch) | {"logits": logits.detach()})
        self.steps += len(obs)
        return {
            "charts/episodic_return": reward,
            "losses/policy_loss": policy_loss.item(),
            "losses/entropy": entropy.item(),
            "losses/grad_norm": norm,
        }

    def explore(self, logits: Tensor, progress: float) -> Tensor:
        """Logits of what is sampled in training: those of the policy, bounded as PatchDrop does.

        With a probability p and a bound a, that is pa + (1 - p)(1 - a), in [1 - a, a] (Uzkent and
        Ermon, 2020, arXiv 2003.00425). Gradients and the entropy are those of what is sampled.
        """
        start, end = self.options.bound, self.options.bound_end
        bound = start if end is None else start + (end - start) * progress
        if bound == 1:
            return logits
        p = torch.sigmoid(logits)
        return torch.logit(p * bound + (1 - p) * (1 - bound))

    def _collect(self, obs: Tensor, logits: Tensor) -> tuple[Batch, float]:
        """Sample masks from logits `(N, K)`, score them and go on to the next faces.

        Returns:
            The batch, and the mean reward of what was sampled.
        """
        info = self._info
        index = info.get("index")
        batch = Batch(
            obs,
            None if index is None else torch.from_numpy(index),
            self._present(),
            *(torch.empty(0) for _ in range(3)),
        )
        return batch, self._score(batch, logits)

    def _score(self, batch: Batch, logits: Tensor) -> float:
        """Set masks and advantages; returns the mean reward of the masks."""
        raise NotImplementedError

    def _surrogate(self, ratio: Tensor, credit: Tensor) -> Tensor:
        """What to maximise, `(N, S, K)`, of how likely each bit has become, and its advantage."""
        return credit * ratio.clamp(max=2)

    def _penalty(self, batch: Batch, logits: Tensor) -> Tensor | float:
        """What to add to the loss."""
        return 0.0

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        # The next batch pushes the oldest out.
        kept = list(self._batches)[-self._replay :] if self._replay else []
        return super().training_state() | {"batches": [vars(batch) for batch in kept]}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        self._batches.extend(Batch(**batch) for batch in state["batches"])
