"""REINFORCE for one-step keep/drop decisions, with a self-critical baseline."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributions import Bernoulli

from agents.policy import Layout, make_policy

Callback = Callable[[int, dict[str, float]], None]


@dataclass
class ReinforceOptions:
    """Options of REINFORCE."""

    lr: float = 3e-3
    """Learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; the faces to train on are few."""
    samples: int = 1
    """Masks sampled of every face at a time."""
    epochs: int = 4
    """Gradient steps on every batch. The first is REINFORCE's; the others reweight what was sampled
    by how likely it has become, because scoring a mask costs more than a gradient step."""
    entropy: float = 0.15
    """Weight of the entropy bonus at the start, in units of the advantages' spread; it falls to
    zero with the learning rate. Without it the policy settles on keeping everything, because most
    random drops hurt."""
    width: int = 24
    """Channels of the policy network's first layer."""
    keep: float = 0.75
    """Probability with which every region is kept before training."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this length."""


class Reinforce:
    """REINFORCE (Williams, 1992) with the self-critical baseline of Rennie et al. (2017).

    The baseline is taken bit by bit: the advantage of a sampled bit is the reward of the sampled
    mask minus that of the same mask with this bit at its most likely value. The baseline of a bit
    does not depend on how the bit was sampled, so the gradient stays unbiased, and bits that were
    sampled as they most likely are have no advantage and cost no recognizer call. (One baseline for
    the whole mask credits every region for what the others did; on the embedded world such a policy
    settled on keeping everything.) Bits of regions that the face does not have change nothing and
    get no credit.

    Args:
        env: a vector environment with `MultiBinary` actions and `evaluate(indices, masks)`.
        options: learning rate, entropy bonus and network.
        seed: of the network's weights, of sampling and of the environment.
        device: of the network.
    """

    name = "reinforce"

    def __init__(
        self,
        env: Any,
        options: ReinforceOptions | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.env, self.options, self.seed = env, options or ReinforceOptions(), seed
        self.device = torch.device(device)
        self.layout = Layout.of(env)
        torch.manual_seed(seed)
        self.policy = make_policy(self.layout, self.options.width, self.options.keep)
        self.policy.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), self.options.lr, weight_decay=self.options.weight_decay
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0

    @torch.no_grad()
    def logits(self, obs: np.ndarray) -> Tensor:
        """Keep logits `(N, K)` of observations `(N, ...)`."""
        return self.policy(torch.as_tensor(obs, device=self.device))

    def predict(
        self, obs: np.ndarray, state=None, episode_start=None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Keep bits `(N, K)` int8: the most likely ones, or sampled."""
        single = np.ndim(obs) == len(self.layout.shape)
        logits = self.logits(obs[None] if single else obs).cpu()
        masks = logits > 0 if deterministic else self._sample(logits)
        actions = masks.numpy().astype(np.int8)
        return (actions[0] if single else actions), None

    def _sample(self, logits: Tensor) -> Tensor:
        return torch.rand(logits.shape, generator=self.generator) < torch.sigmoid(logits)

    def learn(self, steps: int, callback: Callback | None = None) -> "Reinforce":
        """Train until `steps` faces have been decided on, counted from the start of training.

        Args:
            steps: environment steps in all; the learning rate reaches zero there.
            callback: called after every update with the step and its metrics.
        """
        if self.steps == 0:
            self._obs, self._info = self.env.reset(seed=self.seed)
        while self.steps < steps:
            left = (1 + math.cos(math.pi * self.steps / steps)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.lr * left
            metrics = self._update(self.options.entropy * left)
            if callback is not None:
                callback(self.steps, metrics)
        return self

    def _update(self, entropy_weight: float) -> dict[str, float]:
        obs = torch.as_tensor(self._obs, device=self.device)
        present = torch.as_tensor(self._info["action_mask"], device=self.device)
        indices = self._info["index"]
        logits = self.policy(obs)
        plain = logits.detach().cpu()
        # (N, S, K): S masks a face. The first is the episode's, the others are scored beside it.
        masks = self._sample(plain[:, None].expand(-1, self.options.samples, -1))
        greedy = plain > 0
        self._obs, reward, _, _, self._info = self.env.step(masks[:, 0].numpy().astype(np.int8))
        first = torch.as_tensor(reward, dtype=torch.float32)
        advantage = self._advantages(indices, masks, greedy, first, present.cpu())
        # In units of its own spread, so that one entropy bonus suits every reward.
        scale = advantage.square().sum() / advantage.count_nonzero().clamp_min(1)
        advantage = advantage / scale.sqrt().clamp_min(1e-6)

        sampled, credit = masks.to(self.device).float(), advantage.to(self.device)
        for epoch in range(self.options.epochs):
            if epoch:
                logits = self.policy(obs)
            log_prob = -F.binary_cross_entropy_with_logits(
                logits[:, None].expand(masks.shape), sampled, reduction="none"
            )
            if epoch == 0:
                before = log_prob.detach()
            # One in the first epoch: then its gradient is that of REINFORCE.
            ratio = (log_prob - before).exp().clamp(max=2)
            entropy = (Bernoulli(logits=logits).entropy() * present).sum(1).mean()
            policy_loss = -(credit * ratio).sum(2).mean()
            loss = policy_loss - entropy_weight * entropy
            self.optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                self.policy.parameters(), self.options.max_grad_norm
            )
            self.optimizer.step()
        self.steps += len(masks)
        return {
            "charts/episodic_return": float(reward.mean()),
            "losses/policy_loss": policy_loss.item(),
            "losses/entropy": entropy.item(),
            "losses/grad_norm": float(norm),
        }

    def _advantages(
        self, indices: np.ndarray, masks: Tensor, greedy: Tensor, first: Tensor, present: Tensor
    ) -> Tensor:
        """Advantage of every sampled bit `(N, S, K)` over the bit's most likely value.

        Args:
            indices: faces `(N,)`.
            masks: sampled keep bits `(N, S, K)`.
            greedy: the most likely keep bits `(N, K)`.
            first: rewards of the first masks `(N,)`.
            present: which regions the faces have `(N, K)`.
        """
        deviates = (masks != greedy[:, None]) & present[:, None]
        face, sample, bit = deviates.nonzero(as_tuple=True)
        returned = masks[face, sample]
        returned[torch.arange(len(bit)), bit] ^= True
        n, others = len(masks), masks[:, 1:].flatten(0, 1)
        shown = torch.from_numpy(indices)
        rewards = self.env.unwrapped.evaluate(
            torch.cat([shown.repeat_interleave(masks.shape[1] - 1), shown[face]]),
            torch.cat([others, returned]),
        ).reward
        sampled = torch.cat([first[:, None], rewards[: len(others)].view(n, -1)], 1)
        advantage = torch.zeros(masks.shape)
        advantage[face, sample, bit] = sampled[face, sample] - rewards[len(others) :]
        return advantage

    def save(self, path: str | Path) -> None:
        """Write the policy's weights and options as safetensors."""
        about = {
            "agent": self.name,
            "options": asdict(self.options),
            "layout": asdict(self.layout),
            "steps": self.steps,
        }
        save_file(self.policy.state_dict(), str(path), {"sarface": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, env: Any, device: str = "cpu") -> "Reinforce":
        """The agent of a file, for an environment with the layout it was trained on.

        Raises:
            ValueError: not an agent's file, or one of another agent or layout.
        """
        about, weights = read_agent(path)
        if about["agent"] != cls.name:
            raise ValueError(f"{path} holds a {about['agent']} agent, not {cls.name}")
        agent = cls(env, ReinforceOptions(**about["options"]), device=device)
        mine = json.loads(json.dumps(asdict(agent.layout)))
        if different := [key for key in mine if mine[key] != about["layout"][key]]:
            raise ValueError(
                f"{path} was trained on another environment: "
                + "; ".join(f"{k} {about['layout'][k]}, here {mine[k]}" for k in different)
            )
        agent.policy.load_state_dict(weights)
        agent.steps = about["steps"]
        return agent

    def training_state(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, loadable with `weights_only=True`."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "env": self.env.unwrapped.episodes.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from `training_state()`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]
        self._obs, self._info = self.env.unwrapped.resume(state["env"])


def read_agent(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save` wrote: the description and the weights.

    Raises:
        ValueError: the file is not an agent's.
    """
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["sarface"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if "agent" not in about:
            raise KeyError("agent")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a saved agent ({error})") from error
    return about, weights
