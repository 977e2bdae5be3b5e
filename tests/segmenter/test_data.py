"""Both layouts of the data, and what is wrong with files."""

import cv2
import numpy as np
import pytest
import torch

from segmenter.augment import augment
from segmenter.data import find_samples, load_data, read_image, split_names
from segmenter.labels import CLASSES, mirror_table
from segmenter.losses import cross_entropy_dice_loss, lovasz_loss
from segmenter.metrics import confusion, iou_report
from tests.segmenter.drawing import draw_face, draw_labels, write_compact


def test_compact_form(tmp_path):
    write_compact(tmp_path, 3, size=32)
    data = load_data(tmp_path, size=32, progress=False)
    assert data.names == ["0000", "0001", "0002"]
    assert data.images.shape == (3, 32, 32, 3)
    assert data.images.dtype == np.uint8
    assert np.array_equal(data.masks[2], np.roll(draw_labels(32), (0, -1), (0, 1)))


def test_original_layout(tmp_path):
    (tmp_path / "CelebA-HQ-img").mkdir()
    folder = tmp_path / "CelebAMask-HQ-mask-anno" / "1"
    folder.mkdir(parents=True)
    mask = draw_labels(64)
    picture = cv2.resize(draw_face(mask), (128, 128))  # images are twice the size of the masks
    cv2.imwrite(str(tmp_path / "CelebA-HQ-img" / "2001.jpg"), picture)
    skin = (mask > 0) & (mask != CLASSES.index("hair"))  # annotators draw skin under the features
    cv2.imwrite(str(folder / "02001_skin.png"), (skin * 255).astype(np.uint8))
    for name in ("hair", "nose", "l_eye", "r_eye", "l_lip"):
        part = (mask == CLASSES.index(name)) * 255
        cv2.imwrite(str(folder / f"02001_{name}.png"), part.astype(np.uint8))
    data = load_data(tmp_path, size=64, progress=False)
    assert data.names == ["02001"]
    assert np.array_equal(data.masks[0], mask)


def test_every_bad_file_is_named_at_once(tmp_path):
    write_compact(tmp_path, 6, size=32)
    masks, images = tmp_path / "masks", tmp_path / "images"
    cv2.imwrite(str(masks / "0000.png"), np.full((32, 32), 19, np.uint8))
    cv2.imwrite(str(masks / "0001.png"), np.zeros((16, 32), np.uint8))
    cv2.imwrite(str(masks / "0002.png"), np.zeros((32, 32, 3), np.uint8))
    (images / "0003.png").write_bytes(b"no image")
    (images / "0004.png").write_bytes((images / "0004.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="5 bad files") as error:
        load_data(tmp_path, size=32, progress=False)
    text = str(error.value)
    for fragment in (
        "0000.png: labels are 0 to 18, the mask holds 19",
        "0001.png: the mask is 32x16, its image 32x32",
        "0002.png: a mask must be a single-channel",
        "0003.png: not an image",
        "0004.png: ",
    ):
        assert fragment in text
    assert "0005" not in text


def test_missing_files_are_named(tmp_path):
    write_compact(tmp_path, 3, size=32)
    (tmp_path / "masks" / "0001.png").unlink()
    (tmp_path / "images" / "0002.png").unlink()
    with pytest.raises(ValueError, match=r"(?s)0001\.png: no mask.*0002\.png: no image"):
        find_samples(tmp_path)
    with pytest.raises(FileNotFoundError, match="images/ and masks/"):
        find_samples(tmp_path / "images")


def test_grey_16_bit_and_alpha_images_are_read_as_bgr(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([grey] * 4))
    for name in ("grey", "deep", "alpha"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.dtype == np.uint8, name
        assert np.array_equal(image, np.dstack([grey] * 3)), name


def test_an_image_that_claims_too_many_pixels_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "bomb.png"), np.zeros((8, 8), np.uint8))
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="30000"):
        read_image(tmp_path / "bomb.png")


