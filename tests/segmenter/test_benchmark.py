"""The segmentation benchmark, with parsers whose mistakes are known."""

import json

import cv2
import numpy as np
import pytest
import torch

from benchmarks import common, segmentation
from recognizer.backbones import build_backbone
from recognizer.checkpoint import save_recognizer
from recognizer.recognizer import InputSpec, Recognizer
from segmenter import CLASSES, Parser
from segmenter.data import read_image, read_mask
from segmenter.landmarks import face_points
from segmenter.networks.light import LightParser
from tests.segmenter.drawing import draw_face, draw_labels, write_compact


class HairBlind(Parser):
    """Knows the drawn faces by heart but calls hair background."""

    answers: dict[bytes, torch.Tensor]

    def parse(self, images: torch.Tensor, batch: int = 32) -> torch.Tensor:
        labels = torch.stack([self.answers[i.numpy().tobytes()] for i in images])
        return labels.where(labels != CLASSES.index("hair"), 0)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_annotated_faces(tmp_path, results, monkeypatch):
    write_compact(tmp_path / "faces", 8, size=64)
    parser = HairBlind(LightParser(), "blind", 64, imagenet=False, device="cpu")
    parser.answers = {}
    for index in range(8):
        image = read_image(tmp_path / "faces" / "images" / f"{index:04d}.png")
        mask = read_mask(tmp_path / "faces" / "masks" / f"{index:04d}.png")
        small = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
        small_mask = cv2.resize(mask, (128, 128), interpolation=cv2.INTER_NEAREST)
        for picture, answer in ((image, mask), (small, small_mask)):
            key = np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes()
            parser.answers[key] = torch.from_numpy(answer)
    monkeypatch.setattr(segmentation, "load_parser", lambda name, device: parser)
    sheets = tmp_path / "sheets"
    data = str(tmp_path / "faces")
    segmentation.main(["--data", data, "--part", "all", "--size", "64", "--sheets", str(sheets)])
    found = json.loads((results / "segmentation_blind.json").read_text())["results"][0]
    iou = found["at_64"]["iou"]
    assert iou["skin"] == iou["nose"] == 1.0
    assert iou["hair"] == 0.0
    assert iou["background"] < 1.0
    assert iou["hat"] is None
    assert found["faces_with_class"]["eye_g"] == 3
    assert found["at_128"]["iou"]["skin"] == 1.0
    assert (sheets / "blind_faces.png").is_file()
    assert (results / "segmentation_blind.png").is_file()


def test_photographs(tmp_path, results, monkeypatch):
    """Faces whose landmarks are the parsing's points but for one face, moved by half the eyes."""
    torch.manual_seed(0)
    save_recognizer(
        Recognizer(build_backbone("ir_tiny"), InputSpec(), name="ir_tiny"),
        tmp_path / "r.safetensors",
    )
    parser = HairBlind(LightParser(), "photo", 64, imagenet=False, device="cpu")
    parser.answers = {}
    lines = ["file,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y,"]
    lines[0] += "mouth_left_x,mouth_left_y,mouth_right_x,mouth_right_y"
    for index in range(8):
        name = "abcd"[index // 2]
        mask = np.roll(draw_labels(112), (index - 4, 2 * index - 8), (0, 1))
        image = draw_face(mask, index)
        path = tmp_path / "lfw" / "images" / name / f"{name}_000{index % 2 + 1}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        key = np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes()
        parser.answers[key] = torch.from_numpy(mask)
        points = face_points(torch.from_numpy(mask)[None]).points[0].numpy()
        if index == 5:
            points = points + [0.5 * np.linalg.norm(points[1] - points[0]), 0]
        lines.append(",".join([path.name, *(f"{v:.3f}" for v in points.ravel())]))
    (tmp_path / "lfw" / "landmarks.csv").write_text("\n".join(lines) + "\n")
    pairs = ["2\t2", "a\t1\t2", "b\t1\t2", "a\t1\tb\t1", "a\t2\tb\t2"]
    pairs += ["c\t1\t2", "d\t1\t2", "c\t1\td\t1", "c\t2\td\t2"]
    (tmp_path / "lfw" / "pairs.txt").write_text("\n".join(pairs) + "\n")
    monkeypatch.setattr(segmentation, "load_parser", lambda name, device: parser)
    arguments = ["--data", str(tmp_path / "lfw"), "--recognizer", str(tmp_path / "r.safetensors")]
    segmentation.main([*arguments, "--sheets", str(tmp_path / "sheets"), "--device", "cpu"])
    found = json.loads((results / "segmentation_photo.json").read_text())["results"][0]
    assert found["points"]["faces"] == found["parsing"]["images"] == 8
    assert found["points"]["failures"] == {"c_0002.png": pytest.approx(0.5, abs=0.01)}
    assert found["points"]["mean"] == pytest.approx(0.5 / 8, abs=0.002)
    assert sum(found["points"]["histogram"]) == 8
    assert found["points"]["histogram"][-1] == 1
    assert {"landmarks", "parsing"} <= found["verification"].keys()
    for sheet in ("photo_lfw.png", "photo_lfw_worst.png"):
        assert (tmp_path / "sheets" / sheet).stat().st_size > 10_000
    assert (results / "segmentation_photo.png").is_file()


def test_bad_data_is_one_line(tmp_path, results, monkeypatch):
    parser = Parser(LightParser(), "any", 64, imagenet=False, device="cpu")
    monkeypatch.setattr(segmentation, "load_parser", lambda name, device: parser)
    with pytest.raises(SystemExit, match=r"error: .*expected images/ and masks/"):
        segmentation.main(["--data", str(tmp_path)])
