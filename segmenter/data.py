"""Face-parsing data on disk: the compact folder form and the original CelebAMask-HQ layout."""

import hashlib
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from segmenter.labels import CLASSES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_ORIGINAL_IMAGES, _ORIGINAL_MASKS = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"


@dataclass(frozen=True)
class Sample:
    """One image and its annotation: one index mask, or `{class index: binary mask}` files."""

    name: str
    image: Path
    mask: Path | dict[int, Path]


@dataclass(frozen=True)
class ParsingData:
    """Decoded faces: `images` uint8 (N, S, S, 3) BGR and `masks` uint8 (N, S, S), with names."""

    names: list[str]
    images: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: np.ndarray) -> "ParsingData":
        """Return the chosen faces (copied into memory)."""
        return ParsingData(
            [self.names[i] for i in indices], self.images[indices], self.masks[indices]
        )


def read_image(path: Path) -> np.ndarray:
    """Read any image as uint8 BGR (H, W, 3): grey is spread, 16 bits become 8, alpha is dropped.

    Raises `FileNotFoundError`, or `ValueError` when the file is no image or claims too many pixels.
    """
    return _decode(path, cv2.IMREAD_COLOR)


def read_mask(path: Path) -> np.ndarray:
    """Read an index mask as uint8 (H, W); palette files must hold indices as grey values.

    Raises `FileNotFoundError`, or `ValueError` when it is no single-channel 8-bit image or holds a
    label above 18.
    """
    mask = _decode(path, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(
            f"{path}: a mask must be a single-channel 8-bit image, got {mask.dtype} {mask.shape}"
        )
    if mask.max() >= len(CLASSES):
        raise ValueError(f"{path}: labels are 0 to {len(CLASSES) - 1}, the mask holds {mask.max()}")
    return mask


def find_samples(root: str | Path) -> list[Sample]:
    """List the samples of a folder in either layout, sorted by name.

    The compact form is `images/` and `masks/` with files of equal stem; the original one is
    `CelebA-HQ-img/N.jpg` and `CelebAMask-HQ-mask-anno/K/NNNNN_CLASS.png`. Raises
    `FileNotFoundError` when the folder has neither, `ValueError` naming the images that lack a
    mask and the masks that lack an image.
    """
    root = Path(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        samples, problems = _find_compact(root)
    elif (root / _ORIGINAL_IMAGES).is_dir() and (root / _ORIGINAL_MASKS).is_dir():
        samples, problems = _find_original(root)
    else:
        raise FileNotFoundError(
            f"{root}: expected images/ and masks/ (compact form), or {_ORIGINAL_IMAGES}/ and "
            f"{_ORIGINAL_MASKS}/ (CelebAMask-HQ as published)"
        )
    _raise_listed(root, problems)
    if not samples:
        raise ValueError(f"{root}: no images")
    return samples


def load_data(root: str | Path, size: int = 256, progress: bool = True) -> ParsingData:
    """Decode and check every sample of `root`, squared to `size`; all bad files are listed at once.

    The pixels live in an unnamed temporary file, so that 30,000 faces need no memory of their own.
    Raises what `find_samples` raises, and `ValueError` naming every file that is unreadable, has
    labels above 18, or whose mask has another shape than its image.
    """
    samples = find_samples(root)
    images = _scratch((len(samples), size, size, 3))
    masks = _scratch((len(samples), size, size))
    problems: list[str] = []

    def decode(index: int) -> str | None:
        try:
            image, mask = _read_sample(samples[index])
        except (OSError, ValueError) as error:
            return str(error)
        images[index] = cv2.resize(image, (size, size), interpolation=_shrink(image, size))
        masks[index] = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        return None

    with ThreadPoolExecutor() as pool:
        results = pool.map(decode, range(len(samples)))
        for problem in tqdm(
            results, "reading faces", len(samples), unit="face", disable=not progress
        ):
            if problem:
                problems.append(problem)
    _raise_listed(Path(root), problems)
    return ParsingData([sample.name for sample in samples], images, masks)


def split_names(
    names: list[str], test: float = 0.15, validation: float = 0.10, seed: int = 0
) -> dict[str, np.ndarray]:
    """Split names into `train`, `validation` and `test` index arrays.

    The names are ordered by the SHA-256 of `"{seed}:{name}"`; the first part is the test set, the
    next the validation set. The split depends on names and seed alone, never on file order.
    """
    digest = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=lambda i: digest[i]), dtype=np.int64)
    first = round(len(names) * test)
    second = first + round(len(names) * validation)
    return {
        "train": np.sort(order[second:]),
        "validation": np.sort(order[first:second]),
        "test": np.sort(order[:first]),
    }


