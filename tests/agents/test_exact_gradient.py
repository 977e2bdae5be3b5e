"""The policy gradient of REINFORCE against the exact gradient, by enumeration of 3-bit masks."""

import itertools

import numpy as np
import torch

from agents.reinforce import Reinforce, ReinforceOptions
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces


def test_bitwise_baseline_leaves_the_gradient_unbiased():
    env = SARFaceVectorEnv(
        1,
        dataset=toy_faces(size=32),
        recognizer=ToyScorer(),
        partition="grid1x3",
        reward="flip+margin",
    )
    index = np.array([3])
    logits = torch.tensor([[0.4, -0.3, 1.1]], dtype=torch.float64, requires_grad=True)
    masks = torch.tensor(list(itertools.product([False, True], repeat=3)))
    rewards = env.evaluate(np.repeat(index, 8), masks).reward.double()
    assert rewards.std() > 0.1

    def log_probs(logits):
        return -torch.nn.functional.binary_cross_entropy_with_logits(
            logits.expand(8, 3), masks.double(), reduction="none"
        )

    probability = log_probs(logits).sum(1).exp()
    (exact,) = torch.autograd.grad((probability * rewards).sum(), logits)

    # The same in expectation over all masks that can be sampled, each credited as in training.
    agent = Reinforce(env, ReinforceOptions())
    greedy = (logits > 0).expand(8, 3)
    advantage = agent._advantages(
        np.repeat(index, 8),
        masks[:, None],
        greedy,
        rewards.float(),
        torch.ones((8, 3), dtype=torch.bool),
    )[:, 0]
    credited = (advantage.double() * log_probs(logits)).sum(1)
    (ours,) = torch.autograd.grad((probability.detach() * credited).sum(), logits)
    torch.testing.assert_close(ours, exact, atol=1e-6, rtol=1e-6)
