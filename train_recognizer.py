"""Train a face recognizer; `--help` explains every option, `configs/` holds recipes."""

import sys

from benchmarks.common import print_table
from recognizer.cli import parse_options
from recognizer.training import TrainingDivergedError, train
from recognizer.training_options import TrainOptions
from sarface_env.partitions import make_partition
from sarface_env.region_dropout import RegionDropout


def main(argv: list[str] | None = None) -> None:
    """Command line of `train_recognizer.py`."""
    try:
        options = parse_options(TrainOptions, argv)
        masking = None
        if options.drop_regions:
            # Mid-grey: the mean of the embedded world's networks, the only ones with parsing.
            masking = RegionDropout(make_partition("sarface24"), options.drop_regions, (127.5,) * 3)
        metrics = train(options, masking)
    except (OSError, ValueError, TrainingDivergedError) as error:
        sys.exit(f"train_recognizer: {error}")
    if metrics:
        print_table(["metric", "value"], [[k, f"{v:.4f}"] for k, v in metrics.items()])
        print(f"\nRun folder: {options.run} (`tensorboard --logdir {options.run}`)")


if __name__ == "__main__":
    main()
