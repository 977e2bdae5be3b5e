"""The segmentation benchmark, with parsers whose mistakes are known."""

import json

import cv2
import numpy as np
import pytest
import torch

from benchmarks import common, segmentation
from segmenter import CLASSES, Parser
from segmenter.data import read_image, read_mask
from segmenter.networks.light import LightParser
from tests.segmenter.drawing import write_compact


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


def test_bad_data_is_one_line(tmp_path, results, monkeypatch):
    parser = Parser(LightParser(), "any", 64, imagenet=False, device="cpu")
    monkeypatch.setattr(segmentation, "load_parser", lambda name, device: parser)
    with pytest.raises(SystemExit, match=r"error: .*expected images/ and masks/"):
        segmentation.main(["--data", str(tmp_path)])
