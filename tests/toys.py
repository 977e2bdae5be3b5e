"""Tiny stand-ins, so that tests of the environment and of agents run in seconds."""

import numpy as np
import torch
from torch import Tensor

from recognizer.backbones import build_backbone
from recognizer.data.faces import FaceSet
from recognizer.heads import build_head
from recognizer.recognizer import InputSpec, Recognizer
from sarface_env.scorers import Score


def toy_faces(n: int = 12, size: int = 16, seed: int = 0, classes: int = 4) -> FaceSet:
    """Blotchy images whose label maps are random rectangles of random classes."""
    rng = np.random.default_rng(seed)
    parsing = np.zeros((n, size, size), np.uint8)
    for face in parsing:
        face[2:-2, 2:-2] = 1
        for _ in range(6):
            y, x = rng.integers(0, size - 3, 2)
            face[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = rng.integers(0, 19)
    # Bright and dark areas, so that some regions are worth keeping and others are not.
    areas = rng.integers(20, 236, (n, 1, 4, 4)).repeat(-(-size // 4), 2).repeat(-(-size // 4), 3)
    noise = rng.integers(-20, 20, (n, 3, size, size))
    images = (areas[:, :, :size, :size] + noise).astype(np.uint8)
    return FaceSet(
        torch.from_numpy(images),
        torch.from_numpy(rng.integers(0, classes, n)),
        [f"person {i}" for i in range(classes)],
        torch.from_numpy(parsing),
    )


class ToyScorer:
    """Right when a masked image is brighter than a threshold that depends on the target."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.mean_colour = (10.0, 128.0, 250.0)
        self.version = 0
        self.scored = 0

    def score(self, images: Tensor, targets: Tensor) -> Score:
        self.scored += len(images)
        margin = images.float().mean((1, 2, 3)) / 128 - 1 + 0.02 * (targets - 1.5)
        return Score(margin > -0.05, margin > 0, margin)


def tiny_recognizer() -> Recognizer:
    """An untrained network and head for the classes of `toy_faces`, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head("cosface", 128, 4, s=24.0, m=0.2)
        return Recognizer(build_backbone("ir_tiny"), InputSpec(), head, "ir_tiny")
