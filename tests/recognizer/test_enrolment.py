"""Class weights from gallery images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recognizer.data.faces import FaceSet
from recognizer.engine import InferenceEngine
from recognizer.enrolment import Gallery, enrol
from recognizer.recognizer import InputSpec, Recognizer


def test_no_face_is_scored_against_itself() -> None:
    """Against the definition, face by face: own mean without this face, others' with all."""
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(9, 4, generator=generator))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1])
    queries = F.normalize(torch.randn(3, 4, generator=generator))
    asked = torch.tensor([3, 8, 2])
    gallery = Gallery(embeddings, labels, ["a", "b", "c"], torch.arange(9))
    got = gallery.cosines(queries, asked)
    for row, (query, face) in enumerate(zip(queries, asked, strict=True)):
        for person in range(3):
            members = [i for i in range(9) if labels[i] == person and i != face]
            mean = torch.stack([embeddings[i] for i in members]).mean(0)
            want = torch.dot(query, mean / mean.norm())
            torch.testing.assert_close(got[row, person], want)
    head = gallery.head("cosface", m=0.1)
    torch.testing.assert_close(head.cosines(queries), queries @ gallery.weights.T)


class MeanColour(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_people_with_one_image_are_reported_together(caplog) -> None:
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = images[4, 0] = images[2, 1] = 100
    labels = torch.tensor([2, 1, 0, 3, 2])
    spec = InputSpec(8, False, (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    recognizer = Recognizer(MeanColour(), spec).eval()
    caplog.set_level("INFO")
    engine = InferenceEngine(recognizer)
    gallery = enrol(engine, FaceSet(images, labels, ["a", "b", "c", "d"]), progress="")
    assert gallery.single == ["a", "b", "d"]
    assert len(caplog.records) == 1
    assert (gallery.names, gallery.faces.tolist(), gallery.labels.tolist()) == (
        ["c"],
        [0, 4],
        [0, 0],
    )
    torch.testing.assert_close(gallery.weights[0], F.normalize(torch.tensor([101.0, 1, 1]), dim=0))
    with pytest.raises(ValueError, match="two or more images; 2 have one"):
        enrol(engine, FaceSet(images[:2], torch.tensor([0, 1]), ["a", "b"]))


def test_people_with_one_image_may_be_known_by_it() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = images[1, 1] = images[2, 2] = 100
    spec = InputSpec(8, False, (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    engine = InferenceEngine(Recognizer(MeanColour(), spec).eval())
    faces = FaceSet(images, torch.tensor([0, 1, 0]), ["a", "b"])
    gallery = enrol(engine, faces, progress="", least=1)
    assert gallery.single == []
    cosines = gallery.cosines(gallery.embeddings, torch.arange(3))
    own = cosines[torch.arange(3), gallery.labels]
    other = torch.dot(gallery.embeddings[0], gallery.embeddings[2])
    torch.testing.assert_close(own, torch.stack([other, torch.tensor(1.0), other]))
