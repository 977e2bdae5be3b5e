"""`python -m benchmarks.verification` from files to table, JSON and figure."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import common, verification, verification_gap
from recognizer.backbones import build_backbone
from recognizer.checkpoint import save_recognizer
from recognizer.data.verification_sets import read_pair_set, write_bin
from recognizer.recognizer import InputSpec, Recognizer


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_recognizer(Recognizer(build_backbone("ir_tiny"), InputSpec(), name="ir_tiny"), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SARFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four people, told apart by a pattern that survives their two images' noise."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        pattern = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (112, 112))
        for index in (1, 2):
            path = tmp_path / "faces" / "images" / name / f"{name}_{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.add(pattern, rng.integers(0, 9, pattern.shape, np.uint8)))
    lines = ["2\t2", "a\t1\t2", "b\t1\t2", "a\t1\tb\t1", "a\t2\tb\t2"]
    lines += ["c\t1\t2", "d\t1\t2", "c\t1\td\t1", "c\t2\td\t2"]
    (tmp_path / "faces" / "pairs.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "faces"


def test_table_json_and_figure(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    write_bin(tmp_path / "faces.bin", read_pair_set(folder))
    verification.main(
        ["--recognizer", str(weights), "--data", str(folder), str(tmp_path / "faces.bin")]
        + ["--occlusion", "mask", "--device", "cpu"]
    )
    rows = json.loads((tmp_path / "results" / "verification.json").read_text())["rows"]
    assert [(row["occlusion"], row["resampled"]) for row in rows] == [
        ("none", "people"),
        ("mask", "people"),
        ("none", "linked people"),
        ("mask", "linked people"),
    ]
    # The folder and the .bin file hold the same pixels in the same folds.
    assert rows[0]["metrics"] == pytest.approx(rows[2]["metrics"])
    assert rows[0]["metrics"]["auc"] == 1
    assert rows[0]["fold_thresholds"] != rows[1]["fold_thresholds"]
    assert (tmp_path / "results" / "verification.png").stat().st_size > 10_000
    assert "100.00*" in capsys.readouterr().out  # FAR 1e-4 cannot be seen in four pairs


def test_bad_input_is_one_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: no list of pairs at .*pairs\.txt"):
        verification.main(["--recognizer", str(weights), "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: no recognizer 'nobody'"):
        verification.main(["--recognizer", "nobody", "--data", str(tmp_path)])


def test_the_gap_is_what_was_put_there(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    pairs = read_pair_set(folder)
    swapped = [pairs.images[2], *pairs.images[1:]]  # a1 looks like b1
    for name, images in (("same", pairs.images), ("other", swapped)):
        write_bin(tmp_path / f"{name}.bin", replace(pairs, images=images))
        verification_gap.main(
            ["--recognizer", str(weights), "--folder", str(folder)]
            + ["--bin", str(tmp_path / f"{name}.bin")]
        )
        found = json.loads((tmp_path / "results" / "verification_gap.json").read_text())
        if name == "same":
            readings = [list(row.values())[1:] for row in found["rows"]]
            assert readings[0] == readings[1] == readings[2]
            assert found["disputed"] == []
            assert found["distance_change"]["both"] == {"same": 0, "different": 0}
    # Two people with one image between them: right in the folder, accepted in the .bin file.
    disputed = {d["pair"]: d["wrong"] for d in found["disputed"]}
    assert disputed["a_0001 - b_0001"] == [False, False, True]
    assert found["wrong_only_from"]["bin"] >= 1
    with pytest.raises(SystemExit, match="does not hold the folds"):
        verification_gap.main(
            ["--recognizer", str(weights), "--folder", str(folder)]
            + ["--bin", str(tmp_path / "same.bin"), "--folds", "1"]
        )
