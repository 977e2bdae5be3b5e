"""Photographs as an environment wants them: split by person, aligned, occluded, parsed, cached."""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recognizer.data.align import similarity_transform, warp_picture
from recognizer.data.chips import LANDMARKS, template_of
from recognizer.data.disk_cache import cache_folder, make_once, new_array
from recognizer.data.faces import FaceSet
from recognizer.data.occlusion import OCCLUSIONS, kinds_drawn, occlude
from recognizer.data.source import PAIRS, FaceSource, fold_of_people, open_source, stamp_of
from recognizer.data.verification_sets import PairSet, read_pairs
from recognizer.memory import keep_freed_memory
from sarface_env.locating import decode_each, listed, locate
from segmenter import CLASSES, Parser, load_parser
from segmenter.cache import parse_cached
from segmenter.data import split_names

SPLITS = ("train", "val", "test")
KINDS = ("clean", *OCCLUSIONS)
_VERSION = 2  # of what is made of a photograph: raise it when that changes
_BATCH = 512
_log = logging.getLogger(__name__)
_BAD_PAIRS = f"pairs or images of {PAIRS} are left out"


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
        coverings: ways in which every image is occluded. With several, the faces come in as many
            rounds: all images in one way, all in another.
        alike: so many images share an occluder, at random in every round: what a mask gains on all
            of them is due to the occluder, on one of them it may be chance. 1 covers each by
            itself.
        min_images: people with fewer are left out. 2, because a person is recognized by the other
            images. With 1 and without folds, people with a single image are all in `train`.
        device: where the parser runs.
        pairs: folds of `pairs.txt`: the images of their pairs and nothing else, instead of a split.
            `min_images` is then 1.
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
    coverings: int = 1
    min_images: int = 2
    device: str = "auto"
    pairs: tuple[int, ...] = ()
    alike: int = 1

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
    keep_freed_memory()  # for the parser
    source = open_source(options.path)
    parser = load_parser(options.parser, options.device)
    recipe = {
        "version": _VERSION,
        "files": hashlib.sha256(_stamp(source).encode()).hexdigest(),
        "parser": parser.version,
        **{k: v for k, v in vars(options).items() if k not in ("path", "parser", "device")},
    }
    # What was made before there were these keeps its name.
    for name in ("pairs", "coverings", "alike"):
        if recipe[name] == getattr(Photographs, name):
            del recipe[name]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"photographs-{options.split}-{digest}"
    made = make_once(folder, lambda unfinished: _make(source, parser, options, unfinished))
    about = json.loads((folder / "faces.json").read_text())
    faces = _read(folder, about)
    name = f"{Path(options.path).resolve().name}, {_part(options)}"
    if about["report"] and not made:  # else it was told before anything was made
        _log.warning("%s:\n  %s", name, "\n  ".join(about["report"]))
    _log.info("%s: %d faces of %d people; %s", name, len(faces), len(faces.names), about["how"])
    return faces


def pairs_of(path: str | Path) -> PairSet:
    """The pairs of a folder in LFW's form, without those that name absent images.

    Those are told with whatever else is wrong with the folder, by `load_photographs`.

    Raises:
        FileNotFoundError: no `pairs.txt`.
    """
    file = Path(path) / PAIRS
    if not file.is_file():
        raise FileNotFoundError(f"folds need a {PAIRS} in {file.parent}")
    return _read_once(file, stamp_of([file], file.parent))


@functools.cache
def _read_once(file: Path, stamp: str) -> PairSet:
    return read_pairs(file, on_error="collect")


