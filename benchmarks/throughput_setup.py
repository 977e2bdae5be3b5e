"""Recognizers and faces that `benchmarks.throughput` measures with, and its eager baselines."""

import copy
import functools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recognizer.backbones import build_backbone
from recognizer.data.faces import FaceSet
from recognizer.data.faceworld import load_faceworld
from recognizer.heads import build_head
from recognizer.loader import INPUTS, load_recognizer
from recognizer.recognizer import InputSpec, Recognizer
from sarface_env.env import SARFaceEnv, SARFaceVectorEnv
from sarface_env.scorers import MarginScorer

CLASSES = 200


@dataclass
class Setup:
    """A recognizer with faces of its size.

    Attributes:
        name: of the recognizer.
        faces: of the embedded world.
        scorer: judges them, with class weights that are random for all but the embedded world's.
    """

    name: str
    faces: FaceSet
    scorer: MarginScorer

    def vector(self, num_envs: int, **options: Any) -> SARFaceVectorEnv:
        """The vector environment, with regions and scores of full images known already."""
        env = SARFaceVectorEnv(num_envs, dataset=self.faces, recognizer=self.scorer, **options)
        warm(env)
        return env

    def single(self) -> SARFaceEnv:
        """A single environment, likewise."""
        env = SARFaceEnv(dataset=self.faces, recognizer=self.scorer)
        warm(env)
        return env

    def batch(self, n: int, seed: int = 0) -> Tensor:
        """Images of `n` random faces."""
        rows = np.random.default_rng(seed).integers(0, len(self.faces), n)
        return self.faces.images[torch.from_numpy(rows)]


@functools.cache
def _known(scorer: MarginScorer, faces: int) -> dict[str, Tensor]:
    """Scores of full images, by field, filled in by the first environment."""
    return {}


def warm(env: Any) -> None:
    """Bring an environment to where it is after the first pass over its faces."""
    core = env.core
    everything = torch.arange(len(core))
    core.regions(everything)
    known = _known(core.scorer, len(core))
    if not known:
        known.update(vars(core.full_score(everything)))
    state = core.state_dict() | {"faces": everything, **known}
    core.load_state_dict(state)


@functools.cache
def make_setup(name: str, faces: int = 256, split: str = "val") -> Setup:
    """A recognizer by name with faces of the embedded world, the first of the validation split.

    The recognizer is `faceworld`, `resnet29` (random weights if its package is absent), or a
    backbone with random weights.
    """
    torch.manual_seed(0)
    recognizer = _recognizer(name)
    world = load_faceworld(split)
    images, parsing = world.images[:faces], world.parsing
    assert parsing is not None
    parsing, size = parsing[:faces], recognizer.spec.size
    if size != images.shape[-1]:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        parsing = F.interpolate(parsing[:, None], (size, size), mode="nearest-exact")[:, 0]
    few = FaceSet(images.clone(), world.labels[:faces], world.names, parsing.clone())
    return Setup(name, few, MarginScorer(recognizer, "cpu"))


def _recognizer(name: str) -> Recognizer:
    if name == "faceworld":
        return load_recognizer(name, "cpu")
    try:
        recognizer = load_recognizer(name, "cpu")
    except (FileNotFoundError, ValueError):  # time does not depend on the weights
        recognizer = Recognizer(build_backbone(name), INPUTS.get(name, InputSpec()), name=name)
    recognizer.eval()
    size = recognizer.spec.size
    dim = recognizer(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
    recognizer.head = build_head("cosface", dim, CLASSES)
    return recognizer


class Eager:
    """The recognizer's own forward, as written: normalise, embed, divide by the length.

    Args:
        recognizer: in evaluation mode.
        channels_last: lay weights and images out so; else as torch does by default.
    """

    def __init__(self, recognizer: Recognizer, channels_last: bool = False):
        self.recognizer = copy.deepcopy(recognizer).eval()
        self.channels_last = channels_last
        if channels_last:
            self.recognizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Unit embeddings of uint8 BGR images."""
        recognizer = self.recognizer
        out = recognizer.backbone(recognizer.prepare(images, self.channels_last))
        return out[0] if isinstance(out, tuple) else F.normalize(out)


@contextmanager
def plain_process(name: str) -> Iterator[Any]:
    """A process that embeds eagerly with the allocator as the system has it.

    Yields a function: seconds of one forward of `n` images there.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_plain, args=(theirs, name, torch.get_num_threads()), daemon=True
    )
    process.start()

    def forward(n: int) -> float:
        ours.send(n)
        seconds = ours.recv()
        time.sleep(0.02)  # its threads go on waiting actively for a moment
        return seconds

    try:
        yield forward
    finally:
        ours.send(0)
        process.join()


def _plain(pipe: Any, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    recognizer = _recognizer(name)
    eager = Eager(recognizer)
    size = recognizer.spec.size
    while n := pipe.recv():
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        start = time.perf_counter()
        eager(images)
        pipe.send(time.perf_counter() - start)
