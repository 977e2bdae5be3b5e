"""Training: it learns, survives being killed, shares its work, and refuses what it cannot do."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recognizer.cli import parse_options
from recognizer.loader import load_recognizer
from recognizer.runs import RunExistsError
from recognizer.training import TrainingDivergedError, train
from recognizer.training_options import TrainOptions
from recognizer.training_setup import learning_rate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six people: each a pattern of their own, and noise that changes."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("toy")
    for person in range(6):
        (root / f"p{person}").mkdir()
        pattern = cv2.resize(rng.uniform(0, 255, (4, 4, 3)), (112, 112))
        for number in range(9):
            image = np.clip(pattern + rng.normal(0, 25, pattern.shape), 0, 255)
            cv2.imwrite(str(root / f"p{person}" / f"{number}.png"), image.astype(np.uint8))
    return root


@pytest.fixture
def options(toy: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        run=str(tmp_path / "run"),
        data=str(toy),
        epochs=5,
        batch_size=16,
        optimizer="adamw",
        lr=1e-3,
        flip=0.5,
        low_resolution=0.2,
        crop=0.2,
        photometric=0.2,
        erase=0.2,
        log_every=1,
        device="cpu",
    )


def metrics(run: str | Path, key: str) -> list[float]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [line[key] for line in map(json.loads, lines) if key in line]


def command(options: TrainOptions) -> list[str]:
    flags = [
        f"--{name}={json.dumps(value) if isinstance(value, list) else value}"
        for name, value in asdict(options).items()
        if value is not None
    ]
    return [sys.executable, str(ROOT / "train_recognizer.py"), *flags]


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def test_it_learns_and_what_it_saves_loads(options: TrainOptions):
    result = train(replace(options, epochs=20, crop=0.0, m=0.2))
    losses = metrics(options.run, "train/loss")
    assert len(losses) == 60  # six people keep eight images each: three batches a pass
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])
    assert result["held_out/correct"] == 1
    for name in ("last", "best"):
        recognizer = load_recognizer(Path(options.run) / f"{name}.safetensors")
        assert recognizer.name == "ir_tiny"
        assert recognizer.head is not None
        assert recognizer.head.hyperparameters() == {"s": 64.0, "m": 0.2}
        assert recognizer.head.weight.shape == (6, 128)


def test_killed_and_resumed_equals_uninterrupted(options: TrainOptions, tmp_path: Path):
    options = replace(options, head="adaface", checkpoint_every=4, warmup=3, schedule="cosine")
    whole = replace(options, run=str(tmp_path / "whole"))
    train(whole)

    stop_at = random.randint(5, 12)
    process = subprocess.Popen(command(options), env=environment(torch.get_num_threads()))
    path, deadline = Path(options.run) / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and path.read_text().count("train/loss") >= stop_at:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(metrics(options.run, "train/loss")) < 15  # it was indeed cut short

    train(replace(options, resume=True))
    for name in ("last", "best"):
        ours, theirs = (
            load_file(Path(run) / f"{name}.safetensors") for run in (options.run, whole.run)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"stopped at {stop_at}"
    assert path.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_two_processes_learn_the_same_as_one(options: TrainOptions, tmp_path: Path):
    # ResNet-29 has no BatchNorm, whose statistics are those of a process's own part on a CPU.
    options = replace(options, backbone="resnet29", head="adaface", epochs=1, hold_out=0)
    one = replace(options, run=str(tmp_path / "one"), accumulation=1)
    train(one)
    two = replace(options, run=str(tmp_path / "two"), devices=2)
    subprocess.run(command(two), env=environment(1), check=True, timeout=200)
    assert len(metrics(one.run, "train/loss")) == 3
    np.testing.assert_allclose(
        metrics(two.run, "train/loss"), metrics(one.run, "train/loss"), rtol=1e-5
    )
    ours, theirs = (load_file(Path(run) / "last.safetensors") for run in (one.run, two.run))
    for key in ("head.norm_mean", "head.norm_std", "head.weight", "backbone.fc.weight"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)


def test_accumulation_changes_only_the_memory(options: TrainOptions, tmp_path: Path):
    options = replace(options, backbone="resnet29", epochs=1, hold_out=0)
    train(replace(options, run=str(tmp_path / "one")))
    train(replace(options, run=str(tmp_path / "four"), accumulation=4))
    one, four = (metrics(tmp_path / run, "train/loss") for run in ("one", "four"))
    np.testing.assert_allclose(one, four, rtol=1e-5)


def test_half_precision_learns_the_same_with_weights_in_full(options: TrainOptions, tmp_path: Path):
    options = replace(options, epochs=2)
    train(replace(options, run=str(tmp_path / "full")))
    train(replace(options, run=str(tmp_path / "half"), precision="bf16-mixed"))
    full, half = (metrics(tmp_path / run, "train/loss") for run in ("full", "half"))
    assert full != half
    np.testing.assert_allclose(half[:3], full[:3], rtol=0.05)
    weights = load_file(tmp_path / "half" / "last.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}


def test_fine_tuning_starts_from_enrolled_people(options: TrainOptions, tmp_path: Path):
    train(options)
    source = str(Path(options.run) / "last.safetensors")
    tuned = replace(options, run=str(tmp_path / "tuned"), init=source, epochs=1, head="arcface")
    train(tuned)
    correct = metrics(tuned.run, "held_out/correct")
    assert len(correct) == 2  # before the first step and at the end
    assert correct[0] >= 5 / 6
    kept = replace(tuned, run=str(tmp_path / "kept"), init_head="keep", lr=0.0)
    train(kept)
    before = load_file(source)["head.weight"]
    after = load_file(Path(kept.run) / "last.safetensors")["head.weight"]
    assert torch.equal(before, after)


def test_the_backbone_may_learn_slower_than_the_head(options: TrainOptions, tmp_path: Path):
    train(replace(options, epochs=1))
    source = str(Path(options.run) / "last.safetensors")
    tuned = replace(options, run=str(tmp_path / "tuned"), init=source, epochs=1, backbone_lr=0.0)
    train(tuned)
    before, after = (load_file(f) for f in (source, Path(tuned.run) / "last.safetensors"))
    learned = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "head.weight" in learned
    # BatchNorm follows the faces it sees whatever the learning rate.
    assert all("running" in n or "num_batches" in n for n in learned - {"head.weight"})


def test_divergence_stops_the_run(options: TrainOptions):
    with pytest.raises(TrainingDivergedError, match="step"):
        train(replace(options, optimizer="sgd", lr=1e30))
    assert not (Path(options.run) / "last.safetensors").exists()


def test_a_run_is_not_overwritten_unless_asked(options: TrainOptions):
    options = replace(options, epochs=1)
    train(options)
    with pytest.raises(RunExistsError, match="overwrite"):
        train(options)
    with pytest.raises(ValueError, match=r"lr was 0\.001, is 0\.5"):
        train(replace(options, lr=0.5, resume=True))
    train(replace(options, overwrite=True))


def test_the_saved_configuration_is_a_configuration_file(options: TrainOptions):
    options = replace(options, epochs=1, m=0.3, milestones=[1, 2])
    train(options)
    assert parse_options(TrainOptions, ["--config", f"{options.run}/config.json"]) == options


@pytest.mark.parametrize(
    "name", ["faceworld", "resnet29_lfw", "sarface_pretrain", "sarface_train", "ir18_lfw"]
)
def test_recipes_are_valid(name: str):
    parse_options(TrainOptions, ["--config", str(ROOT / "configs" / f"{name}.yaml")])


def test_sarface_schedule():
    options = TrainOptions(lr=0.1)  # milestones 12, 20, 24, ten times less each
    rates = [learning_rate(options, epoch * 10, 10) for epoch in (0, 11, 12, 19, 20, 24, 25)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.0001, 0.0001])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "/nowhere"}, "no faces at '/nowhere'"),
        ({"batch_size": 64}, "too few for a batch of 64"),
        ({"hold_out": 1, "backbone": "ir_19"}, "ir_18"),
    ],
)
def test_unusable_options_are_explained(options: TrainOptions, change: dict, message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(replace(options, **change))


def test_a_damaged_checkpoint_is_explained(options: TrainOptions):
    train(replace(options, epochs=1))
    (Path(options.run) / "resume.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match=r"resume\.pt: not a checkpoint"):
        train(replace(options, epochs=1, resume=True))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size 10 cannot be shared by 4 devices"):
        TrainOptions(batch_size=10, devices=4)