def pairs_among(path: str | Path, folds: Sequence[int], files: list[str]) -> tuple[PairSet, int]:
    """The pairs of some folds whose two images are among files as `load_photographs` names them.

    Args:
        path: a folder in LFW's form, with `pairs.txt`.
        folds: of that file, counted from 1.
        files: the rows that the result's pairs index; its images are the paths of all of them.

    Returns:
        The pairs, in the folds' order, and how many others have no usable images.

    Raises:
        FileNotFoundError: no `pairs.txt`.
        ValueError: no such fold.
    """
    chosen = pairs_of(path).only_folds([fold - 1 for fold in folds])
    row = {name: i for i, name in enumerate(files)}
    at = np.array([row.get(name, -1) for name in _names(chosen)], np.int64)[chosen.pairs]
    good = (at >= 0).all(1)
    kept = replace(
        chosen,
        images=[Path(name) for name in files],
        people=[Path(name).parent.name for name in files],
        pairs=at[good],
        issame=chosen.issame[good],
        fold=chosen.fold[good],
    )
    return kept, int((~good).sum())


def _names(pairs: PairSet) -> list[str]:
    """The images of `pairs.txt` as sources name them."""
    return ["/".join(image.parts[-2:]) for image in pairs.images if isinstance(image, Path)]


def _part(options: Photographs) -> str:
    folds = ", ".join(map(str, options.pairs))
    return f"the pairs of folds {folds}" if folds else f"the {options.split} split"


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


def _choose(source: FaceSource, options: Photographs) -> tuple[np.ndarray, list[str]]:
    """Which images are wanted, bool `(N,)`, and which people and pairs are left out."""
    if options.pairs:
        return _of_pairs(source, options)
    counts = np.bincount(source.labels, minlength=len(source.names))
    enough = counts >= options.min_images
    chosen = enough.copy()
    report = []
    if options.folds:
        folds = parse_folds(options.folds)
        pairs = pairs_of(source.root)
        fold = fold_of_people(source, pairs)
        if absent := sorted(set(folds[options.split]) - set(fold.tolist())):
            raise ValueError(
                f"{source.root / PAIRS} has the folds 1 to {fold.max()}, there is no {absent[0]}"
            )
        chosen &= np.isin(fold, folds[options.split])
        report += listed(_BAD_PAIRS, pairs.problems)
        report += _people_listed("are in no fold", source, enough & (fold == 0))
        few = ~enough & np.isin(fold, folds[options.split])
    else:
        # Whatever is enough, or a split with other numbers would share people with this one.
        pool = np.flatnonzero(counts >= 2)
        names = [source.names[person] for person in pool]
        share = max(0.15, 2 / max(len(names), 1))  # somebody to be told from
        part = split_names(names, share, share)
        key = "validation" if options.split == "val" else options.split
        own = np.isin(np.arange(len(counts)), pool[part[key]])
        if options.split == "train":
            own |= counts == 1  # no other split has them
        chosen &= own
        few = ~enough
    what = f"have fewer than {options.min_images} images and are left out"
    return chosen[source.labels], report + _people_listed(what, source, few)


def _of_pairs(source: FaceSource, options: Photographs) -> tuple[np.ndarray, list[str]]:
    """Which images the pairs of some folds are of, bool `(N,)`, and what is wrong with pairs."""
    every = pairs_of(source.root)
    names = set(_names(every.only_folds([fold - 1 for fold in options.pairs])))
    wanted = np.array([file in names for file in source.files], bool)
    return wanted, listed(_BAD_PAIRS, every.problems)


def _people_listed(what: str, source: FaceSource, people: np.ndarray) -> list[str]:
    names = [source.names[i] for i in np.flatnonzero(people)]
    more = ", ..." if len(names) > 10 else ""
    return [f"{len(names)} people {what}: {', '.join(names[:10])}{more}"] if names else []


