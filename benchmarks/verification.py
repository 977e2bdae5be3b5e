"""Verification accuracy of a recognizer on the field's protocols, clean and occluded."""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import print_table, write_results
from recognizer.data.chips import chips, template_of
from recognizer.data.disk_cache import cache_folder
from recognizer.data.occlusion import OCCLUSIONS, occlude
from recognizer.data.verification_sets import read_pair_set
from recognizer.engine import InferenceEngine
from recognizer.enrolment import embed_cached
from recognizer.loader import load_recognizer, recognizer_names
from recognizer.verification import FARS, Verification, verify_set

EPILOG = """\
A set is a folder with images/NAME/NAME_0001.jpg and LFW's pairs.txt, or an InsightFace .bin file.
Images are warped once to the recognizer's own chip: from the five points of the folder's
landmarks.csv, or else from the 112x112 template, to which .bin files are aligned.
Intervals are 95 %, from a bootstrap over people; where the file names none, over those that its
pairs of the same person link.
A rate marked * is finer than the number of different pairs can resolve.

example:
  python -m benchmarks.verification --recognizer resnet29 --data lfw/ lfw.bin --occlusion mask
"""


@dataclass
class Row:
    """One line of the table: a set, under one kind of occlusion, and what was found."""

    data: str
    alignment: str
    occlusion: str
    images: int
    pairs: int
    result: Verification


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recognizer = load_recognizer(options.recognizer, options.device)
        engine = InferenceEngine(recognizer)
        rows = [row for path in options.data for row in _run(engine, path, options)]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print()
    _print(rows)
    path = write_results(
        options.name,
        {"recognizer": recognizer.info, "seed": options.seed, "rows": [_as_json(r) for r in rows]},
    )
    _plot(rows, recognizer.name).savefig(path.with_suffix(".png"), dpi=150)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verification",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(recognizer_names())
    parser.add_argument("--recognizer", default="resnet29", help=f"a file of weights, or {known}")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    parser.add_argument(
        "--occlusion",
        nargs="+",
        default=[],
        choices=OCCLUSIONS,
        metavar="KIND",
        help=f"also with both faces of every pair occluded: {', '.join(OCCLUSIONS)}",
    )
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="N", help="use only these folds, counted from 1"
    )
    parser.add_argument(
        "--through-crops",
        action="store_true",
        help="cut folders to 112x112 first, as .bin files are, for recognizers of another size",
    )
    parser.add_argument("--seed", type=int, default=0, help="of occluders and bootstrap")
    parser.add_argument("--name", default="verification", help="of the result files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def _run(engine: InferenceEngine, path: Path, options: argparse.Namespace) -> list[Row]:
    pairs = read_pair_set(path)
    if options.folds:
        pairs = pairs.only_folds([fold - 1 for fold in options.folds])
    size = engine.recognizer.spec.size
    images, alignment = chips(pairs, size, path, options.through_crops)
    rows = []
    for kind in ["none", *options.occlusion]:
        seen = images if kind == "none" else _occluded(images, kind, options.seed)
        embeddings = embed_cached(engine, seen, f"{pairs.name}, occlusion {kind}", cache_folder())
        result = verify_set(embeddings, pairs, seed=options.seed)
        rows.append(Row(str(path), alignment, kind, len(images), len(pairs), result))
    return rows


def _occluded(images: Tensor, kind: str, seed: int) -> Tensor:
    return occlude(images, template_of(images.shape[-1]), kind, seed)[0]


def _print(rows: list[Row]) -> None:
    tars = [f"tar@far={far:g}" for far in FARS]
    headers = ["data", "occlusion", "pairs", "accuracy %", "interval", "± folds"]
    headers += [f"TAR@FAR {far:g} %" for far in FARS] + ["AUC", "EER %", "over"]
    table = []
    for row in rows:
        found, metrics = row.result, row.result.metrics
        low, high = found.intervals["accuracy"]
        cells: list[Any] = [row.data, row.occlusion, row.pairs, f"{100 * metrics['accuracy']:.2f}"]
        cells += [f"{100 * low:.2f}-{100 * high:.2f}", f"{100 * _fold_error(found):.2f}"]
        for far, key in zip(FARS, tars, strict=True):
            cells.append(f"{100 * metrics[key]:.2f}{'*' if far * found.different < 1 else ''}")
        cells += [f"{metrics['auc']:.4f}", f"{100 * metrics['eer']:.2f}", found.resampled]
        table.append(cells)
    print_table(headers, table)


def _fold_error(result: Verification) -> float:
    """LFW's standard error of the mean over folds."""
    return float(result.fold_accuracy.std(ddof=1) / np.sqrt(len(result.fold_accuracy)))


def _as_json(row: Row) -> dict[str, Any]:
    result = row.result
    return {
        "data": row.data,
        "alignment": row.alignment,
        "occlusion": row.occlusion,
        "images": row.images,
        "pairs": row.pairs,
        "different_pairs": result.different,
        "metrics": result.metrics,
        "intervals_95": result.intervals,
        "resampled": result.resampled,
        "fold_accuracy": result.fold_accuracy.tolist(),
        "fold_standard_error": _fold_error(result),
        "fold_thresholds": result.thresholds.tolist(),
    }


def _plot(rows: list[Row], name: str) -> Figure:
    """ROC curves, a panel for every set."""
    paths = list(dict.fromkeys(row.data for row in rows))
    figure = Figure(figsize=(4.5 * len(paths) + 0.5, 4.5), layout="constrained")
    for axes, path in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths, strict=True):
        shown = [row for row in rows if row.data == path]
        for row in shown:
            far, tar = row.result.roc
            label = "clean" if row.occlusion == "none" else row.occlusion
            label += f" (AUC {row.result.metrics['auc']:.4f})"
            axes.step(far, tar, where="post", label=label)
        axes.set_xscale("log")
        axes.set_xlim(min(0.5 / row.result.different for row in shown), 1)
        axes.set_xlabel("false accept rate")
        axes.set_ylabel("true accept rate")
        axes.set_title(f"{name} on {Path(path).name}")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
