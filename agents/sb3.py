"""The batched environment as Stable-Baselines3 wants it, and its policies with our encoder."""

import time
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import Tensor, nn

from agents.looped import vectorized
from agents.policy import FlatPolicy, Layout, RegionPolicy, make_policy


class BatchedVecEnv(VecEnv):
    """A Stable-Baselines3 `VecEnv` over a vector environment with one-step episodes.

    Nothing loops over environments. Infos are empty but for the first, whose `episode` holds the
    mean reward of the batch, so that `rollout/ep_rew_mean` is what it says.

    Args:
        env: a `SARFaceVectorEnv`, or what `agents.looped.vectorized` makes into the like of one.
    """

    def __init__(self, env: Any):
        self.venv = vectorized(env)
        self.render_mode = getattr(self.venv, "render_mode", None)
        super().__init__(
            self.venv.num_envs,
            self.venv.single_observation_space,
            self.venv.single_action_space,
        )
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._start = time.monotonic()

    def reset(self) -> np.ndarray:
        obs, _ = self.venv.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, reward, done, _, _ = self.venv.step(self._actions.astype(np.int8))
        elapsed = time.monotonic() - self._start
        self._infos[0] = {"episode": {"r": float(reward.mean()), "l": 1, "t": elapsed}}
        return obs, reward.astype(np.float32), done, self._infos

    def close(self) -> None:
        self.venv.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self.venv.unwrapped, attr_name)
        return [value] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.venv.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """One result an environment, of a method that gives a batch, such as `action_masks`."""
        batch = getattr(self.venv.unwrapped, method_name)(*args, **kwargs)
        return batch if indices is None else batch[list(self._get_indices(indices))]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


class SharedEncoder(BaseFeaturesExtractor):
    """Features of the network that all agents share, flattened.

    Args:
        observation_space: of one environment.
        layout: of the environment.
        width: channels of the first layer.
        keep: probability with which every region is kept before training.
    """

    def __init__(self, observation_space: spaces.Box, layout: Layout, width: int, keep: float):
        policy = make_policy(layout, width, keep)
        super().__init__(observation_space, int(np.prod(policy.feature_shape)))
        self.policy = policy
        self.bytes = observation_space.dtype == np.uint8

    def forward(self, obs: Tensor) -> Tensor:
        """Features `(N, D)` of observations `(N, ...)`, which the library has made floats."""
        return self.policy.features(obs.to(torch.uint8) if self.bytes else obs).flatten(1)


class KeepHead(nn.Module):
    """The last layer of the shared network on flattened features: keep logits.

    Args:
        policy: the network; its weights belong to the encoder and are not registered twice.
        pairs: give `(N, 2K)` logits of dropping and keeping, as MaskablePPO's distribution takes
            them, and not `(N, K)`.
    """

    def __init__(self, policy: RegionPolicy | FlatPolicy, pairs: bool):
        super().__init__()
        self._policy, self.pairs = (policy,), pairs

    def forward(self, features: Tensor) -> Tensor:
        """Action logits of features `(N, D)`."""
        (policy,) = self._policy
        keep = policy.head(features.view(-1, *policy.feature_shape))
        return torch.stack([torch.zeros_like(keep), keep], 2).flatten(1) if self.pairs else keep


class _SharedHeads:
    """Puts `KeepHead` in the place of the library's last layer."""

    pairs = False

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = KeepHead(self.features_extractor.policy, self.pairs)  # type: ignore[attr-defined]
        # Again, without the layer that was replaced.
        self.optimizer = self.optimizer_class(  # type: ignore[attr-defined]
            self.parameters(),  # type: ignore[attr-defined]
            lr=lr_schedule(1),
            **self.optimizer_kwargs,  # type: ignore[attr-defined]
        )


class SharedPolicy(_SharedHeads, ActorCriticPolicy):  # type: ignore[misc]
    """Actor and critic on the shared network, for PPO and A2C."""


class MaskableSharedPolicy(_SharedHeads, MaskableActorCriticPolicy):  # type: ignore[misc]
    """Actor and critic on the shared network, for MaskablePPO."""

    pairs = True


def policy_arguments(layout: Layout, width: int, keep: float, **more: Any) -> dict[str, Any]:
    """`policy_kwargs` for a Stable-Baselines3 algorithm with one of the policies above."""
    return {
        "features_extractor_class": SharedEncoder,
        "features_extractor_kwargs": {"layout": layout, "width": width, "keep": keep},
        "net_arch": [],
        "ortho_init": False,
        "normalize_images": False,
        "optimizer_class": torch.optim.AdamW,
        **more,
    }
