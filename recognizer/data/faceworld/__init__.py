"""A synthetic face world: people drawn by rule, exact face-parsing maps, misleading nuisance.

An identity is geometry and colour of the inner face; everything else changes from image to image.
Some of what changes misleads a recognizer on purpose and lies in regions that an agent may drop:
pieces of other people's faces, other people in the background, objects, scarves printed with faces.
The same (seed, identity, index) and configuration give the same picture, in any order or process.

`python -m recognizer.data.faceworld --sheet faces.png` draws a contact sheet.
"""

from __future__ import annotations

import numpy as np
import torch

from recognizer.data.faces import FaceSet
from recognizer.data.faceworld.cache import SPLITS, faceworld_arrays
from recognizer.data.faceworld.render import (
    NUISANCES,
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

# pictures a person: enough to learn from, few enough to be drawn within a minute
_PICTURES = {"recognizer": 60, "val": 5, "test": 5, "train": 40}


def load_faceworld(
    split: str = "train",
    images_per_identity: int | None = None,
    identities: int = 200,
    seed: int = 0,
    config: FaceWorldConfig | None = None,
    workers: int | None = None,
) -> FaceSet:
    """Faces of one split of a world, drawn at first use and memory-mapped from a cache afterwards.

    Splits hold different pictures of the same people. Faces are ordered by picture number, then
    identity, so the first `identities` faces show everybody once. The cache is the folder
    `$SARFACE_CACHE`, by default `~/.cache/sarface`. By default there are 40 pictures a person to
    train agents on, 60 for their recognizer, and 5 each to validate and to test on.

    Raises:
        ValueError: unknown split, or sizes that are not positive.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if images_per_identity is None:
        images_per_identity = _PICTURES[split]
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
