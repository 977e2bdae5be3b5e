"""Learning from comparisons: the loss by hand, and the climb."""

import copy
import math

import numpy as np
import pytest
import torch

from agents.registry import load_agent, make_agent
from sarface_env.env import SARFaceVectorEnv
from segmenter import load_parser
from tests.agents.test_agents import make_env, toy
from tests.toys import toy_faces


def test_the_loss_by_hand():
    agent = make_agent("preference", make_env(4))
    torch.nn.init.constant_(agent.policy.out.bias, 0.3)
    obs = torch.from_numpy(np.array(agent.env.reset(seed=0)[0][:1]))
    change = torch.tensor([[[-1, -1, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0]]], dtype=torch.int8)
    gain = torch.tensor([[0.2, -0.01, 0.0]])
    loss, _ = agent._fit(obs, torch.arange(1), change, gain)
    # Two bits of keep logit 0.3 dropped, and it was better; one given back, and it was worse; the
    # third made no difference and says nothing.
    assert loss == pytest.approx((math.log1p(math.exp(0.6)) + math.log1p(math.exp(0.3))) / 2)


def test_weighed_comparisons_learn_what_gains_on_average():
    # Seven times in ten, dropping the first bit gains a little; else it loses much.
    change = torch.zeros(1, 10, 4, dtype=torch.int8)
    change[:, :, 0] = -1
    gain = torch.tensor([[0.1] * 7 + [-1.0] * 3])
    kept = {}
    for weigh in (False, True):
        agent = make_agent("preference", make_env(4), {"weigh": weigh})
        obs = torch.from_numpy(np.array(agent.env.reset(seed=0)[0][:1]))
        for _ in range(60):
            agent._fit(obs, torch.arange(1), change, gain)
        kept[weigh] = agent.logits(obs)[0, 0]
    # The odds that dropping is better: 7 to 3, and 0.7 to 3.
    assert kept[False] == pytest.approx(-math.log(7 / 3), abs=0.15)
    assert kept[True] == pytest.approx(math.log(3 / 0.7), abs=0.15)


def test_the_threshold_keeps_what_is_nearly_as_good():
    env = make_env(4)
    obs = env.reset(seed=0)[0]
    for threshold, keep in ((0.0, False), (0.2, False), (0.4, True)):
        agent = make_agent("preference", env, {"threshold": threshold})
        torch.nn.init.constant_(agent.policy.out.bias, -0.3)
        assert (agent.predict(obs, deterministic=True)[0] == keep).all()


def test_the_climb_never_goes_down_and_tells_what_it_did():
    env = make_env(12)
    agent = make_agent("preference", env, {"masks": 20})
    obs, info = env.reset(seed=0)
    agent._obs, agent._info = obs, info
    index, present = torch.from_numpy(info["index"]), torch.from_numpy(info["action_mask"])
    change, gain, reward = agent._climb(torch.from_numpy(np.array(obs)), present)
    accepted = (change * (gain > 0)[:, :, None]).sum(1) + 1
    assert ((accepted == 0) | (accepted == 1)).all()
    torch.testing.assert_close(env.evaluate(index, accepted.bool()).reward, reward)
    assert (reward >= 0).all()
    assert (reward > 0).any()
    assert (change == 1).any()  # given back
    assert not change[~present[:, None].expand_as(change)].any()
    # What a refused block would have gained is told as well.
    before = 1 + (change * (gain > 0)[:, :, None]).cumsum(1) - change * (gain > 0)[:, :, None]
    tried = env.evaluate(index, (before + change).bool()).reward
    torch.testing.assert_close(tried - env.evaluate(index, before.bool()).reward, gain)


def test_only_faces_that_gained_most_are_climbed_to_the_end():
    env, found = make_env(12), {}
    for finish in (1.0, 0.25):
        agent = make_agent("preference", env, {"masks": 20, "finish": finish}, seed=3)
        obs, info = env.reset(seed=0)
        agent._obs, agent._info = obs, info
        index, present = torch.from_numpy(info["index"]), torch.from_numpy(info["action_mask"])
        found[finish] = agent._climb(torch.from_numpy(np.array(obs)), present)
    change, gain, reward = found[0.25]
    half = (change * (gain > 0)[:, :, None])[:, :10].sum(1) + 1
    gained = env.evaluate(index, half.bool()).reward - env.evaluate(index, present).reward
    ended = ~change[:, 10:].bool().flatten(1).any(1)
    assert ended.sum() == 9
    assert gained[~ended].min() >= gained[ended].max()
    assert not gain[ended, 10:].any()
    # What is climbed, is climbed as if all were.
    for part, whole in zip((change, gain), found[1.0][:2], strict=True):
        assert torch.equal(part[:, :10], whole[:, :10])
        assert torch.equal(part[~ended], whole[~ended])
    torch.testing.assert_close(reward[~ended], found[1.0][2][~ended])


