import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_agent
from agents.evaluation import evaluate
from agents.grpo import GrpoOptions
from agents.ppo_options import PpoOptions
from agents.registry import load_agent
from agents.reinforce import ReinforceOptions
from recognizer.cli import parse_options
from recognizer.runs import MetricsLog
from sarface_env import SARFaceVectorEnv
from sarface_env.options import EnvOptions, load_scorer
from tests.conftest import ROOT
from tests.toys import ToyScorer, tiny_recognizer, toy_faces

OPTIONS = train_agent.TrainOptions(
    steps=8 * 40, num_envs=8, eval_faces=6, save_every=4, reinforce=ReinforceOptions(width=4)
)


@pytest.fixture
def toy_env(monkeypatch):
    """Let the script work on the toy faces."""

    def make(options, split, reward=None, scorer=None):
        if scorer is None and options.env.recognizer != "faceworld":
            scorer = load_scorer(options.env.recognizer, "cpu")
        return SARFaceVectorEnv(
            num_envs=options.num_envs,
            dataset=toy_faces(size=32),
            recognizer=scorer or ToyScorer(),
            partition="grid2x3",
            observation="regions+image",
            reward=reward or "flip+margin",
        )

    monkeypatch.setattr(train_agent, "make_env", make)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    times = ("charts/SPS", "charts/seconds", "charts/cpu_seconds")
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in lines]


def kill_after(monkeypatch, writes):
    """Die at a write of metrics; returns what undoes it."""
    log, left = MetricsLog.log, iter(range(writes))

    def dying(self, step, values):
        if next(left, None) is None:
            raise KeyboardInterrupt
        log(self, step, values)

    monkeypatch.setattr(MetricsLog, "log", dying)
    return lambda: monkeypatch.setattr(MetricsLog, "log", log)


@pytest.mark.parametrize("agent", ["reinforce", "ppo"])  # all of them: test_agents.py
def test_a_killed_run_continues_exactly(agent, tmp_path, toy_env, monkeypatch):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    options = replace(OPTIONS, agent=agent)
    whole = train_agent.train(options, straight)
    written = len(metrics(straight))

    stop_at = int(np.random.default_rng().integers(1, written))
    revive = kill_after(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt):
        train_agent.train(options, killed)
    revive()
    resumed = train_agent.train(replace(options, resume=True), killed)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), (name, stop_at)
    assert metrics(straight) == metrics(killed)


