"""PPO and MaskablePPO of Stable-Baselines3, behind the interface of the other agents."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.agent import Agent, Callback
from agents.ppo_options import PpoOptions
from agents.sb3 import BatchedVecEnv, MaskableSharedPolicy, SharedPolicy, policy_arguments


class Ppo(Agent):
    """Proximal policy optimization (Schulman et al., 2017, arXiv 1707.06347) for keep bits.

    The algorithm is Stable-Baselines3's, with the network of the other agents. In one-step episodes
    an advantage is the reward less the value of the face, whatever discount and lambda are.

    `model` is the library's own object: `model.save`, `model.load` (which unpickles: only load
    what you trust) and `evaluate_policy` work on it. The files of `save` hold weights and options
    alone, like those of other agents.

    Args:
        env: a vector environment with `MultiBinary` actions.
        options: of the algorithm and the network.
        seed: of the network's weights, of sampling and of the environment.
        device: of the network.
    """

    name = "ppo"
    Options: ClassVar[Any] = PpoOptions
    policy: Any
    model_class: ClassVar[Any] = PPO
    policy_class: ClassVar[Any] = SharedPolicy

    def __init__(
        self, env: Any, options: PpoOptions | None = None, seed: int = 0, device: str = "cpu"
    ):
        super().__init__(env, options, seed, device)
        options = self.options
        rollout = options.n_steps * self.env.num_envs
        if rollout < 2:
            raise ValueError(
                f"{self.name} learns from n_steps x num_envs faces at once; it needs at least 2"
            )
        self._random: Any = None
        with self._own_randomness():
            self.model = self.model_class(
                self.policy_class,
                BatchedVecEnv(self.env),
                learning_rate=options.lr,
                n_steps=options.n_steps,
                batch_size=math.gcd(options.batch_size, rollout),
                n_epochs=options.epochs,
                clip_range=options.clip,
                vf_coef=options.value,
                max_grad_norm=options.max_grad_norm,
                policy_kwargs=policy_arguments(
                    self.layout,
                    options.width,
                    options.keep,
                    optimizer_kwargs={"weight_decay": options.weight_decay},
                ),
                seed=seed,
                device=self.device,
            )
        self.model.env.seed(self.env_seed)
        self.model.set_logger(Logger(None, []))
        self.policy = self.model.policy

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Stable-Baselines3 draws from global generators: give them back as they were."""
        before = _get_randomness()
        if self._random is not None:
            _set_randomness(*self._random)
        try:
            yield
        finally:
            self._random = _get_randomness()
            _set_randomness(*before)

    def learn(self, steps: int, callback: Callback | None = None, total: int | None = None) -> Self:
        """See `Agent.learn`; it goes on to the end of the collection that reaches `steps`."""
        if self.steps >= steps:
            return self
        watch = _AfterUpdates(self, callback, total or steps)
        model, fresh = self.model, self.steps == 0
        model.num_timesteps = self.steps
        with self._own_randomness():
            try:
                model.learn(
                    steps if fresh else steps - self.steps,
                    watch,
                    log_interval=None,
                    reset_num_timesteps=fresh,
                )
                watch.updated()
            except ValueError:
                # Distributions refuse logits that are not numbers.
                if all(bool(p.isfinite().all()) for p in self.policy.parameters()):
                    raise
                self._stop()
        return self

    def _stop(self) -> NoReturn:
        buffer = self.model.rollout_buffer
        names = ("observations", "actions", "rewards", "values", "log_probs", "advantages")
        self.diverged({name: torch.as_tensor(getattr(buffer, name)) for name in names})

    @torch.no_grad()
    def logits(self, obs: np.ndarray) -> Tensor:
        """Keep logits `(N, K)` of observations `(N, ...)`."""
        return self.policy.features_extractor.policy(torch.as_tensor(obs, device=self.device))

    def training_state(self) -> dict[str, Any]:
        """See `Agent.training_state`."""
        torch_state, (_, keys, *rest) = self._random
        return super().training_state() | {
            "optimizer": self.policy.optimizer.state_dict(),
            "updates": self.model._n_updates,
            "torch_random": torch_state,
            "numpy_random": [keys.astype(np.int64).tolist(), *rest],
            "env": None if self.model._last_obs is None else self.env.unwrapped.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Agent.load_training_state`."""
        super().load_training_state(state)
        model = self.model
        self.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps, model._n_updates = self.steps, state["updates"]
        keys, *rest = state["numpy_random"]
        numpy_state = ("MT19937", np.array(keys, np.uint32), *rest)
        self._random = state["torch_random"], numpy_state
        if state["env"] is not None:
            model._last_obs, _ = self.env.unwrapped.resume(state["env"])
        model._last_episode_starts = np.ones(self.env.num_envs, bool)


class MaskablePpo(Ppo):
    """PPO whose masks never drop regions that the face does not have (sb3-contrib).

    See Huang and Ontañón (2022, arXiv 2006.14171).
    """

    name = "maskable_ppo"
    model_class = MaskablePPO
    policy_class = MaskableSharedPolicy


class _AfterUpdates(BaseCallback):
    """Follows the schedules and reports every update, before the next collection begins."""

    def __init__(self, agent: Ppo, callback: Callback | None, total: int):
        super().__init__()
        self.agent, self.callback, self.total = agent, callback, total

    def _on_training_start(self) -> None:
        self.done = self.agent.steps

    def _on_rollout_start(self) -> None:
        self.updated()
        left = (1 + math.cos(math.pi * min(1.0, self.agent.steps / self.total))) / 2
        options = self.agent.options
        self.model.lr_schedule = lambda _: options.lr * left
        self.model.ent_coef = options.entropy * left  # type: ignore[attr-defined]

    def updated(self) -> None:
        """Report the update that was made since the last call, if any."""
        agent, model = self.agent, self.model
        if model.num_timesteps == self.done:
            return
        self.done = agent.steps = model.num_timesteps
        logged = model.logger.name_to_value
        if not math.isfinite(logged["train/loss"]):
            agent._stop()
        if self.callback is None:
            return
        agent._random = _get_randomness()
        self.callback(
            agent.steps,
            {
                "charts/episodic_return": float(model.rollout_buffer.rewards.mean()),  # type: ignore[attr-defined]
                "losses/policy_loss": float(logged["train/policy_gradient_loss"]),
                "losses/value_loss": float(logged["train/value_loss"]),
                "losses/entropy": -float(logged["train/entropy_loss"]),
                "losses/approx_kl": float(logged["train/approx_kl"]),
                "losses/clipfrac": float(logged["train/clip_fraction"]),
            },
        )

    def _on_step(self) -> bool:
        return True


def _get_randomness() -> tuple[Tensor, Any]:
    return torch.get_rng_state(), np.random.get_state()  # noqa: NPY002  (the library's choice)


def _set_randomness(torch_state: Tensor, numpy_state: Any) -> None:
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
