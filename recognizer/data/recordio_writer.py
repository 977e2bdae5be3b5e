"""Writing RecordIO files as MXNet does; the format is described in `recognizer.data.recordio`."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from recognizer.data.recordio import LENGTH_BITS, LENGTH_MASK, MAGIC, MAGIC_BYTES, PART


class RecordWriter:
    """Writes a `.rec` file and its `.idx`, byte for byte as MXNet does.

    Both appear under their names only when the `with` block ends without an error.

    Args:
        path: The `.rec` file; the index gets the same name with `.idx`.
        overwrite: Replace files that exist.

    Raises:
        FileExistsError: A file is already there and `overwrite` is False.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.index = self.path.with_suffix(".idx")
        if self.path == self.index:
            raise ValueError(f"{path}: a RecordIO file cannot have the name of its index")
        refuse_to_overwrite([self.path, self.index], overwrite)
        self._offset = 0
        self._keys: set[int] = set()
        self._rec = partial_name(self.path).open("wb")
        self._idx = partial_name(self.index).open("w", encoding="ascii", newline="\n")

    def write(self, key: int, record: bytes) -> None:
        """Append a record, cut where it holds the magic number.

        Raises:
            ValueError: The key was written before, is negative, or the record has 2**29 bytes.
        """
        if key < 0 or key in self._keys:
            raise ValueError(f"{self.path}: key {key} is {'negative' if key < 0 else 'not new'}")
        if len(record) > LENGTH_MASK:
            raise ValueError(f"{self.path}: record {key} has {len(record)} bytes, 2**29 or more")
        parts, start, found = [], 0, record.find(MAGIC_BYTES)
        while found >= 0:
            if found % 4 == 0:
                parts.append(record[start:found])
                start = found + 4
            found = record.find(MAGIC_BYTES, found + (4 if found % 4 == 0 else 1))
        parts.append(record[start:])
        self._idx.write(f"{key}\t{self._offset}\n")
        self._keys.add(key)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            flag = 0 if len(parts) == 1 else 3 if last else 1 if number == 0 else 2
            header = PART.pack(MAGIC, flag << LENGTH_BITS | len(part))
            self._offset += self._rec.write(header + part + bytes(-len(part) % 4))

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rec.close()
        self._idx.close()
        for path in (self.index, self.path):
            if kind is None:
                partial_name(path).replace(path)
            else:
                partial_name(path).unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Where a file is written until it is complete: beside its place, so that it can be moved."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def refuse_to_overwrite(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise `FileExistsError` naming all of `paths` that exist, unless `overwrite`."""
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"already there: {', '.join(there)}; say overwrite to replace")
