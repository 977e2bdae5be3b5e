import numpy as np
import torch

from agents.baselines import ExhaustiveOracle, KeepAll
from agents.evaluation import evaluate
from agents.policy import Layout, RegionPolicy
from agents.reinforce import Reinforce, ReinforceOptions
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces

EVERYTHING = np.arange(12)


def make_env(num_envs=24, **options):
    options = {"partition": "grid2x3", "observation": "regions+image", "reward": "margin"} | options
    return SARFaceVectorEnv(num_envs, dataset=toy_faces(size=32), recognizer=ToyScorer(), **options)


def test_it_learns_to_drop_the_dark_cells():
    env = make_env()
    torch.manual_seed(0)
    agent = Reinforce(env, ReinforceOptions(lr=1e-2, width=16)).learn(24 * 80)
    ours, keep, best = (
        evaluate(policy, env, EVERYTHING).mean("reward")
        for policy in (agent, KeepAll(env), ExhaustiveOracle(env))
    )
    assert ours > keep + 0.9 * (best - keep)


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
