"""What every agent must do: find a known optimum, save, resume, and refuse what does not fit."""

import io
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.agent import DivergedError, NoOptions
from agents.baselines import ExhaustiveOracle, KeepAll
from agents.evaluation import evaluate
from agents.registry import AGENTS, agent_names, load_agent, make_agent
from sarface_env import SARFaceEnv, SARFaceVectorEnv
from tests.conftest import ROOT
from tests.toys import ToyScorer, toy_faces

EVERYTHING = np.arange(12)
BASELINES = ("none", "moving_average", "self_critical", "full", "per_bit", "counterfactual")
WAYS = [
    *(("reinforce", {"baseline": baseline}) for baseline in BASELINES),
    ("reinforce", {"bound": 0.8, "bound_end": 0.98}),
    ("reinforce", {"baseline": "counterfactual", "replay": 3}),
    ("grpo", {}),
    ("grpo", {"std": False, "kl": 0.001, "group": 4}),
    ("gain", {}),
    ("value", {}),
    ("preference", {"masks": 12}),
    ("sarface", {}),
    ("ppo", {}),
    ("maskable_ppo", {}),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in WAYS]


def toy(**options):
    options = {"partition": "grid2x2", "observation": "regions+image", "reward": "margin"} | options
    return {"dataset": toy_faces(size=16), "recognizer": ToyScorer(), **options}


def make_env(num_envs=24, **options):
    return SARFaceVectorEnv(num_envs, **toy(**options))


@pytest.mark.parametrize(("name", "options"), WAYS, ids=IDS)
def test_every_agent_finds_the_optimum(name, options):
    """The toy's margin is the mean brightness: dark cells are to be dropped, face by face."""
    env = make_env(observation="image", obs_size=4)
    options = {"lr": 1e-2, "width": 64, **options}
    asked = {"sarface": 0.85}.get(name, 0.98)  # the published rule has no baseline, no schedule
    if name == "reinforce" and options.get("baseline", "counterfactual") != "counterfactual":
        # What other masks of the face earned ages faster than what a bit gained.
        options |= {"epochs": 4, "replay": 0, "entropy": 0.15}
    if options.get("baseline") in ("none", "moving_average", "full"):
        options["samples"], asked = 8, 0.95  # nor have these one for each face
    agent = make_agent(name, env, options).learn(24 * 160)
    ours, keep, best = (
        evaluate(policy, env, EVERYTHING).mean("reward")
        for policy in (agent, KeepAll(env), ExhaustiveOracle(env))
    )
    assert ours >= keep + asked * (best - keep)


@pytest.mark.parametrize(("name", "options"), [*WAYS[1:2], *WAYS[5:]], ids=[*IDS[1:2], *IDS[5:]])
def test_a_resumed_training_equals_an_uninterrupted_one(name, options, tmp_path):
    options = options | {"width": 4}
    total = 24 * 12
    straight, seen = make_agent(name, make_env(), options, seed=3), []
    straight.learn(total, lambda step, metrics: seen.append((step, metrics)))
    first, states = make_agent(name, make_env(), options, seed=3), []

    def save(step, metrics):
        buffer = io.BytesIO()
        torch.save(first.training_state(), buffer)
        states.append(buffer)

    first.learn(total, save)
    states[1].seek(0)
    torch.rand(5)  # whatever else draws random numbers
    second, again = make_agent(name, make_env(), options, seed=99), []
    second.load_training_state(torch.load(states[1], weights_only=True))
    second.learn(total, lambda step, metrics: again.append((step, metrics)))
    assert again == seen[2:]
    for key, value in straight.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[key]), key


@pytest.mark.parametrize("name", AGENTS)
def test_saved_agents_predict_alike_and_fit_only_their_environment(name, tmp_path):
    env, path = make_env(4), tmp_path / "agent.safetensors"
    agent = make_agent(name, env, {"width": 4}).learn(32)
    agent.save(path)
    again = load_agent(path, env)
    obs, _ = env.reset(seed=0)
    torch.testing.assert_close(agent.logits(obs), again.logits(obs))
    assert again.steps == agent.steps
    actions, _ = again.predict(obs, deterministic=True)
    assert env.action_space.contains(actions)
    assert again.predict(obs[0], deterministic=True)[0].tolist() == actions[0].tolist()
    again.learn(agent.steps + 16)  # goes on from the weights

    other = "grpo" if name == "reinforce" else "reinforce"
    with pytest.raises(ValueError, match=f"holds a {name} agent, not {other}"):
        type(make_agent(other, env)).load(path, env)
    with pytest.raises(ValueError, match=r"another environment: .*partition grid2x2, here grid4x1"):
        load_agent(path, make_env(partition="grid4x1"))
    with pytest.raises(ValueError, match=r"another environment: shape \[4, 16, 16\], here \[1, "):
        load_agent(path, make_env(observation="regions"))
    state = agent.training_state()
    with pytest.raises(ValueError, match=f"of agent {name}, not {other}"):
        make_agent(other, env).load_training_state(state)


