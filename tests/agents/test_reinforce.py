import io

import numpy as np
import pytest
import torch

from agents.baselines import ExhaustiveOracle, KeepAll
from agents.evaluation import evaluate
from agents.policy import Layout, RegionPolicy
from agents.reinforce import Reinforce, ReinforceOptions
from sarface_env import SARFaceEnv, SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces

EVERYTHING = np.arange(12)


def make_env(num_envs=24, **options):
    options = {"partition": "grid2x3", "observation": "regions+image", "reward": "margin"} | options
    return SARFaceVectorEnv(num_envs, dataset=toy_faces(size=32), recognizer=ToyScorer(), **options)


def test_it_learns_to_drop_the_dark_cells():
    env = make_env()
    torch.manual_seed(0)
    agent = Reinforce(env, ReinforceOptions(lr=5e-3, width=16)).learn(24 * 120)
    ours, keep, best = (
        evaluate(policy, env, EVERYTHING).mean("reward")
        for policy in (agent, KeepAll(env), ExhaustiveOracle(env))
    )
    assert ours > keep + 0.9 * (best - keep)


def test_saved_agents_predict_alike_and_fit_only_their_environment(tmp_path):
    env = make_env()
    agent = Reinforce(env).learn(48)
    agent.save(tmp_path / "agent.safetensors")
    obs, _ = env.reset(seed=0)
    again = Reinforce.load(tmp_path / "agent.safetensors", env)
    torch.testing.assert_close(agent.logits(obs), again.logits(obs))
    with pytest.raises(ValueError, match=r"trained on another environment: shape.*bits 6, here 4"):
        Reinforce.load(tmp_path / "agent.safetensors", make_env(partition="grid2x2", obs_size=8))
    (tmp_path / "other").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match="other is not a saved agent"):
        Reinforce.load(tmp_path / "other", env)


def test_a_resumed_training_equals_an_uninterrupted_one():
    straight = Reinforce(make_env(), seed=3).learn(24 * 6)
    first = Reinforce(make_env(), seed=3)
    states = []

    def save(step, metrics):
        buffer = io.BytesIO()
        torch.save(first.training_state(), buffer)
        states.append(buffer)

    first.learn(24 * 6, save)
    states[1].seek(0)
    second = Reinforce(make_env(), seed=99)
    second.load_training_state(torch.load(states[1], weights_only=True))
    second.learn(24 * 6)
    for name, value in straight.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name


def test_one_observation_gives_one_action():
    agent = Reinforce(make_env())
    env = SARFaceEnv(
        dataset=toy_faces(),
        recognizer=ToyScorer(),
        partition="grid2x3",
        observation="regions+image",
    )
    action, _ = agent.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)


def test_region_features_do_not_mix():
    """A region's area and features come from its own pixels: an empty region changes nothing."""
    layout = Layout((1, 16, 16), 2, 4, (1, 3))
    policy = RegionPolicy(layout)
    torch.nn.init.normal_(policy.out.weight)
    torch.nn.init.normal_(policy.code)
    obs = torch.zeros((1, 1, 16, 16), dtype=torch.uint8)
    obs[..., :8, :8] = 1
    mirrored = obs.flip(3)
    a, b = policy(obs), policy(mirrored)
    assert torch.isfinite(a).all()
    assert not torch.allclose(a[:, 0], b[:, 0])


def test_training_starts_at_the_asked_keep_probability():
    policy = RegionPolicy(Layout((4, 16, 16), 3, 5, (0, 2, 4)), keep=0.7)
    obs = torch.randint(0, 5, (2, 4, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(torch.sigmoid(policy(obs)), torch.full((2, 3), 0.7))
