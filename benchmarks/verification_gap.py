"""Why a folder and the `.bin` file made of it give different accuracies.

The same pairs are read three ways: aligned from the folder's original images, aligned through
112x112 crops of them, and from the `.bin` file, whose crops are JPEGs as well. Two steps apart, two
causes apart: the crop, and its compression. A third cause is the protocol, which chooses a
threshold for each fold on the others: of two folds, on a single one. So all are also judged by the
thresholds that all the other folds of the folder give, and by the single one that suits each best.
"""

import argparse
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import environment, print_table, write_results
from recognizer.data.chips import chips
from recognizer.data.disk_cache import cache_folder
from recognizer.data.verification_sets import PairSet, read_pair_set
from recognizer.engine import InferenceEngine
from recognizer.enrolment import embed_cached
from recognizer.loader import load_recognizer
from recognizer.verification import pair_distances, verify_set

READINGS = ("folder", "folder through crops", ".bin")
HEADERS = [
    "reading",
    "accuracy %",
    "wrong pairs",
    "thresholds",
    "wrong at the thresholds of all the folder's folds",
    "wrong at its best single threshold",
    "black in a chip %",
]


@dataclass
class Reading:
    """One way to read the pairs, in the order of the list.

    Attributes:
        distance: squared distance of every pair, `(P,)`.
        threshold: what every pair is judged by, `(P,)`.
        black: share of the chip's pixels that are exactly black: outside the image.
    """

    distance: np.ndarray
    threshold: np.ndarray
    black: float


