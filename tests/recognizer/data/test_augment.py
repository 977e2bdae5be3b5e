"""Augmentation: what each change does to pixels, and that rows do not depend on each other."""

import math

import cv2
import numpy as np
import pytest
import torch

from recognizer.data.augment import JITTERED, Augmentation, blobs, jitter


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (40, 3, 112, 112), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


@pytest.fixture
def uniform() -> torch.Tensor:
    return torch.rand(40, Augmentation.COLUMNS, generator=torch.Generator().manual_seed(1))


def test_nothing_asked_nothing_changed(images: torch.Tensor, uniform: torch.Tensor):
    assert torch.equal(Augmentation(flip=0)(images, uniform), images)


def test_flip_mirrors_about_the_asked_share(images: torch.Tensor, uniform: torch.Tensor):
    out = Augmentation(flip=0.5)(images, uniform)
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 10 <= sum(flipped) <= 30


def test_crop_keeps_a_rectangle_in_its_place(images: torch.Tensor, uniform: torch.Tensor):
    out = Augmentation(flip=0, crop=1)(images, uniform)
    for before, after in zip(images, out, strict=True):
        kept = (after > 0).all(0)
        assert torch.equal(after, before * kept)
        rectangle = kept.any(1)[:, None] & kept.any(0)[None]
        assert torch.equal(kept, rectangle)
        assert 0.17 <= kept.float().mean() <= 1


def test_low_resolution_removes_detail_and_keeps_the_mean(
    images: torch.Tensor, uniform: torch.Tensor
):
    out = Augmentation(flip=0, low_resolution=1)(images, uniform).float()
    before = images.float()
    step = (before[..., 1:] - before[..., :-1]).abs().mean((1, 2, 3))
    assert ((out[..., 1:] - out[..., :-1]).abs().mean((1, 2, 3)) < step).all()
    assert (out.mean((1, 2, 3)) - before.mean((1, 2, 3))).abs().max() < 8


def test_photometric_keeps_grey_grey(uniform: torch.Tensor):
    grey = torch.full((40, 3, 8, 8), 100, dtype=torch.uint8)
    out = Augmentation(flip=0, photometric=1)(grey, uniform)
    assert (out == out[:, :1, :1, :1]).all()  # neither contrast nor saturation can change it
    brightness = out[:, 0, 0, 0] / 100
    assert 0.49 <= brightness.min() < 0.7 < 1.3 < brightness.max() <= 1.51


def test_erase_fills_connected_blocks_with_the_mean_colour(
    images: torch.Tensor, uniform: torch.Tensor
):
    out = Augmentation(flip=0, erase=1, fill=(10.0, 20.0, 30.0))(images, uniform)
    changed = (out != images).any(1)
    assert (out.movedim(1, 3)[changed] == torch.tensor([10, 20, 30], dtype=torch.uint8)).all()
    assert changed.float().mean((1, 2)).min() > 0.04
    assert changed.float().mean((1, 2)).max() < 0.52

    holes = blobs(uniform[:, :25], torch.full((40,), 0.3), (112, 112))
    blocks = holes.view(40, 14, 8, 14, 8)
    assert torch.equal(blocks.any(4).any(2), blocks.all(4).all(2))  # whole cells of 8 x 8
    parts = [cv2.connectedComponents(hole.numpy().astype(np.uint8))[0] - 1 for hole in holes]
    assert np.mean(parts) < 4  # a seventh of what independent cells would make


def test_a_process_with_some_rows_gets_what_all_would(images: torch.Tensor, uniform: torch.Tensor):
    augmentation = Augmentation(0.5, 0.5, 0.5, 0.5, 0.5)
    whole = augmentation(images, uniform)
    parts = [augmentation(images[i : i + 10], uniform[i : i + 10]) for i in range(0, 40, 10)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_probability_is_a_probability():
    with pytest.raises(ValueError, match="crop"):
        Augmentation(crop=1.5)


def test_jitter_moves_and_lights_as_it_says():
    y, x = np.mgrid[:101, :101]
    spot = 200 * np.exp(-((x - 70) ** 2 + (y - 50) ** 2) / 50)  # 20 pixels right of the centre
    images = torch.from_numpy(np.stack([spot] * 3)[None].round().astype(np.uint8)).repeat(
        7, 1, 1, 1
    )
    uniform = torch.full((7, JITTERED), 0.5)
    for row in range(6):  # turned, scaled, shifted right, shifted down, brighter, more contrast
        uniform[row, row] = 1.0
    out = jitter(images, uniform, 2.0).double().numpy()[:, 0]
    assert np.array_equal(out[6], images[6, 0].numpy())
    places = [np.array([(part * x).sum(), (part * y).sum()]) / part.sum() for part in out[:4]]
    angle = math.radians(10)
    # Where the copy is taken from turns, grows and moves; so what is seen does the opposite.
    assert places[0] == pytest.approx(
        [50 + 20 * math.cos(angle), 50 - 20 * math.sin(angle)], abs=0.1
    )
    assert places[1] == pytest.approx([50 + 20 / 1.12, 50], abs=0.1)
    assert places[2] == pytest.approx([70 - 0.05 * 101, 50], abs=0.1)
    assert places[3] == pytest.approx([70, 50 - 0.05 * 101], abs=0.1)
    mean = spot.mean()
    assert out[4, 50, 70] == pytest.approx(200 + 0.4 * mean, abs=1)
    assert out[5, 50, 70] == pytest.approx(min(255, mean + 1.4 * (200 - mean)), abs=1)
    assert torch.equal(jitter(images, torch.rand(7, JITTERED), 0.0), images)
