"""The synthetic face world: same seed same picture, exact labels, identity apart from nuisance."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from recognizer.data.faceworld import (
    NUISANCES,
    SPLITS,
    FaceWorld,
    FaceWorldConfig,
    load_faceworld,
)
from tests.conftest import ROOT

CLEAN = FaceWorldConfig().clean()
FLAT = replace(CLEAN, noise=0.0)


class Altered(FaceWorld):
    """A world whose people have some of their parameters changed."""

    changes: dict = {}

    def identity(self, identity):
        return replace(super().identity(identity), **self.changes)


def altered(config, **changes):
    world = Altered(config=config)
    world.changes = changes
    return world


def test_pictures_depend_on_seed_identity_and_index_only():
    first, second = FaceWorld(seed=3), FaceWorld(seed=3)
    keys = [(5, 0), (7, 1), (5, 2), (199, 10**9)]
    forward = [first.render(*key) for key in keys]
    backward = [second.render(*key) for key in keys[::-1]][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert not np.array_equal(forward[0].image, forward[2].image)
    assert not np.array_equal(forward[0].image, FaceWorld(seed=4).render(5, 0).image)
    assert first.render(5, 0).image.dtype == np.uint8
    assert first.render(5, 0).image.shape == (112, 112, 3)


def test_processes_draw_the_same(tmp_path, monkeypatch):
    together = []
    for workers in (1, 3):
        monkeypatch.setenv("SARFACE_CACHE", str(tmp_path / str(workers)))
        together.append(load_faceworld("val", 2, identities=80, workers=workers))
    alone = FaceWorld(identities=80).render_batch(np.arange(80), np.full(80, SPLITS["val"] + 1))
    for faces in together:
        np.testing.assert_array_equal(alone["images"], faces.images[80:])
        np.testing.assert_array_equal(alone["parsing"], faces.parsing[80:])
        np.testing.assert_array_equal(alone["occluders"], faces.occluders[80:])


def test_a_script_without_main_guard_can_draw(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from recognizer.data.faceworld import load_faceworld\n"
        "print(len(load_faceworld('test', 1, identities=4, workers=2)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "SARFACE_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "4\n", done.stderr


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        ({"iris_colour": np.array([255.0, 0, 255])}, {4, 5}),
        ({"brow_colour": np.array([255.0, 0, 255])}, {6, 7}),
        ({"lip_colour": np.array([255.0, 255, 0])}, {11, 12}),
        ({"skin": np.array([255.0, 0, 0])}, {1, 2, 4, 5, 6, 7, 8, 9, 17}),
    ],
)
def test_labels_lie_where_the_colour_changes(change, classes):
    """Repaint one part: pixels change where that class is, and within a pixel of it."""
    inside = total = 0
    for k in range(12):
        before = FaceWorld(config=FLAT).render(k, k)
        after = altered(FLAT, **change).render(k, k)
        np.testing.assert_array_equal(before.labels, after.labels)
        changed = (before.image != after.image).any(-1)
        part = np.isin(before.labels, list(classes))
        near = cv2.dilate(part.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        # an edge pixel of another class may hold a quarter of this one
        assert (changed & ~near).mean() < 1e-3
        inside += changed[part].sum()
        total += part.sum()
    # whites and glints of eyes keep their colour, and so does most of an eye
    assert inside / total > (0.25 if "iris_colour" in change else 0.9)


def test_every_class_occurs_where_anatomy_has_it():
    world = FaceWorld()
    samples = [world.render(i, i) for i in range(120)]
    labels = np.stack([s.labels for s in samples])
    assert labels.max() < 19
    assert set(np.unique(labels)) == set(range(19))

    def centre(label):
        y, x = np.concatenate([np.argwhere(one == label) for one in labels]).mean(0)
        return x, y

    # CelebAMask-HQ names the sides as the person does: l_eye lies on the right of the picture
    for left, right in ((4, 5), (6, 7), (8, 9)):
        assert centre(left)[0] > 60 > 52 > centre(right)[0]
    assert centre(14)[1] < centre(6)[1] < centre(4)[1] < centre(2)[1] < centre(10)[1]
    assert centre(10)[1] < min(centre(17)[1], centre(18)[1])
    bald = [not (one == 13).any() for one in labels]
    assert 0.05 < np.mean(bald) < 0.5


def test_switching_an_occluder_off_changes_its_pixels_only():
    names = ("patch", "scarf", "object")
    for kind, name in enumerate(("patch", "object", "scarf"), 1):
        on = replace(FLAT, **{f"{name}_p": 1.0})
        seen = 0
        for k in range(10):
            before, after = (FaceWorld(config=c).render(k, k) for c in (FLAT, on))
            mask = after.occluder == kind
            changed = (before.image != after.image).any(-1)
            near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            assert not (changed & ~near).any(), name
            assert not ((before.labels != after.labels) & ~near).any(), name
            assert changed[mask].mean() > 0.9 if mask.any() else True
            assert set(np.unique(after.occluder)) <= {0, kind}
            assert set(np.unique(after.labels[mask])) <= {{1: 1, 2: 0, 3: 18}[kind]}
            assert after.present[NUISANCES.index(name)]
            seen += mask.any()
        assert seen >= 9, name
    assert set(names) <= set(NUISANCES)


def test_identity_is_not_touched_by_nuisance():
    """The configuration changes pictures, never people; 400 people differ pairwise."""
    world, clean = FaceWorld(identities=400), FaceWorld(identities=400, config=CLEAN)
    names = ("half_width", "eye_x", "nose_width", "mouth_width", "chin", "brow_arch", "iris")
    table = np.array([[getattr(world.identity(i), n) for n in names] for i in range(400)])
    same = np.array([[getattr(clean.identity(i), n) for n in names] for i in range(400)])
    np.testing.assert_array_equal(table, same)
    table = (table - table.mean(0)) / table.std(0)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 9 * np.eye(400)
    assert distance.min() > 0.2


def test_the_eyes_of_one_person_look_alike():
    """Iris colour, averaged over pictures, is closer within a person than between people."""
    world = FaceWorld(config=replace(CLEAN, glasses_p=0.0))

    def colour(i, numbers):
        samples = [world.render(i, k) for k in numbers]
        return np.mean([s.image[s.labels == 1].mean(0) for s in samples], axis=0)

    first = np.array([colour(i, range(6)) for i in range(20)])
    second = np.array([colour(i, range(6, 12)) for i in range(20)])
    nearest = np.linalg.norm(first[:, None] - second[None], axis=-1).argmin(1)
    assert (nearest == np.arange(20)).mean() > 0.3  # by chance 0.05


def test_cache_is_drawn_once_and_split_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SARFACE_CACHE", str(tmp_path))
    arguments = {"images_per_identity": 2, "identities": 5, "workers": 1}
    train = load_faceworld("train", **arguments)
    assert train.images.shape == (10, 3, 112, 112)
    assert train.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert train.parsing is not None
    assert train.occluders is not None
    expected = FaceWorld(identities=5).render(3, SPLITS["train"] + 1)
    np.testing.assert_array_equal(train.images[8].permute(1, 2, 0).numpy(), expected.image)
    np.testing.assert_array_equal(train.parsing[8].numpy(), expected.labels)

    monkeypatch.setattr(FaceWorld, "render", None)  # a second load must not draw
    again = load_faceworld("train", **arguments)
    assert torch.equal(again.images, train.images)
    again.images[0] = 0  # copy-on-write: the cache stays as it is
    assert torch.equal(load_faceworld("train", **arguments).images, train.images)
    monkeypatch.undo()

    monkeypatch.setenv("SARFACE_CACHE", str(tmp_path))
    assert not torch.equal(load_faceworld("val", **arguments).images, train.images)
    assert len(list(tmp_path.glob("faceworld-*"))) == 2


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("SARFACE_CACHE", str(tmp_path))

    def stop(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", stop)
    with pytest.raises(KeyboardInterrupt):
        load_faceworld("train", images_per_identity=2, identities=100, workers=1)
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # but a lock


def test_bad_arguments_are_explained():
    with pytest.raises(ValueError, match="there are recognizer, val, test, train"):
        load_faceworld("dev")
    with pytest.raises(ValueError, match="patch_p must be in"):
        FaceWorldConfig(patch_p=1.5)
    with pytest.raises(IndexError, match=r"identity must be in \[0, 200\), got 200"):
        FaceWorld().render(200, 0)
    with pytest.raises(ValueError, match="two non-empty vectors"):
        FaceWorld().render_batch(np.arange(3), np.arange(2))
