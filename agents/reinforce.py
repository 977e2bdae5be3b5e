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

    lr: float = 1e-3
    """Learning rate of Adam; it falls to zero along a cosine."""
    entropy: float = 0.005
    """Weight of the entropy bonus, which keeps the policy from settling too early."""
    width: int = 24
    """Channels of the policy network's first layer."""
    keep: float = 0.7
    """Probability with which every region is kept before training."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this length."""


class Reinforce:
    """REINFORCE (Williams, 1992) with the self-critical baseline of Rennie et al. (2017).

    Of every face one mask is sampled; its advantage is its reward minus that of the policy's most
    likely mask on the same face, so only what sampling changes is credited. The log-probability
    counts the bits of regions that the face has; all others change nothing.

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
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.options.lr)
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
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.lr * (1 + math.cos(math.pi * self.steps / steps)) / 2
            metrics = self._update()
            if callback is not None:
                callback(self.steps, metrics)
        return self

    def _update(self) -> dict[str, float]:
        obs = torch.as_tensor(self._obs, device=self.device)
        present = torch.as_tensor(self._info["action_mask"], device=self.device)
        indices = self._info["index"]
        logits = self.policy(obs)
        plain = logits.detach().cpu()
        masks = self._sample(plain)

        self._obs, reward, _, _, self._info = self.env.step(masks.numpy().astype(np.int8))
        greedy = self.env.unwrapped.evaluate(indices, plain > 0).reward
        advantage = torch.as_tensor(reward, dtype=torch.float32) - greedy

        log_prob = -F.binary_cross_entropy_with_logits(
            logits, masks.to(self.device).float(), reduction="none"
        )
        entropy = (Bernoulli(logits=logits).entropy() * present).sum(1).mean()
        policy_loss = -(advantage.to(self.device) * (log_prob * present).sum(1)).mean()
        loss = policy_loss - self.options.entropy * entropy
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        self.steps += len(masks)
        return {
            "charts/episodic_return": float(reward.mean()),
            "charts/greedy_return": float(greedy.mean()),
            "losses/policy_loss": policy_loss.item(),
            "losses/entropy": entropy.item(),
            "losses/grad_norm": float(norm),
        }

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
