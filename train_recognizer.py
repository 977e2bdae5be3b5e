"""Train a face recognizer; `--help` explains every option, `configs/` holds recipes."""

import sys

from benchmarks.common import print_table
from recognizer.cli import parse_options
from recognizer.training import TrainingDivergedError, train
from recognizer.training_options import TrainOptions


def main(argv: list[str] | None = None) -> None:
    """Command line of `train_recognizer.py`."""
    options = parse_options(TrainOptions, argv)
    try:
        metrics = train(options)
    except (OSError, ValueError, TrainingDivergedError) as error:
        sys.exit(f"train_recognizer: {error}")
    if metrics:
        print_table(["metric", "value"], [[k, f"{v:.4f}"] for k, v in metrics.items()])
        print(f"\n{options.run}: last.safetensors, best.safetensors, metrics.jsonl, events/")


if __name__ == "__main__":
    main()
