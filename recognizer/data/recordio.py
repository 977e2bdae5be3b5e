"""MXNet's RecordIO files: a memory-mapped reader and the header of image records.

Format (little-endian): every part of a record is `u32 0xced7230a`, `u32` with 3 bits of
continuation flag and 29 bits of length, the data, and zeros up to a multiple of 4. Flag 0 is a
whole record. Where a record holds the magic number at a multiple of 4 it is cut there, without the
magic, into parts with the flags 1 (first), 2 (middle) and 3 (last).

An image record starts with the `IRHeader`: `u32` flag, `f32` label, `u64` id, `u64` id2. A flag
above zero is the number of `f32` labels that follow and stand for the scalar one. The writer is in
`recognizer.data.recordio_writer`; what the records of a face set mean, in `face_records`.
"""

import io
import mmap
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recognizer.data.problems import DataError, OnError, Problems

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_PART_AND_HEADER = struct.Struct("<IIIfQQ")
_CHUNK = 1 << 16


class IRHeader(NamedTuple):
    """Header of an image record: the fields and their order are MXNet's."""

    flag: int
    label: float | Sequence[float] | np.ndarray
    id: int
    id2: int


def pack(header: IRHeader, data: bytes) -> bytes:
    """Join a header and an encoded image as `mx.recordio.pack` does.

    A scalar label gives flag 0; a sequence gives its length as the flag, whatever `header.flag` is.
    """
    label = header.label
    if isinstance(label, int | float | np.number):
        return _HEADER.pack(0, float(label), header.id, header.id2) + data
    labels = np.asarray(label, "<f4").ravel()
    return _HEADER.pack(labels.size, 0.0, header.id, header.id2) + labels.tobytes() + data


def unpack(record: bytes) -> tuple[IRHeader, bytes]:
    """Split a record into its header and its encoded image, as `mx.recordio.unpack` does.

    The label is a float, or a float32 array `(flag,)` when the flag is above zero.

    Raises:
        DataError: The record is shorter than its header says.
    """
    if len(record) < _HEADER.size:
        raise DataError(f"{len(record)} bytes are too short for the {_HEADER.size}-byte header")
    flag, label, identifier, id2 = _HEADER.unpack_from(record)
    if not flag:
        return IRHeader(flag, label, identifier, id2), record[_HEADER.size :]
    start = _HEADER.size + 4 * flag
    if start > len(record):
        raise DataError(f"{len(record)} bytes are too short for the {flag} labels announced")
    labels = np.frombuffer(record, "<f4", flag, _HEADER.size).copy()
    return IRHeader(flag, labels, identifier, id2), record[start:]


class Headers(NamedTuple):
    """The headers of many records, one array a field, each `(N,)`."""

    flag: np.ndarray
    label: np.ndarray  # float32: the scalar, or the first of several labels
    second_label: np.ndarray  # float32: the second of several labels, else NaN
    id: np.ndarray
    payload: np.ndarray  # int64: bytes of the encoded image
    valid: np.ndarray  # bool: False where the record is bad and was skipped


