"""The update rule of SARFace as published, for improvements to be measured against."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.distributions import Bernoulli

from agents.learner import Learner


@dataclass
class SarfaceOptions:
    """Options of the published rule, which does not say any of them: tuned as those of others."""

    lr: float = 3e-4
    """Learning rate of Adam; constant."""
    entropy: float = 0.01
    """Weight of what the published code calls entropy."""
    noise: float = 0.1
    """Standard deviation of the noise added to probabilities while training."""
    width: int = 24
    """Channels of the policy network's first layer."""
    keep: float = 0.75
    """Probability with which every region is kept before training."""


class Sarface(Learner):
    """SARFace's REINFORCE, quirks included, with the network of the other agents.

    As published: there is no baseline, the reward is not scaled, and regions that a face does not
    have get credit; exploration noise is added to the probabilities, which are then clipped to
    [0, 1], so that a clipped bit is certain and gets no gradient; and "entropy" is minus the
    log-probability of the mask that was sampled, whose gradient is zero on average.
    Log-probabilities that would be infinite are held at the precision of float32. The published
    reward is `flip_plain` and the fill `zero`: configs/sarface_agent.yaml.

    Args:
        env: a vector environment with `MultiBinary` actions.
        options: learning rate, noise and network.
        seed: of the network's weights, of sampling and of the environment.
        device: of the network.
    """

    name = "sarface"
    Options: ClassVar[Any] = SarfaceOptions

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.parameters(), self.options.lr)

    def _update(self, progress: float) -> dict[str, float]:
        obs = torch.as_tensor(self._obs, device=self.device)
        keep = torch.sigmoid(self.policy(obs))
        noise = torch.randn(keep.shape, generator=self.generator).to(self.device)
        noisy = Bernoulli((keep + self.options.noise * noise).clamp(1e-7, 1 - 1e-7))
        draws = torch.rand(keep.shape, generator=self.generator).to(self.device)
        masks = (draws < noisy.probs).float()
        actions = masks.cpu().numpy().astype(np.int8)
        self._obs, reward, _, _, self._info = self.env.step(actions)
        gained = torch.as_tensor(reward, dtype=torch.float32, device=self.device)

        log_prob = noisy.log_prob(masks).sum(1)
        policy_loss = -(gained * log_prob).mean()
        entropy = -log_prob.mean()
        loss = policy_loss - self.options.entropy * entropy
        if not torch.isfinite(loss):
            self.diverged({"obs": obs, "masks": masks, "reward": gained, "keep": keep.detach()})
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += len(obs)
        return {
            "charts/episodic_return": float(reward.mean()),
            "losses/policy_loss": policy_loss.item(),
            "losses/entropy": entropy.item(),
        }
