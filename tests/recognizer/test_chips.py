"""Verification sets as a recognizer's chips."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recognizer.data.align import ARCFACE_112, RESNET29_150
from recognizer.data.chips import chips
from recognizer.data.folder import LANDMARK_COLUMNS
from recognizer.data.verification_sets import PairSet, read_pair_set, write_bin
from recognizer.loader import load_recognizer

SPOTS = np.array([(40, 60), (85, 50), (70, 80), (55, 105), (90, 98)], np.float64)


def draw(points: np.ndarray, size: int) -> np.ndarray:
    """Five bright spots on black."""
    y, x = np.mgrid[:size, :size]
    spread = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2) / 8
    return np.repeat(np.uint8(250 * np.exp(-spread).max(-1))[..., None], 3, 2)


def brightest(chip: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centre of brightness around each of the points."""
    y, x = np.mgrid[: chip.shape[0], : chip.shape[1]]
    found = []
    for px, py in near:
        weight = chip * ((x - px) ** 2 + (y - py) ** 2 < 64)
        found.append(((x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()))
    return np.array(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two people with two images each; every image shows spots where its landmarks are."""
    root = tmp_path / "set"
    rows = [",".join(LANDMARK_COLUMNS)]
    for number in range(4):
        name, index = "ab"[number // 2], number % 2 + 1
        # Images of one geometry up to a similarity, so the spots fit the template's shape exactly.
        turn = 1.1 * np.exp(0.1j * (number - 1.5))
        z = (RESNET29_150.resized(150) @ (1, 1j) - 75 - 75j) / turn + 75 + 75j
        points = np.stack([z.real, z.imag], 1)
        path = root / "images" / name / f"{name}_{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw(points, 150))
        rows.append(f"{path.name}," + ",".join(f"{value:.3f}" for value in points.ravel()))
    (root / "landmarks.csv").write_text("\n".join(rows) + "\n")
    (root / "pairs.txt").write_text("2\t1\na\t1\t2\na\t1\tb\t1\nb\t1\t2\na\t2\tb\t2\n")
    return root


def test_aligns_from_landmarks_and_from_the_other_template(folder: Path, tmp_path: Path) -> None:
    pairs = read_pair_set(folder)
    direct, how = chips(pairs, 150, folder)
    assert "landmarks.csv" in how
    target = RESNET29_150.resized(150)
    for chip in direct[:, 0].numpy():
        assert np.abs(brightest(chip, target) - target).max() < 0.2
    # A crop in between blurs, and moves nothing: the way there and on is fitted to one shape.
    through, how = chips(pairs, 150, folder, through_crops=True)
    assert how.endswith("through arcface_112")
    for chip in through[:, 0].numpy():
        assert np.abs(brightest(chip, target) - target).max() < 0.3
    assert through.amax() < direct.amax()

    for index, image in enumerate(pairs.images):
        cv2.imwrite(str(image), draw(ARCFACE_112.resized(112) + 0.5 * index, 112))
    write_bin(tmp_path / "set.bin", pairs)
    warped, how = chips(read_pair_set(tmp_path / "set.bin"), 150, tmp_path / "set.bin")
    assert "arcface_112" in how
    # The mouth of ArcFace's template is narrower, so two pixels remain; resizing leaves 22.
    assert np.abs(brightest(warped[0, 0].numpy(), target) - target).max() < 2.5


def test_without_landmarks_says_what_it_did(folder: Path) -> None:
    (folder / "landmarks.csv").rename(folder / "unused.csv")
    pairs = read_pair_set(folder)
    assert chips(pairs, 150, folder)[1] == "as they are"
    images, how = chips(pairs, 112, folder / "pairs.txt")
    assert how == "resized to 112x112, not aligned"
    assert images.shape == (4, 3, 112, 112)


def test_missing_landmarks_are_listed_together(folder: Path) -> None:
    lines = (folder / "landmarks.csv").read_text().splitlines()
    (folder / "landmarks.csv").write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(ValueError, match=r"(?s)2 problem.*b_0001\.png.*b_0002\.png"):
        chips(read_pair_set(folder), 150, folder)


@pytest.mark.data
def test_five_points_come_close_to_dlibs_own_chips(data_dir: Path) -> None:
    """Embeddings of our chips against those of dlib's, which it aligns by 68 points."""
    try:
        recognizer = load_recognizer("resnet29", device="cpu")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with np.load(data_dir / "golden_nets" / "resnet29_dlib.npz") as golden:
        names, raw, aligned = (golden[key] for key in ("names", "raw", "aligned"))
    root = data_dir / "lfw_dev"
    paths = [root / "images" / str(name)[:-9] / str(name) for name in names]
    nobody = np.zeros(0, np.int64)
    pairs = PairSet("golden", paths, nobody.reshape(0, 2), nobody.astype(bool), nobody)
    with torch.inference_mode():
        ours = recognizer(chips(pairs, 150, root)[0]).numpy()
    distance, unaligned = (np.linalg.norm(x - aligned, axis=1).mean() for x in (ours, raw))
    # One person's faces lie within 0.6; unaligned images are at 0.51 from dlib's chips.
    assert distance < 0.15 < 0.5 < unaligned