def test_alternating_training_killed_and_resumed(tmp_path, toy_env, monkeypatch):
    """The whole job in turn; killed anywhere, it ends with the same pair."""
    monkeypatch.setattr(train_agent, "load_recognizer", lambda *_, **__: tiny_recognizer())
    arguments = ["--num_envs", "4", "--eval_faces", "6", "--alternate", "true", "--save_every", "2"]
    schedule = {"rounds": 3, "policy_steps": 16, "recognizer_steps": 3, "batch_size": 6}
    for name, value in schedule.items():
        arguments += [f"--alternating.{name}", str(value)]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_agent.main(["--run", str(straight), *arguments])
    written = len(metrics(straight))
    assert written == 1 + 3 * (16 // 4 + 3)
    stop_at = int(np.random.default_rng().integers(0, written))
    revive = kill_after(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt):
        train_agent.main(["--run", str(killed), *arguments])
    revive()
    train_agent.main(["--run", str(killed), "--resume", "true", *arguments])
    assert metrics(straight) == metrics(killed), stop_at
    for file in ("agent", "recognizer"):
        for which in ("best", "last"):
            whole, resumed = (
                load_file(run / which / f"{file}.safetensors") for run in (straight, killed)
            )
            assert all(torch.equal(whole[key], resumed[key]) for key in whole), (file, stop_at)
    first = tiny_recognizer().state_dict()
    assert any(not torch.equal(first[k], v) for k, v in whole.items() if k in first)
    # The best pair is the one that was scored, and what the table is about.
    best = max(line.get("validation/margin_correct", 0) for line in metrics(straight))
    results = json.loads((straight / "results.json").read_text())
    assert results["options"]["env"]["recognizer"] == str(straight / "best/recognizer.safetensors")
    scored = load_scorer(str(straight / "best/recognizer.safetensors"), "cpu")
    options = replace(OPTIONS, num_envs=12)
    env = train_agent.make_env(options, "val", "flip", scored)
    agent = load_agent(straight / "best/agent.safetensors", env)
    assert evaluate(agent, env, np.arange(12)).mean("margin-correct") == best


def test_training_starts_from_an_agent_that_fits(tmp_path, toy_env):
    (tmp_path / "first").mkdir()
    first = train_agent.train(OPTIONS, tmp_path / "first")
    start = str(tmp_path / "first" / "best" / "agent.safetensors")
    env = train_agent.make_env(OPTIONS, "train")
    options = replace(OPTIONS, start=start, seed=5)
    agent = train_agent.build_agent(options, env, tmp_path)
    weights = first.policy.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in agent.policy.state_dict().items())
    assert (agent.steps, agent.seed) == (0, 5)
    wider = replace(options, reinforce=ReinforceOptions(width=8))
    with pytest.raises(ValueError, match=r"another network; give its options .*width=4"):
        train_agent.build_agent(wider, env, tmp_path)
    with pytest.raises(ValueError, match="holds a reinforce agent, not grpo"):
        train_agent.build_agent(replace(options, agent="grpo"), env, tmp_path)


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
    assert {"config.json", "metrics.jsonl", "best", "last"} <= {p.name for p in run.iterdir()}

    with pytest.raises(SystemExit, match=r"run folder .* exists; continue it with --resume"):
        train_agent.main(["--run", str(run)])
    with pytest.raises(SystemExit, match="started with other options: seed 0, now 1"):
        train_agent.main(
            ["--run", str(run), "--resume", "true", "--seed", "1", "--steps", "80"]
            + ["--num_envs", "8"]
        )
    # A run of a version without some option goes on as with its default, at any depth.
    config = json.loads((run / "config.json").read_text())
    for older in (config, config["env"], config["reinforce"]):
        older.pop("best_by", None), older.pop("coverings", None), older.pop("width", None)
    (run / "config.json").write_text(json.dumps(config))
    again = ["--run", str(run), "--resume", "true", "--steps", "80", "--num_envs", "8"]
    with pytest.raises(SystemExit, match="other options: best_by margin-correct, now reward"):
        train_agent.main([*again, "--best_by", "reward"])
    with pytest.raises(SystemExit, match=r"other options: env .*'coverings': 1.* now .*: 2"):
        train_agent.main([*again, "--coverings", "2"])
    train_agent.main([*again, "--eval_faces", "6"])
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
        *(f"--grpo.{field}" for field in GrpoOptions.__dataclass_fields__),
        *(f"--maskable_ppo.{field}" for field in PpoOptions.__dataclass_fields__),
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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--reinforce.lr", "fast"], "reinforce.lr"),
        (["--reinforce.bound", "3"], r"bound must lie in \(0.5, 1\], got 3"),
        (["--agent", "dqn"], r"unknown agent 'dqn'; there are reinforce, .*maskable_ppo"),
        (["--other", '{"lr": 1}'], "`other` is for agents of other packages; use --reinforce"),
        (["--alternating.rounds", "0"], "rounds must be at least 1, got 0"),
        (["--env.partition", "nope", "--run", "/dev/null/x"], "/dev/null"),
    ],
)
def test_bad_options_end_in_one_line(bad, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_agent.main(bad)
    assert re.search(message, f"{stopped.value} {capsys.readouterr().err}")


@pytest.mark.parametrize("name", ["sarface_agent", "sarface_alternate"])
def test_the_published_configurations_can_be_read(name):
    config = str(ROOT / "configs" / f"{name}.yaml")
    options = parse_options(train_agent.TrainOptions, ["--config", config])
    assert (options.agent, options.env.reward, options.env.fill) == (
        "sarface",
        "flip_plain",
        "zero",
    )
    assert options.alternate == (name == "sarface_alternate")
