"""Five points from label maps, on faces whose points are known."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.point_calibration import fit
from segmenter.labels import CLASSES
from segmenter.landmarks import Calibration, face_points
from tests.segmenter.drawing import draw_labels

SIZE = 128
EYES_AND_MOUTH = SIZE * np.array([[0.35, 0.4], [0.65, 0.4], [0.4, 0.72], [0.6, 0.72]])


def rotated(mask: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 0.8)
    turned = cv2.warpAffine(mask, matrix, (SIZE, SIZE), flags=cv2.INTER_NEAREST)
    return turned, EYES_AND_MOUTH @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("degrees", [0, 25, -40])
def test_points_of_a_turned_face(degrees):
    mask, expected = rotated(draw_labels(SIZE), degrees)
    found = face_points(torch.from_numpy(mask)[None])
    assert not found.fell_back.any()
    points = found.points[0].numpy()
    assert np.abs(points[[0, 1, 3, 4]] - expected).max() < 2.0
    across, nose = expected[1] - expected[0], points[2] - expected[:2].mean(0)
    assert abs(across @ nose) < 0.02 * SIZE * SIZE  # on the axis of the face, below the eyes
    assert across[0] * nose[1] - across[1] * nose[0] > 0


def test_glasses_stand_for_eyes_and_are_reported():
    mask = draw_labels(SIZE, glasses=True)
    found = face_points(torch.from_numpy(mask)[None])
    assert found.found[0].tolist() == [False, False, True, True, True]
    assert np.abs(found.points[0, :2].numpy() - EYES_AND_MOUTH[:2]).max() < 2.0


def test_a_hidden_eye_is_placed_by_the_rest_of_the_face():
    mask = draw_labels(SIZE)
    mask[mask == CLASSES.index("l_eye")] = CLASSES.index("skin")
    found = face_points(torch.from_numpy(mask)[None])
    assert found.found[0].tolist() == [True, False, True, True, True]
    assert np.abs(found.points[0, 1].numpy() - EYES_AND_MOUTH[1]).max() < 0.06 * SIZE


def test_stray_pixels_do_not_move_an_eye():
    mask = draw_labels(SIZE)
    mask[120:122, 2:4] = CLASSES.index("l_eye")
    found = face_points(torch.from_numpy(mask)[None])
    assert np.abs(found.points[0, 1].numpy() - EYES_AND_MOUTH[1]).max() < 1.5


def test_the_mouth_of_a_second_face_does_not_stretch_this_one():
    mask = draw_labels(SIZE)
    alone = face_points(torch.from_numpy(mask)[None]).points
    mask[88:96, 0:6] = CLASSES.index("l_lip")
    together = face_points(torch.from_numpy(mask)[None]).points
    assert (together - alone).abs().max() < 1.5


def test_calibration_is_recovered_from_points_made_with_it():
    masks = [rotated(draw_labels(SIZE), angle)[0] for angle in range(-30, 31, 5)]
    for row, mask in enumerate(masks):  # noses that point to either side, and differently far down
        mask[mask == CLASSES.index("nose")] = CLASSES.index("skin")
        cv2.ellipse(mask, (56 + row, 60 + row % 4), (6, 12), 0, 0, 360, CLASSES.index("nose"), -1)
    labels = torch.from_numpy(np.stack(masks))
    made_with = Calibration(tip_eyes=0.8, tip_mouth=-0.2, mouth=1.3)
    truth = face_points(labels, made_with).points.numpy().astype(np.float64)
    fitted = fit(labels, truth)
    assert fitted.tip_eyes == pytest.approx(0.8, abs=0.02)
    assert fitted.tip_mouth == pytest.approx(-0.2, abs=0.02)
    assert fitted.mouth == pytest.approx(1.3, abs=0.01)
    truth[0] += 40  # one face with wrong landmarks does not move the fit
    assert fit(labels, truth).mouth == pytest.approx(1.3, abs=0.01)


def test_no_face_gives_finite_points_and_says_so():
    skin_only = torch.from_numpy(draw_labels(SIZE)).eq(CLASSES.index("skin")).to(torch.uint8)
    found = face_points(torch.stack([torch.zeros(SIZE, SIZE, dtype=torch.uint8), skin_only]))
    assert found.fell_back.all()
    assert not found.found.any()
    assert found.points.isfinite().all()
    left, right = found.points[:, 0], found.points[:, 1]
    assert (right[:, 0] - left[:, 0] > 0.1 * SIZE).all()
    assert found.points.min() >= 0
    assert found.points.max() < SIZE


def test_faces_do_not_disturb_each_other():
    masks = [rotated(draw_labels(SIZE, glasses=g), d)[0] for g, d in ((False, 10), (True, -10))]
    together = face_points(torch.from_numpy(np.stack(masks)))
    for index, mask in enumerate(masks):
        alone = face_points(torch.from_numpy(mask)[None])
        assert torch.equal(together.points[index], alone.points[0])


def test_other_inputs_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W\)"):
        face_points(torch.zeros(1, 19, 8, 8))
