"""Gain regression: what its options change, by hand."""

import numpy as np
import pytest
import torch

from agents.registry import make_agent
from tests.agents.test_agents import make_env


def test_regions_are_dropped_only_above_the_threshold():
    agents = [make_agent("gain", make_env(4), {"threshold": t}) for t in (0.0, 0.1)]
    obs, _ = agents[0].env.reset(seed=0)
    for agent in agents:
        torch.nn.init.constant_(agent.policy.out.bias, -0.05)  # every region gains 0.05
    assert not agents[0].predict(obs, deterministic=True)[0].any()
    assert agents[1].predict(obs, deterministic=True)[0].all()


@pytest.mark.parametrize(("floor", "loss"), [(None, (4 + 0.25 + 9) / 3), (1.0, (1 + 0.25 + 9) / 3)])
def test_losses_count_up_to_the_floor(floor, loss):
    agent = make_agent("gain", make_env(4), {"floor": floor})
    torch.nn.init.zeros_(agent.policy.out.bias)  # nothing gains
    obs = torch.from_numpy(np.array(agent.env.reset(seed=0)[0][:1]))
    masks = torch.zeros((1, 3, agent.layout.bits), dtype=torch.bool)
    found, _ = agent._fit(obs, masks, torch.tensor([[-2.0, -0.5, 3.0]]))
    assert found == pytest.approx(loss)


def test_blocks_of_kin_hold_one_family_and_the_others_mix_them():
    for kin, families in ((1.0, {1}), (0.0, {1, 2, 3})):
        agent = make_agent("gain", make_env(12, partition="sarface24xgrid4x4"), {"kin": kin})
        obs = torch.from_numpy(np.array(agent.env.reset(seed=0)[0]))
        names = np.array(agent.layout.families)
        blocks = agent._blocks(obs, 8).numpy()
        found = {len(set(names[block])) for block in blocks.reshape(-1, len(names))}
        assert found >= families if kin == 0 else found == families