def test_split_is_a_function_of_names_and_seed():
    names = [f"{i:04d}" for i in range(200)]
    parts = split_names(names)
    assert [len(parts[k]) for k in ("train", "validation", "test")] == [150, 20, 30]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(200))
    turned = split_names(names[::-1])
    assert {names[i] for i in parts["test"]} == {names[::-1][i] for i in turned["test"]}
    assert not np.array_equal(split_names(names, seed=1)["test"], parts["test"])


def test_augmented_labels_follow_the_picture():
    # Colours tell the classes, so labels can be read off an undistorted view.
    mask = draw_labels(96)
    face = draw_face(mask)
    mirrored = 0
    for seed in range(60):
        image, labels = augment(face, mask, face, 64, np.random.default_rng(seed))
        assert image.shape == (64, 64, 3)
        assert labels.shape == (64, 64)
        assert image.dtype == labels.dtype == np.uint8
        assert labels.max() < len(CLASSES)
        left = np.argwhere(labels == CLASSES.index("r_eye"))
        right = np.argwhere(labels == CLASSES.index("l_eye"))
        if min(len(left), len(right)) > 8 and seed % 10 < 9:
            # The person's right eye stays on the left of the picture, mirrored or not, unless
            # the view is turned far.
            mirrored += left[:, 1].mean() < right[:, 1].mean()
    assert mirrored > 45


def test_aligned_views_stay_near_the_faces_own_place():
    mask = draw_labels(64)
    face = draw_face(mask)
    mirror = mirror_table().numpy()[mask[:, ::-1]]

    def agreement(aligned: float) -> float:
        views = [
            augment(face, mask, face, 64, np.random.default_rng(seed), aligned)[1]
            for seed in range(40)
        ]
        return float(np.mean([max((v == mask).mean(), (v == mirror).mean()) for v in views]))

    assert agreement(1.0) > agreement(0.0) + 0.15


def test_losses_against_hand_worked_values():
    labels = torch.tensor([[[0, 1], [1, 1]]])
    probability = torch.tensor([0.25, 0.75, 0.5, 1 - 1e-7])  # of class 1
    logits = torch.stack([(1 - probability).log(), probability.log()]).view(1, 2, 2, 2)
    # Dice of class 0: 2*.75/((.75+.25+.5+0)+1) = .6; class 1: 2*2.25/(2.5+3) = .81818
    entropy = -(np.log(0.75) + np.log(0.75) + np.log(0.5)) / 4
    expected = entropy + 1 - (0.6 + 4.5 / 5.5) / 2
    assert float(cross_entropy_dice_loss(logits, labels)) == pytest.approx(expected, abs=1e-5)
    # Lovász, class 1: errors .5 .25 .25 0 of labels 1 1|0 .. -> extension of the Jaccard loss.
    # Sorted .5 (true), then the tie .25 (one true, one false), then 0: J = 1/3, then 2/3 and 3/4
    # or 1/2 and 3/4 whichever comes first: .5/3 + .25*(3/4 - 1/3) = .2708; class 0: .5 (false),
    # .25 tie, J: 1/2, then 2/3 or 1, then 1: .5/2 + .25/2 = .375.
    expected = (0.5 / 3 + 0.25 * (3 / 4 - 1 / 3) + 0.5 / 2 + 0.25 * (1 - 1 / 2)) / 2
    assert float(lovasz_loss(logits, labels)) == pytest.approx(expected, abs=1e-5)


def test_iou_against_hand_worked_values():
    truth = torch.tensor([[[0, 0, 1, 1, 14]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1, 1, 1, 1]]], dtype=torch.uint8)
    report = iou_report(confusion(predicted, truth))
    assert report["iou"]["background"] == 0.5
    assert report["iou"]["skin"] == 0.5
    assert report["iou"]["hat"] == 0.0
    assert report["iou"]["nose"] is None
    assert report["mean_iou"] == pytest.approx(1 / 3)
    assert report["mean_iou_common"] == 0.5  # without the hat
    assert report["fw_iou"] == pytest.approx(0.4)
    assert report["pixel_accuracy"] == 0.6
