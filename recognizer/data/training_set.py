"""Face sets as training wants them: batches by lists of indices, some images of a person held out.

Sets in memory are gathered, sets in files are decoded batch by batch, in threads or in the worker
processes of a `DataLoader`; small ones only once.
"""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from recognizer.data.align import ARCFACE_112, Template, between, warp
from recognizer.data.chips import template_of
from recognizer.data.face_records import FaceRecords
from recognizer.data.faces import FaceSet
from recognizer.data.faceworld import FaceWorldConfig, load_faceworld
from recognizer.data.folder import FaceFolder, read_folder, read_list
from recognizer.data.images import decode_images

_log = logging.getLogger(__name__)
# At most this many faces of the embedded world are judged at a validation.
_FACEWORLD_HELD_OUT = 2000


class TrainingSet(Protocol):
    """Faces that can be read in batches.

    Attributes:
        labels: class of every face, int64 `(N,)`.
        classes: number of classes.
    """

    labels: np.ndarray
    classes: int

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, ...]:
        """Images uint8 BGR `(B, 3, H, W)` and labels int64 `(B,)` of a list of indices."""
        ...


class MemorySet:
    """A `FaceSet`, in memory or memory-mapped, as a `TrainingSet`.

    Attributes:
        with_parsing: add the parsing maps, uint8 `(B, H, W)`, to every batch.
    """

    def __init__(self, faces: FaceSet):
        self.faces, self.classes = faces, faces.classes
        self.labels = faces.labels.numpy()
        self.with_parsing = False

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, ...]:
        rows = torch.as_tensor(indices)
        batch = self.faces.images[rows], self.faces.labels[rows]
        if self.with_parsing:
            assert self.faces.parsing is not None
            return *batch, self.faces.parsing[rows]
        return batch


class RecordSet:
    """A RecordIO file as a `TrainingSet`."""

    def __init__(self, records: FaceRecords):
        self.records, self.labels, self.classes = records, records.labels, records.num_classes

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        return self.records.decode(indices, threads=_threads())


class FolderSet:
    """A folder of images as a `TrainingSet`."""

    def __init__(self, folder: FaceFolder):
        self.folder, self.labels, self.classes = folder, folder.labels, len(folder.names)

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        paths = [self.folder.paths[i] for i in indices]
        images, _, _ = decode_images(
            lambda i: paths[i].read_bytes(), [str(path) for path in paths], threads=_threads()
        )
        return images, torch.from_numpy(self.labels[np.asarray(indices)])


class _Part:
    def __init__(self, whole: TrainingSet, rows: np.ndarray):
        self.whole, self.rows = whole, rows
        self.labels, self.classes = whole.labels[rows], whole.classes

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, ...]:
        return self.whole[self.rows[np.asarray(indices)].tolist()]


class _Warped:
    def __init__(self, whole: TrainingSet, template: Template):
        self.whole, self.template = whole, template
        self.labels, self.classes = whole.labels, whole.classes

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        images, labels = self.whole[indices]
        return warp(images, between(ARCFACE_112, self.template), self.template.size), labels


