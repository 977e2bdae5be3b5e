"""Scores while training: against a count by hand; pictures and the best agent in a run's folder."""

import json
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_agent
from agents.baselines import FixedMask, KeepAll
from agents.evaluation import evaluate
from agents.registry import load_agent, make_agent
from agents.validation import Validation
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces


def make_env(num_envs=5, **options):
    options = {"partition": "grid2x2", "observation": "regions+image", "reward": "flip"} | options
    return SARFaceVectorEnv(num_envs, dataset=toy_faces(size=16), recognizer=ToyScorer(), **options)


def test_scores_and_keep_rates_are_those_counted_by_hand():
    env = make_env(partition="sarface24")
    core = env.core
    mask = torch.arange(12) % 2 == 0
    validation = Validation(env, 7)
    metrics = validation(FixedMask(env, mask))
    faces = torch.from_numpy(validation.indices)
    outcome = core.evaluate(faces, mask.expand(7, -1))
    assert metrics["validation/margin_correct"] == outcome.masked.margin_correct.double().mean()
    assert np.isclose(metrics["validation/kept_pixels"], outcome.kept.double().mean())
    present = core.present(faces).any(0)
    for bit, region in enumerate(core.partition.selectable):
        name = f"keep_rate/{core.partition.names[region]}"
        assert metrics.get(name) == (float(mask[bit]) if present[bit] else None)
    assert validation.picture(3).shape == (3 * 16, 3 * 16, 3)


def test_the_best_is_the_last_of_equals():
    validation = Validation(make_env(), 12)
    keep = KeepAll(validation.env)
    validation(keep)
    assert validation.improved()
    assert validation.improved()
    validation.best = 1.1
    assert not validation.improved()


def test_a_run_keeps_the_best_agent_and_shows_what_it_keeps(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        train_agent,
        "make_env",
        lambda options, split, reward=None: make_env(reward=reward or "flip"),
    )
    options = train_agent.TrainOptions(
        steps=200, num_envs=5, val_faces=9, validate_every=50, device="cpu"
    )
    agent = train_agent.train(options, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    key = "validation/margin_correct"
    scores = {x["step"]: x[key] for x in lines if key in x}
    assert list(scores) == [0, 50, 100, 150, 200]
    env = make_env()
    faces = Validation(env, 9).indices
    assert evaluate(agent, env, faces).mean("margin-correct") == max(scores.values())
    assert agent.steps == max(step for step in scores if scores[step] == max(scores.values()))
    last = load_agent(tmp_path / "last" / "agent.safetensors", env)
    assert evaluate(last, env, faces).mean("margin-correct") == scores[200]
    events = EventAccumulator(str(tmp_path / "events"), {"images": 0, "scalars": 0})
    events.Reload()
    assert [event.step for event in events.Images("kept")] == list(scores)
    assert len(events.Scalars("keep_rate/cell_0_0")) == len(scores)


def test_neighbouring_seeds_see_other_faces():
    seen = []
    for seed in range(3):
        agent = make_agent("reinforce", make_env(8), seed=seed)
        agent.learn(8)
        seen.append(set(agent.env.unwrapped.episodes.keys.tolist()))
    assert len(set.union(*seen)) == 3 * 8
