"""Faces of real people in files, whatever the files are, and how people are split."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recognizer.data.face_records import FaceRecords
from recognizer.data.folder import FaceFolder, read_folder, read_list
from recognizer.data.problems import DataError
from recognizer.data.verification_sets import PairSet

PAIRS = "pairs.txt"


@dataclass(frozen=True)
class FaceSource:
    """Encoded images with identities.

    Attributes:
        root: Where a `landmarks.csv` or `pairs.txt` of these images would be.
        files: One name an image: its path below the folder of the images, or its record.
        labels: int64 `(N,)`, index into `names`.
        names: One name a person.
        read: Gives the encoded image number i.
        stamp: Changes when the files do.
    """

    root: Path
    files: list[str]
    labels: np.ndarray
    names: list[str]
    read: Callable[[int], bytes]
    stamp: str

    def __len__(self) -> int:
        return len(self.files)


def open_source(path: str | Path) -> FaceSource:
    """Open a folder of images, a RecordIO set or a list; what is unreadable is logged and left out.

    Args:
        path: a folder of `NAME/*.jpg`, or one that holds it as `images/` (LFW's form); a `.rec`
            file or a folder with `train.rec`; or a `.lst` of image files.

    Raises:
        FileNotFoundError: nothing there.
        DataError: no faces in it.
    """
    path = Path(path)
    if path.suffix == ".rec" or (path / "train.rec").is_file():
        records = FaceRecords(path, on_error="skip")
        names = [str(label) for label in range(int(records.labels.max(initial=-1)) + 1)]
        return FaceSource(
            records.path.parent,
            [f"record {key}" for key in records.keys],
            records.labels,
            names,
            lambda i: records.encoded(i)[0],
            stamp_of([records.path], records.path.parent),
        )
    if path.suffix == ".lst":
        return _of_folder(read_list(path, on_error="skip"), path.parent)
    if path.is_dir():
        images = path / "images" if (path / "images").is_dir() else path
        return _of_folder(read_folder(images, on_error="skip"), path)
    raise FileNotFoundError(
        f"no faces at {str(path)!r}; expected a folder of NAME/*.jpg, or with images/NAME/*.jpg, a "
        ".rec file or a folder with train.rec, or a .lst file"
    )


def _of_folder(folder: FaceFolder, root: Path) -> FaceSource:
    paths = folder.paths
    files = [path.relative_to(folder.root).as_posix() for path in paths]
    stamp = stamp_of(paths, folder.root)
    return FaceSource(
        root, files, folder.labels, folder.names, lambda i: paths[i].read_bytes(), stamp
    )


def stamp_of(paths: list[Path], root: Path) -> str:
    """Names below a folder, sizes and times of files, as text."""
    stats = ((path.relative_to(root), path.stat()) for path in paths)
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def fold_of_people(source: FaceSource, pairs: PairSet) -> np.ndarray:
    """Fold of every person by the pairs of `pairs.txt`, counted from 1; 0 for those in no pair.

    Returns:
        int64 `(C,)`.

    Raises:
        DataError: people in two folds, which could then be in two splits.
    """
    assert pairs.people is not None
    number = {name: i for i, name in enumerate(source.names)}
    known = np.array([number.get(name, -1) for name in pairs.people], np.int64)
    people, folds = known[pairs.pairs].ravel(), np.repeat(pairs.fold + 1, 2)
    fold = np.zeros(len(source.names), np.int64)
    fold[people[people >= 0]] = folds[people >= 0]
    torn = np.unique(people[(people >= 0) & (fold[people] != folds)])
    if len(torn):
        raise DataError(
            f"{source.root / PAIRS}: {len(torn)} people are in several folds, for example "
            + ", ".join(source.names[i] for i in torn[:5])
        )
    return fold
