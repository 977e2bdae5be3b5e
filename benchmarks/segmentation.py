"""Face parsers against annotated label maps, and on photographs with known facial points."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import print_table, write_results
from recognizer.data.align import align
from recognizer.data.chips import LANDMARKS, template_of
from recognizer.data.folder import read_landmarks
from recognizer.data.verification_sets import PairSet, read_pair_set
from recognizer.engine import InferenceEngine
from recognizer.loader import load_recognizer
from recognizer.memory import keep_freed_memory
from recognizer.verification import embed_flipped, verify_set
from segmenter import CLASSES, Parser, load_parser, parser_names
from segmenter.data import IMAGE_SUFFIXES, ParsingData, load_data, read_image, split_names
from segmenter.labels import RARE_CLASSES
from segmenter.landmarks import DEFAULT, POINTS, Calibration, FacePoints, face_points
from segmenter.metrics import confusion, iou_report
from segmenter.render import colour_labels, contact_sheet

EPILOG = """\
A folder with masks (compact form, or CelebAMask-HQ as published) gives the IoU of the chosen part
of the split that train_segmenter.py uses. A folder with images/NAME/*.jpg, LFW's pairs.txt and
landmarks.csv gives the distance of points from parsing to landmarks, as a fraction of the distance
of the eyes, and the verification accuracy of a recognizer on faces aligned by either.

example:
  python -m benchmarks.segmentation --parser light --data celebamask/ lfw/ --folds 6 7
"""
FAILED = 0.25  # of the eye distance: alignment is visibly off
SHEET_FACES = 32


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    keep_freed_memory()
    options = _arguments().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        parser = load_parser(options.parser, options.device)
        results = [_run(parser, path, options) for path in options.data]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    about = {"name": parser.name, "version": parser.version, "parameters": parser.parameters}
    path = write_results(
        f"segmentation_{parser.name}",
        {"parser": about | {"threads": torch.get_num_threads()}, "results": results},
    )
    _plot(results, parser.name).savefig(path.with_suffix(".png"), dpi=110)
    print(f"\n{parser.name}: {parser.parameters:,} parameters; wrote {path}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(parser_names())
    parser.add_argument("--parser", default="light", help=f"a file of weights, or {known}")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--part",
        default="test",
        choices=("train", "validation", "test", "all"),
        help="of the split",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--size", type=int, default=256, help="side of the annotated images")
    parser.add_argument("--folds", nargs="+", type=int, help="only these folds, counted from 1")
    parser.add_argument("--recognizer", default="resnet29", help="for the verification accuracy")
    parser.add_argument(
        "--sheets",
        type=Path,
        default=Path("runs/segmentation"),
        metavar="DIR",
        help="where contact sheets go: they show the photographs, so they stay out of the results",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def _run(parser: Parser, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{path}")
    if (path / LANDMARKS).is_file():
        return {"data": path.name, "kind": "photographs", **_photographs(parser, path, options)}
    return {"data": path.name, "kind": "annotated", **_annotated(parser, path, options)}


def _annotated(parser: Parser, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    data = load_data(path, options.size)
    if options.part != "all":
        data = data.subset(split_names(data.names, seed=options.seed)[options.part])
    report, labels = _iou(parser, data)
    small = ParsingData(
        data.names,
        np.stack([cv2.resize(i, (128, 128), interpolation=cv2.INTER_AREA) for i in data.images]),
        np.stack([cv2.resize(m, (128, 128), interpolation=cv2.INTER_NEAREST) for m in data.masks]),
    )
    report_128, _ = _iou(parser, small)
    truth = torch.from_numpy(np.asarray(data.masks))
    faces = {name: int((truth == i).any((1, 2)).sum()) for i, name in enumerate(CLASSES)}
    _print_iou(report, report_128, faces, options.size)
    shown = slice(0, SHEET_FACES)
    images = torch.from_numpy(data.images[shown]).permute(0, 3, 1, 2)
    sheet = contact_sheet(images, [truth[shown], labels[shown]], columns=8)
    _write_picture(options.sheets / f"{parser.name}_{path.name}.png", sheet)
    return {
        "part": options.part,
        "size": options.size,
        "split_seed": options.seed,
        "faces": len(data),
        "faces_with_class": faces,
        f"at_{options.size}": report,
        "at_128": report_128,
    }


def _iou(parser: Parser, data: ParsingData) -> tuple[dict[str, Any], Tensor]:
    images = torch.from_numpy(np.asarray(data.images)).permute(0, 3, 1, 2).contiguous()
    labels, rate = parse_timed(parser, images)
    report = iou_report(confusion(labels, torch.from_numpy(np.asarray(data.masks))))
    return {**report, "images_per_second": rate}, labels


def parse_timed(parser: Parser, images: Tensor, batch: int = 32) -> tuple[Tensor, float]:
    """Return the label maps `(N, H, W)` of images, and how many were parsed in a second."""
    parser.parse(images[:batch])  # the first pass through a network is slower
    labels = torch.empty((len(images), *images.shape[2:]), dtype=torch.uint8)
    start = time.perf_counter()
    bar = tqdm(total=len(images), desc=f"parsing ({parser.name})", unit="img")
    for first in range(0, len(images), batch):
        labels[first : first + batch] = parser.parse(images[first : first + batch])
        bar.update(len(images[first : first + batch]))
    bar.close()
    return labels, len(images) / (time.perf_counter() - start)


def _print_iou(
    report: dict[str, Any], small: dict[str, Any], faces: dict[str, int], size: int
) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows: list[list[Any]] = [
        [name, faces[name], percent(report["iou"][name]), percent(small["iou"][name])]
        for name in CLASSES
    ]
    for key, title in (
        ("mean_iou", "mean"),
        ("mean_iou_common", "mean, 16 common"),
        ("fw_iou", "frequency-weighted"),
        ("pixel_accuracy", "pixel accuracy"),
    ):
        rows.append([title, "", percent(report[key]), percent(small[key])])
    rows.append(["images/s", "", *(f"{r['images_per_second']:.0f}" for r in (report, small))])
    print_table(["class", "faces", f"IoU % at {size}", "IoU % at 128"], rows)


def _photographs(parser: Parser, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    pairs = read_pair_set(path)
    files = sorted(p for p in (path / "images").rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    timing = _time_all(parser, files)
    if options.folds:
        pairs = pairs.only_folds([fold - 1 for fold in options.folds])
    names = [image.name for image in pairs.images if isinstance(image, Path)]
    known = read_landmarks(path / LANDMARKS)
    truth = np.stack([known[name] for name in names])
    images = pairs.decode()
    labels, _ = parse_timed(parser, images)
    found = points_of(labels)
    eyes = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1)
    errors = np.linalg.norm(found.points.numpy() - truth, axis=2) / eyes[:, None]
    points = _judge_points(errors, found, names)
    _sheets(options.sheets / f"{parser.name}_{path.name}", images, labels, found, truth, errors)
    both = {"landmarks": truth, "parsing": found.points.numpy()}
    accuracy = _verification(pairs, images, both, options)
    folds = options.folds or "all"
    return {"folds": folds, "parsing": timing, "points": points, "verification": accuracy}


def _time_all(parser: Parser, files: list[Path], batch: int = 256) -> dict[str, float]:
    """Time reading and parsing of every file, as a user would wait for it."""
    start = time.perf_counter()
    for first in tqdm(range(0, len(files), batch), "reading and parsing all", unit="batch"):
        pictures = [read_image(file) for file in files[first : first + batch]]
        parser.parse(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous())
    seconds = time.perf_counter() - start
    print(f"read and parsed {len(files)} images in {seconds:.1f} s")
    return {
        "images": len(files),
        "seconds": seconds,
        "images_per_second": len(files) / seconds,
    }


def points_of(labels: Tensor, calibration: Calibration = DEFAULT, batch: int = 256) -> FacePoints:
    """Return the points of label maps `(N, H, W)`, found in batches."""
    parts = [face_points(part, calibration) for part in labels.split(batch)]
    return FacePoints(torch.cat([p.points for p in parts]), torch.cat([p.found for p in parts]))


def _judge_points(errors: np.ndarray, found: FacePoints, names: list[str]) -> dict[str, Any]:
    mean = errors.mean(1)
    fallen = found.fell_back.numpy()
    columns = [*zip(POINTS, errors.T, ~found.found.numpy().T, strict=True), ("all", mean, fallen)]
    rows: list[list[Any]] = [
        [
            title,
            *(f"{v:.4f}" for v in (e.mean(), *np.quantile(e, (0.5, 0.95)))),
            f"{100 * f.mean():.2f}",
        ]
        for title, e, f in columns
    ]
    print_table(["point", "mean / eyes", "median", "95 %", "fell back %"], rows)
    edges = np.linspace(0, FAILED, 26).round(2)
    failed = np.argsort(-mean)[: int((mean > FAILED).sum())]
    print(f"{len(failed)} of {len(mean)} faces are off by more than {FAILED} of the eye distance")
    return {
        "faces": len(mean),
        "mean": float(mean.mean()),
        "mean_where_all_parts_seen": float(mean[~fallen].mean()),
        "mean_where_fallen_back": float(mean[fallen].mean()) if fallen.any() else None,
        "median": float(np.median(mean)),
        "mean_by_point": dict(zip(POINTS, errors.mean(0).tolist(), strict=True)),
        "fell_back": int(fallen.sum()),
        "histogram_edges": edges.tolist(),
        "histogram": [int(v) for v in np.histogram(mean, np.append(edges, np.inf))[0]],
        "failure_above": FAILED,
        "failures": {names[i]: round(float(mean[i]), 3) for i in failed},
    }


def _verification(
    pairs: PairSet, images: Tensor, points: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    recognizer = load_recognizer(options.recognizer, options.device)
    engine = InferenceEngine(recognizer)
    found: dict[str, Any] = {"recognizer": recognizer.name, "pairs": len(pairs)}
    rows: list[list[Any]] = []
    for title, where in points.items():
        chips = align(images, where, template_of(recognizer.spec.size), recognizer.spec.size)
        result = verify_set(embed_flipped(engine, chips, progress=f"aligned by {title}"), pairs)
        accuracy, interval = result.metrics["accuracy"], result.intervals["accuracy"]
        found[title] = {"accuracy": accuracy, "interval_95": interval, "auc": result.metrics["auc"]}
        rows.append(
            [title, f"{100 * accuracy:.2f}", "-".join(f"{100 * v:.2f}" for v in interval),
             f"{result.metrics['auc']:.4f}"]
        )  # fmt: skip
    print_table([f"{recognizer.name} aligned by", "accuracy %", "interval", "AUC"], rows)
    return found


def _sheets(
    stem: Path,
    images: Tensor,
    labels: Tensor,
    found: FacePoints,
    truth: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Write a sheet of evenly chosen faces and one of the worst, with points drawn in."""
    every = np.unique(np.linspace(0, len(images) - 1, SHEET_FACES).astype(int))
    worst = np.argsort(-errors.mean(1))[:SHEET_FACES]
    for title, rows in (("", every), ("_worst", worst)):
        drawn = []
        for i in rows:
            picture = np.ascontiguousarray(images[i].permute(1, 2, 0).numpy())
            for x, y in truth[i]:
                cv2.circle(picture, (round(float(x)), round(float(y))), 2, (255, 255, 255), -1)
            for (x, y), seen in zip(found.points[i].tolist(), found.found[i], strict=True):
                cv2.circle(
                    picture, (round(x), round(y)), 2, (0, 255, 0) if seen else (0, 0, 255), -1
                )
            drawn.append(torch.from_numpy(picture).permute(2, 0, 1))
        blend = images[rows] // 3 + colour_labels(labels[rows]) // 3 * 2
        sheet = contact_sheet(torch.stack(drawn), [], columns=8)
        below = contact_sheet(blend, [], columns=8)
        count = -(-len(rows) // 8)
        lines = zip(np.split(sheet, count), np.split(below, count), strict=True)
        picture = np.vstack([strip for pair in lines for strip in pair])
        _write_picture(stem.with_name(f"{stem.name}{title}.png"), picture)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    print(f"wrote {path}")


def _plot(results: list[dict[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(7, 3.6 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), squeeze=False)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        (_plot_iou if result["kind"] == "annotated" else _plot_points)(axes, result)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"parser {title}")
    return figure


def _plot_iou(axes: Axes, result: dict[str, Any]) -> None:
    report = result[f"at_{result['size']}"]
    shown = {name: value for name, value in report["iou"].items() if value is not None}
    colours = ["0.6" if name in RARE_CLASSES else "C0" for name in shown]
    axes.bar(list(shown), list(shown.values()), color=colours)
    axes.axhline(report["mean_iou_common"], color="black", linewidth=1, linestyle="--")
    axes.set_title(
        f"{result['faces']} faces: IoU per class (rare grey); mean of the 16 common "
        f"{report['mean_iou_common']:.3f}",
        fontsize=10,
    )
    axes.tick_params(axis="x", rotation=60)
    axes.set_ylabel("IoU")
    axes.set_ylim(0, 1)


def _plot_points(axes: Axes, result: dict[str, Any]) -> None:
    points = result["points"]
    edges, counts = points["histogram_edges"], points["histogram"]
    width = edges[1] - edges[0]
    axes.bar(edges[:-1], counts[:-1], width, align="edge", edgecolor="white")
    axes.bar(edges[-1:], counts[-1:], width, align="edge", color="C3", label="further")
    axes.axvline(points["mean"], color="black", linewidth=1, linestyle="--")
    axes.set_title(
        f"{points['faces']} photographs: distance of five points from parsing to landmarks; "
        f"mean {points['mean']:.3f}",
        fontsize=10,
    )
    axes.set_xlabel("mean distance over the five points / distance of the eyes")
    axes.set_ylabel("faces")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
