"""What an environment is made of: one dataclass, and how names become objects."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from recognizer.data.align import ARCFACE_112
from recognizer.data.disk_cache import cache_folder
from recognizer.data.faces import FaceSet
from recognizer.data.faceworld import load_faceworld
from recognizer.engine import Precision
from recognizer.loader import load_recognizer
from recognizer.recognizer import Recognizer, resolve_device
from sarface_env.core import RegionSelection
from sarface_env.partitions import CELEBA19, Partition, make_partition
from sarface_env.photographs import KINDS, SPLITS, Photographs, load_photographs, parse_folds
from sarface_env.rewards import Reward, make_reward
from sarface_env.scorers import EnrolledScorer, MarginScorer, Scorer

OBSERVATIONS = ("regions", "regions+image", "regions+parsing+image", "image")


@dataclass
class EnvOptions:
    """Options of `SARFace-v0`; names in `gym.make`, names or ready objects in the classes."""

    dataset: Any = "faceworld"
    """Faces: `faceworld` (the embedded synthetic world); a path to photographs: a folder of
    NAME/*.jpg, or with images/NAME/*.jpg and perhaps landmarks.csv and pairs.txt (LFW's form), a
    RecordIO set, or a .lst; or a `FaceSet`."""
    split: str = "train"
    """Which part of the data set: `train`, `val` or `test`. Splits of photographs share no
    person."""
    folds: str = ""
    """Which folds of pairs.txt are train/val/test, such as `1-5/6/7`; by default people are split
    70/15/15 % by a hash of their names."""
    recognizer: Any = "faceworld"
    """Judge of the masked faces: `faceworld`, `resnet29` (from PyPI), a file of weights, or a
    `Scorer`. On photographs it judges among the people of the split, each known by the mean of
    the other, uncovered images."""
    parser: str = "light"
    """Face parser for photographs: `light`, which ships with the package, or a file of weights."""
    occlusion: str = "clean"
    """What covers photographs, before they are parsed: `clean` (nothing), `patch`, `object`,
    `sunglasses`, `mask`, `scarf`, or `mixed` (any of them or nothing). An image is always covered
    alike."""
    severity: float = 1.0
    """Size of what covers photographs, 0.25 to 2; 1 is typical."""
    occlusion_seed: int = 0
    """Another number covers the photographs differently."""
    coverings: int = 1
    """Every photograph of the training split is covered in so many ways, each a face of its own:
    a policy that must find what covers faces needs more of that than there are photographs."""
    alike: int = 1
    """So many photographs of the training split share what covers them, and are shown side by side:
    agents that compare masks on all of them (`preference`) learn what is due to the occluder and
    not to one photograph."""
    min_images: int = 2
    """People with fewer photographs are left out of the training split. With 1, who has a single
    one is known by that, uncovered: more faces for a recognizer to learn from."""
    partition: Any = "sarface24"
    """Regions: `sarface24`, `celeba19`, `gridROWSxCOLUMNS`, a parsing cut by a grid such as
    `sarface24xgrid4x4`, or a `Partition`."""
    reward: Any = "flip"
    """`flip`, `flip_plain`, `margin`, `contrast`, `patchdrop`, or a sum such as
    `flip+0.5*margin`."""
    fill: str = "mean"
    """What replaces dropped pixels: `zero`, `mean`, `blur` or `inpaint` (slow)."""
    observation: Literal["regions", "regions+image", "regions+parsing+image", "image"] = "regions"
    """What the agent sees, as channels: the region map, the image, or both; and the parsing map
    where regions do not tell it, as those of a grid."""
    obs_size: int | None = None
    """Side of the observation in pixels; by default that of the faces."""
    device: str = "auto"
    """Where the recognizer runs: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    precision: Precision = "float32"
    """Arithmetic of the recognizer: `float32`, `bfloat16`, `float16`, or `fastest`, which is
    measured once. Half precisions may be twice as fast; margins then differ in the third digit, and
    a face whose margin is close to zero may be judged otherwise. Where it is bfloat16, training the
    recognizer in turn with an agent is of mixed precision too."""

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Path):
            self.dataset = str(self.dataset)
        if isinstance(self.recognizer, Path):
            self.recognizer = str(self.recognizer)
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; there are {', '.join(SPLITS)}")
        if self.occlusion not in KINDS:
            raise ValueError(f"unknown occlusion {self.occlusion!r}; there are {', '.join(KINDS)}")
        if not 0.25 <= self.severity <= 2:
            raise ValueError(f"severity must be in 0.25 to 2, got {self.severity}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"unknown precision {self.precision!r}; there are {', '.join(get_args(Precision))}"
            )
        if self.coverings < 1:
            raise ValueError(f"coverings must be at least 1, got {self.coverings}")
        if self.alike < 1:
            raise ValueError(f"alike must be at least 1, got {self.alike}")
        if self.min_images < 1:
            raise ValueError(f"min_images must be at least 1, got {self.min_images}")
        if self.folds:
            parse_folds(self.folds)
        if self.observation not in OBSERVATIONS:
            raise ValueError(
                f"unknown observation {self.observation!r}; there are {', '.join(OBSERVATIONS)}"
            )
        if self.obs_size is not None and self.obs_size < 1:
            raise ValueError(f"obs_size must be positive, got {self.obs_size}")

    def photographs(self, size: int, parse: bool) -> Photographs:
        """Where and how to get the faces of a path, as images of a size."""
        covered = self.split == "train" and self.occlusion != "clean"
        return Photographs(
            str(Path(self.dataset).expanduser()),
            self.split,
            self.folds,
            size,
            self.parser,
            parse,
            self.occlusion,
            self.severity,
            self.occlusion_seed,
            self.coverings if covered else 1,
            self.min_images if self.split == "train" else 2,
            self.device,
            alike=self.alike if covered else 1,
        )


# Each is loaded once a process.
_recognizer = functools.cache(load_recognizer)
_faceworld = functools.cache(load_faceworld)
_photographs = functools.cache(load_photographs)


def load_scorer(recognizer: str, device: str, precision: Precision = "float32") -> MarginScorer:
    """Scorer of a recognizer with class weights by name or file, loaded once a process."""
    return _scorer(recognizer, device, precision)


@functools.cache
def _scorer(recognizer: str, device: str, precision: Precision) -> MarginScorer:
    return MarginScorer(_recognizer(recognizer, device), device, precision=precision)


@functools.cache
def _enrolled(
    recognizer: str, device: str, precision: Precision, photographs: Photographs
) -> EnrolledScorer:
    faces, least = _photographs(photographs), photographs.min_images
    return _enrol(_recognizer(recognizer, device), faces, device, precision, least)


def _enrol(
    recognizer: Recognizer,
    faces: FaceSet,
    device: str | torch.device,
    precision: Precision,
    least: int = 2,
) -> EnrolledScorer:
    return EnrolledScorer(
        recognizer, faces, device, cache=cache_folder(), least=least, precision=precision
    )


def own_scorer(options: EnvOptions, recognizer: Recognizer) -> MarginScorer | EnrolledScorer:
    """A scorer of the options' faces by a recognizer that is not shared by its name.

    On photographs people are enrolled from the split; elsewhere the recognizer has class weights.
    """
    device = resolve_device(options.device)
    if options.dataset == "faceworld":
        return MarginScorer(recognizer, device, precision=options.precision)
    photographs = options.photographs(recognizer.spec.size, needs_parsing(options))
    faces, least = _photographs(photographs), photographs.min_images
    return _enrol(recognizer, faces, device, options.precision, least)


def needs_parsing(options: EnvOptions) -> bool:
    """Whether regions or observations are made of parsing maps."""
    return make_partition(options.partition).needs_parsing or "parsing" in options.observation


def build_core(options: EnvOptions) -> RegionSelection:
    """Resolve names and put the core together.

    Faces from files are judged among the people of their split; see `EnrolledScorer`.
    """
    partition: Partition = make_partition(options.partition)
    reward: Reward = make_reward(options.reward)
    faces, scorer = _resolve(options, needs_parsing(options))
    if not len(faces):
        raise ValueError(f"the {options.split} split of the data set has no faces")
    return RegionSelection(faces, partition, scorer, reward, options.fill)


def _resolve(options: EnvOptions, parse: bool) -> tuple[FaceSet, Scorer]:
    name, device = options.recognizer, str(resolve_device(options.device))
    if isinstance(options.dataset, str) and options.dataset != "faceworld":
        if not Path(options.dataset).expanduser().exists():
            raise ValueError(f"unknown dataset {options.dataset!r}: neither faceworld nor a path")
        if name == "faceworld":
            raise ValueError(
                "the recognizer faceworld knows no photographs; choose another, such as resnet29 "
                "(pip install face_recognition_models) or a file"
            )
        if not isinstance(name, str):
            size = getattr(name, "size", ARCFACE_112.size)
            return _photographs(options.photographs(size, parse)), name
        photographs = options.photographs(_recognizer(name, device).spec.size, parse)
        return _photographs(photographs), _enrolled(name, device, options.precision, photographs)
    if options.occlusion != "clean" or options.folds:
        raise ValueError("occlusion and folds are for photographs: give their path as dataset")
    faces = options.dataset
    if isinstance(faces, str):
        faces = _faceworld(options.split)
    elif faces.parsing is not None and len(faces):
        # Now, and not when an episode comes across it.
        wrong = (faces.parsing.flatten(1).amax(1) >= len(CELEBA19)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"label maps hold CelebAMask-HQ classes 0 to {len(CELEBA19) - 1}; those of "
                f"{len(wrong)} faces hold others, beginning with the faces {wrong[:10]}"
            )
    if not isinstance(name, str):
        return faces, name
    recognizer = _recognizer(name, device)
    if recognizer.head is None:
        return faces, _enrol(recognizer, faces, device, options.precision)
    return faces, load_scorer(name, device, options.precision)
