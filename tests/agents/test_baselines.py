import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from agents import baselines, report
from agents.baselines import DropAll, ExhaustiveOracle, FixedMask, GreedyOracle, KeepAll, Random
from agents.evaluation import bootstrap_interval, evaluate, table
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces

EVERYTHING = np.arange(12)


def make_env(num_envs=5, reward="margin", partition="grid2x3"):
    return SARFaceVectorEnv(
        num_envs, dataset=toy_faces(), recognizer=ToyScorer(), partition=partition, reward=reward
    )


def all_rewards(env):
    """Reward of every mask on every face, `(12, 2^K)`, one call a mask."""
    masks = list(itertools.product([0, 1], repeat=env.single_action_space.n))
    columns = [
        env.evaluate(EVERYTHING, torch.tensor([mask] * len(EVERYTHING))).reward for mask in masks
    ]
    return torch.tensor(masks), torch.stack(columns, 1)


@pytest.mark.parametrize("reward", ["margin", "flip", "patchdrop"])
def test_exhaustive_oracle_finds_the_best_of_all_masks(reward):
    env = make_env(reward=reward)
    masks, rewards = all_rewards(env)
    result = evaluate(ExhaustiveOracle(env), env, EVERYTHING)
    np.testing.assert_allclose(result.values["reward"], rewards.max(1).values, atol=1e-6)
    # Of the masks that are as good, it takes one that drops the fewest regions.
    for i, mask in enumerate(result.masks):
        best = rewards[i] == rewards[i].max()
        assert (~mask).sum() == (masks[best] == 0).sum(1).min()


@pytest.mark.parametrize("many", [16, 4])
def test_greedy_lies_between_keep_all_and_the_exhaustive_oracle(many, monkeypatch):
    env = make_env()
    best = evaluate(ExhaustiveOracle(env), env, EVERYTHING).values["reward"]
    monkeypatch.setattr(baselines, "MANY", many)
    keep, greedy = (
        evaluate(policy, env, EVERYTHING).values["reward"]
        for policy in (KeepAll(env), GreedyOracle(env))
    )
    assert (greedy >= keep - 1e-6).all()
    assert (greedy <= best + 1e-6).all()
    # The toy's margin is the mean brightness: regions add up, so greedy is optimal.
    np.testing.assert_allclose(greedy, best, atol=1e-6)


@pytest.mark.parametrize("many", [16, 4])
def test_fixed_mask_search_finds_the_best_single_mask(many, monkeypatch):
    monkeypatch.setattr(baselines, "MANY", many)
    env = make_env()
    masks, rewards = all_rewards(env)
    found = FixedMask.search(env, faces=len(EVERYTHING))
    assert found.mask.tolist() == masks[rewards.mean(0).argmax()].bool().tolist()


def test_fixed_masks_by_region_names():
    env = make_env(partition="sarface24")
    mask = FixedMask.dropping(env, ["neck", "hair_right"]).mask
    assert mask.tolist() == [False] + [True] * 10 + [False]
    with pytest.raises(ValueError, match=r"no selectable region beard; there are neck, cloth"):
        FixedMask.dropping(env, ["beard"])


def test_constant_policies_and_chance():
    env = make_env(num_envs=1000)
    obs, _ = env.reset(seed=0)
    assert KeepAll(env).predict(obs)[0].all()
    assert not DropAll(env).predict(obs)[0].any()
    actions, _ = Random(env).predict(obs)
    assert abs(actions.mean() - 0.5) < 4 * 0.5 / np.sqrt(actions.size)
    assert env.action_space.contains(actions)


def test_the_exhaustive_oracle_refuses_what_it_cannot_finish():
    with pytest.raises(ValueError, match=r"K = 20 is too many.*greedy"):
        ExhaustiveOracle(make_env(partition="grid4x5"))


def test_evaluate_visits_every_face_once_in_order():
    env = make_env(num_envs=5)
    order = np.array([3, 1, 4, 0, 5, 9, 2])
    result = evaluate(KeepAll(env), env, order)
    np.testing.assert_array_equal(result.indices, order)
    full = ToyScorer().score(env.core.faces.images[order], env.core.faces.labels[order])
    np.testing.assert_array_equal(result.values["correct"], full.correct)
    np.testing.assert_array_equal(result.labels, env.core.faces.labels[order])
    assert result.values["reward"].tolist() == [0] * 7
    assert result.values["kept pixels"].tolist() == [1] * 7
    assert "keep-all" in table([result])


def test_bootstrap_interval_of_independent_faces_is_the_normal_one():
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 900)
    low, high = bootstrap_interval(values, np.arange(900), draws=4000)
    half = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_bootstrap_interval_widens_when_identities_decide():
    rng = np.random.default_rng(0)
    person = rng.normal(0, 1, 100)
    values, people = np.repeat(person, 9), np.repeat(np.arange(100), 9)
    low, high = bootstrap_interval(values, people, draws=4000)
    # 900 faces, but only 100 independent people.
    assert (high - low) / 2 == pytest.approx(1.96 * person.std() / 10, rel=0.1)


def test_many_regions_are_shown_as_a_map_of_what_is_kept():
    env = make_env(partition="grid6x6")
    results = [
        evaluate(FixedMask(env, torch.arange(36) != 0), env, EVERYTHING, "fixed"),
        evaluate(Random(env, seed=0), env, EVERYTHING),
    ]
    figure = Figure()
    report._maps(figure, env, results)
    fixed, random = (axis.images[0].get_array() for axis in figure.axes[:2])
    # Cells of 16 / 6 pixels, of which the first is dropped.
    assert (fixed[:2, :2] == 0).all()
    assert (fixed[3:] == 1).all()
    assert (fixed[:, 3:] == 1).all()
    assert 0.2 < random.mean() < 0.8
    png = report.policy_figure(env, results, "fixed", faces=3)
    assert png.startswith(b"\x89PNG")
