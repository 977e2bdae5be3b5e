"""Agents by name: those of this package, and those that other packages add.

A package adds agents with an entry point in the group `sarface.agents`:

    [options.entry_points]
    sarface.agents =
        mine = my_package.agents:Mine

where `Mine` is an `agents.agent.Agent`; see docs/custom_agent.md.
"""

from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from agents.agent import Agent, make_options, read_agent

GROUP = "sarface.agents"
# By name and not by class: Stable-Baselines3 takes seconds to import.
AGENTS = {
    "reinforce": "agents.reinforce:Reinforce",
    "sarface": "agents.sarface:Sarface",
    "grpo": "agents.grpo:Grpo",
    "gain": "agents.gain:Gain",
    "value": "agents.value:Value",
    "preference": "agents.preference:Preference",
    "ppo": "agents.ppo:Ppo",
    "maskable_ppo": "agents.ppo:MaskablePpo",
}


def agent_names() -> list[str]:
    """Names that `make_agent` takes."""
    return [*AGENTS, *sorted(entry_points(group=GROUP).names - set(AGENTS))]


def check_agent(name: str) -> None:
    """Raise ValueError, with a list of what exists, if no agent has this name."""
    if name not in agent_names():
        raise ValueError(f"unknown agent {name!r}; there are {', '.join(agent_names())}")


def agent_class(name: str) -> type[Agent]:
    """The class of an agent.

    Raises:
        ValueError: no agent has this name; the message lists what exists.
    """
    check_agent(name)
    if name in AGENTS:
        return resolve_name(AGENTS[name])
    (entry, *_) = entry_points(group=GROUP, name=name)
    return entry.load()


def make_agent(
    name: str, env: Any, config: Any = None, seed: int = 0, device: str = "cpu"
) -> Agent:
    """An agent, ready to `learn`, for an environment.

    Args:
        name: one of `agent_names()`.
        env: a vector environment, best a batched one; others are looped over with a warning.
        config: the agent's options: an instance of its `Options`, or a dict of some of them.
        seed: of weights, sampling and faces.
        device: of the network.

    Raises:
        ValueError: unknown agent or option; the message lists what exists.
        TypeError: `config` holds the options of another agent, or the actions are not
            `MultiBinary`.
    """
    cls = agent_class(name)
    if config is None or isinstance(config, dict):
        config = make_options(cls, config or {})
    if not isinstance(config, cls.Options):
        raise TypeError(
            f"agent {name} takes {cls.Options.__name__} or a dict, got {type(config).__name__}"
        )
    return cls(env, config, seed, device)


def load_agent(path: str | Path, env: Any, device: str = "cpu") -> Agent:
    """The agent of a file that `save` wrote, whichever it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an agent's file, an unknown agent, or one of another environment.
    """
    return agent_class(read_agent(path)["agent"]).load(path, env, device)