def test_unknown_names_list_what_exists(tmp_path):
    env = make_env(2)
    with pytest.raises(ValueError, match=r"unknown agent 'dqn'; there are reinforce, sarface, g"):
        make_agent("dqn", env)
    with pytest.raises(ValueError, match=r"grpo has no option groups; there are lr, .*group, std"):
        make_agent("grpo", env, {"groups": 4})
    with pytest.raises(TypeError, match="grpo takes GrpoOptions or a dict, got NoOptions"):
        make_agent("grpo", env, NoOptions())
    with pytest.raises(ValueError, match="group must be at least 2, got 1"):
        make_agent("grpo", env, {"group": 1})
    with pytest.raises(ValueError, match=r"unknown baseline 'best'; there are none, moving_av"):
        make_agent("reinforce", env, {"baseline": "best"})
    with pytest.raises(ValueError, match=r"bound must lie in \(0.5, 1\], got 0.3"):
        make_agent("reinforce", env, {"bound": 0.3})
    with pytest.raises(TypeError, match="CartPoleVectorEnv cannot be resumed nor score masks"):
        make_agent("reinforce", gym.make_vec("CartPole-v1", num_envs=2))
    with (
        pytest.warns(UserWarning, match="no batched"),
        pytest.raises(TypeError, match=r"MultiBinary\(K\) is needed, got Discrete\(2\)"),
    ):
        make_agent("reinforce", gym.make("CartPole-v1"))
    with pytest.raises(FileNotFoundError, match="no saved agent"):
        load_agent(tmp_path / "none", env)
    (tmp_path / "other").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match="other is not a saved agent"):
        load_agent(tmp_path / "other", env)


def test_the_documented_agent_of_another_package(tmp_path, monkeypatch):
    """What docs/custom_agent.md shows, installed as a package would be, finds the best mask."""
    text = (ROOT / "docs" / "custom_agent.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 60
    declared = text.split("sarface.agents =\n")[1].split("```")[0]
    (tmp_path / "my_agents.py").write_text(code)
    installed = tmp_path / "my_agents-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_agents\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[sarface.agents]\n" + declared.strip() + "\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert agent_names()[-1] == "cross_entropy"
    env = make_env()
    agent = make_agent("cross_entropy", env, {"masks": 16, "rate": 0.1}).learn(24 * 60)
    obs, _ = env.reset(seed=0)
    ours = agent.predict(obs, deterministic=True)[0]
    assert (ours == ours[0]).all()
    masks = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    rewards = env.evaluate(EVERYTHING, masks.expand(12, 16, 4)).reward.mean(0)
    (found,) = (masks == torch.from_numpy(ours[0])).all(1).nonzero()
    assert rewards[found] > rewards.max() - 0.03  # drawn faces are not all faces

    first = make_agent("cross_entropy", make_env(), seed=1).learn(48)
    second = make_agent("cross_entropy", make_env())
    second.load_training_state(first.training_state())
    second.seed = 1
    assert torch.equal(first.learn(96).logits(obs), second.learn(96).logits(obs))
    agent.save(tmp_path / "agent.safetensors")
    assert torch.equal(
        load_agent(tmp_path / "agent.safetensors", env).logits(obs), agent.logits(obs)
    )


@pytest.mark.parametrize("name", ["reinforce", "grpo", "gain", "sarface", "ppo"])
def test_a_loss_that_is_no_number_stops_with_its_batch(name, tmp_path):
    env = make_env(8)
    step, scored = env.step, env.evaluate

    def broken_step(actions):
        obs, reward, *rest = step(actions)
        return obs, reward * np.nan, *rest

    def broken_evaluate(indices, masks):
        outcome = scored(indices, masks)
        outcome.reward = outcome.reward * np.nan
        return outcome

    env.step, env.evaluate = broken_step, broken_evaluate
    agent = make_agent(name, env, {"width": 4})
    agent.folder = tmp_path
    with pytest.raises(DivergedError, match=rf"the loss of {name} is not a number .*diverged\.pt"):
        agent.learn(400)
    batch = torch.load(tmp_path / "diverged.pt", weights_only=True)
    assert any(torch.isnan(v).any() for v in batch.values() if torch.is_tensor(v))


@pytest.mark.parametrize("name", ["reinforce", "grpo", "gain", "maskable_ppo"])
def test_environments_that_are_not_batched_work_with_one_warning(name):
    gym.register("Single-v0", entry_point=SARFaceEnv)
    env = gym.make_vec("Single-v0", num_envs=3, vectorization_mode="sync", **toy())
    with pytest.warns(UserWarning, match="no batched implementation") as warned:
        agent = make_agent(name, env, {"width": 4}).learn(24)
    assert sum("no batched" in str(w.message) for w in warned) == 1
    obs, _ = agent.env.reset(seed=0)
    assert env.action_space.contains(agent.predict(obs)[0])
    del gym.registry["Single-v0"]


class Bare(gym.Env):
    """A bandit of its own, with nothing but Gymnasium's interface: keep the bits that are shown."""

    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.MultiBinary(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        index = (options or {}).get("index", self.np_random.integers(8))
        self.shown = np.array([index & 1, index >> 1 & 1, index >> 2 & 1], np.float32)
        return self.shown, {"index": index}

    def step(self, action):
        return self.shown, float((action == self.shown).mean()), True, False, {}


@pytest.mark.parametrize("name", ["reinforce", "grpo", "gain", "ppo"])
def test_a_stranger_that_can_show_a_face_again_is_learned(name):
    env = Bare()
    with pytest.warns(UserWarning, match="Bare has no batched implementation"):
        agent = make_agent(name, gym.vector.SyncVectorEnv([Bare] * 16), {"lr": 2e-2, "width": 16})
    agent.learn(16 * 60)
    for index in range(8):
        obs, _ = env.reset(options={"index": index})
        assert agent.predict(obs, deterministic=True)[0].tolist() == obs.tolist()