class Decoded:
    """A set in files that decodes every image once and keeps its pixels in a temporary file.

    The file is memory-mapped, shared with workers that are forks of this process, and gone with
    them. Workers may decode the same image at the same time: they write the same.

    Args:
        whole: the set.
        shape: of an image.

    Raises:
        OSError: no room for the file.
    """

    def __init__(self, whole: TrainingSet, shape: tuple[int, ...]):
        self.whole, self.shape = whole, shape
        self.labels, self.classes = whole.labels, whole.classes
        n = len(self.labels)
        self._images, self._there = _scratch((n, *shape)), _scratch((n,))

    def __getitem__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        rows = np.asarray(indices)
        new = rows[self._there[rows] == 0]
        if len(new):
            self._images[new] = self.whole[new.tolist()][0].numpy()
            self._there[new] = 1
        return torch.from_numpy(self._images[rows]), torch.from_numpy(self.labels[rows])

    def __reduce__(self) -> tuple[type["Decoded"], tuple[TrainingSet, tuple[int, ...]]]:
        return Decoded, (self.whole, self.shape)  # a process that is no fork keeps its own


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in a temporary memory-mapped file, whose room is taken now and not when it is full."""
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, np.uint8, "r+", shape=shape)


def keep_decoded(whole: TrainingSet, most: int = 2**30) -> TrainingSet:
    """The set with its images kept once they are decoded, unless they exceed `most` bytes."""
    shape = tuple(whole[[0]][0].shape[1:])
    if len(whole.labels) * math.prod(shape) > most:
        return whole
    try:
        return Decoded(whole, shape)
    except (OSError, AttributeError) as error:  # AttributeError: not on this system
        _log.info("images are decoded in every pass: %s", error)
        return whole


def _threads() -> int:
    """One in a worker process, of which there are several; else one for every core."""
    return 1 if get_worker_info() is not None else 0


def open_training_set(
    data: str, hold_out: int = 0, faceworld_images: int = 60, size: int = 112
) -> tuple[TrainingSet, FaceSet | None]:
    """Open a face set, and split off images to judge class by class.

    Args:
        data: `faceworld`, or `faceworld-clean` without what misleads; a `.rec` file or a folder
            with `train.rec`; a `.lst` file; or a folder of `NAME/*.jpg`.
        hold_out: images a person to hold out; people keep at least two, so some give fewer or
            none. The same ones whatever the seed of training. For the embedded world, any number
            above zero stands for its validation split, clean or not.
        faceworld_images: pictures a person of the embedded world.
        size: side of the network's input. Crops of 112 x 112 are taken to be aligned to ArcFace's
            template, and warped to the template of a network with another size.

    Returns:
        The training part, and the held-out images or None when there are none.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: nothing this can read; says what is expected.
    """
    if data in ("faceworld", "faceworld-clean"):
        config = FaceWorldConfig().clean() if data == "faceworld-clean" else None
        world = MemorySet(load_faceworld("recognizer", faceworld_images, config=config))
        if not hold_out:
            return world, None
        faces = load_faceworld("val")
        n = _FACEWORLD_HELD_OUT  # the first ones show everybody equally often
        return world, FaceSet(faces.images[:n], faces.labels[:n], faces.names)
    whole = _open_files(Path(data))
    template = template_of(size)
    if template is not ARCFACE_112 and whole[[0]][0].shape[2:] == (ARCFACE_112.size,) * 2:
        whole = _Warped(whole, template)
    return split(keep_decoded(whole), hold_out)


def _open_files(path: Path) -> TrainingSet:
    if path.suffix == ".rec" or (path / "train.rec").is_file():
        return RecordSet(FaceRecords(path))
    if path.suffix == ".lst":
        return FolderSet(read_list(path, check_images=True))
    if path.is_dir():
        return FolderSet(read_folder(path, check_images=True))
    raise FileNotFoundError(
        f"no faces at {str(path)!r}; expected faceworld, faceworld-clean, a .rec file "
        "or a folder with train.rec, a .lst file, or a folder of NAME/*.jpg"
    )


def split(whole: TrainingSet, hold_out: int) -> tuple[TrainingSet, FaceSet | None]:
    """Hold out up to `hold_out` random images a person, leaving everybody at least two."""
    if not hold_out:
        return whole, None
    shuffled = np.random.default_rng(0).permutation(len(whole.labels))
    order = shuffled[np.argsort(whole.labels[shuffled], kind="stable")]  # people together
    labels = whole.labels[order]
    counts = np.bincount(labels, minlength=whole.classes)
    place = np.arange(len(order)) - np.searchsorted(labels, labels)  # within a person
    held = place < np.minimum(hold_out, counts - 2)[labels]
    if not held.any():
        raise ValueError(
            f"nobody has the 3 images it takes to hold out one; the {len(np.unique(labels))} "
            f"people have {counts.max()} at most: set hold_out to 0"
        )
    images, classes = whole[np.sort(order[held]).tolist()][:2]
    names = [str(i) for i in range(whole.classes)]
    return _Part(whole, np.sort(order[~held])), FaceSet(images, classes, names)
