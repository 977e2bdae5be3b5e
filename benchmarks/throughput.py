"""How fast the environment is beside its own recognizer, and where the time goes.

Everything in a section is measured in turn within one run. Rates need a quiet machine, and so do
ratios of small batches; those of large ones hold on a busy one too. No section takes more than two
minutes a recognizer. Sections:

1. the recognizer's eager forward (1.0), eager with the allocator as the system has it,
   channels-last, and the inference engine;
2. `SARFaceVectorEnv.step`, with resets, observations and infos, on random masks;
3. Gymnasium's SyncVectorEnv and AsyncVectorEnv over single environments;
4. Stable-Baselines3 collecting rollouts through our adapter, and through DummyVecEnv;
5. GRPO's group scoring while it learns on the training faces;
6. a training step of every agent: environment, policy forward, update;
7. partitioning, and the parts of a vector step;
8. memory.

Sections that are not asked for keep their results in the file, and so do recognizers and batch
sizes. IR-50 takes 60 ms a face on two cores: fewer rounds of it are measured, of 64 faces only what
matters most, and 256 only on demand.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks import throughput_figures as figures
from benchmarks import throughput_sections as sections
from benchmarks.common import RESULTS, environment, print_table, write_results
from benchmarks.throughput_memory import memory
from benchmarks.throughput_setup import Setup, make_setup
from recognizer.cli import parse_options


@dataclass
class Options:
    """Measure throughput; about ten minutes, or one with --quick true."""

    sections: list[int] = field(default_factory=lambda: list(range(1, 9)))
    """Which sections."""
    recognizers: list[str] = field(default_factory=lambda: ["faceworld", "resnet29", "ir_50"])
    """Recognizers of sections 1 to 3: `faceworld` (the embedded one), `resnet29`, or a backbone
    with random weights."""
    batches: list[int] = field(default_factory=lambda: [1, 16, 64, 256])
    """Batch sizes and numbers of environments."""
    ir50_up_to: int = 64
    """Largest of them for IR-50."""
    ir50_all_up_to: int = 16
    """Largest of them for IR-50 with all contenders; beyond it, only those that matter most."""
    seconds: float = 8.0
    """For each recognizer and batch size."""
    sync_up_to: int = 64
    """Largest number of environments that are stepped one after the other."""
    async_up_to: int = 16
    """Largest number of environments in processes of their own."""
    grpo_faces: int = 8_192
    """Faces that GRPO learns from in section 5."""
    memory_envs: list[int] = field(default_factory=lambda: [64, 256, 1024, 2048])
    """Numbers of environments in section 8."""
    memory_steps: int = 1100
    """Steps over which memory must not grow."""
    quick: bool = False
    """Small batches, short timings: to see that it runs."""
    name: str = "throughput"
    """Name of the files in benchmarks/results."""

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.sections) - set(range(1, 9))):
            raise ValueError(f"sections are numbered 1 to 8, got {wrong}")
        if self.quick:
            self.recognizers = [name for name in self.recognizers if name == "faceworld"]
            self.batches, self.seconds = [1, 16], 0.5
            self.sync_up_to, self.async_up_to = 16, 1
            self.grpo_faces = 256
            self.memory_envs, self.memory_steps = [64, 256], 150


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.throughput`."""
    options = parse_options(Options, argv)
    sections.quiet()
    path = RESULTS / f"{options.name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    about = environment("gymnasium", "stable-baselines3") | {"threads": torch.get_num_threads()}
    for name, measure in plan(options):
        start = time.monotonic()
        measured = measure()
        print(f"\n{name} ({time.monotonic() - start:.0f} s)")
        report(name, measured)
        if name.startswith("rates"):
            before = results.get(name, {})
            measured = before | {n: before.get(n, {}) | rows for n, rows in measured.items()}
        results[name] = measured | {"environment": about}
        write_results(options.name, {"environment": about} | results)
    figures.draw(results, RESULTS / f"{options.name}.png")


def plan(options: Options) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """What to measure, by name of the result."""
    asked, embedded = set(options.sections), partial(make_setup, "faceworld")
    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for name in options.recognizers:
        slow = name == "ir_50"
        setup = partial(make_setup, name, 32 if slow else 256)
        batches = [n for n in options.batches if not slow or n <= options.ir50_up_to]
        if asked & {1, 2, 3}:
            all_up_to = options.ir50_all_up_to if slow else max(options.batches)
            rounds = 3 if slow else 5
            todo.append(
                (f"rates, {name}", partial(rates, setup, batches, all_up_to, rounds, options))
            )
        if 2 in asked:
            todo.append((f"agreement, {name}", partial(agreement, setup)))
        if 7 in asked and not slow:
            todo.append((f"parts of a step, {name}", partial(parts, setup, options)))
    if 4 in asked:
        n = min(options.batches, key=lambda n: abs(n - 64))
        seconds = 2 * options.seconds
        todo.append(("rollouts", lambda: {str(n): sections.rollouts(embedded(), n, seconds)}))
    if 5 in asked:
        learned = partial(make_setup, "faceworld", 8000, "train")
        faces = options.grpo_faces
        todo.append(("group scoring", lambda: sections.group_scoring(learned(), faces)))
    if 6 in asked:
        seconds = options.seconds
        todo.append(("training steps", lambda: sections.training_steps(embedded(), seconds)))
    if 8 in asked:
        todo.append(("memory", lambda: memory(options.memory_envs, options.memory_steps)))
    return todo


def rates(
    setup: Callable[[], Setup], batches: list[int], all_up_to: int, rounds: int, options: Options
) -> dict[str, Any]:
    """Sections 1 to 3, those that are asked for."""
    return sections.rates(
        setup(),
        batches,
        set(options.sections),
        options.seconds,
        options.sync_up_to,
        options.async_up_to,
        all_up_to,
        rounds,
    )


def agreement(setup: Callable[[], Setup]) -> dict[str, Any]:
    """Section 2: the environment's numbers against the eager recognizer's."""
    return sections.agreement(setup(), 128)


def parts(setup: Callable[[], Setup], options: Options) -> dict[str, Any]:
    """Section 7."""
    return sections.step_parts(setup(), options.batches, options.seconds / 2)


def report(name: str, measured: dict[str, Any]) -> None:
    """Print a table of what was measured."""
    if name.startswith("rates") or name == "rollouts":
        print_table(
            ["faces", "what", "a second", "quartiles", "rounds", "ratio"],
            [
                [
                    n,
                    what,
                    f"{row['per_second']:.1f}",
                    "{:.1f}-{:.1f}".format(*row["quartiles"]),
                    row["rounds"],
                    f"{row['ratio']:.2f}",
                ]
                for n, rows in measured.items()
                for what, row in rows.items()
            ],
        )
    elif name.startswith("parts"):
        _table("environments", measured, "us")
    elif name == "training steps":
        _table("agent", measured, "ms")
    else:
        print(json.dumps(measured, indent=1))


def _table(first: str, rows: dict[str, Any], unit: str) -> None:
    names, plain = list(next(iter(rows.values()))), ("faces_per_second", "updates")
    print_table(
        [first, *(name if name in plain else f"{name} {unit}" for name in names)],
        [[n, *(f"{row[name]:.4g}" for name in names)] for n, row in rows.items()],
    )


if __name__ == "__main__":
    main()
