"""Does recognizer training work on real faces?

Three trainings on a RecordIO set that comes with a `.bin` verification set of other people:
ResNet-29 fine-tuned with an AdaFace head, IR-18 from scratch, and, fresh, ResNet-29 (which has no
BatchNorm) by one process and by two with the same batch. One image of everybody with three or more
is held out. A benchmark that was killed continues when it is started again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import RESULTS, ROOT, print_table, write_results
from recognizer.cli import parse_options
from recognizer.training_options import TrainOptions

RECIPES = ("resnet29_lfw", "ir18_lfw")
# Embedding all pairs costs IR-18 half a pass over the data, and says little of so young a network.
VALIDATION: dict[str, Callable[[Path], list[str]]] = {
    "resnet29_lfw": lambda data: [f"--verification=[{data / 'lfw.bin'}]", "--validate_every=32"],
    "ir18_lfw": lambda data: [],
}
EPILOG = "example: python -m benchmarks.training --data ../shared/data/faces_lfw_112x112"


def main(argv: list[str] | None = None) -> None:
    """Command line of the benchmark."""
    options = _parser().parse_args(argv)
    results: dict[str, Any] = {}
    for part in options.parts:
        if part == "processes":
            results[part] = _processes(options)
        else:
            results[part] = _recipe(part, options)
    _print(results)
    path = write_results("training", results)
    _plot(results).savefig(path.with_suffix(".png"), dpi=150)
    (RESULTS / "training.md").write_text(_markdown(results, options), encoding="utf-8")
    print(f"\nwrote {path}, training.md and training.png")


def _parser() -> argparse.ArgumentParser:
    parts = (*RECIPES, "processes")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with train.rec, lfw.bin")
    parser.add_argument("--runs", default="runs/training", type=Path, help="run folders go here")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, metavar="PART")
    return parser


def _train(name: str, options: argparse.Namespace, *flags: str) -> tuple[Path, TrainOptions]:
    """Train, or continue to, the end in a process of its own; the run folder and its options.

    A training that has ended is not started again.
    """
    run = options.runs / name
    ended = run / "ended"
    # After the flags: what comes later counts, and a recipe names a run and data of its own.
    arguments = [*flags, f"--run={run}", f"--data={options.data}"]
    if (run / "config.json").is_file():
        arguments.append("--resume=true")
    command = [sys.executable, str(ROOT / "train_recognizer.py"), *arguments]
    if not ended.exists():
        if code := subprocess.run(command).returncode:
            raise SystemExit(f"error: the training {name} failed with code {code}; see above")
        ended.touch()
    return run, parse_options(TrainOptions, ["--config", str(run / "config.json")])


def _recipe(name: str, options: argparse.Namespace) -> dict[str, Any]:
    run, trained = _train(
        name,
        options,
        f"--config={ROOT / 'configs' / f'{name}.yaml'}",
        *VALIDATION[name](options.data),
        "--log_every=8",
        "--checkpoint_every=16",
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "options": _portable(trained),
        "loss": [[line["step"], line["train/loss"]] for line in lines if "train/loss" in line],
        "validation": [line for line in lines if "score" in line],
    }


def _processes(options: argparse.Namespace) -> dict[str, Any]:
    # Enough steps for a difference to grow, a batch that two can share.
    flags = ["--backbone=resnet29", "--head=adaface", "--hold_out=0", "--epochs=1", "--log_every=1"]
    flags += ["--batch_size=192", "--lr=0.01", "--device=cpu"]
    runs = [
        _train(f"processes_{devices}", options, *flags, f"--devices={devices}")
        for devices in (1, 2)
    ]
    curves = []
    for run, _ in runs:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        curves.append([line["train/loss"] for line in lines if "train/loss" in line])
    worst = max(abs(a - b) / abs(a) for a, b in zip(*curves, strict=True))
    return {
        "options": _portable(runs[1][1]),
        "loss": {"one process": curves[0], "two processes": curves[1]},
        "largest_relative_difference": worst,
    }


def _portable(options: TrainOptions) -> dict[str, Any]:
    """The options without the folders of this machine."""
    return {
        **asdict(options),
        "run": Path(options.run).name,
        "data": Path(options.data).name,
        "verification": [Path(path).name for path in options.verification],
    }


def _rows(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name in RECIPES:
        for line in results.get(name, {}).get("validation", []):
            rows.append(
                [f"{name}, step {line['step']}"]
                + [f"{100 * line[f'held_out/{key}']:.1f}" for key in ("margin_correct", "correct")]
                + [f"{line['held_out/margin']:+.3f}"]
                + [
                    f"{100 * line[key]:.2f}" if key in line else "-"
                    for key in ("lfw/accuracy", "lfw/tar@far=0.001")
                ]
            )
    return rows


HEADERS = ["run", "margin-correct %", "correct %", "margin", "lfw accuracy %", "TAR@FAR 1e-3 %"]


def _print(results: dict[str, Any]) -> None:
    print_table(HEADERS, _rows(results))
    if "processes" in results:
        worst = results["processes"]["largest_relative_difference"]
        print(f"\nloss of two processes and of one differ by {worst:.1e} (relative) at most")


def _markdown(results: dict[str, Any], options: argparse.Namespace) -> str:
    lines = [
        "# Recognizer training on real faces",
        "",
        f"`python -m benchmarks.training --data {options.data.name} --parts "
        + " ".join(results)
        + "`",
        "",
        "Margin-correct, correct and margin (a difference of cosines) are measured on one held-out",
        "image of every training person with three or more; accuracy and TAR on pairs of other",
        "people, flip-augmented. Step 0 of a fine-tuning is the original network with every class",
        "weight at the mean embedding of that person's training images.",
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|---" * len(HEADERS) + "|",
        *("| " + " | ".join(row) + " |" for row in _rows(results)),
    ]
    for name in RECIPES:
        loss = results.get(name, {}).get("loss")
        if loss:
            curve = ", ".join(
                f"{step}: {value:.2f}" for step, value in loss[:: len(loss) // 12 or 1]
            )
            lines += ["", f"Loss of {name} by step (mean of 8 steps): {curve}."]
    if "processes" in results:
        part = results["processes"]
        lines += [
            "",
            f"ResNet-29 from scratch, {len(part['loss']['one process'])} steps: the losses of two "
            "processes and of one differ by at most "
            f"{part['largest_relative_difference']:.1e} (relative).",
        ]
    return "\n".join(lines) + "\n"


def _plot(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right, last = figure.subplots(1, 3)
    for number, name in enumerate(name for name in RECIPES if name in results):
        steps, losses = zip(*results[name]["loss"], strict=True)
        colour = f"C{number}"
        left.plot(steps, losses, color=colour, label=name)
        points = results[name]["validation"]
        for key, style in (("margin_correct", "-o"), ("correct", "--o")):
            values = [100 * line[f"held_out/{key}"] for line in points]
            label = f"{name}, {key.replace('_', '-')}"
            x = [line["step"] for line in points]
            right.plot(x, values, style, color=colour, label=label, markersize=3)
    curves = results.get("processes", {}).get("loss", {})
    for (label, curve), style in zip(curves.items(), ("-", "o"), strict=False):
        last.plot(range(1, len(curve) + 1), curve, style, label=label, markersize=3)
    left.set_ylabel("training loss")
    right.set_ylabel("held-out images, %")
    last.set_ylabel("training loss, one global batch")
    for axes in (left, right, last):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.has_data():
            # Above, where no curve runs.
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
