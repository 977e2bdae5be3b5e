"""The faces of a verification set as the chips that a recognizer wants, each warped only once."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recognizer.data.align import ARCFACE_112, RESNET29_150, Template, align, between, warp
from recognizer.data.folder import read_landmarks
from recognizer.data.problems import Problems
from recognizer.data.verification_sets import PairSet

LANDMARKS = "landmarks.csv"
_BATCH = 1024


def template_of(size: int) -> Template:
    """What a recognizer with inputs of this size is aligned to: dlib's chip at 150, else ArcFace's.

    The two differ in scale and place, not only in size: dlib's shows more around the face.
    """
    return RESNET29_150 if size == RESNET29_150.size else ARCFACE_112


def chips(
    pairs: PairSet, size: int, path: str | Path, through_crops: bool = False
) -> tuple[Tensor, str]:
    """Images of a verification set, uint8 BGR `(N, 3, size, size)`, and how they were aligned.

    From the original image by five points where the folder has `landmarks.csv`; 112x112 images
    without it, and so all `.bin` files, are taken to be aligned to ArcFace's template and are
    warped from it; others are used as they are, resized when they have another size.

    Args:
        pairs: The set.
        size: Side of the recognizer's input.
        path: Where the set was read from: a folder, its `pairs.txt`, or a `.bin` file.
        through_crops: Cut original images to ArcFace's 112x112 first and warp these, as if they
            came from a `.bin` file without its JPEG compression: tells what the crop itself costs.

    Raises:
        ValueError: Unreadable images, or images without landmarks; one error lists them all.
    """
    path, template = Path(path), template_of(size)
    landmarks = (path if path.is_dir() else path.parent) / LANDMARKS
    count = len(pairs.images)
    out = torch.empty(count, 3, size, size, dtype=torch.uint8)
    points, through_crops = None, through_crops and template is not ARCFACE_112
    if count and isinstance(pairs.images[0], Path) and landmarks.is_file():
        points, how = _points(pairs, landmarks), f"five points of {LANDMARKS}"
        if through_crops:
            how += f", through {ARCFACE_112.name}"
    else:
        sides = set(pairs.decode([0]).shape[2:]) if count else set()
        if sides == {ARCFACE_112.size} and template is not ARCFACE_112:
            how = f"warped from the template {ARCFACE_112.name} to {template.name}"
        else:
            how = "as they are" if sides == {size} else f"resized to {size}x{size}, not aligned"
    with tqdm(total=count, desc=f"{pairs.name}, reading", unit="img") as bar:
        for start in range(0, count, _BATCH):
            rows = range(start, min(start + _BATCH, count))
            block = slice(rows.start, rows.stop)
            if points is not None and through_crops:
                crops = align(pairs.decode(rows), points[block], ARCFACE_112)
                out[block] = warp(crops, between(ARCFACE_112, template), size)
            elif points is not None:
                out[block] = align(pairs.decode(rows), points[block], template, size)
            elif how.startswith("warped"):
                out[block] = warp(pairs.decode(rows), between(ARCFACE_112, template), size)
            else:
                out[block] = pairs.decode(rows, size)
            bar.update(len(rows))
    return out, how


def _points(pairs: PairSet, path: Path) -> np.ndarray:
    known = read_landmarks(path)
    names = [image.name for image in pairs.images if isinstance(image, Path)]
    problems = Problems()
    for name in names:
        if name not in known:
            problems.add(f"no landmarks of {name}")
    problems.settle(str(path))
    return np.stack([known[name] for name in names])
