"""Values of masks, by hand and against enumeration, and a reward that no sum of gains can tell."""

import itertools

import numpy as np
import torch

from agents.baselines import ExhaustiveOracle, KeepAll
from agents.evaluation import evaluate
from agents.registry import make_agent
from sarface_env import SARFaceVectorEnv
from sarface_env.scorers import Score
from tests.toys import ToyScorer, toy_faces


def make_env(num_envs=6, scorer=None, **options):
    options = {"partition": "grid2x3", "observation": "regions+parsing+image"} | options
    return SARFaceVectorEnv(
        num_envs,
        dataset=toy_faces(size=24),
        recognizer=scorer or ToyScorer(),
        reward="margin",
        **options,
    )


def random_agent(env, **options):
    agent = make_agent("value", env, {"width": 4, "threshold": 0.0, **options})
    torch.manual_seed(1)
    for parameter in agent.policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return agent


def test_a_value_by_hand():
    """Averages over pixels of what is dropped and what is kept, judged; and a sum over regions."""
    env = make_env()
    obs = torch.as_tensor(env.reset(seed=0)[0])
    policy = random_agent(env).policy
    dropped = torch.tensor([[[1, 0, 0, 1, 0, 0], [0] * 6, [1] * 6]]).bool().expand(6, 3, 6)
    with torch.no_grad():
        values = policy(obs, dropped)
        features = policy.policy.features(obs)
    assert (values[:, 1] == 0).all()  # keeping everything is worth nothing, whatever the weights
    for face in range(6):
        pixels = obs[face, 0].flatten().long()  # the region of every pixel is its number
        lost = np.isin(pixels, [0, 3])
        each = features[face][pixels]
        area = torch.tensor([lost.mean()], dtype=torch.float32)
        a, b = each[lost].mean(0), each[~lost].mean(0)
        known = torch.cat([a, b, a * b, area, area.sqrt()])
        with torch.no_grad():
            by_hand = policy.judge(known) * area.sqrt()
            by_hand += policy.gain(features[face][[0, 3]]).sum()
        torch.testing.assert_close(values[face, 0], by_hand[0], rtol=1e-4, atol=1e-4)


def test_no_rectangle_and_no_single_change_is_worth_more_than_what_is_found():
    env = make_env()
    obs = torch.as_tensor(env.reset(seed=0)[0])
    agent = random_agent(env)
    with torch.no_grad():
        kept = agent.logits(obs) > 0
        every = torch.tensor(list(itertools.product([False, True], repeat=6)))
        values = agent.policy(obs, every.expand(6, -1, -1))
    found = (every == ~kept[:, None]).all(2).int().argmax(1)
    best = values[torch.arange(6), found]
    assert (best >= 0).all()
    assert (best > 0).any()
    near = (every[None] ^ ~kept[:, None]).sum(2) <= 1
    blocks = [
        {3 * row + column for row in rows for column in columns}
        for rows in ([0], [1], [0, 1])
        for columns in ([0], [1], [2], [0, 1], [1, 2], [0, 1, 2])
    ]
    rectangle = torch.tensor([{i for i in range(6) if mask[i]} in blocks for mask in every])
    assert (values.masked_fill(~(near | rectangle), -torch.inf).amax(1) <= best + 1e-5).all()
    # Nothing found is worth so much.
    assert (random_agent(env, threshold=1e6).logits(obs) > 0).all()


class AllOrNothing(ToyScorer):
    """Dropping both halves of the darker row helps; one half, or anything else, hurts."""

    def score(self, images, targets):
        gone = (images[:, 0] == round(self.mean_colour[0])).float()
        half = gone.shape[1] // 2
        cells = [
            part.mean((1, 2)) > 0.9 for row in gone.split(half, 1) for part in row.split(half, 2)
        ]
        a, b, c, d = cells
        top = targets % 2 == 0
        both, other = torch.where(top, a & b, c & d), torch.where(top, c | d, a | b)
        any_gone = a | b | c | d
        margin = torch.where(both & ~other, 0.1, torch.where(any_gone, -0.1, 0.0))
        return Score(margin > 0.05, margin > 0.05, margin)


def test_it_learns_what_helps_only_together():
    faces = toy_faces(size=16)
    top = faces.labels % 2 == 0
    faces.images[:] = 200
    faces.images[top, :, :8], faces.images[~top, :, 8:] = 60, 60  # what is to be found
    made = {
        "dataset": faces,
        "recognizer": AllOrNothing(),
        "partition": "grid2x2",
        "observation": "regions+image",
        "reward": "margin",
    }
    env = SARFaceVectorEnv(24, **made)
    agent = make_agent("value", env, {"lr": 1e-2, "width": 8}, seed=1).learn(24 * 60)
    ours, keep, best = (
        evaluate(policy, env, np.arange(12)).mean("reward")
        for policy in (agent, KeepAll(env), ExhaustiveOracle(env))
    )
    assert keep == 0 < best
    assert ours > 0.95 * best