def main(argv: list[str] | None = None) -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verification_gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recognizer", default="resnet29")
    parser.add_argument("--folder", type=Path, required=True, help="with pairs.txt, landmarks.csv")
    parser.add_argument("--bin", type=Path, required=True, help="some of its folds as a .bin file")
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2], help="which ones")
    options = parser.parse_args(argv)
    try:
        readings, same, names, wide = _read(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    rows = [
        _row(name, reading, wide, same) for name, reading in zip(READINGS, readings, strict=True)
    ]
    disputed = _disputed(readings, same, names)
    wrong = [_wrong(reading, same) for reading in readings]
    only = int((wrong[0] & ~wrong[2]).sum()), int((wrong[2] & ~wrong[0]).sum())
    chance = min(1.0, 2 * sum(comb(sum(only), k) for k in range(min(only) + 1)) / 2 ** sum(only))
    print_table(HEADERS, rows)
    print(f"\nwrong only from the folder {only[0]}, only from the .bin {only[1]}: p = {chance:.2f}")
    payload = {
        "rows": [dict(zip(HEADERS, row, strict=True)) for row in rows],
        "disputed": disputed,
        "wrong_only_from": {"folder": only[0], "bin": only[1], "sign_test_p": chance},
        "distance_change": _changes(readings, same),
    }
    path = write_results("verification_gap", payload)
    path.with_suffix(".md").write_text(_markdown(rows, payload), encoding="utf-8")
    _plot(readings, same).savefig(path.with_suffix(".png"), dpi=150)
    print(f"wrote {path}, verification_gap.md and verification_gap.png")


def _read(
    options: argparse.Namespace,
) -> tuple[list[Reading], np.ndarray, list[str], np.ndarray]:
    """The readings, what is true, the names of the pairs, thresholds from all of the folder."""
    engine = InferenceEngine(load_recognizer(options.recognizer))
    numbers = [fold - 1 for fold in options.folds]
    whole = read_pair_set(options.folder)
    folder, packed = whole.only_folds(numbers), read_pair_set(options.bin)
    if not np.array_equal(folder.issame, packed.issame):
        raise ValueError(f"{options.bin} does not hold the folds {options.folds} of the folder")

    def embed(name: str, pairs: PairSet, path: Path, crops: bool = False) -> tuple[Tensor, float]:
        images, _ = chips(pairs, engine.recognizer.spec.size, path, crops)
        black = (images == 0).all(1).float().mean().item()
        return embed_cached(engine, images, name, cache_folder()), black

    def judge(embeddings: Tensor, pairs: PairSet, black: float) -> Reading:
        found = verify_set(embeddings, pairs, samples=0)
        distance = pair_distances(embeddings, pairs.pairs)
        return Reading(distance, found.thresholds[pairs.fold], black)

    everything, black = embed(READINGS[0], whole, options.folder)
    used = np.isin(whole.fold, numbers)
    wide = judge(everything, whole, black).threshold[used]
    rows = np.unique(whole.pairs[used])  # the images of `folder`, in its order
    readings = [judge(everything[torch.from_numpy(rows)], folder, black)]
    for name, pairs, path, crops in (
        (READINGS[1], folder, options.folder, True),
        (READINGS[2], packed, options.bin, False),
    ):
        embeddings, black = embed(name, pairs, path, crops)
        readings.append(judge(embeddings, pairs, black))
    files = [Path(folder.image_name(i)).stem for i in range(len(folder.images))]
    names = [f"{files[a]} - {files[b]}" for a, b in folder.pairs]
    return readings, folder.issame, names, wide


def _wrong(reading: Reading, same: np.ndarray) -> np.ndarray:
    return (reading.distance < reading.threshold) != same


def _row(name: str, reading: Reading, wide: np.ndarray, same: np.ndarray) -> list[Any]:
    wrong = int(_wrong(reading, same).sum())
    candidates = np.nextafter(np.sort(reading.distance), np.inf)
    best = min(int(((reading.distance < t) != same).sum()) for t in candidates)
    thresholds = " ".join(f"{t:.4f}" for t in dict.fromkeys(reading.threshold))
    return [
        name,
        f"{100 * (1 - wrong / len(same)):.2f}",
        wrong,
        thresholds,
        int(((reading.distance < wide) != same).sum()),
        best,
        f"{100 * reading.black:.1f}",
    ]


def _disputed(readings: list[Reading], same: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Pairs that are right in one reading and wrong in another."""
    wrong = np.stack([_wrong(reading, same) for reading in readings])
    excess = np.stack([reading.distance - reading.threshold for reading in readings]).round(4)
    return [
        {
            "pair": names[i],
            "same": bool(same[i]),
            "distance - threshold": excess[:, i].tolist(),
            "wrong": wrong[:, i].tolist(),
        }
        for i in np.flatnonzero(wrong.any(0) & ~wrong.all(0))
    ]


def _changes(readings: list[Reading], same: np.ndarray) -> dict[str, dict[str, float]]:
    """By how much crop and compression move the distances of pairs (standard deviations)."""
    steps = {"crop": (0, 1), "compression": (1, 2), "both": (0, 2)}
    moved = {k: readings[b].distance - readings[a].distance for k, (a, b) in steps.items()}
    return {
        k: {"same": round(float(d[same].std()), 4), "different": round(float(d[~same].std()), 4)}
        for k, d in moved.items()
    }


def _markdown(rows: list[list[Any]], payload: dict[str, Any]) -> str:
    only, moved = payload["wrong_only_from"], payload["distance_change"]
    lines = [
        "# The same pairs from the folder and from the .bin file",
        "",
        f"`{environment()['command']}`",
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|---" * len(HEADERS) + "|",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
        "",
        f"Only from the folder {only['folder']} pairs are wrong, only from the .bin {only['bin']} "
        f"(sign test p = {only['sign_test_p']:.2f}).",
        "Standard deviation of the change of a pair's distance, same and different people: "
        + "; ".join(f"{k} {d['same']:.4f} and {d['different']:.4f}" for k, d in moved.items())
        + ".",
        "",
        "Pairs on which the readings disagree, by distance minus threshold (bold: wrong):",
        "",
        "| pair | people | " + " | ".join(READINGS) + " |",
        "|---|---|---|---|---|",
    ]
    for pair in payload["disputed"]:
        cells = [
            f"**{value:+.4f}**" if wrong else f"{value:+.4f}"
            for value, wrong in zip(pair["distance - threshold"], pair["wrong"], strict=True)
        ]
        people = "same" if pair["same"] else "different"
        lines.append(f"| {pair['pair']} | {people} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(readings: list[Reading], same: np.ndarray) -> Figure:
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    first, _, last = readings
    for kind, label in ((same, "same person"), (~same, "different people")):
        axes.plot(first.distance[kind], last.distance[kind], ".", markersize=3, label=label)
    for line, reading in ((axes.axvline, first), (axes.axhline, last)):
        for threshold in np.unique(reading.threshold):
            line(threshold, color="gray", linewidth=0.8)
    axes.set_xlabel("squared distance, aligned from the folder")
    axes.set_ylabel("squared distance, from the .bin file")
    axes.set_xlim(0.1, 0.3)
    axes.set_ylim(0.1, 0.3)
    axes.set_title("Pairs near the thresholds (grey)")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
