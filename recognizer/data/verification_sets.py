"""Verification sets: pairs of faces, same person or not, in folds.

From a folder with LFW's `pairs.txt`, or from the `.bin` files of InsightFace, which are pickles of
`(images, issame)` with 2P encoded images, pair i being `[2i], [2i + 1]`.
"""

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from recognizer.data.images import (
    IMAGE_SUFFIXES,
    decode_image,
    decode_images,
    find_image,
    image_size,
)
from recognizer.data.problems import DataError, OnError, Problems
from recognizer.data.recordio_writer import partial_name, refuse_to_overwrite
from recognizer.data.restricted_pickle import load_pair_lists

DEFAULT_FOLDS = 10


@dataclass(frozen=True)
class PairSet:
    """Pairs of faces; every image is held once, however many pairs it is in.

    Attributes:
        name: What tables and errors call the set.
        images: `(N,)` encoded images or the paths of their files.
        pairs: int64 `(P, 2)`, indices into `images`.
        issame: bool `(P,)`.
        fold: int64 `(P,)`, `0 .. folds - 1`; never shuffled.
        people: One name an image, or None where the set does not say who they are.
        problems: What was skipped.
    """

    name: str
    images: Sequence[bytes | Path]
    pairs: np.ndarray
    issame: np.ndarray
    fold: np.ndarray
    people: list[str] | None = None
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1 if len(self) else 0

    def encoded(self, index: int) -> bytes:
        """The encoded image number `index`."""
        image = self.images[index]
        return image.read_bytes() if isinstance(image, Path) else image

    def image_name(self, index: int) -> str:
        """What errors call the image number `index`."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"{self.name}, image {index}"

    def decode(
        self, indices: Sequence[int] | None = None, size: int | None = None, threads: int = 0
    ) -> torch.Tensor:
        """Decode images, all or those at `indices`, to uint8 BGR `(M, 3, H, W)`.

        Raises:
            DataError: Images are unreadable or of several sizes; one error lists them all.
        """
        chosen = range(len(self.images)) if indices is None else [int(i) for i in indices]
        names = [self.image_name(i) for i in chosen]
        return decode_images(
            lambda number: self.encoded(chosen[number]), names, size, "raise", threads, self.name
        )[0]

    def batches(self, batch_size: int = 256, size: int | None = None) -> Iterator[torch.Tensor]:
        """All images in their order, `batch_size` at a time; see `decode`."""
        for start in range(0, len(self.images), batch_size):
            yield self.decode(range(start, min(start + batch_size, len(self.images))), size)

    def only_folds(self, folds: Sequence[int]) -> "PairSet":
        """The pairs of some folds, renumbered from 0 in the order of `folds`.

        Raises:
            ValueError: There is no such fold, or one is named twice.
        """
        if not set(folds) <= set(range(self.folds)) or len(set(folds)) != len(folds):
            raise ValueError(f"{self.name} has the folds 0 to {self.folds - 1}, not {list(folds)}")
        number = np.full(self.folds, -1)
        number[list(folds)] = np.arange(len(folds))
        return self._take(number[self.fold] >= 0, number[self.fold])

    def linked_people(self) -> np.ndarray:
        """A number for the person of each image, int64 `(N,)`.

        From `people`; where the set does not name them, images that pairs of the same person link
        are one person and all others are different people.
        """
        if self.people is not None:
            return np.unique(self.people, return_inverse=True)[1].astype(np.int64)
        person = np.arange(len(self.images))
        first, second = self.pairs[self.issame].T
        while True:
            # Spread the smallest number along the links until nothing changes.
            before = person.copy()
            smaller = np.minimum(person[first], person[second])
            np.minimum.at(person, first, smaller)
            np.minimum.at(person, second, smaller)
            if (person == before).all():
                return np.unique(person, return_inverse=True)[1].astype(np.int64)

    def readable(self, on_error: OnError = "raise") -> "PairSet":
        """Decode every image once; the pairs whose two images can be decoded.

        Raises:
            DataError: Some cannot, unless `on_error` is `"skip"`; one error lists them all.
        """
        good = np.zeros(len(self.images), bool)
        problems = Problems(on_error)
        for index in range(len(self.images)):
            try:
                decode_image(self.encoded(index))
                good[index] = True
            except (DataError, OSError) as error:
                problems.add(f"{self.image_name(index)}: {error}")
        found = problems.settle(self.name)
        kept = self._take(good[self.pairs].all(axis=1), self.fold)
        return replace(kept, problems=[*self.problems, *found])

    def _take(self, chosen: np.ndarray, fold: np.ndarray) -> "PairSet":
        used, inverse = np.unique(self.pairs[chosen], return_inverse=True)
        return replace(
            self,
            images=[self.images[i] for i in used],
            pairs=inverse.reshape(-1, 2).astype(np.int64),
            issame=self.issame[chosen],
            fold=fold[chosen],
            people=None if self.people is None else [self.people[i] for i in used],
        )


def read_pair_set(path: str | Path, on_error: OnError = "raise") -> PairSet:
    """Read a verification set: a `.bin` file, a `pairs.txt`, or a folder that holds one.

    Raises:
        FileNotFoundError: No such file.
        DataError: The set is not what it should be; one error lists everything that is wrong.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "pairs.txt"
    return (
        read_pairs(path, on_error=on_error)
        if path.suffix == ".txt"
        else read_bin(path, on_error=on_error)
    )


