"""The adapter over the batched environment, used in Stable-Baselines3's own ways."""

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger

from agents.registry import make_agent
from agents.sb3 import BatchedVecEnv, SharedPolicy, policy_arguments
from sarface_env import SARFaceVectorEnv
from tests.toys import ToyScorer, toy_faces


def make_env(num_envs=24, partition="grid2x2"):
    return SARFaceVectorEnv(
        num_envs,
        dataset=toy_faces(size=16),
        recognizer=ToyScorer(),
        partition=partition,
        observation="regions+image",
        reward="margin",
    )


class Written(KVWriter):
    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append(dict(key_values))

    def close(self):
        pass


def test_the_adapter_gives_what_the_environment_gives():
    adapter, env = BatchedVecEnv(make_env(4)), make_env(4)
    adapter.seed(5)
    obs, (expected, _) = adapter.reset(), env.reset(seed=5)
    np.testing.assert_array_equal(obs, expected)
    actions = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]], np.float32)
    obs, reward, done, infos = adapter.step(actions)
    expected, gained, *_ = env.step(actions.astype(np.int8))
    np.testing.assert_array_equal(obs, expected)
    np.testing.assert_allclose(reward, gained, rtol=1e-6)
    assert done.all()
    assert np.isclose(infos[0]["episode"]["r"], gained.mean())
    assert np.array_equal(np.stack(adapter.env_method("action_masks")), env.action_masks())
    assert len(adapter.env_method("action_masks", indices=[0, 2])) == 2
    assert adapter.get_attr("num_envs") == [4] * 4


def test_models_log_evaluate_save_and_load_in_the_usual_way(tmp_path):
    agent = make_agent("ppo", make_env(), {"width": 4})
    arguments = policy_arguments(agent.layout, 4, 0.7)
    model = PPO(
        SharedPolicy, BatchedVecEnv(make_env()), n_steps=2, batch_size=48, policy_kwargs=arguments
    )
    written = Written()
    model.set_logger(Logger(None, [written]))
    model.learn(24 * 4)
    assert {"rollout/ep_rew_mean", "train/loss"} <= written.lines[-1].keys()
    mean, _ = evaluate_policy(model, BatchedVecEnv(make_env()), n_eval_episodes=24, warn=False)
    assert -1 <= mean <= 1
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=BatchedVecEnv(make_env()))
    obs, _ = make_env().reset(seed=0)
    ours, theirs = (m.predict(obs, deterministic=True)[0] for m in (model, again))
    np.testing.assert_array_equal(ours, theirs)
    again.learn(24 * 2)


def test_an_agents_model_predicts_what_the_agent_does():
    env = make_env()
    obs, _ = env.reset(seed=0)
    for name in ("ppo", "maskable_ppo"):
        agent = make_agent(name, env, {"width": 4, "lr": 1e-2}).learn(24 * 8)
        ours = agent.predict(obs, deterministic=True)[0]
        np.testing.assert_array_equal(ours, agent.model.predict(obs, deterministic=True)[0])
        # One optimizer over every weight, once: the last layer is shared with the encoder.
        counted = sum(len(group["params"]) for group in agent.policy.optimizer.param_groups)
        assert counted == len({id(p) for p in agent.policy.parameters()})


def test_maskable_ppo_never_drops_what_a_face_does_not_have():
    env = make_env(partition="sarface24")
    step, dropped = env.step, []

    def watch(actions):
        present = env.core.present(torch.from_numpy(env.indices)).numpy()
        dropped.append([(actions[~present] == 0).sum(), (actions[present] == 0).sum()])
        return step(actions)

    env.step = watch
    make_agent("maskable_ppo", env, {"width": 4}).learn(24 * 8)
    absent, present = np.sum(dropped, 0)
    assert absent == 0
    assert present > 0
