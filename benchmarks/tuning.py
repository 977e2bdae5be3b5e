"""The same number of configurations for every agent, scored on validation faces.

The best of each are what `benchmarks.agents` compares: the defaults of the agents' options, or what
its `VARIANTS` say; a test compares them with the committed benchmarks/results/tuning.json.
Trainings are stored as they end, and several processes may divide them, as in `benchmarks.agents`.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.agents import VARIANTS
from benchmarks.common import environment, print_table, write_results
from benchmarks.trainings import Variant, run_folder, share, trained
from recognizer.cli import parse_options
from train_agent import TrainOptions

# Options of the agent; `reward` is the environment's, where it is not this one.
REWARD = "flip+margin"
PPO: list[dict[str, Any]] = [
    {"lr": 3e-3, "entropy": 0.02, "n_steps": 4},
    {"lr": 3e-3, "entropy": 0.005, "n_steps": 8},
    {"lr": 1e-3, "entropy": 0.02, "n_steps": 4},
    {"lr": 3e-3, "entropy": 0.02, "n_steps": 4, "reward": "margin"},
]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    # Its reward is part of the published rule.
    "sarface": [
        {"lr": 1e-3, "noise": 0.1, "keep": 0.5, "reward": "flip_plain"},
        {"lr": 1e-3, "noise": 0.03, "keep": 0.75, "reward": "flip_plain"},
        {"lr": 3e-4, "noise": 0.1, "keep": 0.75, "reward": "flip_plain"},
        {"lr": 3e-3, "noise": 0.1, "keep": 0.75, "reward": "flip_plain"},
    ],
    "reinforce, per bit": [
        {"lr": 3e-3, "entropy": 0.15, "epochs": 4, "replay": 0},
        {"lr": 3e-3, "entropy": 0.02, "epochs": 8, "replay": 32},
        {"lr": 3e-3, "entropy": 0.05, "epochs": 8, "replay": 16},
        {"lr": 3e-3, "entropy": 0.15, "epochs": 4, "replay": 0, "reward": "margin"},
    ],
    "reinforce": [
        {"lr": 3e-3, "entropy": 0.15, "epochs": 4, "replay": 0},
        {"lr": 3e-3, "entropy": 0.05, "epochs": 8, "replay": 16},
        {"lr": 3e-3, "entropy": 0.05, "epochs": 8, "replay": 16, "bits": 12},
        {"lr": 3e-3, "entropy": 0.05, "epochs": 8, "replay": 16, "reward": "margin"},
    ],
    "grpo": [
        {"lr": 3e-3, "entropy": 0.15, "group": 8},
        {"lr": 3e-3, "entropy": 0.02, "group": 8},
        {"lr": 3e-3, "entropy": 0.05, "group": 16},
        {"lr": 3e-3, "entropy": 0.15, "group": 8, "reward": "margin"},
    ],
    "gain": [
        {"masks": 4, "around": 0.5},
        {"masks": 4, "around": 0.8},
        {"masks": 12, "around": 0.7},
        {"masks": 12, "around": 0.7, "reward": "margin"},
    ],
    "ppo": PPO,
    "maskable_ppo": PPO,
}
# Agents that score one mask a face see more faces; see `Variant`.
LENGTHS = {"sarface": 4, "ppo": 2, "maskable_ppo": 2}


@dataclass
class Options:
    """Score configurations of every agent on validation faces and name the best."""

    agents: list[str] = field(default_factory=lambda: list(CANDIDATES))
    """Which agents."""
    runs: str = "runs/tuning"
    """Folder of the trainings; those that are there are not made again."""
    part: str = ""
    """Only train, and only this share of the trainings: `1/2`, `2/2`, ..."""
    name: str = "tuning"
    """Name of the file in benchmarks/results."""
    train: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            seed=100,
            steps=3072,
            validate_every=512,
            save_every=1000,
            eval_split="val",
            eval_faces=1000,
        )
    )
    """Options of every training; its seed is none of `benchmarks.agents`."""


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.tuning`."""
    try:
        options = parse_options(Options, argv)
        tried = run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.tuning: {error}")
    if options.part:
        return
    # Of equals, the last.
    chosen = {
        name: max(reversed(rows), key=lambda row: row["margin-correct"])["options"]
        for name, rows in tried.items()
    }
    payload = {"options": asdict(options), "candidates": tried, "chosen": chosen}
    write_results(options.name, {"environment": environment("gymnasium")} | payload)
    print_table(
        ["agent", "margin-correct %", "faces", "calls", "options"],
        [
            [name, f"{100 * row['margin-correct']:.1f}", f"{row['faces']:.0f}"]
            + [f"{row['calls']:.0f}", row["options"]]
            for name, rows in tried.items()
            for row in rows
        ],
    )


def run(options: Options) -> dict[str, list[dict[str, Any]]]:
    """Train every configuration that is not there yet: their scores on validation faces."""
    jobs = [
        (name, number)
        for number in range(max(map(len, CANDIDATES.values())))
        for name in options.agents
    ]
    tried: dict[str, list[dict[str, Any]]] = {name: [] for name in options.agents}
    for name, number in share(jobs, options.part or "1/1"):
        candidate = CANDIDATES[name][number]
        print(f"{name} {candidate}", flush=True)
        variant = with_options(VARIANTS[name], candidate)
        variant = replace(variant, length=LENGTHS.get(variant.agent, 1))
        folder = run_folder(options.runs, name, number)
        result = trained(variant.fill_in(options.train, options.train.seed), folder)
        faces, calls, *_ = result["curve"][-1]
        scores = {"margin-correct": result["scores"]["margin-correct"]}
        tried[name].append({"options": candidate, **scores, "faces": faces, "calls": calls})
    return tried


def with_options(variant: Variant, candidate: dict[str, Any]) -> Variant:
    """The variant with the candidate's options and reward."""
    options = {key: value for key, value in candidate.items() if key != "reward"}
    return replace(
        variant, options=variant.options | options, reward=candidate.get("reward", REWARD)
    )


if __name__ == "__main__":
    main()