def read_pairs(
    path: str | Path, root: str | Path | None = None, on_error: OnError = "raise"
) -> PairSet:
    """Read LFW's `pairs.txt`: `folds<TAB>pairs`, then `name i j` and `nameA i nameB j`.

    Each fold has `pairs` lines of one person and then `pairs` lines of two; a first line with one
    number means one fold. Images are `root/NAME/NAME_%04d` with a suffix of `IMAGE_SUFFIXES`.

    Args:
        path: The list.
        root: Folder of the images; by default `images/` beside the list, or the folder of the list.
        on_error: Raise one error for everything that is wrong, or leave those pairs out.

    Raises:
        FileNotFoundError: No such list.
        DataError: The list is broken, images are missing or not images.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of pairs at {path}")
    if root is None:
        root = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    root, problems = Path(root), Problems(on_error)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    folds, per_kind = _fold_shape(path, lines)
    index: dict[tuple[str, int], int | None] = {}
    images: list[Path] = []
    people: list[str] = []

    def find(person: str, number: int, where: str) -> int | None:
        key = (person, number)
        if key not in index:
            index[key] = None
            stem = root / person / f"{person}_{number:04d}"
            file = None if Path(person).name != person or person == ".." else find_image(stem)
            if file is None:
                suffixes = ", ".join(IMAGE_SUFFIXES)
                problems.add(f"{where}: no image {stem} with a suffix of {suffixes}")
                return None
            try:
                image_size(file.read_bytes())
            except (DataError, OSError) as error:
                problems.add(f"{file}: {error}")
                return None
            index[key] = len(images)
            images.append(file)
            people.append(person)
        return index[key]

    rows: list[tuple[int, int, bool, int]] = []
    for place, line in enumerate(lines[1:]):
        where = f"{path}, line {place + 2}"
        fields = line.split("\t") if "\t" in line else line.split()
        fold, within = divmod(place, 2 * per_kind)
        same = within < per_kind
        match [text.strip() for text in fields]:
            case [person, i, j] if same and _is_count(i) and _is_count(j):
                first, second = find(person, int(i), where), find(person, int(j), where)
            case [person, i, other, j] if not same and _is_count(i) and _is_count(j):
                first, second = find(person, int(i), where), find(other, int(j), where)
            case _:
                expected = "name i j" if same else "nameA i nameB j"
                problems.add(f"{where}: expected {expected!r}, found {line[:80]!r}")
                continue
        if first is not None and second is not None:
            rows.append((first, second, same, fold))
    if len(lines) - 1 != 2 * folds * per_kind:
        problems.add(
            f"{path}: {folds} folds of 2 x {per_kind} pairs announced, "
            f"but {len(lines) - 1} pairs listed"
        )
    found = problems.settle(str(path))
    table = np.array(rows, np.int64).reshape(-1, 4)
    name = path.parent.name if path.name == "pairs.txt" else path.stem
    return PairSet(name, images, table[:, :2], table[:, 2].astype(bool), table[:, 3], people, found)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _fold_shape(path: Path, lines: list[str]) -> tuple[int, int]:
    numbers = lines[0].split() if lines else []
    if len(numbers) not in (1, 2) or not all(map(_is_count, numbers)):
        found = lines[0][:80] if lines else ""
        raise DataError(f"{path}, line 1: expected folds<TAB>pairs, found {found!r}")
    folds, per_kind = [1, *map(int, numbers)][-2:]
    if not folds or not per_kind:
        raise DataError(f"{path}, line 1: {folds} folds of {per_kind} pairs")
    return folds, per_kind


def read_bin(path: str | Path, folds: int | None = None, on_error: OnError = "raise") -> PairSet:
    """Read a `.bin` verification set through an unpickler that runs nothing.

    Args:
        path: The file.
        folds: Number of equal, unshuffled folds. The file does not say; by default they follow the
            order of LFW (in each fold first the same, then the different) where it has that order,
            else there are 10.
        on_error: Raise one error for everything that is wrong, or leave those pairs out.

    Raises:
        FileNotFoundError: No such file.
        DataError: The file holds anything but images and booleans, is broken, or entries are not
            images; the message names file, image and, for a broken file, the offset.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no verification set at {path}")
    try:
        entries, same = load_pair_lists(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}, {error}") from None
    if len(entries) != 2 * len(same) or not same:
        raise DataError(
            f"{path}: {len(entries)} images for {len(same)} pairs, expected {2 * len(same)} and "
            "at least one pair"
        )
    problems = Problems(on_error)
    index: dict[bytes, int] = {}
    number = np.full(len(entries), -1)
    for place, data in enumerate(entries):
        if data not in index:
            try:
                if not isinstance(data, bytes):
                    raise DataError(f"{type(data).__name__} instead of an encoded image")
                image_size(data)
            except DataError as error:
                problems.add(f"{path}, image {place} (pair {place // 2}): {error}")
                continue
            index[data] = len(index)
        number[place] = index[data]
    good = np.ones(len(same), bool)
    for place, value in enumerate(same):
        if not isinstance(value, bool | int) or value not in (0, 1):
            problems.add(f"{path}, pair {place}: issame is {value!r:.40}")
            good[place] = False
    found = problems.settle(str(path))
    pairs = number.reshape(-1, 2)
    good &= (pairs >= 0).all(axis=1)
    issame = np.array([value == 1 for value in same])
    if folds is None:
        folds = _folds_of_order(issame)
    if not 1 <= folds <= len(same):
        raise ValueError(f"{path}: {len(same)} pairs cannot be cut into {folds} folds")
    fold = np.repeat(np.arange(folds), [len(part) for part in np.array_split(issame, folds)])
    return PairSet(path.stem, list(index), pairs[good], issame[good], fold[good], None, found)


def _folds_of_order(issame: np.ndarray) -> int:
    runs = [(key, len(list(group))) for key, group in groupby(issame.tolist())]
    halves = {length for _, length in runs}
    if len(halves) == 1 and runs[0][0] and len(runs) >= 4 and len(runs) % 2 == 0:
        # Alternating single pairs are no folds.
        return len(runs) // 2 if halves != {1} else min(DEFAULT_FOLDS, len(issame))
    return min(DEFAULT_FOLDS, len(issame))


def write_bin(path: str | Path, pairs: PairSet, overwrite: bool = False) -> None:
    """Write a `.bin` verification set that InsightFace's and AdaFace's tools read.

    Raises:
        FileExistsError: The file is there and `overwrite` is False.
    """
    path = Path(path)
    refuse_to_overwrite([path], overwrite)
    held = [pairs.encoded(i) for i in range(len(pairs.images))]
    images = [held[i] for i in pairs.pairs.ravel().tolist()]
    partial = partial_name(path)
    try:
        partial.write_bytes(pickle.dumps((images, pairs.issame.tolist()), protocol=2))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
