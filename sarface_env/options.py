"""What an environment is made of: one dataclass, and how names become objects."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

from recognizer.data.faces import FaceSet
from recognizer.data.faceworld import load_faceworld
from recognizer.loader import load_recognizer
from recognizer.recognizer import resolve_device
from sarface_env.core import RegionSelection
from sarface_env.partitions import Partition, make_partition
from sarface_env.rewards import Reward, make_reward
from sarface_env.scorers import MarginScorer, Scorer

SPLITS = ("train", "val", "test")
OBSERVATIONS = ("regions", "regions+image", "image")


@dataclass
class EnvOptions:
    """Options of `SARFace-v0`; names in `gym.make`, names or ready objects in the classes."""

    dataset: Any = "faceworld"
    """Faces: `faceworld` (the embedded synthetic world) or a `FaceSet`."""
    split: str = "train"
    """Which part of the data set: `train`, `val` or `test`."""
    recognizer: Any = "faceworld"
    """Judge of the masked faces: a name or file for `load_recognizer`, or a `Scorer`."""
    partition: Any = "sarface24"
    """Regions: `sarface24`, `celeba19`, `gridROWSxCOLUMNS`, a parsing cut by a grid such as
    `sarface24xgrid4x4`, or a `Partition`."""
    reward: Any = "flip"
    """`flip`, `flip_plain`, `margin`, `patchdrop`, or a sum such as `flip+0.5*margin`."""
    fill: str = "mean"
    """What replaces dropped pixels: `zero`, `mean`, `blur` or `inpaint` (slow)."""
    observation: Literal["regions", "regions+image", "image"] = "regions"
    """What the agent sees: the region map, the image, or both, as channels."""
    obs_size: int | None = None
    """Side of the observation in pixels; by default that of the faces."""
    device: str = "auto"
    """Where the recognizer runs: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; there are {', '.join(SPLITS)}")
        if self.observation not in OBSERVATIONS:
            raise ValueError(
                f"unknown observation {self.observation!r}; there are {', '.join(OBSERVATIONS)}"
            )
        if self.obs_size is not None and self.obs_size < 1:
            raise ValueError(f"obs_size must be positive, got {self.obs_size}")


@functools.cache
def load_faces(dataset: str, split: str) -> FaceSet:
    """Faces by data set name and split, loaded once a process.

    Raises:
        ValueError: no data set has this name.
    """
    if dataset == "faceworld":
        return load_faceworld(split)
    raise ValueError(f"unknown dataset {dataset!r}; there are faceworld")


@functools.cache
def load_scorer(recognizer: str, device: str) -> MarginScorer:
    """Scorer of a recognizer by name or file, loaded once a process and device."""
    return MarginScorer(load_recognizer(recognizer, device=device), device)


def build_core(options: EnvOptions) -> RegionSelection:
    """Resolve names and put the core together."""
    partition: Partition = make_partition(options.partition)
    reward: Reward = make_reward(options.reward)
    scorer: Scorer = options.recognizer
    if isinstance(options.recognizer, str):
        scorer = load_scorer(options.recognizer, str(resolve_device(options.device)))
    faces: FaceSet = options.dataset
    if isinstance(options.dataset, str):
        faces = load_faces(options.dataset, options.split)
    if not len(faces):
        raise ValueError(f"the {options.split} split of the data set has no faces")
    return RegionSelection(faces, partition, scorer, reward, options.fill)
