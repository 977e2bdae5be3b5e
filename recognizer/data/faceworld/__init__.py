"""A synthetic face world: people drawn by rule, exact face-parsing maps, misleading nuisance.

An identity is geometry and colour of the inner face; everything else changes from image to image.
Some of what changes misleads a recognizer on purpose and lies in regions that an agent may drop:
pieces of other people's faces, other people in the background, objects, scarves printed with faces.
The same (seed, identity, index) and configuration give the same picture, in any order or process.

`python -m recognizer.data.faceworld --sheet faces.png` draws a contact sheet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recognizer.data.faces import FaceSet
from recognizer.data.faceworld.render import (
    NUISANCES,
    VERSION,
    FaceWorld,
    FaceWorldConfig,
    Sample,
)

__all__ = [
    "NUISANCES",
    "SPLITS",
    "FaceWorld",
    "FaceWorldConfig",
    "Sample",
    "contact_sheet",
    "faceworld_arrays",
    "load_faceworld",
]

# picture numbers of a split start here, so splits never share a picture
SPLITS = {"train": 0, "val": 1_000_000_000, "test": 2_000_000_000}


def load_faceworld(
    split: str = "train",
    images_per_identity: int = 40,
    identities: int = 200,
    seed: int = 0,
    config: FaceWorldConfig | None = None,
    workers: int | None = None,
) -> FaceSet:
    """Faces of one split of a world, drawn at first use and memory-mapped from a cache afterwards.

    Splits hold different pictures of the same people. Faces are ordered by picture number, then
    identity, so the first `identities` faces show everybody once. The cache is the folder
    `$SARFACE_CACHE`, by default `~/.cache/sarface`.

    Raises:
        ValueError: unknown split, or sizes that are not positive.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if images_per_identity < 1:
        raise ValueError(f"images_per_identity must be >= 1, got {images_per_identity}")
    arrays = faceworld_arrays(split, images_per_identity, identities, seed, config, workers)
    return FaceSet(
        images=torch.from_numpy(arrays["images"]),
        labels=torch.arange(identities).repeat(images_per_identity),
        names=[f"person_{i:04d}" for i in range(identities)],
        parsing=torch.from_numpy(arrays["parsing"]),
        occluders=torch.from_numpy(arrays["occluders"]),
    )


def faceworld_arrays(
    split: str,
    images_per_identity: int,
    identities: int,
    seed: int,
    config: FaceWorldConfig | None = None,
    workers: int | None = None,
) -> dict[str, np.ndarray]:
    """The memory-mapped arrays behind `load_faceworld`, and which nuisances are `present`."""
    world = FaceWorld(seed, identities, config)
    recipe = {
        "version": VERSION,
        "seed": seed,
        "identities": identities,
        "split": split,
        "images_per_identity": images_per_identity,
        "config": asdict(world.config),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    root = Path(os.environ.get("SARFACE_CACHE") or Path.home() / ".cache" / "sarface").expanduser()
    folder = root / f"faceworld-{split}-{digest}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        people = np.tile(np.arange(identities), images_per_identity)
        numbers = np.repeat(np.arange(images_per_identity), identities) + SPLITS[split]
        # a finished folder appears at once; an interrupted one is never mistaken for it
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            _write_arrays(unfinished, world, people, numbers, f"drawing {split} faces", workers)
            (unfinished / "recipe.json").write_text(json.dumps(recipe, indent=1))
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody drew the same faces meanwhile
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    names = ("images", "parsing", "occluders", "present")
    # copy-on-write, because torch has no read-only tensors
    return {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}


def _write_arrays(
    folder: Path,
    world: FaceWorld,
    people: np.ndarray,
    numbers: np.ndarray,
    description: str,
    workers: int | None,
) -> None:
    n, arrays, done = len(people), {}, 0
    with tqdm(total=n, desc=description, unit="face") as bar:
        for chunk in world.render_chunks(people, numbers, workers):
            for name, part in chunk.items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", part.dtype, (n, *part.shape[1:])
                    )
                arrays[name][done : done + len(part)] = part
            done += len(part)
            bar.update(len(part))
    for array in arrays.values():
        array.flush()


# one colour a class, BGR, chosen so that neighbours differ
PALETTE = np.array(
    [
        (60, 60, 60),
        (150, 190, 240),
        (90, 140, 220),
        (200, 60, 200),
        (220, 160, 40),
        (200, 100, 20),
        (60, 150, 90),
        (40, 110, 60),
        (120, 120, 240),
        (90, 90, 200),
        (40, 40, 120),
        (80, 60, 230),
        (50, 30, 190),
        (40, 80, 130),
        (170, 60, 90),
        (60, 230, 240),
        (40, 180, 220),
        (190, 200, 140),
        (210, 190, 60),
    ],
    np.uint8,
)


def contact_sheet(world: FaceWorld, columns: int = 10, rows: int = 4, first: int = 0) -> np.ndarray:
    """A picture of `columns` people, `rows` images each, every one above its label map."""
    lines = []
    for k in range(first, first + rows):
        samples = [world.render(i % world.identities, k) for i in range(columns)]
        lines.append(np.hstack([s.image for s in samples]))
        lines.append(np.hstack([PALETTE[s.labels] for s in samples]))
    return np.vstack(lines)
