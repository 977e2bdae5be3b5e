"""Occluders: exact masks, seeds, places."""

import numpy as np
import pytest
import torch

from recognizer.data.align import ARCFACE_112, RESNET29_150
from recognizer.data.occlusion import OCCLUSIONS, occlude


@pytest.fixture
def faces():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, 3, 112, 112), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", OCCLUSIONS)
def test_pixels_change_inside_the_mask_only(faces, kind):
    before = faces.clone()
    occluded, mask = occlude(faces, ARCFACE_112, kind)
    assert torch.equal(faces, before)
    changed = (occluded != faces).any(1)
    assert not (changed & ~mask).any()
    # random noise equals an occluder's colour by chance in one pixel of 2**24
    assert (changed | ~mask).float().mean() > 0.999
    share = mask.flatten(1).float().mean(1)
    assert share[share > 0].min() > 0.02
    assert share.max() < 0.75
    assert (share > 0).all() or kind == "mixed"


@pytest.mark.parametrize("kind", OCCLUSIONS)
def test_index_and_seed_decide_not_the_batch(faces, kind):
    whole, masks = occlude(faces, ARCFACE_112, kind, seed=3)
    part = np.array([7, 2])
    some, some_masks = occlude(faces[part], ARCFACE_112, kind, seed=3, indices=part, donors=faces)
    assert torch.equal(some, whole[part])
    assert torch.equal(some_masks, masks[part])
    assert not torch.equal(occlude(faces, ARCFACE_112, kind, seed=4)[1], masks)


def test_places_on_the_face(faces):
    """Sunglasses cover both eyes, a surgical mask nose tip and mouth but no eye."""
    large = torch.nn.functional.interpolate(faces, (150, 150))
    for images, template in ((faces, ARCFACE_112), (large, RESNET29_150)):
        at = np.rint(template.resized(images.shape[-1])).astype(int)
        _, glasses = occlude(images, template, "sunglasses")
        _, mask = occlude(images, template, "mask")
        for k, (x, y) in enumerate(at):
            assert bool(glasses[:, y, x].all()) == (k < 2)
            assert bool(mask[:, y, x].all()) == (k >= 2)
            assert not (glasses & mask)[:, y, x].any()


def test_severity_grows_the_occluder(faces):
    for kind in OCCLUSIONS[:-1]:
        areas = [occlude(faces, ARCFACE_112, kind, severity=s)[1].sum() for s in (0.5, 1.0, 1.5)]
        assert areas[0] < areas[1] < areas[2], kind


def test_bad_input_is_explained(faces):
    with pytest.raises(ValueError, match=r"unknown occlusion 'beard'; there are patch, object"):
        occlude(faces, ARCFACE_112, "beard")
    with pytest.raises(ValueError, match="donor"):
        occlude(faces[:1], ARCFACE_112, "patch")
    with pytest.raises(ValueError, match="points must be"):
        occlude(faces, np.zeros((12, 4, 2)), "mask")
    with pytest.raises(ValueError, match="severity"):
        occlude(faces, ARCFACE_112, "mask", severity=9.0)
