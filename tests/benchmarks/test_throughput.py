"""The ratios that hold on any machine, with wide margins, and the benchmark's own arithmetic."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks import throughput, throughput_figures
from benchmarks.throughput_memory import Thrifty, _status
from benchmarks.throughput_sections import agreement, random_steps, step_parts
from benchmarks.throughput_setup import Setup
from benchmarks.timing import Timing, interleaved
from sarface_env import SARFaceVectorEnv
from sarface_env.scorers import MarginScorer
from tests.toys import tiny_recognizer, toy_faces

SETUP = Setup("tiny", toy_faces(n=64, size=112), MarginScorer(tiny_recognizer().eval(), "cpu"))


def test_stepping_costs_little_beside_the_network_and_much_less_than_single_environments():
    images = SETUP.batch(32)
    one_by_one = gym.vector.SyncVectorEnv(
        [SETUP.single] * 32, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    timings = interleaved(
        {
            "engine": (lambda: SETUP.scorer._engine(images), 32),
            "step": (random_steps(SETUP.vector(32)), 32),
            "one by one": (random_steps(one_by_one), 32),
        },
        seconds=1.5,
    )
    # Measured on a quiet machine: 0.85 and 5.
    assert timings["step"].ratio(timings["engine"]) > 0.5
    assert timings["step"].ratio(timings["one by one"]) > 2


def test_masks_of_a_decided_policy_are_scored_once():
    env = SETUP.vector(8)
    faces = np.arange(8)
    decided = torch.rand(8, 16, 12, generator=torch.Generator().manual_seed(0)) < 0.98
    before = env.core.calls
    for _ in range(4):
        env.evaluate(faces, decided)
    asked, scored = 4 * 8 * 16, env.core.calls - before
    assert scored < asked / 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_steps_leak_nothing():
    env = SARFaceVectorEnv(16, dataset=SETUP.faces, recognizer=Thrifty())
    step = random_steps(env)
    for _ in range(100):
        step()
    before = _status("VmRSS")
    for _ in range(400):
        step()
    assert _status("VmRSS") - before < 4096  # one more observation a step would be 80,000


def test_ratios_are_taken_within_rounds():
    # The machine is ten times slower in the second round: the ratio does not notice.
    slow, quick = Timing(np.array([2.0, 20.0, 2.0]), 10), Timing(np.array([1.0, 10.0, 1.5]), 10)
    assert quick.ratio(slow) == 2
    assert slow.rate == 5
    summary = quick.summary(slow)
    assert summary["ratio"] == 2
    assert summary["quartiles"] == [(1 + 10 / 1.5) / 2, (10 + 10 / 1.5) / 2]


def test_contenders_take_turns():
    now, calls = [0.0], []

    def contender(name, seconds, own=None):
        def call():
            calls.append(name)
            now[0] += seconds
            return own

        return call, 3

    timings = interleaved(
        {"a": contender("a", 1.0), "b": contender("b", 2.0, own=0.5)}, 40, 2, lambda: now[0]
    )
    # Once each to begin with, then rounds of 2 * (1 + 2) seconds: two calls of each, the first of
    # which is not timed, in an order that changes.
    assert "".join(calls[:2]) == "ab"
    rounds = {"".join(calls[i : i + 4]) for i in range(2, len(calls), 4)}
    assert rounds == {"aabb", "bbaa"}
    assert len(calls) == 2 + 4 * 7
    np.testing.assert_array_equal(timings["a"].seconds, [1] * 7)
    np.testing.assert_array_equal(timings["b"].seconds, [0.5] * 7)


def test_sections_are_reported_and_drawn(tmp_path, capsys):
    parts = step_parts(SETUP, [1, 4], 0.1)
    for row in parts.values():
        shares = [row[p] for p in ("recognizer", "masking", "observations", "rest")]
        assert min(shares[:3]) > 0
        assert sum(shares) == pytest.approx(row["step"])
    throughput.report("parts of a step, tiny", parts)
    assert "recognizer us" in capsys.readouterr().out
    timing = Timing(np.array([1.0, 2.0]), 4)
    rates = {str(n): {"eager": timing.summary(timing)} for n in (1, 16)}
    throughput.report("rates, tiny", rates)
    assert "1.00" in capsys.readouterr().out
    steps = {"reinforce": {"environment": 1.0, "policy forward": 0.5, "update": 2.0}}
    results = {"rates, tiny": rates, "parts of a step, tiny": parts, "training steps": steps}
    throughput_figures.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_scores_agree_with_eager_ones():
    found = agreement(SETUP, 64)["float32"]
    assert found["flags that differ"] == 0
    assert found["largest difference of margins"] < 1e-4


def test_unknown_sections_are_refused():
    with pytest.raises(ValueError, match=r"numbered 1 to 8, got \[9\]"):
        throughput.Options(sections=[1, 9])
