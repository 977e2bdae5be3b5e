"""Fit how landmarks lie to the parts of a label map, on people apart from those judged."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import print_table, write_results
from benchmarks.segmentation import parse_timed, points_of
from recognizer.data.chips import LANDMARKS
from recognizer.data.folder import read_landmarks
from recognizer.data.verification_sets import read_pair_set
from segmenter import CLASSES, Parser, load_parser, parser_names
from segmenter.landmarks import DEFAULT, POINTS, Calibration

_RAW = Calibration(tip_eyes=0, tip_mouth=0, tip_down=0, mouth=1)
_MOUTH = [CLASSES.index(name) for name in ("mouth", "u_lip", "l_lip")]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.point_calibration",
        description=f"{__doc__} The values are the defaults of segmenter.landmarks.Calibration.",
    )
    known = ", ".join(parser_names())
    arguments.add_argument("--parser", default="light", help=f"a file of weights, or {known}")
    arguments.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="images/NAME/*.jpg, LFW's pairs.txt and landmarks.csv",
    )
    arguments.add_argument("--fit", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="folds")
    arguments.add_argument("--judge", nargs="+", type=int, default=[6, 7], help="folds")
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    options = arguments.parse_args(argv)
    try:
        parser = load_parser(options.parser, options.device)
        labels, truth = _read(parser, options.data, options.fit)
        held_out = _read(parser, options.data, options.judge)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    fitted = fit(labels, truth)
    errors = {
        "uncalibrated": _errors(*held_out, _RAW),
        "fitted": _errors(*held_out, fitted),
        "defaults": _errors(*held_out, DEFAULT),
    }
    print(f"\nfitted to {len(labels)} faces: {fitted}")
    rows = [[title, *(f"{v:.4f}" for v in (*e, e.mean()))] for title, e in errors.items()]
    print_table([f"mean / eyes, {len(held_out[0])} other faces", *POINTS, "all"], rows)
    payload: dict[str, Any] = {"parser": parser.name, "version": parser.version}
    payload |= {"fit": options.fit, "judge": options.judge, "fitted": vars(fitted)}
    path = write_results(
        "point_calibration", payload | {"errors": {k: v.tolist() for k, v in errors.items()}}
    )
    print(f"wrote {path}")


def fit(labels: Tensor, truth: np.ndarray) -> Calibration:
    """Fit a calibration to label maps `(N, H, W)` and points `(N, 5, 2)`; faces with gaps are out.

    Minimises the mean distance, not its square: some landmarks are wrong themselves.
    """
    raw = points_of(labels, _RAW)
    # Without a mouth, the tip is looked for straight below; with it, it is not.
    blind = torch.where(torch.isin(labels, torch.tensor(_MOUTH)), CLASSES.index("skin"), labels)
    lower = points_of(blind.to(torch.uint8), Calibration(tip_down=1)).points.numpy()
    whole = ~raw.fell_back.numpy()
    points, lower, truth = raw.points.numpy()[whole], lower[whole], truth[whole]
    eyes, nose, mouth = points[:, :2].mean(1), points[:, 2], points[:, 3:].mean(1)
    size = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1)
    turned = np.stack([nose - eyes, mouth - nose], 2)
    tip_eyes, tip_mouth = _least_distance(turned, truth[:, 2] - nose, size)
    (tip_down,) = _least_distance((lower[:, 2] - nose)[:, :, None], truth[:, 2] - nose, size)
    half, wanted = points[:, 3:] - mouth[:, None], truth[:, 3:] - mouth[:, None]
    (width,) = _least_distance(half.reshape(-1, 2, 1), wanted.reshape(-1, 2), np.repeat(size, 2))
    return Calibration(*(round(v, 2) for v in (tip_eyes, tip_mouth, tip_down, width)))


def _least_distance(basis: np.ndarray, wanted: np.ndarray, size: np.ndarray) -> list[float]:
    """Factors `(K,)` of `basis` `(N, 2, K)` nearest to `wanted` `(N, 2)` on average, over `size`.

    Iteratively reweighted least squares.
    """
    weight = np.ones(len(wanted))
    for _ in range(50):
        scale = (np.sqrt(weight) / size)[:, None]
        factors = np.linalg.lstsq(
            (basis * scale[:, :, None]).reshape(-1, basis.shape[2]),
            (wanted * scale).ravel(),
            rcond=None,
        )[0]
        distance = np.linalg.norm(wanted - basis @ factors, axis=1) / size
        weight = 1 / distance.clip(1e-3)
    return factors.tolist()


def _read(parser: Parser, path: Path, folds: list[int]) -> tuple[Tensor, np.ndarray]:
    pairs = read_pair_set(path).only_folds([fold - 1 for fold in folds])
    known = read_landmarks(path / LANDMARKS)
    truth = np.stack([known[image.name] for image in pairs.images if isinstance(image, Path)])
    return parse_timed(parser, pairs.decode())[0], truth


def _errors(labels: Tensor, truth: np.ndarray, calibration: Calibration) -> np.ndarray:
    found = points_of(labels, calibration).points.numpy()
    size = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1)
    return (np.linalg.norm(found - truth, axis=2) / size[:, None]).mean(0)


if __name__ == "__main__":
    main()
