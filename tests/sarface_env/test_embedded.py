"""The environment as it is by default: the embedded face world and the shipped recognizer."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sarface_env
from agents.baselines import KeepAll
from agents.evaluation import evaluate


@pytest.mark.filterwarnings("error")
def test_checkers_pass_on_the_default():
    env = gym.make("SARFace-v0", split="val", render_mode="rgb_array")
    check_env(env.unwrapped)
    sb3_check_env(sarface_env.SARFaceEnv(split="val"))


def test_the_world_is_worth_learning_in():
    env = gym.make_vec("SARFace-v0", num_envs=100, split="val")
    faces = np.arange(300)
    keep = evaluate(KeepAll(env), env, faces)
    assert 0.5 < keep.mean("margin-correct") < 0.8
    # Dropping exactly the skin quadrants that somebody else's skin lies on helps.
    core = env.unwrapped.core
    index = torch.arange(300)
    regions = core.regions(index)
    foreign = core.faces.occluders[index] > 0
    pixels = torch.stack([((regions == r) & foreign).flatten(1).sum(1) for r in range(12, 24)], 1)
    covered = pixels / core.region_pixels(index)[:, 12:].clamp_min(1)
    informed = env.unwrapped.evaluate(faces, covered < 0.15).masked.margin_correct.float().mean()
    assert informed > keep.mean("margin-correct") + 0.08


def test_splits_show_different_pictures_of_the_same_people():
    val, test = (sarface_env.SARFaceEnv(split=split).core.faces for split in ("val", "test"))
    assert val.names == test.names
    assert not torch.equal(val.images[:50], test.images[:50])
