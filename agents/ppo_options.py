"""Options of PPO, apart from it because importing Stable-Baselines3 takes seconds."""

from dataclasses import dataclass


@dataclass
class PpoOptions:
    """Options of Stable-Baselines3's PPO and sb3-contrib's MaskablePPO."""

    lr: float = 3e-3
    """Learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; the faces to train on are few."""
    n_steps: int = 4
    """Steps of every environment between updates; `n_steps` times `num_envs` faces are learned from
    at once."""
    batch_size: int = 64
    """Faces a gradient step."""
    epochs: int = 4
    """Passes over what was collected."""
    clip: float = 0.2
    """How far the probability of a mask may move within them before its gradient stops."""
    entropy: float = 0.02
    """Weight of the entropy bonus at the start; it falls to zero with the learning rate."""
    value: float = 0.5
    """Weight of the value function's loss."""
    width: int = 24
    """Channels of the policy network's first layer."""
    keep: float = 0.75
    """Probability with which every region is kept before training."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this length."""
