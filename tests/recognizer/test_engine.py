import logging

import numpy as np
import pytest
import torch
from torch import nn

from recognizer.cuda_graphs import CudaGraphs
from recognizer.engine import InferenceEngine, fastest_precision
from recognizer.recognizer import InputSpec, Recognizer
from sarface_env import SARFaceVectorEnv
from sarface_env.scorers import MarginScorer
from tests.toys import tiny_recognizer, toy_faces

FACES = toy_faces(n=12, size=112)


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("size", [112, 80])
def test_embeddings_are_those_of_the_recognizer(rgb, size):
    recognizer = tiny_recognizer().eval()
    spec = InputSpec(rgb=rgb, mean=(100.0, 110.0, 120.0), std=(128.0, 127.0, 126.0))
    recognizer = Recognizer(recognizer.backbone, spec, recognizer.head).eval()
    faces = toy_faces(n=7, size=size).images
    engine = InferenceEngine(recognizer)
    with torch.no_grad():
        for images in (faces, faces[:1]):
            for ours, theirs in zip(engine(images), recognizer.embed(images), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_environment_agrees_with_eager_scoring():
    recognizer = tiny_recognizer().eval()
    env = SARFaceVectorEnv(12, dataset=FACES, recognizer=MarginScorer(recognizer, "cpu"))
    masks = torch.from_numpy(np.random.default_rng(0).random((12, 12)) < 0.5)
    faces = torch.arange(12)
    ours = env.evaluate(faces, masks).masked
    with torch.no_grad():
        embedding, norm = recognizer.embed(env.core.apply(faces, masks))
        cosines = recognizer.head.cosines(embedding)
    target = cosines[faces, FACES.labels]
    others = cosines.clone()
    others[faces, FACES.labels] = -2
    margin = recognizer.head.penalise(target, norm[:, 0]) - others.amax(1)
    torch.testing.assert_close(ours.margin, margin, rtol=0, atol=1e-4)
    assert torch.equal(ours.correct, target > others.amax(1))


def test_half_precision_is_close_and_float32():
    recognizer = tiny_recognizer().eval()
    exact, half = (InferenceEngine(recognizer, p) for p in ("float32", "bfloat16"))
    ours, norm = half(FACES.images)
    assert ours.dtype == norm.dtype == torch.float32
    cosine = (ours * exact(FACES.images)[0]).sum(1)
    assert 0.99 < cosine.min() < 1 - 1e-7


def test_a_precision_that_the_processor_lacks_is_tried_once(monkeypatch):
    # Laps of a second in float32, and of 99 in bfloat16.
    times = iter([*range(8), 100, 199])
    monkeypatch.setattr("recognizer.engine.time.perf_counter", lambda: next(times))
    assert fastest_precision(tiny_recognizer().eval(), batch=2) == "float32"
    assert next(times, None) is None


def test_the_fastest_precision_is_measured(caplog):
    with caplog.at_level(logging.INFO):
        chosen = fastest_precision(tiny_recognizer().eval(), batch=2)
    assert chosen in ("float32", "bfloat16")
    assert f"computes in {chosen} (an image: float32 " in caplog.text
    # Nothing is a thousand times faster.
    assert fastest_precision(tiny_recognizer().eval(), batch=2, gain=1000) == "float32"
    scorer = MarginScorer(tiny_recognizer(), "cpu", precision="fastest")
    assert scorer.precision in ("float32", "bfloat16")


class Stubborn(nn.Module):
    """Cannot be traced: it looks at the numbers, or always gives as many rows as when traced."""

    def __init__(self, what: str):
        super().__init__()
        self.linear, self.what = nn.Linear(3, 4), what

    def forward(self, x):
        x = self.linear(x.mean((2, 3)))
        if self.what == "fails":
            if torch.jit.is_tracing():
                raise RuntimeError("no tracing here")
        elif torch.jit.is_tracing():
            return x * 0 + torch.arange(4.0)
        return x


@pytest.mark.parametrize("what", ["fails", "differs"])
def test_what_cannot_be_traced_runs_eagerly_and_says_so(what, caplog):
    torch.manual_seed(0)
    recognizer = Recognizer(Stubborn(what), InputSpec(), name="stubborn").eval()
    engine = InferenceEngine(recognizer)
    assert "stubborn runs without an inference engine" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(engine(FACES.images)[0], recognizer.embed(FACES.images)[0])


def test_graphs_are_recorded_once_a_power_of_two():
    """The bookkeeping around CUDA graphs, with a recording that runs on any device."""
    recorded = []

    def record(network, static):
        recorded.append(len(static))
        return lambda: network(static)

    network = lambda x: (x.flatten(1) * 2, x.sum((1, 2, 3))[:, None])  # noqa: E731
    graphs = CudaGraphs(network, record, largest=8)
    for n in (3, 4, 1, 8, 5, 2, 9, 0, 3):
        x = torch.randn(n, 3, 4, 4)
        first = graphs(x)
        graphs(torch.randn(n, 3, 4, 4))  # must not change what was returned
        for ours, theirs in zip(first, network(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert recorded == [4, 1, 8, 2]
