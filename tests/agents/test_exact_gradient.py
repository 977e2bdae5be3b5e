"""Policy gradients against the exact gradient, by enumeration of 3-bit masks."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents.grpo import Grpo, GrpoOptions
from agents.learner import Batch
from agents.reinforce import Reinforce, ReinforceOptions
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces

MASKS = torch.tensor(list(itertools.product([False, True], repeat=3)))
LOGITS = torch.tensor([[0.4, -0.3, 1.1]], dtype=torch.float64)


@pytest.fixture
def env():
    return SARFaceVectorEnv(
        1,
        dataset=toy_faces(size=32),
        recognizer=ToyScorer(),
        partition="grid1x3",
        reward="flip+margin",
    )


def rewards_of(env, index=3):
    rewards = env.evaluate(np.full(8, index), MASKS).reward
    assert rewards.std() > 0.1
    return rewards


def log_probs(logits):
    """Log-probabilities `(8, 3)` of the bits of all masks."""
    return -F.binary_cross_entropy_with_logits(
        logits.expand(8, 3), MASKS.double(), reduction="none"
    )


def exact_gradient(logits, rewards, explore=lambda x: x):
    logits = logits.clone().requires_grad_()
    probability = log_probs(explore(logits)).sum(1).exp()
    (gradient,) = torch.autograd.grad((probability * rewards.double()).sum(), logits)
    return gradient


def all_masks(masks):
    """A batch that shows face 3 once for every row of masks `(M, S, K)`."""
    return Batch(
        torch.empty(0),
        torch.full((len(masks),), 3),
        torch.ones((len(masks), 3), dtype=torch.bool),
        masks,
        torch.empty(0),
        torch.empty(0),
    )


def expected_gradient(agent, batch, probability, logits, progress=0.0):
    """Mean over the batch's samples of the gradient of the agent's surrogate at ratio one."""
    logits = logits.clone().requires_grad_()
    shown = agent.explore(logits, progress).expand(len(batch.masks), 3)
    log_prob = -F.binary_cross_entropy_with_logits(
        shown[:, None].expand(batch.masks.shape), batch.masks.double(), reduction="none"
    )
    ratio = (log_prob - log_prob.detach()).exp()
    objective = agent._surrogate(ratio, batch.advantage.double()).sum(2).mean(1)
    (gradient,) = torch.autograd.grad((probability * objective).sum(), logits)
    return gradient


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "none"},
        {"baseline": "moving_average"},
        {"baseline": "self_critical"},
        {"baseline": "full"},
        {"baseline": "per_bit"},
        {"baseline": "counterfactual", "bits": 3},
        {"baseline": "self_critical", "bound": 0.7, "bound_end": 0.9},
        {"baseline": "per_bit", "bound": 0.7, "bound_end": 0.9},
        {"baseline": "counterfactual", "bits": 5, "bound": 0.7, "bound_end": 0.9},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_reinforce_is_unbiased_with_every_baseline(env, options):
    """In expectation over all masks that can be sampled, each credited as in training."""
    agent = Reinforce(env, ReinforceOptions(**options))
    agent.average = 0.37
    rewards, progress = rewards_of(env), 0.25
    shown = agent.explore(LOGITS, progress)
    if "bound" in options:  # pa + (1 - p)(1 - a) with a = 0.75 after a quarter of the way
        p = torch.sigmoid(LOGITS)
        torch.testing.assert_close(torch.sigmoid(shown), 0.75 * p + 0.25 * (1 - p))
    batch = all_masks(MASKS[:, None])
    agent._advantages(batch, shown.expand(8, 3), rewards)
    probability = log_probs(shown).sum(1).exp()
    ours = expected_gradient(agent, batch, probability, LOGITS, progress)
    exact = exact_gradient(LOGITS, rewards, lambda x: agent.explore(x, progress))
    torch.testing.assert_close(ours, exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2])
def test_a_budget_of_counterfactual_bits_keeps_the_mean(env, bits):
    """Subsets are drawn at random: the mean over many draws, within four standard errors."""
    agent = Reinforce(env, ReinforceOptions(baseline="counterfactual", bits=bits), seed=0)
    rewards = rewards_of(env)
    probability = log_probs(LOGITS).sum(1).exp()
    found = []
    for _ in range(300):
        batch = all_masks(MASKS[:, None])
        before = env.core.calls
        agent._advantages(batch, LOGITS.expand(8, 3), rewards)
        assert env.core.calls - before <= 8 * bits
        assert ((batch.advantage != 0).sum(2) <= bits).all()
        found.append(expected_gradient(agent, batch, probability, LOGITS))
    found = torch.cat(found)
    error = (found.mean(0) - exact_gradient(LOGITS, rewards)[0]).abs()
    assert (error <= 4 * found.std(0) / len(found) ** 0.5).all()


def test_several_samples_and_absent_regions(env):
    """A second sample is scored beside the first; absent regions get no credit."""
    agent = Reinforce(env, ReinforceOptions(samples=2, baseline="none"))
    rewards = rewards_of(env)
    pairs = torch.tensor(list(itertools.product(range(8), repeat=2)))
    batch = all_masks(MASKS[pairs])
    batch.present[:, 1] = False
    agent._advantages(batch, LOGITS.expand(64, 3), rewards[pairs[:, 0]])
    expected = rewards[pairs][:, :, None] * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(batch.advantage, expected)


def test_grpo_is_the_exact_gradient_times_the_share_of_the_others(env):
    """A mask is one of the G that its mean is over, which shrinks the gradient by (G - 1) / G."""
    agent = Grpo(env, GrpoOptions(group=2, std=False))
    rewards = rewards_of(env)
    pairs = torch.tensor(list(itertools.product(range(8), repeat=2)))
    batch = all_masks(MASKS[pairs])
    batch.advantage = agent._advantages(rewards[pairs])[:, :, None].expand(64, 2, 3)
    probability = log_probs(LOGITS).sum(1).exp()[pairs].prod(1)
    ours = expected_gradient(agent, batch, probability, LOGITS)
    torch.testing.assert_close(ours, exact_gradient(LOGITS, rewards) / 2, atol=1e-6, rtol=1e-6)


def test_grpo_divides_by_the_spread_of_the_group_and_clips(env):
    agent = Grpo(env, GrpoOptions(clip=0.2))
    advantage = agent._advantages(torch.tensor([[1.0, 0, 0, 1], [2, 2, 2, 2]]))
    # Mean 1/2; standard deviation with Bessel's correction 1/sqrt(3).
    half = 3**0.5 / 2
    torch.testing.assert_close(advantage, torch.tensor([[half, -half, -half, half], [0.0] * 4]))
    # As in the paper's figure 1: no gain beyond 1 + 0.2, no relief below 1 - 0.2.
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    credit = torch.tensor([1.0, 1.0, -1.0, -1.0])
    torch.testing.assert_close(
        agent._surrogate(ratio, credit), torch.tensor([1.2, 0.5, -1.5, -0.8])
    )


def test_the_divergence_from_the_reference_is_the_exact_one(env):
    agent = Grpo(env, GrpoOptions(kl=2.0, keep=0.75))
    obs = torch.as_tensor(env.reset(seed=0)[0])
    batch = Batch(obs, None, torch.ones((1, 3), dtype=torch.bool), MASKS, *[torch.empty(0)] * 2)
    batch.present[0, 2] = False
    logits = torch.tensor([[0.0, torch.logit(torch.tensor(0.75)), 5.0]])
    # KL(1/2 || 3/4) = 1/2 log(2/3) + 1/2 log 2 for one bit, none for the others.
    expected = 2 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2))
    assert float(agent._penalty(batch, logits)) == pytest.approx(expected, rel=1e-5)
