"""Folders of images (`NAME/*.jpg`), `.lst` lists and landmark files."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recognizer.data.images import IMAGE_SUFFIXES, decode_images, image_size, is_file
from recognizer.data.problems import DataError, OnError, Problems

LANDMARK_COLUMNS = ["file"] + [
    f"{point}_{axis}"
    for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    for axis in "xy"
]


@dataclass(frozen=True)
class FaceFolder:
    """Image files with identities.

    Attributes:
        root: The folder.
        paths: The image files, those of one identity together.
        labels: int64 `(N,)`, index into `names`.
        names: One name an identity.
        problems: What was skipped.
    """

    root: Path
    paths: list[Path]
    labels: np.ndarray
    names: list[str]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def decode(
        self, size: int | None = None, on_error: OnError = "raise", threads: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All images uint8 BGR `(N, 3, H, W)` and their labels int64 `(N,)`; see `decode_images`.

        Raises:
            DataError: Images are unreadable or of several sizes; one error lists them all.
        """
        names = [str(path) for path in self.paths]
        images, kept, found = decode_images(
            lambda index: self.paths[index].read_bytes(),
            names,
            size,
            on_error,
            threads,
            str(self.root),
        )
        self.problems.extend(found)
        return images, torch.from_numpy(self.labels[kept])


def read_folder(
    root: str | Path,
    min_images: int = 1,
    check_images: bool = False,
    on_error: OnError = "raise",
) -> FaceFolder:
    """Find the images of a folder with one subfolder a person, both in the order of their names.

    Args:
        root: The folder; its images are `NAME/*` with a suffix of `IMAGE_SUFFIXES`.
        min_images: People with fewer are a problem. 2 finds those with a single image.
        check_images: Look into every file: is it a whole JPEG or PNG, of one size?
        on_error: Raise one error for all problems, or leave those images and people out.

    Raises:
        FileNotFoundError: No such folder.
        DataError: It has no images, or problems; one error lists them all.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}")
    entries = [
        (path, directory.name)
        for directory in sorted(item for item in root.iterdir() if item.is_dir())
        for path in sorted(directory.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not entries:
        raise DataError(f"{root}: no images; expected NAME/*{' or NAME/*'.join(IMAGE_SUFFIXES)}")
    return _collect(root, entries, min_images, check_images, on_error)


def read_list(
    path: str | Path,
    root: str | Path | None = None,
    min_images: int = 1,
    check_images: bool = False,
    on_error: OnError = "raise",
) -> FaceFolder:
    """Find the images named in a `.lst` file.

    InsightFace: `aligned<TAB>path<TAB>label[<TAB>...]`; im2rec: `key<TAB>label<TAB>path`. A person
    is called by the folder of their first image, or by the label when the path has none.

    Args:
        path: The list.
        root: What its paths are relative to; by default the folder of the list.
        min_images: See `read_folder`.
        check_images: See `read_folder`.
        on_error: See `read_folder`.

    Raises:
        FileNotFoundError: No such list.
        DataError: The list is broken or images are missing; one error lists all problems.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    problems = Problems(on_error)
    names: dict[int, str] = {}
    entries = []
    for number, _, source, label in list_entries(path, problems):
        names.setdefault(label, Path(source).parent.name or str(label))
        file = root / source
        if Path(source).is_absolute() or ".." in Path(source).parts:
            problems.add(f"{path}, line {number}: the path {source!r} leaves {root}")
        elif not is_file(file):
            problems.add(f"{path}, line {number}: no image at {file}")
        else:
            entries.append((file, label))
    entries.sort(key=lambda entry: entry[1])
    return _collect(root, entries, min_images, check_images, on_error, problems, names)


def list_entries(path: Path, problems: Problems) -> list[tuple[int, int | None, str, int]]:
    """The `(line number, record key if listed, path, label)` of a `.lst` file in either dialect."""
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path}")
    entries: list[tuple[int, int | None, str, int]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            columns = line.rstrip("\n").split("\t")
            try:
                # The column of the path is the one that is not a number.
                if len(columns) == 3 and not _is_number(columns[2]):
                    key, source, label = int(columns[0]), columns[2], float(columns[1])
                else:
                    key, source, label = None, columns[1], float(columns[2])
                if label != int(label) or label < 0:
                    raise ValueError
            except (ValueError, IndexError, OverflowError):
                problems.add(
                    f"{path}, line {number}: expected aligned<TAB>path<TAB>label, "
                    f"found {line.rstrip()[:80]!r}"
                )
                continue
            entries.append((number, key, source, int(label)))
    return entries


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _collect(
    root: Path,
    entries: list[tuple[Path, str]] | list[tuple[Path, int]],
    min_images: int,
    check_images: bool,
    on_error: OnError,
    problems: Problems | None = None,
    names: dict[int, str] | None = None,
) -> FaceFolder:
    problems = problems or Problems(on_error)
    if check_images:
        entries = _checked(entries, problems)
    people: dict[str | int, list[Path]] = {}
    for path, person in entries:
        people.setdefault(person, []).append(path)
    for person, paths in list(people.items()):
        if len(paths) < min_images:
            name = names[person] if names and isinstance(person, int) else person
            problems.add(f"{root}: {name} has {len(paths)} image(s), {min_images} are needed")
            del people[person]
    found = problems.settle(str(root))
    return FaceFolder(
        root,
        [path for paths in people.values() for path in paths],
        np.repeat(np.arange(len(people)), [len(paths) for paths in people.values()]),
        [names[person] if names and isinstance(person, int) else str(person) for person in people],
        found,
    )


def _checked(entries: list, problems: Problems) -> list:
    good = []
    first: tuple[Path, tuple[int, int]] | None = None
    for path, person in entries:
        try:
            size = image_size(path.read_bytes())
        except (DataError, OSError) as error:
            problems.add(f"{path}: {error}")
            continue
        first = first or (path, size)
        if size != first[1]:
            problems.add(
                f"{path}: {size[1]}x{size[0]} pixels, but {first[0]} has "
                f"{first[1][1]}x{first[1][0]}"
            )
            continue
        good.append((path, person))
    return good


def read_landmarks(path: str | Path, on_error: OnError = "raise") -> dict[str, np.ndarray]:
    """Five points a face by file name: float32 `(5, 2)`, x and y in image pixels.

    The file is CSV with the header `file,left_eye_x,left_eye_y,right_eye_x,...,mouth_right_y`;
    left and right are those of the image.

    Raises:
        FileNotFoundError: No such file.
        DataError: Another header, or broken lines; one error lists them all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no landmarks at {path}")
    problems = Problems(on_error)
    landmarks: dict[str, np.ndarray] = {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        # Without quoting, a stray quote cannot swallow the lines behind it.
        rows = csv.reader(file, quoting=csv.QUOTE_NONE)
        try:
            header = next(rows, [])
            if header != LANDMARK_COLUMNS:
                raise DataError(f"{path}: expected the header {','.join(LANDMARK_COLUMNS)}")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                try:
                    points = np.array(row[1:], np.float32).reshape(5, 2)
                except ValueError:
                    problems.add(f"{where}: expected a name and 10 numbers")
                    continue
                if not np.isfinite(points).all():
                    problems.add(f"{where}: a coordinate is not finite")
                elif row[0] in landmarks:
                    problems.add(f"{where}: {row[0]} is there twice")
                else:
                    landmarks[row[0]] = points
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}") from None
    problems.settle(str(path))
    return landmarks
