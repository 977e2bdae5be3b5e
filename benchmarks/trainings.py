"""Trainings that benchmarks compare: a run folder each, stored as they end.

A benchmark that was killed goes on where it was.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import train_agent
from agents.baselines import DropAll, ExhaustiveOracle, FixedMask, GreedyOracle, KeepAll
from agents.confident import second_looks
from agents.evaluation import METRICS, Predicts, Result, evaluate
from agents.registry import load_agent
from agents.validation import Validation
from benchmarks.common import environment
from recognizer.runs import prepare_run, write_json
from train_agent import JUDGE, TrainOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """An agent as it is compared.

    Attributes:
        agent: its name in `--agent`.
        options: what differs from the defaults of its options.
        reward: that it learns from; None for the reward of `TrainOptions`.
        length: of the training, as a multiple of that asked for, because agents differ in what a
            face costs them.
    """

    agent: str
    options: dict[str, Any] = field(default_factory=dict)
    reward: str | None = None
    length: float = 1.0

    def fill_in(self, options: TrainOptions, seed: int) -> TrainOptions:
        """The options of a training of this variant."""
        own = replace(getattr(options, self.agent), **self.options)
        env = replace(options.env, reward=self.reward or options.env.reward)
        steps = round(options.steps * self.length)
        every = max(1, round(options.validate_every * self.length))
        changed = {"agent": self.agent, self.agent: own, "env": env, "seed": seed, "resume": True}
        return replace(options, **changed, steps=steps, validate_every=every)


def stored(path: Path, make: Callable[[], T]) -> T:
    """What the JSON file holds; made and written first if there is none."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())


def share(jobs: list[T], part: str) -> list[T]:
    """The jobs of part `i/n` (counted from 1), so that n processes can divide them.

    Raises:
        ValueError: `part` is not of this form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"part must be i/n with i from 1 to n, such as 1/2; got {part!r}")
    return jobs[int(match[1]) - 1 :: int(match[2])]


def run_folder(runs: str, name: str, number: int) -> Path:
    """Folder of a training by what is trained and its seed or number, free of spaces."""
    return Path(runs) / f"{name.replace(', ', '_').replace(' ', '_')}-{number}"


def trained(options: TrainOptions, folder: Path) -> dict[str, Any]:
    """Train into a run folder, or continue to, and evaluate the best agent on held-out faces.

    Returns:
        `scores` (means of METRICS on `eval_faces` faces of `eval_split`), the learning `curve`
        (steps, recognizer calls, processor seconds, share of validation faces that are
        margin-correct), and how it was made.

    Raises:
        ValueError: the folder holds a run with other options.
    """
    prepare_run(folder, resume=True)
    train_agent.check_config(options, folder)

    def make() -> dict[str, Any]:
        agent = train_agent.train(options, folder)
        result = evaluate(agent, *held_out(options))
        return {
            "scores": {metric: result.mean(metric) for metric in METRICS},
            "curve": curve(folder),
            "best_at": agent.steps,
            "made": environment(),
        }

    result = stored(folder / "result.json", make)
    # Hundreds of megabytes, of agents that remember faces.
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def further_looks(options: TrainOptions, folder: Path) -> dict[str, dict[str, float]]:
    """What `second_looks` make of a run's best agent on held-out faces.

    Returns:
        By policy, the means of METRICS, and `calls`: recognizer calls a face to decide, with those
        that score the decision.
    """

    def make() -> dict[str, dict[str, float]]:
        env, faces = held_out(options)
        agent = load_agent(folder / "best" / "agent.safetensors", env)
        results = [evaluate(policy, env, faces) for policy in second_looks(env, agent)]
        return {
            r.name: {m: r.mean(m) for m in METRICS} | {"calls": r.calls / len(faces)}
            for r in results
        }

    return stored(folder / "looks.json", make)


def held_out(options: TrainOptions) -> tuple[Any, np.ndarray]:
    """The environment that policies are evaluated in, and the faces they are evaluated on."""
    env = train_agent.make_env(options, options.eval_split, JUDGE)
    faces = len(env.unwrapped.core)  # type: ignore[attr-defined]
    return env, np.random.default_rng(0).permutation(faces)[: options.eval_faces]


def curve(folder: Path) -> list[list[float]]:
    """Steps, recognizer calls, processor seconds and score at every validation of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "charts/recognizer_calls", "charts/cpu_seconds", "validation/margin_correct")
    return [[line[name] for name in names] for line in lines if names[-1] in line]


def references(options: TrainOptions, fixed_mask_faces: int) -> dict[str, Any]:
    """What agents are measured against: scores of constants and oracles on held-out faces.

    `validation` holds the share of validation faces that are margin-correct, of constants.
    """
    fixed = FixedMask.search(train_agent.make_env(options, "train", JUDGE), fixed_mask_faces)
    env, faces = held_out(options)
    validation = Validation(train_agent.make_env(options, "val", JUDGE), options.val_faces)
    constants: list[Predicts] = [KeepAll(env), DropAll(env), FixedMask(env, fixed.mask)]
    oracles: list[Predicts] = [GreedyOracle(env), ExhaustiveOracle(env, progress=True)]
    results: list[Result] = [evaluate(policy, env, faces) for policy in constants + oracles]
    return {
        "faces": len(faces),
        "fixed_mask": fixed.mask.int().tolist(),
        "policies": {
            r.name: {m: {"mean": r.mean(m), "interval": r.interval(m)} for m in METRICS}
            for r in results
        },
        "validation": {
            policy.name: validation(policy)["validation/margin_correct"]  # type: ignore[attr-defined]
            for policy in constants
        },
    }
