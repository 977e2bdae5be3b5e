"""Face sets in RecordIO: the InsightFace and im2rec dialects.

InsightFace: record 0 (it may be the last in the file) has two labels, `[last_image_key + 1,
last_identity_key + 1]`, and no image. Images have the keys `1 .. labels[0] - 1` and a scalar label
or `[class, aligned]`; the records behind them have no image and give the images of one identity
each as `[first, end)`. A file `property` says `classes,height,width`, and `.lst` lists the sources.
im2rec: every record is an image, and key 0 is the first.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from recognizer.data.images import decode_image, decode_images
from recognizer.data.problems import DataError, OnError, Problems
from recognizer.data.recordio import Headers, IRHeader, RecordFile, pack
from recognizer.data.recordio_writer import RecordWriter, partial_name, refuse_to_overwrite

Dialect = Literal["insightface", "im2rec"]
# float32 holds every integer up to here; larger counts in record 0 are only near the truth.
_EXACT = 1 << 24


class FaceRecords(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A face set in RecordIO, indexed `0 .. N - 1` in the order of its keys.

    `faces[i]` is `(image uint8 BGR (3, H, W), label)`. Safe to share between `DataLoader` workers.

    Args:
        path: A `.rec` file, or the folder that holds `train.rec`.
        on_error: `"raise"`, or `"skip"` to leave bad records out and count them; they are then
            all looked at when the set is opened (their headers; images when they are decoded).

    Attributes:
        dialect: `"insightface"` or `"im2rec"`.
        keys: int64 `(N,)`, the record of each image.
        num_classes: What `property` says, else the largest label + 1.
        problems: What was skipped so far.

    Raises:
        FileNotFoundError: No such file.
        DataError: The set is not what it should be; one error lists everything that is wrong.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        path = Path(path)
        self.path = path / "train.rec" if path.is_dir() else path
        self.on_error = on_error
        self.records = RecordFile(self.path, on_error=on_error)
        self.problems = list(self.records.problems)
        self._labels: np.ndarray | None = None
        announced = self._announced()
        self.dialect: Dialect = "im2rec" if announced is None else "insightface"
        if announced is None:
            self.keys = self.records.keys
        else:
            self.keys = self._image_keys(*announced)
        self.property = self._read_property()
        if on_error == "skip":
            self._read_labels()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data, label = self.encoded(index)
        try:
            image = decode_image(data)
        except DataError as error:
            raise DataError(f"{self._name(index)}: {error}") from None
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), label

    def encoded(self, index: int) -> tuple[bytes, int]:
        """The encoded image and the label number `index`.

        Raises:
            IndexError: `index` is not in `0 .. N - 1`.
            DataError: The record is broken.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.path} has {len(self)} images, there is none with index {index}"
            )
        header, data = self.records.unpack(self.keys.item(index))
        label = (
            header.label if isinstance(header.label, float) else float(np.ravel(header.label)[0])
        )
        if not 0 <= label < _EXACT or label != int(label):
            raise DataError(f"{self._name(index)}: the label {label} is not a class")
        return data, int(label)

    def decode(
        self, indices: Sequence[int] | None = None, size: int | None = None, threads: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode many faces at once, in threads.

        Args:
            indices: Which; None for all. They all have to fit in memory.
            size: Height and width to resize to; None when all have one size.
            threads: 0 takes one for every core.

        Returns:
            Images uint8 BGR `(M, 3, H, W)` and labels int64 `(M,)`. With `on_error="skip"` M can be
            less than asked for; see `problems`.

        Raises:
            DataError: Images are unreadable; one error lists them all.
        """
        chosen = list(range(len(self))) if indices is None else [int(i) for i in indices]
        labels = np.zeros(len(chosen), np.int64)

        def read(number: int) -> bytes:
            data, labels[number] = self.encoded(chosen[number])
            return data

        images, kept, found = decode_images(
            read, [self._name(i) for i in chosen], size, self.on_error, threads, str(self.path)
        )
        self.problems += found
        return images, torch.from_numpy(labels[kept])

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 `(N,)`, read from the headers without decoding."""
        if self._labels is None:
            self._read_labels()
        assert self._labels is not None
        return self._labels

    @cached_property
    def num_classes(self) -> int:
        """Number of classes: what `property` says, else the largest label + 1."""
        if self.property is not None:
            return self.property[0]
        return int(self.labels.max()) + 1 if len(self) else 0

    @cached_property
    def identity_ranges(self) -> np.ndarray:
        """Keys `[first, end)` of the images of each identity, int64 `(K, 2)`; InsightFace only.

        Raises:
            DataError: The dialect has none, or they do not fit the images.
        """
        if self.dialect != "insightface":
            raise DataError(f"{self.path}: the im2rec dialect has no identity records")
        keys = self.records.keys
        last = int(self.keys[-1]) if len(self) else 0
        if last >= _EXACT:
            # Beyond what float32 can say; images of one identity follow each other.
            starts = np.flatnonzero(np.diff(self.labels, prepend=-1))
            ends = np.append(starts[1:], len(self)) - 1
            return np.stack([self.keys[starts], self.keys[ends] + 1], axis=1)
        places = np.flatnonzero(keys > self._last_image)
        headers = self.records.headers(places)
        ranges = np.stack([headers.label, headers.second_label], axis=1)
        good = (headers.payload == 0) & (ranges[:, 0] >= 1) & (ranges[:, 0] <= ranges[:, 1])
        good &= ranges[:, 1] <= self._last_image + 1
        problems = Problems(self.on_error)
        for row in np.flatnonzero(~good):
            problems.add(
                f"{self.path}, record {keys[places[row]]}, offset "
                f"{self.records.offsets[places[row]]}: [first, end) = {ranges[row]} is no identity"
            )
        self.problems += problems.settle(str(self.path))
        return ranges[good].astype(np.int64)

    def _announced(self) -> tuple[float, float] | None:
        """The labels of record 0 when it is an InsightFace header."""
        if 0 not in self.records:
            return None
        try:
            header, data = self.records.unpack(0)
        except DataError:
            if self.on_error == "raise":
                raise
            return None
        if header.flag != 2 or data:
            return None
        first, second = np.asarray(header.label).tolist()
        return first, second

    def _image_keys(self, images_end: float, identities_end: float) -> np.ndarray:
        keys = self.records.keys
        where = f"{self.path}, record 0, offset {self.records.offsets[self.records.position(0)]}"
        if not 1 <= images_end <= identities_end < float(1 << 40):
            raise DataError(
                f"{where}: not the header of a face set: [last image + 1, last identity + 1] = "
                f"[{images_end}, {identities_end}]"
            )
        if images_end < _EXACT:
            self._last_image = int(images_end) - 1
        else:
            headers = self.records.headers(problems=Problems("skip"))
            filled = keys[headers.valid & (headers.payload > 0) & (keys > 0)]
            self._last_image = int(filled[-1]) if len(filled) else 0
        chosen = keys[(keys >= 1) & (keys <= self._last_image)]
        missing = self._last_image - len(chosen)
        if missing:
            problems = Problems(self.on_error)
            present = np.append(chosen, self._last_image + 1)
            gap = present[np.flatnonzero(np.diff(present, prepend=0) > 1)[0]] - 1
            problems.add(
                f"{where}: images 1 to {self._last_image} announced, but {missing} of them are "
                f"not in {self.records.index or 'the file'} (record {gap}, for one)"
            )
            self.problems += problems.settle(str(self.path))
        return chosen

    def _read_property(self) -> tuple[int, int, int] | None:
        path = self.path.with_name("property")
        if self.dialect != "insightface" or not path.is_file():
            return None
        with path.open("rb") as file:
            line = file.readline(200).decode("ascii", "replace").strip()
        try:
            classes, height, width = map(int, line.split(","))
        except ValueError:
            text = f"{path}: expected `classes,height,width` in line 1, found {line!r}"
            raise DataError(text) from None
        return classes, height, width

    def _read_labels(self) -> None:
        records, problems = self.records, Problems(self.on_error)
        places = np.searchsorted(records.keys, self.keys)
        headers: Headers = records.headers(places, problems)
        value = headers.label
        with np.errstate(invalid="ignore"):
            good = (value >= 0) & (value < _EXACT) & (value == np.floor(value))
        for row in np.flatnonzero(headers.valid & ~good):
            problems.add(f"{self._name(int(row))}: the label {value[row]} is not a class")
        for row in np.flatnonzero(headers.valid & good & (headers.payload == 0)):
            problems.add(f"{self._name(int(row))}: the image is empty")
        good &= headers.valid & (headers.payload > 0)
        labels = value[good].astype(np.int64)
        if self.property is not None:
            held = len(np.unique(labels))
            largest = int(labels.max()) if len(labels) else -1
            if held != self.property[0] or largest >= self.property[0]:
                problems.add(
                    f"{self.path.with_name('property')}: {self.property[0]} classes, but the "
                    f"labels of {self.path.name} hold {held} and go up to {largest}"
                )
        self.problems += problems.settle(str(self.path))
        self.keys, self._labels = self.keys[good], labels

    def _name(self, index: int) -> str:
        key = self.keys.item(index)
        return f"{self.path}, record {key}, offset {self.records.offset(key)}"


class Face(NamedTuple):
    """One face to write: the encoded image, its class and where it came from."""

    data: bytes
    label: int
    source: str = ""


def write_face_records(
    path: str | Path,
    faces: Iterable[Face],
    size: tuple[int, int] = (112, 112),
    dialect: Dialect = "insightface",
    aligned_labels: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a face set in RecordIO: `.rec`, `.idx` and `.lst`, for InsightFace also `property`.

    The files get their names when all of them are complete.

    Args:
        path: The `.rec` file. InsightFace's own tools expect the name `train.rec`.
        faces: The faces; for InsightFace those of one class must follow each other.
        size: Height and width for `property`.
        dialect: `"insightface"` or `"im2rec"`.
        aligned_labels: Write labels as `[class, aligned]` instead of a scalar.
        overwrite: Replace files that exist.

    Returns:
        The number of faces written.

    Raises:
        FileExistsError: A file is already there and `overwrite` is False.
        ValueError: A label is not a class, or the faces are not grouped by class.
    """
    path = Path(path)
    listing = path.with_suffix(".lst")
    extra = [listing, path.with_name("property")] if dialect == "insightface" else [listing]
    refuse_to_overwrite(extra, overwrite)
    first_key = 1 if dialect == "insightface" else 0
    starts: list[int] = []
    seen: set[int] = set()
    previous, count = -1, 0
    try:
        with RecordWriter(path, overwrite) as writer:
            with partial_name(listing).open("w", encoding="utf-8", newline="\n") as lines:
                for key, face in enumerate(faces, first_key):
                    label = int(face.label)
                    if not 0 <= label < _EXACT:
                        raise ValueError(f"{face.source or key}: the label {label} is not a class")
                    if label != previous and dialect == "insightface":
                        if label in seen:
                            raise ValueError(
                                f"{face.source or key}: class {label} comes twice; "
                                "faces of one class must follow each other"
                            )
                        starts.append(key)
                    seen.add(label)
                    previous = label
                    value = [float(label), 1.0] if aligned_labels else float(label)
                    writer.write(key, pack(IRHeader(0, value, key, 0), face.data))
                    columns = [1, face.source, label] if first_key else [key, label, face.source]
                    print(*columns, sep="\t", file=lines)
                    count += 1
            if dialect == "insightface":
                end = count + 1
                for number, start in enumerate(starts):
                    stop = starts[number + 1] if number + 1 < len(starts) else end
                    header = IRHeader(0, [start, stop], end + number, 0)
                    writer.write(end + number, pack(header, b""))
                writer.write(0, pack(IRHeader(0, [end, end + len(starts)], 0, 0), b""))
                text = f"{len(seen)},{size[0]},{size[1]}\n"
                partial_name(extra[1]).write_text(text, encoding="ascii")
            for file in extra:
                partial_name(file).replace(file)
    finally:
        for file in extra:
            partial_name(file).unlink(missing_ok=True)
    return count
