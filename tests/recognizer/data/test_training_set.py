"""Batches of faces from every kind of set, and the images held out of them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from recognizer.data.faces import FaceSet
from recognizer.data.training_set import (
    Decoded,
    MemorySet,
    keep_decoded,
    open_training_set,
    split,
)


def numbered(labels: list[int]) -> MemorySet:
    """Faces whose first pixel is their number."""
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    names = [str(i) for i in range(max(labels) + 1)]
    return MemorySet(FaceSet(images, torch.tensor(labels), names))


@pytest.mark.parametrize("hold_out", [1, 2, 5])
def test_everybody_keeps_two_images(hold_out: int):
    labels = np.random.default_rng(3).integers(0, 12, 60).tolist()
    whole = numbered(labels)
    kept, held = split(whole, hold_out)
    assert held is not None
    images, classes = kept[list(range(len(kept.labels)))]
    numbers = images[:, 0, 0, 0].tolist() + held.images[:, 0, 0, 0].tolist()
    assert sorted(numbers) == list(range(60))
    assert [labels[n] for n in numbers] == classes.tolist() + held.labels.tolist()
    for person in range(12):
        expected = max(0, min(hold_out, labels.count(person) - 2))
        assert held.labels.tolist().count(person) == expected
    assert kept.classes == whole.classes


def test_nobody_to_hold_out_is_said():
    with pytest.raises(ValueError, match="set hold_out to 0"):
        split(numbered([0, 0, 1, 1, 2]), 1)


class Counting:
    """Numbered faces that count how often they are decoded."""

    def __init__(self) -> None:
        self.faces = numbered(list(range(50)))
        self.labels, self.classes = self.faces.labels, self.faces.classes
        self.decoded = torch.zeros(50, dtype=torch.int64).share_memory_()

    def __getitem__(self, indices):
        self.decoded[indices] += 1
        return self.faces[indices]


def test_images_are_decoded_once_and_shared_with_workers():
    counting = Counting()
    kept = keep_decoded(counting)
    assert isinstance(kept, Decoded)
    counting.decoded.zero_()
    order = np.random.default_rng(0).permutation(50)
    for workers in (0, 2, 2):
        parts = [rows.tolist() for rows in np.array_split(order, 7)]
        loader = DataLoader(kept, batch_size=None, sampler=parts, num_workers=workers)
        for rows, (images, labels) in zip(parts, loader, strict=True):
            assert images[:, 0, 0, 0].tolist() == labels.tolist() == rows
        assert (counting.decoded == 1).all()
    copy = pickle.loads(pickle.dumps(kept))
    assert copy[[7, 3]][0][:, 0, 0, 0].tolist() == [7, 3]
    assert copy.whole.decoded.sum() == 52  # its own file, empty at first


def test_large_sets_and_full_disks_are_decoded_in_every_pass(monkeypatch):
    counting = Counting()
    assert keep_decoded(counting, most=50 * 12 - 1) is counting

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert keep_decoded(counting) is counting


@pytest.mark.data
def test_recordio_and_its_list_of_held_out_images(data_dir: Path):
    data, held = open_training_set(str(data_dir / "faces_lfw_112x112"), hold_out=1)
    assert held is not None
    assert len(data.labels) + len(held) == 2447
    assert data.classes == 767
    images, labels = data[[5, 3, 100]]
    assert images.shape == (3, 3, 112, 112)
    assert labels.tolist() == data.labels[[5, 3, 100]].tolist()
    # For ResNet-29 the crops are warped to its own, larger chip.
    chips, _ = open_training_set(str(data_dir / "faces_lfw_112x112"), size=150)
    assert chips[[0]][0].shape == (1, 3, 150, 150)
