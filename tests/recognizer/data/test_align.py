"""Alignment against brute force, known transforms and real landmarks."""

import csv

import cv2
import numpy as np
import pytest
import torch

from recognizer.data.align import (
    ARCFACE_112,
    RESNET29_150,
    align,
    between,
    similarity_transform,
    transform_points,
    warp,
)


def normal_equations(source, target):
    """The same fit as one linear least-squares problem in (a, b, tx, ty)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


def test_similarity_is_the_least_squares_fit():
    rng = np.random.default_rng(0)
    target = np.array(ARCFACE_112.points)
    source = rng.normal(60, 30, (20, 5, 2))
    expected = np.stack([normal_equations(s, target) for s in source])
    np.testing.assert_allclose(similarity_transform(source, target), expected, atol=1e-9)


def test_known_rotation_is_recovered():
    matrix = np.array([[0.0, -2.0, 5.0], [2.0, 0.0, -1.0]])
    source = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    moved = transform_points(source, matrix)
    np.testing.assert_allclose(moved, [[5, -1], [5, 1], [3, -1]])
    np.testing.assert_allclose(similarity_transform(source, moved), matrix, atol=1e-12)


def test_aligned_points_land_on_the_template():
    """Five white dots of a turned and enlarged face end where the template wants them."""
    template = np.array(ARCFACE_112.points)
    turn = np.array([[1.6, 0.5, 3.0], [-0.5, 1.6, 40.0]])
    points = transform_points(template, turn)
    image = np.zeros((250, 250, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x * 16), round(y * 16)), 5 * 16, (255, 255, 255), -1, shift=4)
    result = align(torch.from_numpy(image.transpose(2, 0, 1))[None], points[None])
    assert result.shape == (1, 3, 112, 112)
    _, _, _, centres = cv2.connectedComponentsWithStats(
        (result[0, 0].numpy() > 127).astype("uint8")
    )
    found = centres[1:]
    distance = np.linalg.norm(found[:, None] - template[None], axis=-1)
    assert distance.shape == (5, 5)
    assert distance.min(1).max() < 0.3


def test_between_templates_keeps_the_face():
    """The templates differ in shape; the eyes and mouth still meet to a few pixels."""
    moved = transform_points(np.array(ARCFACE_112.points), between(ARCFACE_112, RESNET29_150))
    assert np.abs(moved - RESNET29_150.points).max() < 6
    there = between(RESNET29_150, ARCFACE_112)
    assert 0.6 < np.hypot(*there[:, 0]) < 0.8


def test_resized_template_scales_pixel_areas():
    """The left edge of pixel 0, at -0.5, stays the left edge."""
    points = ARCFACE_112.resized(224)
    np.testing.assert_allclose((points + 0.5) / 2, np.array(ARCFACE_112.points) + 0.5)


@pytest.mark.data
def test_real_faces_align_to_the_chip(data_dir):
    with open(data_dir / "lfw_dev" / "landmarks.csv") as file:
        rows = list(csv.reader(file))[1:200]
    points = np.array([row[1:] for row in rows], float).reshape(-1, 5, 2)
    moved = transform_points(points, similarity_transform(points, RESNET29_150.resized(150)))
    # the template is the mean of the points; a wrong order or scale would be tens of pixels off
    assert np.abs(moved.mean(0) - RESNET29_150.points).max() < 2


def test_bad_input_is_explained():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"points must be \(2, 5, 2\)"):
        align(images, np.zeros((2, 4, 2)))
    with pytest.raises(ValueError, match="all equal"):
        align(images, np.ones((2, 5, 2)))
    with pytest.raises(ValueError, match="finite"):
        align(images, np.full((2, 5, 2), np.nan))
    with pytest.raises(ValueError, match="uint8"):
        warp(images.float(), np.eye(3)[:2], 8)
