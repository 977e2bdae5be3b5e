"""Batches of faces from every kind of set, and the images held out of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recognizer.data.faces import FaceSet
from recognizer.data.training_set import MemorySet, open_training_set, split


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