def _make(source: FaceSource, parser: Parser, options: Photographs, folder: Path) -> None:
    """Write the arrays of a split and `faces.json` into a folder."""
    chosen, report = _choose(source, options)
    located = locate(source, np.flatnonzero(chosen), parser)
    report += located.report
    rows, labels = located.rows, source.labels[located.rows]
    least = 1 if options.pairs else options.min_images
    lost = np.zeros(len(source.names), bool)
    lost[source.labels[chosen]] = True
    lost &= np.bincount(labels, minlength=len(source.names)) < least
    report += _people_listed("lose so many images by this that they are left out", source, lost)
    if report:  # before the work starts
        _log.warning("%s, %s:\n  %s", options.path, _part(options), "\n  ".join(report))
    kept = ~lost[labels]
    rows, points = rows[kept], located.points[kept]
    people, labels = np.unique(labels[kept], return_inverse=True)
    if len(people) < 2:
        raise ValueError(
            f"{options.path}: {_part(options)} has {len(people)} people with {least} or more "
            "usable images; it needs 2"
        )
    files = [source.files[i] for i in rows]
    images = _align(source, rows, points, options.size, folder)
    if options.occlusion != "clean":
        images = _occlude(images, files, options, folder)
        files, labels = files * options.coverings, np.tile(labels, options.coverings)
    how = located.how
    if options.parse:
        maps = _array(folder, "parsing", (len(images), *images.shape[2:]), np.uint8)
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
    return torch.from_numpy(new_array(folder / f"{name}.npy", shape, dtype))


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
    n, total = len(clean), len(clean) * options.coverings
    images = _array(folder, "images", (total, *clean.shape[1:]), np.uint8)
    occluders = _array(folder, "occluders", (total, *clean.shape[2:]), np.bool_)
    numbers = _numbers(files)
    first = options.occlusion_seed
    groups = [_groups(n, options.alike, first + k) for k in range(options.coverings)]
    if options.alike > 1:
        alike = _array(folder, "alike", (total, options.alike), np.int64)
        alike[:] = torch.from_numpy(np.concatenate([n * k + g for k, g in enumerate(groups)]))
    template, kind = template_of(options.size), options.occlusion
    with tqdm(total=total, desc=f"occluding ({kind})", unit="face") as bar:
        for covering, group in enumerate(groups):
            # Whoever has the smallest number of a group gives it the occluder.
            shared = numbers[group].min(1)
            for start in range(0, n, _BATCH):
                part = slice(start, min(start + _BATCH, n))
                to = slice(covering * n + part.start, covering * n + part.stop)
                images[to], occluders[to] = occlude(
                    clean[part],
                    template,
                    kind,
                    first + covering,
                    options.severity,
                    shared[part],
                    clean,
                )
                bar.update(part.stop - part.start)
    return images


def _groups(n: int, size: int, seed: int) -> np.ndarray:
    """Random groups of n images: each image's members `(n, size)`, beginning with itself.

    Those of the last group, which may be smaller, come more than once.
    """
    order = np.random.default_rng(seed).permutation(n)
    place = np.arange(n)
    start = place // size * size
    members = np.minimum(size, n - start)[:, None]
    groups = np.empty((n, size), np.int64)
    groups[order] = order[start[:, None] + ((place - start)[:, None] + np.arange(size)) % members]
    return groups


def _numbers(files: list[str]) -> np.ndarray:
    # By name, so that an image is occluded alike in every split and at every size.
    digests = (hashlib.sha256(name.encode()).hexdigest() for name in files)
    return np.array([int(digest[:12], 16) for digest in digests], np.int64)


def occluder_kinds(files: list[str], occlusion: str, seed: int) -> list[str]:
    """What covers the images of `FaceSet.files`: a kind of occluder each, `none` for nothing."""
    if occlusion == "clean":
        return ["none"] * len(files)
    return kinds_drawn(occlusion, seed, _numbers(files))


def _read(folder: Path, about: dict[str, Any]) -> FaceSet:
    # Copy-on-write, because torch has no read-only tensors.
    arrays = {
        path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in folder.glob("*.npy")
    }
    labels = torch.tensor(about["labels"])
    return FaceSet(labels=labels, names=about["names"], files=about["files"], **arrays)
