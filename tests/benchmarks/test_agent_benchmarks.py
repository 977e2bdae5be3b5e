"""The benchmarks of agents from trainings to table, JSON and figure, on toys."""

import json

import numpy as np
import pytest

import train_agent
from benchmarks import agents, alternating, common, seeds, trainings, tuning
from sarface_env import SARFaceVectorEnv
from sarface_env.scorers import MarginScorer
from tests.conftest import ROOT
from tests.toys import ToyScorer, tiny_recognizer, toy_faces


class SureToy(ToyScorer):
    """Surest of what is very bright or very dark."""

    def confidence(self, images, targets):
        return self.score(images, targets).margin.abs()


@pytest.fixture(autouse=True)
def toy_world(tmp_path, monkeypatch):
    """The toy faces in place of the embedded world, results and runs in a folder of the test."""

    def make(options, split, reward=None, scorer=None):
        if options.env.recognizer != "faceworld":
            scorer = MarginScorer(tiny_recognizer(), "cpu")
        return SARFaceVectorEnv(
            num_envs=options.num_envs,
            dataset=toy_faces(size=16),
            recognizer=scorer or SureToy(),
            partition="grid2x2",
            observation="regions+image",
            reward=reward or "flip+margin",
        )

    monkeypatch.setattr(train_agent, "make_env", make)
    monkeypatch.setattr(train_agent, "load_recognizer", lambda *_, **__: tiny_recognizer())
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)


TINY = ["--train.num_envs", "8", "--train.steps", "64", "--train.validate_every", "16"]
TINY += ["--train.eval_faces", "12", "--train.val_faces", "12", "--train.device", "cpu"]


def read(name):
    return json.loads((common.RESULTS / f"{name}.json").read_text())


