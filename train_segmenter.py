"""Train the light face parser, e.g. `train_segmenter.py --data CelebAMask-HQ --output runs/one`.

Ends with the IoU on the test part. A stopped run continues with `--resume true`.
"""

import sys

from jsonargparse import ArgumentParser

from recognizer.memory import keep_freed_memory
from segmenter.training import SegmenterTraining, train


def main(arguments: list[str] | None = None) -> None:
    """Run the training that flags or a `--config` file describe; see `--help`."""
    keep_freed_memory()
    parser = ArgumentParser(prog="train_segmenter", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML or JSON file with any option below")
    parser.add_class_arguments(SegmenterTraining, as_group=False)
    options = parser.parse_args(arguments)
    del options["config"]
    try:
        report = train(SegmenterTraining(**options.as_dict()))
    except (OSError, ValueError) as error:
        sys.exit(f"train_segmenter: {error}")
    for name, value in report["iou"].items():
        print(f"{name:12s} {'absent' if value is None else f'{value:.3f}'}")
    print(
        f"test mean IoU {report['mean_iou']:.4f}, "
        f"over common classes {report['mean_iou_common']:.4f}"
    )


if __name__ == "__main__":
    main()
