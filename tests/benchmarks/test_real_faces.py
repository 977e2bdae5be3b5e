"""`python -m benchmarks.real_faces`: every step runs, none twice, and the page tells of it."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import policies, real_faces
from benchmarks.common import RESULTS
from benchmarks.real_faces_page import write_page
from tests.benchmarks.test_policies_benchmark import cache, folder, weights  # noqa: F401


def same(one, other, what):
    """Whether two folders hold the same weights."""
    first, second = (load_file(path / f"{what}.safetensors") for path in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_whole_page_replaces_the_one_that_is_kept():
    assert real_faces.Options().results == RESULTS / "real_faces"
    reduced, other = real_faces.Options(reduced=True), real_faces.Options(data=Path("a/mine"))
    assert (reduced.runs, other.runs) == (
        Path("runs/real_faces-reduced"),
        Path("runs/real_faces-mine"),
    )
    assert (reduced.results, other.results) == (
        reduced.runs / "real_faces",
        other.runs / "real_faces",
    )
    assert real_faces.Options(reduced=True, results=Path("x")).results == Path("x")


def test_everything_runs_once_and_the_page_is_made_of_the_files(
    folder,  # noqa: F811
    weights,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    options = real_faces.Options(
        data=folder,
        recognizer=weights,
        folds="1/2/3",
        runs=tmp_path / "runs",
        results=tmp_path / "page",
        reduced=True,
    )
    options.holes += ["--partition", "grid2x2", "--num_envs", "4"]
    options.holes += ["--alternating.batch_size", "4"]
    options.train += ["--partition", "grid2x2", "--obs_size", "16", "--num_envs", "4"]
    for recipe in options.recipes.values():
        recipe += ["--steps", "8", "--validate_every", "8", "--alike", "2"]
    options.turns += ["--alternating.batch_size", "4", "--alternating.frozen", "1"]
    options.beside += ["--alternating.policy_steps", "8", "--alternating.batch_size", "4"]
    options.fixed_calls, options.samples = 30, 20
    real_faces.make_all(options)
    page = write_page(options.results).read_text()
    found = json.loads((options.results / "mixed.json").read_text())
    row = next(row for row in found["policies"] if row["name"] == "mixed-0")
    assert f"| mixed-0 | {100 * row['dropped']['kept']:.1f} | " in page
    for text in (
        "mixture: rank-1 above fixed",
        "not measured",
        "![dropped](page/dropped.png)",
        ", making what",
    ):
        assert text in page
    for name in (
        "alternating-0/last",
        "random-masks-0/last",
        "unmasked-0/last",
        "sarface24",
        "mean",
    ):
        assert f"| {name} |" in page
    assert "--policies clean keep-all random fixed face-only oracle-occluder" in page
    assert "--recognizer " + str(tmp_path / "runs/holes/last/recognizer.safetensors") in page
    assert (options.results / "accuracy.png").stat().st_size > 10_000
    # The recognizer's turn leaves the agent alone, and the agent's the recognizer.
    start, taught, beside = (
        options.runs / name
        for name in ("mixed-0/best", "unmasked-recognizer-0/last", "unmasked-0/last")
    )
    assert same(start, taught, "agent")
    about = json.loads((options.results / "runs.json").read_text())
    faces = [about[name]["steps"] for name in ("unmasked-recognizer-0", "unmasked-0")]
    assert faces == [2 * 4, 8]
    assert same(taught, beside, "recognizer")
    assert not same(options.runs / "holes/last", taught, "recognizer")

    def never(*_):
        raise AssertionError("made twice")

    for module, name in ((real_faces, "train"), (real_faces, "train_in_turn"), (policies, "run")):
        monkeypatch.setattr(module, name, never)
    real_faces.make_all(options)
    # Other options, another agent or another recognizer: judged again.
    options.fixed_calls = 31
    with pytest.raises(AssertionError, match="made twice"):
        real_faces.make_all(options)
    options.fixed_calls = 30
    now = time.time()
    for run, file in (("mixed-0/best", "agent"), ("holes/last", "recognizer")):
        weights_file = options.runs / run / f"{file}.safetensors"
        os.utime(weights_file, (now, now + 60))
        with pytest.raises(AssertionError, match="made twice"):
            real_faces.make_all(options)
        os.utime(weights_file, (now, now - 600))