def test_agents_from_trainings_to_figure_also_when_killed(monkeypatch, capsys):
    arguments = ["--seeds", "[0,1]", *TINY]
    train, left = train_agent.train, iter(range(3))

    def dying(options, folder):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return train(options, folder)

    monkeypatch.setattr(train_agent, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        agents.main(arguments)
    made = []
    monkeypatch.setattr(
        train_agent,
        "train",
        lambda options, folder: (made.append(folder), train(options, folder))[1],
    )
    agents.main([*arguments, "--part", "1/2"])
    agents.main(arguments)
    # Every training was made once: three before the kill, the others after.
    assert len(made) == len(set(made)) == 2 * len(agents.VARIANTS) - 3
    payload = read("agents")
    printed = capsys.readouterr().out
    policies = payload["references"]["policies"]
    keep, best = (
        policies[name]["margin-correct"]["mean"] for name in ("keep-all", "exhaustive oracle")
    )
    for name in agents.VARIANTS:
        assert f"\n{name} " in printed
        numbers = payload["agents"][name]
        rates = np.array(numbers["margin-correct"]["seeds"])
        assert np.allclose(numbers["gap closed"]["seeds"], (rates - keep) / (best - keep))
        assert min(numbers["regret"]["seeds"]) >= 0
        assert numbers["curve"][0][0] == 0
        assert numbers["curve"][-1][0] == numbers["in all"]["steps"] >= 64
        looks = numbers["further looks"]
        for masks, look in zip((2, 2, 5, 5), looks.values(), strict=True):
            # Some are equal; the decision and the full face are scored as well. The last batch
            # of the 12 faces is filled up to 8.
            assert 1 <= look["calls"] <= 16 / 12 * (masks + 2)
            rates = np.array(look["margin-correct"]["seeds"])
            assert np.allclose(look["gap closed"]["seeds"], (rates - keep) / (best - keep))
    assert (common.RESULTS / "agents.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match=r"started with other options: .*num_envs 8, now 4"):
        agents.main([*arguments, "--train.num_envs", "4"])


def test_tuning_gives_all_agents_as_many_configurations(capsys):
    assert len({len(candidates) for candidates in tuning.CANDIDATES.values()}) == 1
    assert set(tuning.CANDIDATES) == set(agents.VARIANTS)
    tuning.main(["--agents", '["grpo", "maskable_ppo"]', *TINY, "--train.steps", "16"])
    payload = read("tuning")
    for name in ("grpo", "maskable_ppo"):
        rows = payload["candidates"][name]
        assert [row["options"] for row in rows] == tuning.CANDIDATES[name]
        best = max(row["margin-correct"] for row in rows)
        assert payload["chosen"][name] in [
            r["options"] for r in rows if r["margin-correct"] == best
        ]


def test_the_tuned_options_are_the_defaults():
    chosen = json.loads((ROOT / "benchmarks/results/tuning.json").read_text())["chosen"]
    assert set(chosen) == set(tuning.CANDIDATES)
    for name, options in chosen.items():
        variant = agents.VARIANTS[name]
        filled = variant.fill_in(train_agent.TrainOptions(), 0)
        used = vars(getattr(filled, variant.agent)) | {"reward": filled.env.reward}
        options = {"reward": tuning.REWARD} | options
        assert {key: used[key] for key in options} == options, name


def test_three_ways_of_training_and_their_passes():
    arguments = [*TINY, "--seeds", "[0]", "--passes", "480", "--calls_a_face", "1.8"]
    arguments += ["--train.alternating.rounds", "2", "--train.alternating.batch_size", "8"]
    alternating.main(arguments)
    ways = read("alternating")["ways"]
    assert set(ways) == set(alternating.WAYS)
    taken = {way: numbers["passes"]["mean"] for way, numbers in ways.items()}
    assert taken["recognizer only"] == 480  # three for each of 160 images
    # The toy's faces have 16 masks each, most of which have been scored before.
    assert 0 < taken["agent only"] < 480
    assert 240 < taken["in turn"] < 720
    assert all(len(numbers["curves"][0]) == 3 for numbers in ways.values())
    # Without a trained agent nothing is dropped.
    assert ways["recognizer only"]["margin-correct"] == ways["recognizer only"]["keep-all"]
    assert (common.RESULTS / "alternating.png").stat().st_size > 10_000


def test_statistics_over_seeds_by_hand():
    assert seeds.iqm(np.array([9.0, 1, 2, 3, -50])) == 2
    assert seeds.iqm(np.array([1.0, 2, 4])) == pytest.approx(7 / 3)
    low, high = seeds.interval(np.array([1.0, 1, 1, 1]))
    assert low == high == 1
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        low, high = seeds.interval(rng.normal(5, 1, 40), np.mean, 200)
        inside.append(low < 5 < high)
    assert 0.85 < np.mean(inside) <= 1
    assert seeds.first_reached(np.array([1, 2, 3]), np.array([0.1, 0.5, 0.4]), 0.4) == 2
    assert seeds.first_reached(np.array([1, 2, 3]), np.array([0.1, 0.5, 0.4]), 0.6) == np.inf


def test_calls_of_two_curves_by_hand():
    """Published: 5/8, 6/8, 1 at 10, 20, 100 calls; ours: 6/8 at 5 calls, 1 at 50."""
    base = {"validation": {"keep-all": 0.5}}

    def runs(*points):
        return [{"curve": [[0, calls, 0, score] for calls, score in points]}] * 5

    published = runs((10, 0.625), (20, 0.75), (100, 1.0))
    published[0]["curve"].insert(0, [0, 0, 0, 0.5])
    ours = runs((0, 0.5), (5, 0.75), (50, 1.0))
    whole = agents.fewer_calls(base, published, ours, 1.0)
    assert (whole["ratio"], whole["calls"], whole["published"]) == (2, 50, 100)
    half = agents.fewer_calls(base, published, ours, 0.5)
    assert (half["ratio"], half["interval"]) == (4, [4, 4])
    assert agents.fewer_calls(base, ours, runs((0, 0.5), (9, 0.5)), 1.0)["ratio"] == 0


def test_parts_divide_the_trainings():
    jobs = list(range(7))
    assert sorted(trainings.share(jobs, "1/2") + trainings.share(jobs, "2/2")) == jobs
    for part in ("0/2", "3/2", "half"):
        with pytest.raises(ValueError, match="part must be i/n"):
            trainings.share(jobs, part)
    with pytest.raises(SystemExit):
        agents.main(["--agents", '["dqn"]'])
