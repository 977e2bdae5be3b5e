"""Agent and recognizer trained in turn, against only one of them with as many recognizer passes.

A pass is one image through the recognizer. Scoring an image is one pass; an image that the
recognizer is trained on counts as three, since going backward costs about two forward passes. What
validation scores is not counted: it is the same in all three ways.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import train_agent
from agents.alternating import AlternatingOptions
from agents.baselines import KeepAll
from agents.evaluation import METRICS, evaluate
from benchmarks import common
from benchmarks.common import environment, print_table, write_results
from benchmarks.seeds import summary
from benchmarks.trainings import held_out, run_folder, stored
from recognizer.cli import parse_options
from recognizer.runs import prepare_run
from train_agent import TrainOptions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS = ("agent only", "recognizer only", "in turn")
TRAINED_IMAGE = 3


@dataclass
class Options:
    """Compare alternating training with training only the agent and only the recognizer."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Training seeds."""
    passes: int = 20_000
    """Recognizer passes of every training, about; what each really took is reported."""
    share: float = 0.5
    """Share of the passes that the recognizer's training takes when both are trained."""
    calls_a_face: float = 6.0
    """Images that the agent has scored for a face it decides on, to plan the number of faces."""
    runs: str = "runs/alternating"
    """Folder of the trainings; those that are there are not made again."""
    part: str = ""
    """Only train, and only this way: `agent only`, `recognizer only` or `in turn`."""
    name: str = "alternating"
    """Name of the files in benchmarks/results."""
    train: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            eval_faces=1000, alternating=AlternatingOptions(rounds=5)
        )
    )
    """Options of every training, the recognizer's in `alternating`."""

    def __post_init__(self) -> None:
        if self.part and self.part not in WAYS:
            raise ValueError(f"unknown part {self.part!r}; there are {', '.join(WAYS)}")


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.alternating`."""
    try:
        options = parse_options(Options, argv)
        ways = (options.part,) if options.part else WAYS
        results = {
            way: [trained(plan(options, way, seed), options, way) for seed in options.seeds]
            for way in ways
        }
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.alternating: {error}")
    if options.part:
        return
    payload = {
        "environment": environment("gymnasium"),
        "options": asdict(options),
        "ways": {
            way: {metric: summary([run["scores"][metric] for run in runs]) for metric in METRICS}
            | {"passes": summary([run["passes"] for run in runs])}
            | {"keep-all": summary([run["keep-all"] for run in runs])}
            | {"curves": [run["curve"] for run in runs]}
            for way, runs in results.items()
        },
    }
    write_results(options.name, payload)
    report(payload)
    draw(payload, common.RESULTS / f"{options.name}.png")


def plan(options: Options, way: str, seed: int) -> TrainOptions:
    """The options of a training that takes about `passes` recognizer passes."""
    schedule = options.train.alternating
    to_recognizer = {"agent only": 0.0, "recognizer only": 1.0, "in turn": options.share}[way]
    a_round = options.passes / schedule.rounds
    batch = TRAINED_IMAGE * schedule.batch_size
    envs = options.train.num_envs
    faces = a_round * (1 - to_recognizer) / options.calls_a_face
    schedule = replace(
        schedule,
        recognizer_steps=round(a_round * to_recognizer / batch),
        policy_steps=round(faces / envs) * envs,
        # Nobody chooses what to mask when there is no agent.
        mix=0.0 if way == "recognizer only" else schedule.mix,
    )
    return replace(options.train, alternating=schedule, alternate=True, seed=seed, resume=True)


def trained(train: TrainOptions, options: Options, way: str) -> dict[str, Any]:
    """Train into a run folder, or continue to, and evaluate the best pair on test faces."""
    folder = run_folder(options.runs, way, train.seed)
    print(f"{way}, seed {train.seed}", flush=True)
    prepare_run(folder, resume=True)
    train_agent.check_config(train, folder)

    def make() -> dict[str, Any]:
        best, agent = train_agent.train_in_turn(train, folder)
        env, faces = held_out(best)
        result, full = evaluate(agent, env, faces), evaluate(KeepAll(env), env, faces)
        curve = passes_and_scores(folder, train.alternating)
        return {
            "scores": {metric: result.mean(metric) for metric in METRICS},
            "keep-all": full.mean("margin-correct"),
            "passes": curve[-1][0],
            "curve": curve,
        }

    return stored(folder / "result.json", make)


def passes_and_scores(folder: Path, schedule: AlternatingOptions) -> list[list[float]]:
    """Recognizer passes and validation score after every round of a run."""
    curve = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "validation/round" in row:
            images = row["validation/round"] * schedule.recognizer_steps * schedule.batch_size
            passes = row["charts/recognizer_calls"] + TRAINED_IMAGE * images
            curve.append([passes, row["validation/margin_correct"]])
    return curve


def report(payload: dict[str, Any]) -> None:
    """Print one line a way of training."""
    rows = []
    for way, numbers in payload["ways"].items():
        score = numbers["margin-correct"]
        rows.append(
            [way, f"{100 * score['mean']:.1f}", ", ".join(f"{100 * s:.1f}" for s in score["seeds"])]
            + [f"{100 * numbers['keep-all']['mean']:.1f}"]
            + [f"{100 * numbers['correct']['mean']:.1f}"]
            + [f"{100 * numbers['kept pixels']['mean']:.1f}", f"{numbers['passes']['mean']:.0f}"]
        )
    heads = ["trained", "margin-correct %", "seeds", "of it keep-all %", "correct %"]
    print_table([*heads, "kept pixels %", "recognizer passes"], rows)
    print("\nbest pair by validation score, on test faces; means over seeds")


def draw(payload: dict[str, Any], path: Path) -> None:
    """Validation scores against recognizer passes, and test scores."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, (way, numbers) in enumerate(payload["ways"].items()):
        for seed, curve in enumerate(numbers["curves"]):
            x, y = np.array(curve).T
            label = way if seed == 0 else None
            left.plot(x, 100 * y, color=f"C{number}", lw=1.2, marker=".", label=label)
        score = numbers["margin-correct"]
        right.barh(way, 100 * score["mean"], color=f"C{number}")
        seeds = 100 * np.array(score["seeds"])
        right.plot(seeds, [number] * len(seeds), "k.", ms=5)
    left.set(xlabel="recognizer passes", ylabel="margin-correct validation faces, %")
    left.locator_params(axis="x", nbins=6)
    left.legend(fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="margin-correct test faces, % (dots: seeds)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