def _read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(sample.image)
    if isinstance(sample.mask, Path):
        mask = read_mask(sample.mask)
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"{sample.mask}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        return image, mask
    merged: np.ndarray | None = None
    for label in sorted(sample.mask):  # later classes lie on top of earlier ones
        part = _decode(sample.mask[label], cv2.IMREAD_GRAYSCALE)
        if merged is None:
            merged = np.zeros(part.shape, np.uint8)
        if part.shape != merged.shape:
            raise ValueError(f"{sample.mask[label]}: its size {part.shape} is not {merged.shape}")
        merged[part > 127] = label
    assert merged is not None
    if merged.shape[0] * image.shape[1] != merged.shape[1] * image.shape[0]:
        raise ValueError(
            f"{sample.image}: image {image.shape[:2]} and masks {merged.shape} differ in shape"
        )
    return image, merged


def _find_compact(root: Path) -> tuple[list[Sample], list[str]]:
    images = {p.stem: p for p in _images_in(root / "images")}
    masks = {p.stem: p for p in _images_in(root / "masks")}
    problems = [f"{images[n]}: no mask {n}.png" for n in sorted(images.keys() - masks.keys())]
    problems += [f"{masks[n]}: no image {n}" for n in sorted(masks.keys() - images.keys())]
    return [Sample(n, images[n], masks[n]) for n in sorted(images.keys() & masks.keys())], problems


def _find_original(root: Path) -> tuple[list[Sample], list[str]]:
    parts: dict[int, dict[int, Path]] = {}
    problems: list[str] = []
    for path in sorted((root / _ORIGINAL_MASKS).glob("*/*.png")):
        number, _, name = path.stem.partition("_")
        if not number.isdecimal() or name not in CLASSES:
            problems.append(
                f"{path}: expected NNNNN_CLASS.png, CLASS one of {', '.join(CLASSES[1:])}"
            )
            continue
        parts.setdefault(int(number), {})[CLASSES.index(name)] = path
    images = {int(p.stem): p for p in _images_in(root / _ORIGINAL_IMAGES) if p.stem.isdecimal()}
    problems += [f"{images[n]}: no masks" for n in sorted(images.keys() - parts.keys())]
    for orphan in sorted(parts.keys() - images.keys()):
        problems.append(f"{next(iter(parts[orphan].values()))}: no image {orphan}.jpg")
    common = sorted(images.keys() & parts.keys())
    return [Sample(f"{n:05d}", images[n], parts[n]) for n in common], problems


def _images_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]


def _decode(path: Path, flags: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    data = path.read_bytes()
    _refuse_bombs(path, data)
    image = None
    if data:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:  # OpenCV refuses absurd sizes by raising
            raise ValueError(f"{path}: cannot be decoded ({error.err})") from None
    if image is None:
        raise ValueError(f"{path}: not an image, or a damaged one")
    return image


def _refuse_bombs(path: Path, data: bytes) -> None:
    """Raise when a PNG announces more pixels than its bytes can hold (deflate: 1032 to one)."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
        if width * height > 8 * 1032 * len(data):  # eight one-bit pixels in a byte
            raise ValueError(f"{path}: {len(data)} bytes cannot hold {width}x{height} pixels")


def _shrink(image: np.ndarray, size: int) -> int:
    return cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(tempfile.TemporaryFile(), np.uint8, "w+", shape=shape)


def _raise_listed(root: Path, problems: list[str], limit: int = 50) -> None:
    if problems:
        more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
        lines = "\n  ".join(problems[:limit] + more)
        raise ValueError(f"{root}: {len(problems)} bad files\n  {lines}")
