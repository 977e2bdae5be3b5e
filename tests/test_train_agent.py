import json
import os
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import train_agent
from agents.reinforce import Reinforce, ReinforceOptions
from recognizer.cli import parse_options
from sarface_env.options import EnvOptions
from tests.conftest import ROOT
from tests.toys import ToyScorer, toy_faces

OPTIONS = train_agent.TrainOptions(
    steps=8 * 40, num_envs=8, eval_faces=6, save_every=4, reinforce=ReinforceOptions(width=4)
)


@pytest.fixture
def toy_env(monkeypatch):
    """Let the script work on the toy faces."""

    def make(options, split, reward=None):
        return gym.make_vec(
            "SARFace-v0",
            num_envs=options.num_envs,
            dataset=toy_faces(size=32),
            recognizer=ToyScorer(),
            partition="grid2x3",
            observation="regions+image",
            reward=reward or "flip+margin",
        )

    monkeypatch.setattr(train_agent, "make_env", make)


def test_a_killed_run_continues_exactly(tmp_path, toy_env, monkeypatch):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    whole = train_agent.train(OPTIONS, straight)

    stop_at = int(np.random.default_rng().integers(1, 40))
    update = Reinforce._update

    def dying(self, weight):
        if self.steps == 8 * stop_at:
            raise KeyboardInterrupt
        return update(self, weight)

    monkeypatch.setattr(Reinforce, "_update", dying)
    with pytest.raises(KeyboardInterrupt):
        train_agent.train(OPTIONS, killed)
    monkeypatch.setattr(Reinforce, "_update", update)
    resumed = train_agent.train(replace(OPTIONS, resume=True), killed)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), (name, stop_at)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "charts/SPS"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (straight, killed)
    ]
    assert logs[0] == logs[1]


def test_the_whole_job(tmp_path, toy_env, capsys):
    run = tmp_path / "run"
    train_agent.main(["--run", str(run), "--steps", "80", "--num_envs", "8", "--eval_faces", "6"])
    printed = capsys.readouterr().out
    for policy in ("keep-all", "drop-all", "random", "best fixed mask", "reinforce"):
        assert policy in printed
    results = json.loads((run / "results.json").read_text())
    by_name = {p["name"]: p for p in results["policies"]}
    assert by_name["exhaustive oracle"]["reward"]["mean"] >= by_name["reinforce"]["reward"]["mean"]
    low, high = by_name["reinforce"]["kept pixels"]["interval"]
    assert 0 <= low <= by_name["reinforce"]["kept pixels"]["mean"] <= high <= 1
    assert (run / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "events").iterdir())
    assert {"config.json", "metrics.jsonl", "agent.safetensors"} <= {p.name for p in run.iterdir()}

    with pytest.raises(SystemExit, match=r"run folder .* exists; continue it with --resume"):
        train_agent.main(["--run", str(run)])
    with pytest.raises(SystemExit, match="started with other options: seed 0, now 1"):
        train_agent.main(
            ["--run", str(run), "--resume", "true", "--seed", "1", "--steps", "80"]
            + ["--num_envs", "8"]
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="not a run folder"):
        train_agent.main(["--run", str(tmp_path / "mine"), "--overwrite", "true"])


def test_help_explains_every_option():
    done = subprocess.run(
        [sys.executable, "train_agent.py", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    for name in (
        *(f"--{field}" for field in train_agent.TrainOptions.__dataclass_fields__),
        *(f"--env.{field}" for field in EnvOptions.__dataclass_fields__),
        *(f"--reinforce.{field}" for field in ReinforceOptions.__dataclass_fields__),
    ):
        assert name in done.stdout
    for line in ("Faces to decide on in training", "What replaces dropped pixels", "Learning rate"):
        assert line in done.stdout


def test_options_of_the_environment_by_their_plain_names():
    given = ["--data", "faces", "--recognizer=resnet29", "--occlusion", "mask", "--seed", "3"]
    options = parse_options(train_agent.TrainOptions, given, train_agent.SHORT)
    env = options.env
    assert (env.dataset, env.recognizer, env.occlusion) == ("faces", "resnet29", "mask")
    assert env.observation == "regions+image"  # the script's own default stays
    assert options.seed == 3


def test_bad_options_end_in_one_line():
    for bad in (["--reinforce.lr", "fast"], ["--env.partition", "nope", "--run", "/dev/null/x"]):
        done = subprocess.run(
            [sys.executable, "train_agent.py", *bad],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
