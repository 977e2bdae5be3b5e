"""Photographs as an environment wants them: split by person, aligned, occluded, parsed, cached."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recognizer.data.align import similarity_transform, warp_picture
from recognizer.data.chips import LANDMARKS, template_of
from recognizer.data.disk_cache import cache_folder, new_folder
from recognizer.data.faces import FaceSet
from recognizer.data.occlusion import OCCLUSIONS, occlude
from recognizer.data.source import PAIRS, FaceSource, fold_of_people, open_source, stamp_of
from sarface_env.locating import decode_each, locate
from segmenter import CLASSES, Parser, load_parser
from segmenter.cache import parse_cached
from segmenter.data import split_names

SPLITS = ("train", "val", "test")
KINDS = ("clean", *OCCLUSIONS)
_VERSION = 1  # of what is made of a photograph: raise it when that changes
_BATCH = 512
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photographs:
    """How the faces of one split are made from files.

    Attributes:
        path: what `open_source` takes.
        split: `train`, `val` or `test`; they share no person.
        folds: which folds of `pairs.txt` are which split, such as `1-5/6/7`; empty to split people
            by a hash of their names, 70 / 15 / 15 %.
        size: side of the aligned images, which also decides the template.
        parser: a name or file for `load_parser`.
        parse: make parsing maps; alignment may need the parser anyhow.
        occlusion: one of `KINDS`.
        severity: of the occlusion, see `occlude`.
        occlusion_seed: with the name of an image, decides everything about its occluder.
        min_images: people with fewer are left out. 2, because a person is recognized by the other
            images; 1 for verification.
        device: where the parser runs.
    """

    path: str
    split: str = "train"
    folds: str = ""
    size: int = 112
    parser: str = "light"
    parse: bool = True
    occlusion: str = "clean"
    severity: float = 1.0
    occlusion_seed: int = 0
    min_images: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; there are {', '.join(SPLITS)}")
        if self.occlusion not in KINDS:
            raise ValueError(f"unknown occlusion {self.occlusion!r}; there are {', '.join(KINDS)}")


def load_photographs(options: Photographs) -> FaceSet:
    """Faces of one split, made at first use and memory-mapped from a cache afterwards.

    What is left out, and why, is logged in one list before anything is made. Faces are aligned by
    their clean image, occluded, and then parsed, so the parser sees what a camera would. The cache
    is `$SARFACE_CACHE`, by default `~/.cache/sarface`.

    Raises:
        FileNotFoundError: nothing at the path, or no such parser.
        ValueError: bad options, too few people, or images that cannot be decoded; lists them all.
    """
    source = open_source(options.path)
    parser = load_parser(options.parser, options.device)
    recipe = {
        "version": _VERSION,
        "files": hashlib.sha256(_stamp(source).encode()).hexdigest(),
        "parser": parser.version,
        **{k: v for k, v in vars(options).items() if k not in ("path", "parser", "device")},
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"photographs-{options.split}-{digest}"
    if not folder.is_dir():
        with new_folder(folder) as unfinished:
            _make(source, parser, options, unfinished)
    faces, how = _read(folder)
    name = f"{Path(options.path).resolve().name}, {options.split}"
    _log.info("%s: %d faces of %d people; %s", name, len(faces), len(faces.names), how)
    return faces


def _stamp(source: FaceSource) -> str:
    beside = (source.root / name for name in (LANDMARKS, PAIRS))
    return source.stamp + stamp_of([path for path in beside if path.is_file()], source.root)


def parse_folds(text: str) -> dict[str, list[int]]:
    """Folds of every split, from `TRAIN/VAL/TEST` such as `1-5/6/7` or `1,2/3/4-5`.

    Raises:
        ValueError: not of this form, or a fold is in two splits.
    """
    match = re.fullmatch(r"([\d,-]+)/([\d,-]+)/([\d,-]+)", text)
    try:
        if match is None:
            raise ValueError
        parts = {
            split: [
                fold
                for item in part.split(",")
                for low, _, high in [item.partition("-")]
                for fold in range(int(low), int(high or low) + 1)
            ]
            for split, part in zip(SPLITS, match.groups(), strict=True)
        }
    except ValueError:
        raise ValueError(f"folds are TRAIN/VAL/TEST such as 1-5/6/7, got {text!r}") from None
    every = [fold for part in parts.values() for fold in part]
    if len(set(every)) < len(every) or not all(parts.values()) or min(every) < 1:
        raise ValueError(f"folds count from 1 and are in one split each, got {text!r}")
    return parts


def _people(source: FaceSource, options: Photographs) -> tuple[np.ndarray, list[str]]:
    """Whether each person belongs to the split, bool `(C,)`, and who belongs to none."""
    enough = np.bincount(source.labels, minlength=len(source.names)) >= options.min_images
    chosen = enough.copy()
    report = []
    if options.folds:
        folds = parse_folds(options.folds)
        fold = fold_of_people(source)
        if absent := sorted(set(folds[options.split]) - set(fold.tolist())):
            raise ValueError(
                f"{source.root / PAIRS} has the folds 1 to {fold.max()}, there is no {absent[0]}"
            )
        chosen &= np.isin(fold, folds[options.split])
        report += _people_listed("are in no fold", source, enough & (fold == 0))
        few = ~enough & np.isin(fold, folds[options.split])
    else:
        pool = np.flatnonzero(enough)
        names = [source.names[person] for person in pool]
        share = max(0.15, 2 / max(len(names), 1))  # somebody to be told from
        part = split_names(names, share, share)
        key = "validation" if options.split == "val" else options.split
        chosen[:] = False
        chosen[pool[part[key]]] = True
        few = ~enough
    what = f"have fewer than {options.min_images} images and are left out"
    return chosen, report + _people_listed(what, source, few)


def _people_listed(what: str, source: FaceSource, people: np.ndarray) -> list[str]:
    names = [source.names[i] for i in np.flatnonzero(people)]
    more = ", ..." if len(names) > 10 else ""
    return [f"{len(names)} people {what}: {', '.join(names[:10])}{more}"] if names else []


def _make(source: FaceSource, parser: Parser, options: Photographs, folder: Path) -> None:
    """Write the arrays of a split and `faces.json` into a folder."""
    chosen, report = _people(source, options)
    located = locate(source, np.flatnonzero(chosen[source.labels]), parser)
    report += located.report
    rows, labels = located.rows, source.labels[located.rows]
    counts = np.bincount(labels, minlength=len(source.names))
    lost = chosen & (counts < options.min_images)
    report += _people_listed("lose so many images by this that they are left out", source, lost)
    if report:
        _log.warning("%s, %s split:\n  %s", options.path, options.split, "\n  ".join(report))
    kept = ~lost[labels]
    rows, points = rows[kept], located.points[kept]
    people, labels = np.unique(labels[kept], return_inverse=True)
    if len(people) < 2:
        raise ValueError(
            f"{options.path}: the {options.split} split has {len(people)} people with "
            f"{options.min_images} or more usable images; it needs 2"
        )
    files = [source.files[i] for i in rows]
    images = _align(source, rows, points, options.size, folder)
    if options.occlusion != "clean":
        images = _occlude(images, files, options, folder)
    how = located.how
    if options.parse:
        maps = _array(folder, "parsing", (len(rows), *images.shape[2:]), np.uint8)
        parse_cached(parser, images, out=maps)
        skinless = sum(
            int((~(part == CLASSES.index("skin")).flatten(1).any(1)).sum())
            for part in maps.split(_BATCH)
        )
        how += f"; {skinless} with no skin in their parsing" if skinless else ""
    about = {
        "files": files,
        "labels": labels.tolist(),
        "names": [source.names[person] for person in people],
        "how": how,
        "report": report,
    }
    (folder / "faces.json").write_text(json.dumps(about))


def _array(folder: Path, name: str, shape: tuple[int, ...], dtype: type) -> Tensor:
    return torch.from_numpy(
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)
    )


def _align(
    source: FaceSource, rows: np.ndarray, points: np.ndarray, size: int, folder: Path
) -> Tensor:
    """Aligned images `(N, 3, size, size)`, written to `images.npy`."""
    images = _array(folder, "images", (len(rows), 3, size, size), np.uint8)
    matrices = similarity_transform(points, template_of(size).resized(size))
    with tqdm(total=len(rows), desc="aligning", unit="face") as bar:
        for start in range(0, len(rows), _BATCH):
            part = matrices[start : start + _BATCH]

            def chip(k: int, picture: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                return warp_picture(picture, part[k], size).transpose(2, 0, 1)

            made = decode_each(source, rows[start : start + _BATCH], chip)
            images[start : start + _BATCH] = torch.from_numpy(np.stack(made))
            bar.update(len(made))
    return images


def _occlude(clean: Tensor, files: list[str], options: Photographs, folder: Path) -> Tensor:
    """Occluded images, written to `images.npy`; the clean ones become `clean.npy`."""
    (folder / "images.npy").rename(folder / "clean.npy")
    images = _array(folder, "images", tuple(clean.shape), np.uint8)
    occluders = _array(folder, "occluders", (len(clean), *clean.shape[2:]), np.bool_)
    # By name, so that an image is occluded alike in every split and at every size.
    numbers = np.array(
        [int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) for name in files], np.int64
    )
    template, kind = template_of(options.size), options.occlusion
    with tqdm(total=len(clean), desc=f"occluding ({kind})", unit="face") as bar:
        for start in range(0, len(clean), _BATCH):
            part = slice(start, start + _BATCH)
            images[part], occluders[part] = occlude(
                clean[part],
                template,
                kind,
                options.occlusion_seed,
                options.severity,
                numbers[part],
                clean,
            )
            bar.update(len(images[part]))
    return images


def _read(folder: Path) -> tuple[FaceSet, str]:
    about = json.loads((folder / "faces.json").read_text())
    # Copy-on-write, because torch has no read-only tensors.
    arrays = {
        path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in folder.glob("*.npy")
    }
    labels = torch.tensor(about["labels"])
    faces = FaceSet(labels=labels, names=about["names"], files=about["files"], **arrays)
    return faces, about["how"]
