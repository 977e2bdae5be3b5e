"""Train the light face parser on annotated faces."""

import argparse
import sys

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from recognizer.memory import keep_freed_memory
from segmenter.training import SegmenterTraining, train

EPILOG = """\
data, in either layout; all bad files are listed by name before training starts:
  images/NAME.jpg and masks/NAME.png, pixels of a mask being labels 0 to 18
  CelebA-HQ-img/N.jpg and CelebAMask-HQ-mask-anno/K/NNNNN_CLASS.png, as CelebAMask-HQ is published

the run folder receives:
  best.safetensors   weights of the best epoch on the validation part, for load_parser(PATH),
                     `python -m benchmarks.segmentation --parser PATH` and --env.parser PATH
  test.json, .png    IoU per class on the test part, computed once at the end, and a contact sheet
  metrics.jsonl      loss and IoU per class on the validation part, a line an epoch
  tensorboard/       the same as curves, and pictures of image, truth and prediction
  last.safetensors   state at the end of the last epoch: after a kill at any time, the same command
                     with --resume true continues from there and ends with the same weights
  config.json, split.json

examples:
  train_segmenter.py --config configs/segmenter.yaml --data CelebAMask-HQ
  train_segmenter.py --config configs/segmenter_192.yaml --data CelebAMask-HQ    (second stage)
  train_segmenter.py --data faces/ --init segmenter/weights/light.safetensors --size 192 \\
      --epochs 30 --lr 1e-3 --output runs/mine          (fine-tune the shipped parser)
  train_segmenter.py --config configs/segmenter.yaml --data CelebAMask-HQ --resume true
"""


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the epilog."""


def main(arguments: list[str] | None = None) -> None:
    """Run the training that flags or a `--config` file describe; see `--help`."""
    keep_freed_memory()
    parser = ArgumentParser(
        prog="train_segmenter.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=_Formatter,  # type: ignore[arg-type]
    )
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