def test_faces_covered_alike_are_climbed_together():
    faces = toy_faces(24, size=16)
    faces.alike = torch.arange(24).view(8, 3).repeat_interleave(3, 0)
    env = SARFaceVectorEnv(24, **toy(dataset=faces, partition="grid4x4"))
    agent = make_agent("preference", env, {"masks": 20, "finish": 0.5})
    obs, info = env.reset(seed=0)
    agent._obs, agent._info = obs, info
    index, present = torch.from_numpy(info["index"]), torch.from_numpy(info["action_mask"])
    change, gain, reward = agent._climb(torch.from_numpy(np.array(obs)), present)
    for tried in (change, gain):
        groups = tried.unflatten(0, (8, 3))
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
    # What is told is the mean of what each face of the group gained.
    before = 1 + (change * (gain > 0)[:, :, None]).cumsum(1) - change * (gain > 0)[:, :, None]
    own = env.evaluate(index, (before + change).bool()).reward
    own = own - env.evaluate(index, before.bool()).reward
    mean = own.unflatten(0, (8, 3)).mean(1).repeat_interleave(3, 0)
    torch.testing.assert_close(mean, gain)
    assert not torch.allclose(own, gain)
    found = ((change * (gain > 0)[:, :, None]).sum(1) + 1).bool()
    torch.testing.assert_close(env.evaluate(index, found).reward, reward)
    assert (change[:, 10:].bool().flatten(1).any(1).view(8, 3).sum(0) <= 4).all()


def test_groups_that_do_not_fit_are_refused():
    faces = toy_faces(12)
    faces.alike = torch.arange(12).view(4, 3).repeat_interleave(3, 0)
    with pytest.raises(ValueError, match="4 environments cannot show whole groups of 3"):
        make_agent("preference", SARFaceVectorEnv(4, **toy(dataset=faces)))


def test_what_the_parser_sees_is_learned_from_and_never_changes(tmp_path):
    env = make_env(8)
    options = {"trunk": "light", "masks": 4, "collect": 0.5, "epochs": 2}
    agent = make_agent("preference", env, options)
    trunk = {k: v.clone() for k, v in agent.policy.trunk.state_dict().items()}
    first = agent.policy.encoder[0].weight.detach().clone()
    agent.learn(8 * 6)
    assert not torch.equal(agent.policy.encoder[0].weight, first)
    for key, value in load_parser("light", "cpu").network.state_dict().items():
        assert torch.equal(agent.policy.trunk.state_dict()[f"network.{key}"], value)
    assert trunk.keys() == agent.policy.trunk.state_dict().keys()
    # What is remembered is what is seen, in half precision.
    obs, places, *_ = agent._remembered()
    for _ in range(2):
        seen = agent._by_trunk(places)
        torch.testing.assert_close(seen, agent.policy.trunk(obs[:, -3:]), atol=0.01, rtol=0.01)
    # A resumed training has to see it again, and goes on exactly.
    straight = make_agent("preference", make_env(8), options).learn(8 * 6)
    first = make_agent("preference", make_env(8), options).learn(8 * 5, total=8 * 6)
    second = make_agent("preference", make_env(8), options, seed=1).learn(8 * 5, total=8 * 6)
    second.load_training_state(copy.deepcopy(first.training_state()))
    second.learn(8 * 6)
    for key, value in straight.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[key]), key
    # The file holds the parser, and the agent is the same.
    agent.save(tmp_path / "agent.safetensors")
    again = load_agent(tmp_path / "agent.safetensors", env)
    assert torch.equal(again.logits(obs), agent.logits(obs))


@pytest.mark.parametrize(("observation", "lacks"), [("regions", "an image"), ("image", "regions")])
def test_a_parser_without_regions_or_image_is_refused(observation, lacks):
    with pytest.raises(ValueError, match=rf"need {lacks} to observe: regions\+image"):
        make_agent("preference", make_env(4, observation=observation), {"trunk": "light"})


def test_nothing_is_learned_while_masks_are_collected():
    agent = make_agent("preference", make_env(8), {"masks": 4, "collect": 0.5})
    start = [value.clone() for value in agent.policy.state_dict().values()]
    agent.learn(8 * 2, total=8 * 8)
    assert all(map(torch.equal, start, agent.policy.state_dict().values()))
    agent.learn(8 * 5, total=8 * 8)
    assert not all(map(torch.equal, start, agent.policy.state_dict().values()))


def test_shares_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"collect must lie in \[0, 1\)"):
        make_agent("preference", make_env(4), {"collect": 1.0})
    with pytest.raises(ValueError, match=r"finish must lie in \(0, 1\]"):
        make_agent("preference", make_env(4), {"finish": 0.0})
