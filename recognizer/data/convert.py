"""Converts face sets: image folder <-> RecordIO, `.bin` <-> folder with `pairs.txt`.

Images are copied byte for byte, never encoded again.
"""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import auto_cli
from tqdm import tqdm

from recognizer.data.face_records import Dialect, Face, FaceRecords, write_face_records
from recognizer.data.folder import list_entries, read_folder, read_list
from recognizer.data.images import decode_image, image_size
from recognizer.data.problems import DataError, Problems, Told
from recognizer.data.recordio_writer import partial_name, refuse_to_overwrite
from recognizer.data.verification_sets import read_bin, read_pair_set, read_pairs, write_bin


def folder_to_records(
    source: Path,
    target: Path,
    dialect: Dialect = "insightface",
    aligned_labels: bool = False,
    min_images: int = 1,
    on_error: Told = "raise",
    overwrite: bool = False,
) -> int:
    """Pack a folder of images into RecordIO.

    Args:
        source: A folder with one subfolder a person, or a .lst file.
        target: The .rec file, or the folder for train.rec; .idx, .lst and property go beside it.
        dialect: insightface has a header record and identities, im2rec has images only.
        aligned_labels: Write labels as [class, aligned] instead of one number.
        min_images: People with fewer images are a problem.
        on_error: raise stops with a list of all problems, skip leaves those images out.
        overwrite: Replace files that exist.

    Returns:
        The number of images written.
    """
    read = read_list if source.suffix == ".lst" else read_folder
    faces = read(source, min_images=min_images, check_images=True, on_error=on_error)
    if not len(faces):
        raise DataError(f"{source}: no image is left")
    size = image_size(faces.paths[0].read_bytes())
    path = target if target.suffix == ".rec" else target / "train.rec"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(faces.paths, faces.labels.tolist(), strict=True)
    written = (
        Face(file.read_bytes(), label, f"{faces.names[label]}/{file.name}")
        for file, label in tqdm(rows, f"writing {path.name}", len(faces), unit=" images")
    )
    return write_face_records(path, written, size, dialect, aligned_labels, overwrite)


def records_to_folder(source: Path, target: Path, on_error: Told = "raise") -> int:
    """Unpack RecordIO into a folder of images.

    Files are called as in the .lst beside the .rec file, or CLASS/CLASS_KEY without one.

    Args:
        source: The .rec file, or the folder that holds train.rec.
        target: The folder, which must not be there yet.
        on_error: raise stops at a broken record, skip leaves it out.

    Returns:
        The number of images written.
    """
    faces = FaceRecords(source, on_error=on_error)
    problems = Problems(on_error)
    names = _listed_names(faces, problems)
    count = 0
    with _new_folder(target) as folder:
        for index in tqdm(range(len(faces)), f"writing {target.name}", unit=" images"):
            key = int(faces.keys[index])
            try:
                data, label = faces.encoded(index)
                image_size(data)
            except DataError as error:
                problems.add(f"{faces.path}, record {key}: {error}")
                continue
            file = folder / names.get(key, f"{label:07d}/{label:07d}_{key:08d}")
            file = file.with_name(file.name + _suffix(data))
            file.parent.mkdir(exist_ok=True)
            if file.exists():
                problems.add(f"{faces.path}, record {key}: another record is {names[key]}, too")
                continue
            file.write_bytes(data)
            count += 1
        problems.settle(str(faces.path))
    return count


def bin_to_folder(
    source: Path, target: Path, folds: int | None = None, on_error: Told = "raise"
) -> int:
    """Unpack a .bin verification set into images/ and pairs.txt.

    A .bin file names nobody: people are numbered, images linked by a pair being one person.

    Args:
        source: The .bin file.
        target: The folder, which must not be there yet.
        folds: Number of folds; by default as the order of the pairs shows, else 10.
        on_error: raise stops with a list of all problems, skip leaves those pairs out.

    Returns:
        The number of images written.
    """
    pairs = read_bin(source, folds, on_error)
    same = [np.flatnonzero(pairs.issame & (pairs.fold == fold)) for fold in range(pairs.folds)]
    other = [np.flatnonzero(~pairs.issame & (pairs.fold == fold)) for fold in range(pairs.folds)]
    sizes = {len(rows) for rows in same + other}
    if len(sizes) != 1:
        raise DataError(
            f"{source}: pairs.txt needs as many same as different pairs in each fold; there are "
            f"{list(map(len, same))} and {list(map(len, other))}; try another number of folds"
        )
    person = pairs.linked_people()
    order = np.argsort(person, kind="stable")
    number = np.empty(len(person), np.int64)
    first = np.searchsorted(person[order], person[order])
    number[order] = np.arange(len(person)) - first + 1
    # Four digits in the file name are the format's limit.
    if len(number) and number.max() > 9999:
        raise DataError(f"{source}: {number.max()} images of one person, pairs.txt can name 9999")
    lines = [f"{pairs.folds}\t{sizes.pop()}"]
    for fold in range(pairs.folds):
        for a, b in pairs.pairs[same[fold]]:
            # Two images of a person always have the same number here.
            lines.append(f"person_{person[a]:06d}\t{number[a]}\t{number[b]}")
        for a, b in pairs.pairs[other[fold]]:
            lines.append(
                f"person_{person[a]:06d}\t{number[a]}\tperson_{person[b]:06d}\t{number[b]}"
            )
    with _new_folder(target) as folder:
        for index in tqdm(range(len(person)), f"writing {target.name}", unit=" images"):
            name, data = f"person_{person[index]:06d}", pairs.encoded(index)
            file = folder / "images" / name / f"{name}_{number[index]:04d}{_suffix(data)}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        (folder / "pairs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(person)


