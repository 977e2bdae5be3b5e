"""Environments without a batched implementation, stepped one after the other."""

import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor


def vectorized(env: Any) -> VectorEnv:
    """The environment itself if it scores batches, else its copies in a loop, with a warning.

    A single environment becomes a batch of one. What `gym.make_vec` makes of an environment that
    was registered without `vector_entry_point` is looped over without its autoreset, which would
    waste every second step of one-step episodes.
    """
    inner = env.unwrapped
    if isinstance(inner, VectorEnv) and hasattr(inner, "resume"):
        return env
    if isinstance(inner, gym.vector.SyncVectorEnv):
        return LoopedEnv(inner.envs)
    if isinstance(inner, VectorEnv):
        raise TypeError(
            f"{type(inner).__name__} cannot be resumed nor score masks; give the agent a single "
            'environment, or gym.make_vec(..., vectorization_mode="sync")'
        )
    return LoopedEnv([env])


@dataclass
class Rewards:
    """What `LoopedEnv.evaluate` returns: `reward`, `(N,)` or `(N, G)` float32."""

    reward: Tensor


class LoopedEnv(VectorEnv):
    """Single environments with one-step episodes, stepped in a Python loop.

    Every episode starts from a seed that is a function of the first seed, the environment and the
    number of the episode, so that a training is continued exactly by counting. Masks are scored
    beside the episodes by `reset(options={"index": i})` and `step`, in environments whose infos
    name the face shown as `index`.

    Args:
        envs: alike, with `MultiBinary` actions.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, envs: Any):
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        first = self.envs[0]
        warnings.warn(
            f"{first.unwrapped.__class__.__name__} has no batched implementation "
            f"(vector_entry_point): {self.num_envs} copies are stepped one after the other, "
            "which is slow",
            stacklevel=4,
        )
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        self.partition = getattr(first.unwrapped, "partition", None)
        self.core = getattr(first.unwrapped, "core", None)
        self._seed, self._count = 0, 0

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._seed, self._count = int(seed), 0
        index = (options or {}).get("index")
        return self._begin(None if index is None else np.broadcast_to(index, self.num_envs))

    def _begin(self, index: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        results = []
        for i, env in enumerate(self.envs):
            entropy = np.random.SeedSequence([self._seed, i, self._count]).generate_state(1)
            options = None if index is None else {"index": int(index[i])}
            results.append(env.reset(seed=int(entropy[0]), options=options))
        self._count += index is None
        obs, infos = zip(*results, strict=True)
        self._obs = np.stack(obs)
        self._info = _stacked(infos)
        return self._obs, self._info

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        _, rewards, terminated, truncated, infos = zip(*results, strict=True)
        if not all(a or b for a, b in zip(terminated, truncated, strict=True)):
            raise TypeError("agents decide once: episodes must end after one step")
        final_obs = self._obs
        obs, info = self._begin()
        info = info | {"final_obs": final_obs, "final_info": _stacked(infos)}
        done = np.ones(self.num_envs, bool)
        return obs, np.array(rewards, np.float64), done, ~done, info

    def evaluate(self, indices: Any, masks: Any) -> Rewards:
        """Rewards of masks `(N, K)` or `(N, G, K)` on faces `(N,)`; see the class."""
        indices, masks = np.asarray(indices), np.asarray(masks)
        flat = masks.reshape(-1, masks.shape[-1]).astype(np.int8)
        faces = np.repeat(indices, len(flat) // max(len(indices), 1))
        env = self.envs[0]
        if hasattr(env.unwrapped, "evaluate"):
            reward = torch.as_tensor(env.unwrapped.evaluate(faces, flat).reward)
        elif "index" not in self._info:
            raise TypeError(
                f"{type(env.unwrapped).__name__} cannot show a face again: its infos have no "
                "'index'. Choose an agent that scores one mask a face, such as reinforce with "
                "baseline none"
            )
        else:
            rewards = []
            for face, mask in zip(faces, flat, strict=True):
                env.reset(options={"index": int(face)})
                rewards.append(float(env.step(mask)[1]))
            # The first environment goes back to the face that it is showing.
            env.reset(options={"index": int(self._info["index"][0])})
            reward = torch.tensor(rewards)
        return Rewards(reward.float().reshape(masks.shape[:-1]))

    def action_masks(self) -> np.ndarray:
        """Allowed values of every bit, `(N, 2K)` bool: absent regions can only be kept."""
        shape = (self.num_envs, self.single_action_space.n)  # type: ignore[attr-defined]
        present = self._info.get("action_mask", np.ones(shape, bool))
        return np.stack([present, np.ones_like(present)], 2).reshape(self.num_envs, -1)

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence of episodes is."""
        return {"seed": self._seed, "count": self._count, "copies": self.num_envs}

    def resume(self, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from `state_dict()`: the observations and info it was taken at."""
        if state["copies"] != self.num_envs:
            raise ValueError(
                f"the state is of {state['copies']} environments, this one has {self.num_envs}"
            )
        self._seed, self._count = state["seed"], state["count"] - 1
        return self._begin()


def _stacked(infos: Any) -> dict[str, Any]:
    """Arrays of what every info has."""
    return {key: np.stack([np.asarray(info[key]) for info in infos]) for key in infos[0]}
