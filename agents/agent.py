"""What agents that learn have in common: the interface, files of weights, a stop on NaN."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from agents.looped import vectorized
from agents.policy import Layout

Callback = Callable[[int, dict[str, float]], None]


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class NoOptions:
    """An agent without options."""


class Agent:
    """A learner of keep/drop bits; subclasses set `policy` and give `learn` and the state.

    Args:
        env: a vector environment with `MultiBinary` actions; others are looped over, slowly.
        options: an instance of `Options`, its defaults if None.
        seed: of the network's weights, of sampling and of the faces drawn.
        device: of the network.

    Attributes:
        name: what `make_agent` and `--agent` call it.
        Options: dataclass of its options.
        policy: the network; what `save` writes are its weights.
        steps: faces decided on so far in training.
        folder: where a batch whose loss is no number is saved, if given.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[Any] = NoOptions
    policy: nn.Module

    def __init__(self, env: Any, options: Any = None, seed: int = 0, device: str = "cpu"):
        self.env: Any = vectorized(env)
        self.options = self.Options() if options is None else options
        self.seed, self.device = seed, torch.device(device)
        self.layout = Layout.of(self.env)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.folder: Path | None = None

    @property
    def env_seed(self) -> int:
        """Seed of the faces drawn: environment i has `env_seed + i`.

        Far apart for neighbouring seeds, which would otherwise draw mostly the same faces.
        """
        return int(np.random.default_rng(self.seed).integers(2**31))

    def learn(self, steps: int, callback: Callback | None = None, total: int | None = None) -> Self:
        """Train until `steps` faces have been decided on, counted from the start of training.

        Args:
            steps: environment steps in all.
            callback: called after every update with the step and its metrics.
            total: where schedules end, when training goes on after `steps`; `steps` by default.
        """
        raise NotImplementedError

    @torch.no_grad()
    def logits(self, obs: np.ndarray) -> Tensor:
        """Keep logits `(N, K)` of observations `(N, ...)`."""
        return self.policy(torch.as_tensor(obs, device=self.device))

    def predict(
        self, obs: np.ndarray, state=None, episode_start=None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Keep bits `(N, K)` int8: the most likely ones, or sampled; `(K,)` for one face."""
        single = np.ndim(obs) == len(self.layout.shape)
        logits = self.logits(obs[None] if single else obs).cpu()
        masks = logits > 0 if deterministic else self._sample(logits)
        actions = masks.numpy().astype(np.int8)
        return (actions[0] if single else actions), None

    def _sample(self, logits: Tensor) -> Tensor:
        return torch.rand(logits.shape, generator=self.generator) < torch.sigmoid(logits)

    def training_state(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, loadable with `weights_only=True`."""
        return {
            "agent": self.name,
            "policy": self.policy.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from `training_state()`.

        Raises:
            ValueError: it is another agent's.
        """
        if state["agent"] != self.name:
            raise ValueError(f"the training state is of agent {state['agent']}, not {self.name}")
        self.policy.load_state_dict(state["policy"])
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]

    def save(self, path: str | Path) -> None:
        """Write the policy's weights and options as safetensors; the file appears whole."""
        about = {
            "agent": self.name,
            "options": asdict(self.options),
            "layout": asdict(self.layout),
            "steps": self.steps,
        }
        temporary = Path(f"{path}.tmp")
        # Networks that share layers name some tensors twice; `load_model` fills in both.
        once = {value.data_ptr(): key for key, value in reversed(self.policy.state_dict().items())}
        weights = self.policy.state_dict()
        weights = {key: weights[key].contiguous() for key in sorted(once.values())}
        save_file(weights, temporary, {"sarface": json.dumps(about)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path, env: Any, device: str = "cpu") -> Self:
        """The agent of a file, for an environment with the layout it was trained on.

        Raises:
            ValueError: not an agent's file, or one of another agent, partition or observation.
        """
        about = read_agent(path)
        if about["agent"] != cls.name:
            raise ValueError(f"{path} holds a {about['agent']} agent, not {cls.name}")
        agent = cls(env, make_options(cls, about["options"]), 0, device)
        mine = json.loads(json.dumps(asdict(agent.layout)))
        theirs = mine | about["layout"]
        if different := [key for key in mine if mine[key] != theirs[key]]:
            raise ValueError(
                f"{path} was trained on another environment: "
                + "; ".join(f"{k} {theirs[k]}, here {mine[k]}" for k in different)
            )
        load_model(agent.policy, path)
        agent.steps = about["steps"]
        return agent

    def diverged(self, batch: dict[str, Any]) -> NoReturn:
        """Save the batch whose loss is no number for inspection, and stop.

        Raises:
            DivergedError: always; the message says where the batch is.
        """
        kept = "give a run folder to keep the batch"
        if self.folder is not None:
            path = self.folder / "diverged.pt"
            torch.save(batch | {"weights": self.policy.state_dict(), "steps": self.steps}, path)
            kept = f"the batch and the weights are in {path} (torch.load)"
        lr = getattr(self.options, "lr", None)
        raise DivergedError(
            f"the loss of {self.name} is not a number after {self.steps} steps; {kept}. Look for "
            f"rewards or observations that are not finite, or lower lr (now {lr})"
        )


def make_options(agent: type[Agent], values: dict[str, Any]) -> Any:
    """The options of an agent from names and values.

    Raises:
        ValueError: the agent has no such options; the message lists what exists.
    """
    known = [field.name for field in fields(agent.Options)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(
            f"agent {agent.name} has no option {', '.join(unknown)}; "
            f"there are {', '.join(known) or 'none'}"
        )
    return agent.Options(**values)


def read_agent(path: str | Path) -> dict[str, Any]:
    """What `save` wrote beside the weights: `agent`, `options`, `layout` and `steps`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an agent's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no saved agent at {path}")
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["sarface"])
        if "agent" not in about:
            raise KeyError("agent")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a saved agent ({error})") from error
    return about