class RecordFile:
    """Random access to the records of a `.rec` file by key.

    The file is memory-mapped: an object can be shared by threads and forked workers, and pickled
    (the map is opened again, nothing of the file is copied). Reading never trusts a length: a
    record must end before the next one that the index names.

    Args:
        path: The `.rec` file.
        index: Its `.idx` file; by default the file of the same name when there is one. Without an
            index the file is scanned once; keys are then the ids in the headers when these are
            unique, else positions.
        on_error: `"skip"` leaves out bad index entries and, when scanning, bad records; they are
            kept in `problems`.

    Attributes:
        keys: int64 `(N,)`, ascending.
        offsets: int64 `(N,)`, where each record starts in the file, in bytes.
        problems: What was skipped.

    Raises:
        FileNotFoundError: No such file.
        DataError: The file or its index is not what it should be; one error tells everything.
    """

    def __init__(
        self, path: str | Path, index: str | Path | None = None, on_error: OnError = "raise"
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no RecordIO file at {self.path}")
        self._open()
        problems = Problems(on_error)
        default = self.path.with_suffix(".idx")
        if index is not None or default.is_file():
            self.index: Path | None = Path(index or default)
            keys, offsets = self._read_index(self.index, problems)
        else:
            self.index = None
            keys, offsets = self._scan(problems)
        self.problems = problems.settle(str(self.index or self.path))
        order = np.argsort(keys, kind="stable")
        self.keys, self.offsets = keys[order], offsets[order]
        ascending = np.sort(offsets)
        following = np.append(ascending[1:], self.size)
        self._ends = following[np.searchsorted(ascending, self.offsets)]
        self._first = int(self.keys[0]) if len(keys) else 0
        self._contiguous = len(keys) > 0 and int(self.keys[-1]) - self._first + 1 == len(keys)

    def _open(self) -> None:
        with self.path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size == 0:
                raise DataError(f"{self.path}: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        size = self.size
        self._open()
        if self.size != size:
            raise DataError(f"{self.path}: had {size} bytes when first opened, now {self.size}")

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """All `(key, record)` in the order of the keys."""
        for position, key in enumerate(self.keys.tolist()):
            yield key, self._read(position)

    def read(self, key: int) -> bytes:
        """The whole record of a key, put together from its parts.

        Raises:
            KeyError: No such key.
            DataError: The record is broken; the message names file, record and offset.
        """
        return self._read(self.position(key))

    def offset(self, key: int) -> int:
        """Where the record of a key starts in the file, in bytes."""
        return self.offsets.item(self.position(key))

    def unpack(self, key: int) -> tuple[IRHeader, bytes]:
        """Header and encoded image of a key; as `unpack(read(key))`, without the copies.

        Raises:
            KeyError: No such key.
            DataError: The record is broken; the message names file, record and offset.
        """
        position = self.position(key)
        offset, end = self.offsets.item(position), self._ends.item(position)
        if offset + _PART_AND_HEADER.size <= end:
            magic, lrec, flag, label, identifier, id2 = _PART_AND_HEADER.unpack_from(
                self._map, offset
            )
            stop = offset + 8 + lrec
            # A length above 29 bits is a continuation flag: the slow way puts parts together.
            if magic == MAGIC and lrec <= LENGTH_MASK and lrec >= _HEADER.size and stop <= end:
                start = offset + _PART_AND_HEADER.size
                if not flag:
                    return IRHeader(flag, label, identifier, id2), self._map[start:stop]
                if flag <= (stop - start) // 4:
                    labels = np.frombuffer(self._map[start : start + 4 * flag], "<f4")
                    data = self._map[start + 4 * flag : stop]
                    return IRHeader(flag, labels.copy(), identifier, id2), data
        try:
            return unpack(self._read(position))
        except DataError as error:
            text = str(error)
            raise DataError(
                text if str(self.path) in text else self._where(position) + text
            ) from None

    def headers(
        self, positions: np.ndarray | None = None, problems: Problems | None = None
    ) -> Headers:
        """Headers of all records, or of those at `positions` of `keys`, without their images.

        Gathered with numpy from the map; only records in several parts are read one by one.

        Args:
            positions: int64 `(M,)` into `keys`; None for all.
            problems: Where to note bad records; None raises one error for all of them.

        Raises:
            DataError: Records are broken (only without `problems`).
        """
        own = problems or Problems()
        places = np.arange(len(self)) if positions is None else np.asarray(positions, np.int64)
        parts = [
            self._gather(places[start : start + _CHUNK], own)
            for start in range(0, len(places), _CHUNK)
        ] or [self._gather(places, own)]
        if problems is None:
            own.settle(str(self.path))
        return Headers(*map(np.concatenate, zip(*parts, strict=True)))

    def _gather(self, places: np.ndarray, problems: Problems) -> Headers:
        offsets, ends = self.offsets[places], self._ends[places]
        # Records start at multiples of 4, so that their first 40 bytes are 10 words; those that
        # end before are read as word 0 and judged by their length.
        words = np.frombuffer(self._map, "<u4", self.size // 4)
        last = (ends // 4 - offsets // 4)[:, None]
        columns = np.arange(10)
        table = words[(offsets // 4)[:, None] + np.where(columns < last, columns, 0)]
        length = table[:, 1].astype(np.int64)
        flag = table[:, 2].astype(np.int64)
        payload = length - _HEADER.size - 4 * flag
        plain = (ends - offsets >= PART.size) & (table[:, 0] == MAGIC)
        plain &= (length <= LENGTH_MASK) & (payload >= 0) & (offsets + 8 + length <= ends)
        labels = table[:, [3, 8, 9]].view("<f4")
        first = np.where(flag > 0, labels[:, 1], labels[:, 0])
        second = np.where(flag > 1, labels[:, 2], np.float32("nan"))
        identifier = table[:, 4].astype(np.uint64) | table[:, 5].astype(np.uint64) << np.uint64(32)
        for row in np.flatnonzero(~plain):
            place = int(places[row])
            try:
                header, data = self.unpack(int(self.keys[place]))
            except DataError as error:
                problems.add(error)
                continue
            plain[row] = True
            flag[row], payload[row], identifier[row] = header.flag, len(data), header.id
            values = np.append(np.atleast_1d(header.label), [np.nan, np.nan])
            first[row], second[row] = values[:2]
        return Headers(flag, first, second, identifier, payload, plain)

    def _find(self, key: int) -> int | None:
        if self._contiguous:
            position = key - self._first
            return position if 0 <= position < len(self.keys) else None
        position = int(np.searchsorted(self.keys, key))
        return position if position < len(self.keys) and self.keys[position] == key else None

    def position(self, key: int) -> int:
        """Where a key is in `keys` and `offsets`.

        Raises:
            KeyError: No such key.
        """
        position = self._find(key)
        if position is None:
            raise KeyError(f"{self.path} has no record {key}; {self._extent()}")
        return position

    def _extent(self) -> str:
        if not len(self.keys):
            return "it has none at all"
        return f"its {len(self)} keys go from {self.keys[0]} to {self.keys[-1]}"

    def _where(self, position: int) -> str:
        return f"{self.path}, record {self.keys[position]}, offset {self.offsets[position]}: "

    def _read(self, position: int) -> bytes:
        offset, end = self.offsets.item(position), self._ends.item(position)
        try:
            return self._record(offset, end)[0]
        except _BrokenRecordError as error:
            raise DataError(self._where(position) + error.text) from None

    def _record(self, offset: int, end: int) -> tuple[bytes, int]:
        """The record at `offset`, which must stop at `end`, and the offset behind its padding."""
        parts: list[bytes] = []
        position = offset
        while True:
            if position + 8 > end:
                raise _BrokenRecordError(position, f"it is cut off at offset {end}")
            magic, lrec = PART.unpack_from(self._map, position)
            if magic != MAGIC:
                what = (
                    f"expected the magic number {MAGIC:#x} at offset {position}, found {magic:#x}"
                )
                raise _BrokenRecordError(position, what)
            flag, length = lrec >> LENGTH_BITS, lrec & LENGTH_MASK
            if flag not in ((2, 3) if parts else (0, 1)):
                what = f"unexpected continuation flag {flag} at offset {position}"
                raise _BrokenRecordError(position, what)
            start = position + 8
            if start + length > end:
                what = (
                    f"{length} bytes announced at offset {position}, but only {end - start} there"
                )
                raise _BrokenRecordError(position, what)
            parts.append(self._map[start : start + length])
            position = start + length + -length % 4
            if flag in (0, 3):
                return MAGIC_BYTES.join(parts), position
            if length % 4:
                what = f"the part at offset {start - 8} is cut at {length}, not a multiple of 4"
                raise _BrokenRecordError(start - 8, what)

    def _read_index(self, path: Path, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
        if not path.is_file():
            raise FileNotFoundError(f"no index at {path}")
        text = path.read_text(encoding="latin-1")
        table = np.empty((0, 2), np.int64)
        if text.strip():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    table = np.loadtxt(io.StringIO(text), np.int64, comments=None, ndmin=2)
            except (ValueError, OverflowError, Warning) as error:
                raise DataError(
                    f"{path}: not an index of `key<TAB>offset` lines: {error}"
                ) from None
        if table.shape[1] != 2:
            raise DataError(f"{path}: expected 2 columns (key, offset), found {table.shape[1]}")
        keys, offsets = table[:, 0].copy(), table[:, 1].copy()
        bad = (offsets < 0) | (offsets + 8 > self.size) | (offsets % 4 != 0) | (keys < 0)
        for row in np.flatnonzero(bad):
            problems.add(
                f"{path}, line {row + 1}: record {keys[row]} cannot be at offset {offsets[row]} of "
                f"{self.path.name} ({self.size} bytes; records start at multiples of 4)"
            )
        for what, column in (("key", keys), ("offset", offsets)):
            _, first = np.unique(column, return_index=True)
            again = np.ones(len(column), bool)
            again[first] = False
            for row in np.flatnonzero(again & ~bad):
                problems.add(f"{path}, line {row + 1}: the {what} {column[row]} is there twice")
            bad |= again
        return keys[~bad], offsets[~bad]

    def _scan(self, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
        """Walk through a file that has no index."""
        offsets: list[int] = []
        identifiers: list[int] = []
        position, size, view = 0, self.size, self._map
        while position < size:
            try:
                head = -1
                if position + _PART_AND_HEADER.size <= size:
                    magic, lrec, _, _, identifier, _ = _PART_AND_HEADER.unpack_from(view, position)
                    following = position + 8 + lrec + -lrec % 4
                    if magic == MAGIC and _HEADER.size <= lrec and position + 8 + lrec <= size:
                        head = identifier
                if head < 0:
                    record, following = self._record(position, size)
                    if len(record) >= _HEADER.size:
                        head = _HEADER.unpack_from(record)[2]
            except _BrokenRecordError as error:
                problems.add(f"{self.path}, record {len(offsets)}, offset {position}: {error.text}")
                # The next first part; behind what was looked at, or hostile files take for ever.
                position = max(position + 4, error.position)
                while position < size:
                    position = view.find(MAGIC_BYTES, position)
                    if position < 0 or position + 8 > size:
                        position = size
                    elif position % 4 == 0 and view[position + 7] >> 5 in (0, 1):
                        break
                    else:
                        position += 1
                continue
            offsets.append(position)
            identifiers.append(head)
            position = following
        keys = np.arange(len(offsets))
        if identifiers and min(identifiers) >= 0 and max(identifiers) < 1 << 62:
            named = np.array(identifiers, np.int64)
            if len(np.unique(named)) == len(named):
                keys = named
        return keys, np.array(offsets, np.int64)


class _BrokenRecordError(Exception):
    def __init__(self, position: int, text: str) -> None:
        super().__init__(text)
        self.position = position
        self.text = text
