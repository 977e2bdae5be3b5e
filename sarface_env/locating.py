"""Which photographs can be used, and where the five points of their faces are."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from recognizer.data.align import ARCFACE_112, warp_picture
from recognizer.data.chips import LANDMARKS
from recognizer.data.folder import read_landmarks
from recognizer.data.images import decode_image, image_size
from recognizer.data.problems import DataError, Problems
from recognizer.data.source import FaceSource
from segmenter import CLASSES, Parser
from segmenter.cache import parse_cached
from segmenter.landmarks import face_points

_SMALLEST = 24  # pixels a side; less shows no face that could be recognized
_LEAST_SKIN = 0.01  # of the picture, for a face none of whose parts are seen
_BATCH = 256


@dataclass
class Located:
    """Usable images and the five points of their faces.

    Attributes:
        rows: which images of the source, int64 `(N,)`.
        points: float64 `(N, 5, 2)` in pixels of the image.
        how: where the points are from, for people.
        report: what was left out or replaced, one sentence each.
    """

    rows: np.ndarray
    points: np.ndarray
    how: str = ""
    report: list[str] = field(default_factory=list)


def locate(source: FaceSource, rows: np.ndarray, parser: Parser, progress: bool = True) -> Located:
    """Find the five points of the faces on some images of a source.

    From `landmarks.csv` where it has them. Without that file, images of 112 x 112 are taken to be
    aligned to ArcFace's template; all others are parsed, and their points read off the parsing.
    Images that cannot be read, are tiny or show no face that the parser sees are left out.
    """
    sizes, unusable = _sizes(source, rows)
    report = listed("images cannot be used", unusable)
    rows, sizes = rows[sizes[:, 0] > 0], sizes[sizes[:, 0] > 0]
    points, known, file = _landmarks(source, rows, sizes)
    if file is not None:
        without = [source.files[i] for i in rows[~known]]
        report += listed(f"images without usable points in {file.name}; they are parsed", without)
    elif len(rows) and (sizes == ARCFACE_112.size).all():
        points[:], known[:] = ARCFACE_112.resized(ARCFACE_112.size), True
        aligned = "112x112, taken to be aligned to ArcFace's template"
        return Located(rows, points, aligned, report)
    how = [f"{known.sum()} aligned by {LANDMARKS}"] if known.any() else []
    if not known.all():
        todo = np.flatnonzero(~known)
        points[todo], seen, fell_back = _parsed_points(source, rows[todo], parser, progress)
        parts = f"{int(fell_back.sum())} of them with parts that were not seen"
        how.append(f"{int(seen.sum())} aligned by points from the parsing, {parts}")
        known[todo] = seen
        absent = [source.files[i] for i in rows[~known]]
        report += listed(f"images show no face that the parser {parser.name} sees", absent)
    return Located(rows[known], points[known], "; ".join(how), report)


def listed(what: str, names: Sequence[str], shown: int = 10) -> list[str]:
    """A line of a report: how many there are, of what, and the first of them; none without any."""
    more = [f"and {len(names) - shown} more"] if len(names) > shown else []
    return [f"{len(names)} {what}: {'; '.join([*names[:shown], *more])}"] if names else []


def _sizes(source: FaceSource, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Height and width by the images' headers, `(N, 2)`, zero for unusable ones; what these are."""

    def size(row: int) -> tuple[int, int] | str:
        try:
            height, width = image_size(source.read(row))
        except (DataError, OSError) as error:
            return f"{source.files[row]}: {error}"
        if min(height, width) < _SMALLEST:
            return f"{source.files[row]}: {width}x{height} pixels, {_SMALLEST} are the least"
        return height, width

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(size, rows.tolist(), chunksize=64))
    sizes = np.array([(0, 0) if isinstance(s, str) else s for s in found], np.int64).reshape(-1, 2)
    return sizes, [s for s in found if isinstance(s, str)]


def _landmarks(source: FaceSource, rows: np.ndarray, sizes: np.ndarray):
    """Points `(N, 5, 2)`, which of them are known and usable `(N,)`, and the file or None."""
    points, known = np.zeros((len(rows), 5, 2)), np.zeros(len(rows), bool)
    file = source.root / LANDMARKS
    if not file.is_file():
        return points, known, None
    listed = read_landmarks(file, on_error="skip")
    names = [PurePosixPath(name).name for name in source.files]
    often = Counter(names)
    for k, row in enumerate(rows):
        name = names[row]
        # A bare name stands for an image only where no other has it.
        found = listed.get(source.files[row], listed.get(name) if often[name] == 1 else None)
        if found is not None:
            points[k], known[k] = found, True
    # Points in one spot or all outside of the image align nothing.
    inside = np.all((points >= 0) & (points < sizes[:, None, ::-1]), 2).any(1)
    return points, known & inside & (np.ptp(points, 1).max(1) >= 4), file


def _parsed_points(
    source: FaceSource, rows: np.ndarray, parser: Parser, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points `(N, 5, 2)`, which images show a face `(N,)`, and of which parts were not seen."""
    side = max(160, parser.size)
    points, seen, fell_back = np.zeros((len(rows), 5, 2)), np.zeros(len(rows), bool), []
    with tqdm(total=len(rows), desc="finding faces", unit="face", disable=not progress) as bar:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            made = decode_each(source, rows[part], lambda k, picture: _thumbnail(picture, side))
            thumbnails = torch.from_numpy(np.stack([m[0] for m in made]))
            labels = parse_cached(parser, thumbnails, progress=False)
            found = face_points(labels)
            scale, shift = np.array([m[1] for m in made]), np.stack([m[2] for m in made])
            points[part] = (found.points.numpy() - shift[:, None]) / scale[:, None, None]
            skin = (labels == CLASSES.index("skin")).float().mean((1, 2))
            seen[part] = (found.found.any(1) | (skin >= _LEAST_SKIN)).numpy()
            fell_back.append(found.fell_back.numpy() & seen[part])
            bar.update(len(made))
    return points, seen, np.concatenate(fell_back)


def _thumbnail(picture: np.ndarray, side: int) -> tuple[np.ndarray, float, np.ndarray]:
    """The whole picture `(3, side, side)`, and scale and shift that take its pixels there."""
    extent = np.array(picture.shape[1::-1])
    scale = side / extent.max()
    shift = (side - 1) / 2 - scale * (extent - 1) / 2
    matrix = np.column_stack([scale * np.eye(2), shift])
    return warp_picture(picture, matrix, side).transpose(2, 0, 1), scale, shift


def decode_each(
    source: FaceSource, rows: np.ndarray, make: Callable[[int, np.ndarray], object]
) -> list:
    """`make(k, picture)` of the k-th of the rows' pictures, uint8 BGR `(H, W, 3)`, in threads.

    Raises:
        DataError: pictures that cannot be decoded; one error lists them all.
    """

    def work(k: int) -> tuple[object, str]:
        try:
            return make(k, decode_image(source.read(int(rows[k])))), ""
        except (DataError, OSError) as error:
            return None, f"{source.files[rows[k]]}: {error}"

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(work, range(len(rows)), chunksize=16))
    problems = Problems()
    for _, problem in done:
        if problem:
            problems.add(problem)
    problems.settle(str(source.root))
    return [result for result, _ in done]