def folder_to_bin(
    source: Path,
    target: Path,
    root: Path | None = None,
    on_error: Told = "raise",
    overwrite: bool = False,
) -> int:
    """Pack a folder with pairs.txt into a .bin verification set.

    Args:
        source: The pairs.txt file, or the folder that holds it.
        target: The .bin file.
        root: Folder of the images; by default images/ beside pairs.txt, or the folder of pairs.txt.
        on_error: raise stops with a list of all problems, skip leaves those pairs out.
        overwrite: Replace the file if it exists.

    Returns:
        The number of pairs written.
    """
    refuse_to_overwrite([target], overwrite)
    pairs = read_pairs(source / "pairs.txt" if source.is_dir() else source, root, on_error)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bin(target, pairs, overwrite)
    return len(pairs)


def check(
    source: Path,
    kind: Literal["auto", "records", "folder", "pairs"] = "auto",
    min_images: int = 1,
) -> int:
    """Decode everything in a face set and print all that is wrong with it.

    Args:
        source: A .rec, .bin, .lst or pairs.txt file, or a folder with train.rec, pairs.txt or
            one subfolder a person.
        kind: What the source is; auto goes by the names of its files.
        min_images: People with fewer images are a problem; 2 lists those with a single one.

    Returns:
        The number of images that are right.
    """
    if kind == "auto":
        kind = _kind(source)
    if kind == "pairs":
        pairs = read_pair_set(source, on_error="skip").readable(on_error="skip")
        found, count = pairs.problems, len(pairs.images)
    elif kind == "records":
        faces = FaceRecords(source, on_error="skip")
        count = 0
        for start in tqdm(range(0, len(faces), 1024), "decoding", unit=" blocks"):
            block = range(start, min(start + 1024, len(faces)))
            count += len(faces.decode(block)[0])
        images = np.bincount(faces.labels)
        found = faces.problems + [
            f"{faces.path}: class {label} has {images[label]} image(s), {min_images} are needed"
            for label in np.flatnonzero((images > 0) & (images < min_images))
        ]
    else:
        read = read_list if source.suffix == ".lst" else read_folder
        folder = read(source, min_images=min_images, check_images=True, on_error="skip")
        found, count = list(folder.problems), 0
        for path in tqdm(folder.paths, "decoding", unit=" images"):
            try:
                decode_image(path.read_bytes())
                count += 1
            except (DataError, OSError) as error:
                found.append(f"{path}: {error}")
    for problem in found:
        print(problem)
    if found:
        raise DataError(f"{source}: {len(found)} problem(s), {count} images are right")
    return count


def _kind(source: Path) -> Literal["records", "folder", "pairs"]:
    if source.suffix == ".rec" or (source / "train.rec").is_file():
        return "records"
    if source.suffix in (".bin", ".txt") or (source / "pairs.txt").is_file():
        return "pairs"
    return "folder"


def _listed_names(faces: FaceRecords, problems: Problems) -> dict[int, str]:
    """Where each record goes, `NAME/FILE` without suffix, from the list beside the records."""
    listing = faces.path.with_suffix(".lst")
    if not listing.is_file():
        return {}
    names = {}
    for number, key, source, _ in list_entries(listing, problems):
        # An InsightFace list gives no keys: its lines are those of the images, in order.
        person, file = Path(source).parent.name, Path(source).stem
        if person in ("", "..") or not file:
            problems.add(f"{listing}, line {number}: expected NAME/FILE, found {source!r}")
            continue
        names[number if key is None else key] = f"{person}/{file}"
    return names


def _suffix(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete."""
    if target.exists():
        raise FileExistsError(f"already there: {target}; give the name of a new folder")
    partial = partial_name(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    """Run the command line."""
    commands: dict[str, Any] = {
        "folder-to-records": folder_to_records,
        "records-to-folder": records_to_folder,
        "bin-to-folder": bin_to_folder,
        "folder-to-bin": folder_to_bin,
        "check": check,
    }
    logging.basicConfig(format="%(message)s")
    # `check` prints all that is wrong; a log of what it skipped would tell it twice.
    logging.getLogger(Problems.__module__).disabled = "check" in sys.argv[1:]
    try:
        count = auto_cli(commands, description=__doc__, prog="python -m recognizer.data.convert")
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"done: {count}")


if __name__ == "__main__":
    main()
