"""Training learns, and a killed run continues as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from segmenter.training import SegmenterTraining, train
from tests.conftest import ROOT
from tests.segmenter.drawing import write_compact

OPTIONS = {"size": 32, "batch": 4, "epochs": 3, "device": "cpu"}


def run(data, output, **options) -> dict:
    return train(SegmenterTraining(str(data), str(output), **{**OPTIONS, **options}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_compact(folder, 24, size=48)
    return folder


def test_training_learns_drawn_faces(data, tmp_path):
    report = run(data, tmp_path / "run", epochs=16, ema=0.8, lr=5e-3)
    assert report["iou"]["skin"] > 0.5
    assert report["iou"]["hair"] > 0.5
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(16))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "split.json", "best.safetensors", "test.json", "test.png"} <= names
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_bfloat16_learns_what_float32_learns(data, tmp_path):
    reports = {
        precision: run(data, tmp_path / precision, epochs=8, ema=0.8, lr=5e-3, precision=precision)
        for precision in ("fp32", "bf16")
    }
    assert reports["bf16"] != reports["fp32"]
    skin = [report["iou"]["skin"] for report in reports.values()]
    assert min(skin) > 0.3
    assert abs(skin[0] - skin[1]) < 0.1


def test_a_killed_run_continues_bit_for_bit(data, tmp_path):
    run(data, tmp_path / "whole")
    command = [sys.executable, str(ROOT / "train_segmenter.py"), "--data", str(data)]
    command += ["--output", str(tmp_path / "killed"), "--size", "32", "--batch", "4"]
    command += ["--epochs", "3", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    state = tmp_path / "killed" / "last.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    errors = process.communicate()[1]
    assert state.exists(), errors
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "lo')  # as if the kill had come while a line was written
    run(data, tmp_path / "killed", resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        whole, killed = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(whole[key].equal(killed[key]) for key in whole), name
    epochs = [
        json.loads(line)["epoch"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert epochs == [0, 1, 2]


def test_runs_are_not_overwritten_nor_resumed_differently(data, tmp_path):
    run(data, tmp_path / "run", epochs=1)
    with pytest.raises(FileExistsError, match="--resume"):
        run(data, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"lr was 0\.003, now 0\.1"):
        run(data, tmp_path / "run", epochs=1, lr=0.1, resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run(data, tmp_path / "none", resume=True)
    (tmp_path / "early").mkdir()  # killed in its first epoch: starts anew
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "early")
    run(data, tmp_path / "early", epochs=1, resume=True)
    first, again = (load_file(tmp_path / n / "best.safetensors") for n in ("run", "early"))
    assert all(first[key].equal(again[key]) for key in first)
    with pytest.raises(ValueError, match="multiple of 16"):
        SegmenterTraining(str(data), size=50)
