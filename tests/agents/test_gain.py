"""Gain regression: what its options change, by hand."""

import numpy as np
import pytest
import torch

from agents.registry import make_agent
from tests.agents.test_agents import make_env
from tests.toys import toy_faces


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
        blocks = agent._blocks(obs, 8, 0.7).numpy()
        found = {len(set(names[block])) for block in blocks.reshape(-1, len(names))}
        assert found >= families if kin == 0 else found == families


def augmenting():
    env = make_env(8, dataset=toy_faces(size=25), partition="grid3x3")
    return make_agent("gain", env, {"masks": 2, "augment": True})


def test_augmented_faces_keep_their_regions_on_their_pixels():
    agent = augmenting()
    rng = np.random.default_rng(0)
    regions = torch.from_numpy(rng.integers(1, 10, (64, 1, 25, 25), dtype=np.uint8))
    # A region's colour is twenty times its number, so that light is what is left of the quotient.
    obs = torch.cat([regions, (20 * regions).expand(-1, 3, -1, -1)], 1)
    shown = agent._augmented(obs)
    assert shown.shape == obs.shape
    assert shown.dtype == torch.uint8
    light = shown[:, 1:].float() / (20 * shown[:, :1].float())
    lit = light[shown[:, 1:] < 255]  # not cut off
    assert 0.75 < lit.min() < 0.85
    assert 1.15 < lit.max() < 1.25
    dark = (shown[:, :1] <= 4).expand(-1, 3, -1, -1)
    for one, where in zip(light, dark, strict=True):
        for colour, at in zip(one, where, strict=True):
            assert colour[at].max() - colour[at].min() < 0.06  # one light a face and colour

    # All rows of a batch are shifted by one offset of at most a pixel; some faces are mirrored.
    kept = []
    for before, after in zip(obs[:, 0], shown[:, 0], strict=True):
        same = {
            mirrored: max(
                (picture.roll((y, x), (0, 1)) == after)[2:-2, 2:-2].float().mean().item()
                for y in (-1, 0, 1)
                for x in (-1, 0, 1)
            )
            for mirrored, picture in ((False, before), (True, before.flip(1)))
        }
        assert max(same.values()) == 1
        kept.append(same[False] == 1)
    assert 16 < sum(kept) < 48
