import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from recognizer.data.faces import FaceSet
from sarface_env import SARFaceEnv, SARFaceVectorEnv
from sarface_env.fills import make_fill
from tests.toys import ToyScorer, toy_faces

FACES = toy_faces(size=40)


def toys(**options):
    return {"dataset": FACES, "recognizer": ToyScorer(), **options}


CONFIGURATIONS = [
    {},
    {"partition": "celeba19", "reward": "margin", "fill": "zero"},
    {"partition": "grid7x7", "reward": "patchdrop", "fill": "blur", "observation": "image"},
    {"observation": "regions+image", "obs_size": 37, "reward": "flip+0.5*margin"},
    {"partition": "grid3x3", "observation": "regions+parsing+image", "obs_size": 37},
    {"partition": "sarface24xgrid2x2", "fill": "inpaint"},
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_checkers_pass_without_a_warning(options):
    env = gym.make("SARFace-v0", render_mode="rgb_array", **toys(**options))
    check_env(env.unwrapped)
    sb3_check_env(SARFaceEnv(**toys(**options)))


def test_make_vec_gives_the_batched_class():
    env = gym.make_vec("SARFace-v0", num_envs=3, **toys())
    assert isinstance(env.unwrapped, SARFaceVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize("size", [None, 8])
def test_parts_of_an_observation_are_the_maps_and_the_image(size):
    options = toys(partition="grid3x3", obs_size=size)
    env = SARFaceVectorEnv(3, **options, observation="regions+parsing+image")
    obs, info = env.reset(seed=0)
    regions, image = (
        SARFaceVectorEnv(3, **options, observation=part).reset(seed=0)[0]
        for part in ("regions", "image")
    )
    assert obs.shape[1] == 5
    assert (obs[:, :1] == regions).all()
    assert (obs[:, 2:] == image).all()
    parsing = FACES.parsing[info["index"]].numpy()
    step = parsing.shape[1] // obs.shape[2]
    centre = step // 2  # of the pixels that a smaller one stands for
    assert (obs[:, 1] == parsing[:, centre::step, centre::step]).all()
    bare = FaceSet(FACES.images, FACES.labels, FACES.names)
    with pytest.raises(ValueError, match="shows parsing maps; the faces have none"):
        SARFaceEnv(**options | {"dataset": bare}, observation="regions+parsing+image")


def random_actions(env, steps, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (steps, env.num_envs, env.single_action_space.n), dtype=np.int8)


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_n_environments_equal_n_single_ones(options):
    vector = SARFaceVectorEnv(3, **toys(**options))
    singles = [SARFaceEnv(**toys(**options)) for _ in range(3)]
    obs, info = vector.reset(seed=7)
    single = [env.reset(seed=7 + i) for i, env in enumerate(singles)]
    for actions in random_actions(vector, 4, 0):
        for i in range(3):
            np.testing.assert_array_equal(obs[i], single[i][0])
            assert info["index"][i] == single[i][1]["index"]
        obs, reward, terminated, truncated, info = vector.step(actions)
        for i, env in enumerate(singles):
            final_obs, r, term, trunc, final = env.step(actions[i])
            assert r == reward[i]
            assert (term, trunc) == (terminated[i], truncated[i]) == (True, False)
            np.testing.assert_array_equal(final_obs, info["final_obs"][i])
            for key, value in final.items():
                np.testing.assert_array_equal(value, info["final_info"][key][i])
            single[i] = env.reset()


def test_infos_have_the_form_of_gymnasiums_own_vector_environment():
    ours = SARFaceVectorEnv(2, **toys())
    theirs = SyncVectorEnv(
        [lambda: SARFaceEnv(**toys())] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    actions = random_actions(ours, 1, 0)[0]
    results = []
    for env in (ours, theirs):
        first = env.reset(seed=3)
        results.append((first, env.step(actions)))
    _same_structure(results[0], results[1])


def _same_structure(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            _same_structure(ours[key], theirs[key])
    elif isinstance(theirs, tuple):
        for a, b in zip(ours, theirs, strict=True):
            _same_structure(a, b)
    else:
        np.testing.assert_array_equal(np.stack(list(ours)), np.stack(list(theirs)))


def test_the_batched_observation_space_is_gymnasiums():
    ours = SARFaceVectorEnv(3, **toys()).observation_space
    theirs = batch_space(SARFaceEnv(**toys()).observation_space, 3)
    assert ours == theirs
    assert str(ours) == str(theirs)
    ours.seed(1), theirs.seed(1)
    np.testing.assert_array_equal(ours.sample(), theirs.sample())
    assert pickle.loads(pickle.dumps(ours)) == theirs


def rollout(env, actions, seed):
    out = [env.reset(seed=seed)[0]]
    for action in actions:
        obs, reward, *_ = env.step(action)
        out += [obs, reward]
    return out


def test_same_seed_same_rollout_and_other_seed_another():
    env, again = (SARFaceVectorEnv(4, **toys()) for _ in range(2))
    actions = random_actions(env, 5, 1)
    a, b, c = (rollout(e, actions, s) for e, s in ((env, 5), (again, 5), (again, 6)))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert any(not np.array_equal(x, z) for x, z in zip(a, c, strict=True))


def test_faces_are_drawn_uniformly():
    env = SARFaceVectorEnv(64, **toys())
    env.reset(seed=0)
    seen = []
    for _ in range(60):
        seen.append(env.step(np.ones((64, 12), np.int8))[4]["index"])
    counts = np.bincount(np.concatenate(seen), minlength=len(FACES))
    expected = 64 * 60 / len(FACES)
    # Chi-square with 11 degrees of freedom: 31.3 is exceeded once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 31.3


@pytest.mark.parametrize("make", [SARFaceEnv, lambda **o: SARFaceVectorEnv(2, **o)])
def test_pickled_environments_go_on_alike(make):
    env = make(**toys(), render_mode="rgb_array")
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(env))
    action = np.zeros(env.action_space.shape, np.int8)
    np.testing.assert_array_equal(env.step(action)[1], copy.step(action)[1])
    np.testing.assert_array_equal(env.reset()[0], copy.reset()[0])


def test_faces_covered_alike_are_shown_side_by_side():
    faces = toy_faces(10)
    members = [[0, 3, 7], [1, 2, 9], [4, 5, 6], [8]]
    rows = {i: np.roll(np.resize(m, 3), -m.index(i) % len(m)) for m in members for i in m}
    faces.alike = torch.tensor(np.array([rows[i] for i in range(10)]))
    env = SARFaceVectorEnv(6, dataset=faces, recognizer=ToyScorer(), partition="grid2x2")
    assert env.alike == 3
    _, info = env.reset(seed=0)
    drawn = []
    for _ in range(300):
        drawn.append(info["index"])
        _, _, _, _, info = env.step(np.ones((6, 4), np.int8))
    shown = np.stack(drawn).reshape(-1, 3)
    assert all(sorted(set(group)) in members for group in shown.tolist())
    # Every face comes first as often as any other; a single environment shows but the first.
    counts = np.bincount(shown[:, 0], minlength=10)
    assert (np.abs(counts - 60) < 5 * np.sqrt(54)).all()
    state = env.state_dict()
    again = SARFaceVectorEnv(6, dataset=faces, recognizer=ToyScorer(), partition="grid2x2")
    assert np.array_equal(again.resume(state)[1]["index"], info["index"])


def test_resume_continues_the_stream_of_faces():
    env = SARFaceVectorEnv(3, **toys())
    actions = random_actions(env, 4, 2)
    env.reset(seed=1)
    env.step(actions[0])
    state = env.state_dict()
    expected = [env.step(a)[:2] for a in actions[1:]]
    other = SARFaceVectorEnv(3, **toys())
    other.resume(state)
    for (obs, reward), action in zip(expected, actions[1:], strict=True):
        new_obs, new_reward, *_ = other.step(action)
        np.testing.assert_array_equal(obs, new_obs)
        np.testing.assert_array_equal(reward, new_reward)


def test_replaying_a_face():
    env = SARFaceVectorEnv(3, **toys())
    obs, info = env.reset(options={"index": [4, 4, 9]})
    assert info["index"].tolist() == [4, 4, 9]
    np.testing.assert_array_equal(obs[0], obs[1])
    single = SARFaceEnv(**toys())
    np.testing.assert_array_equal(single.reset(options={"index": 9})[0], obs[2])


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_reward_of_a_mask_by_brute_force(fill):
    """Mask pixel by pixel, score, and compare with what the environment says."""
    env = SARFaceVectorEnv(len(FACES), **toys(fill=fill, reward="margin"))
    scorer = ToyScorer()
    env.reset(options={"index": np.arange(len(FACES))})
    actions = random_actions(env, 1, 3)[0]
    regions = env.core.regions(torch.arange(len(FACES))).numpy()
    images = FACES.images.numpy().copy()
    colour = {"zero": (0, 0, 0), "mean": (10, 128, 250)}[fill]
    kept = np.zeros(len(FACES))
    for i, action in enumerate(actions):
        for y in range(40):
            for x in range(40):
                region = regions[i, y, x]
                if region >= 12 and action[region - 12] == 0:
                    images[i, :, y, x] = colour
                else:
                    kept[i] += 1 / 1600
    full = scorer.score(FACES.images, FACES.labels)
    masked = scorer.score(torch.from_numpy(images), FACES.labels)
    _, reward, _, _, info = env.step(actions)
    expected = (5 * (masked.margin - full.margin)).clamp(-1, 1)
    np.testing.assert_allclose(reward, expected, atol=1e-6)
    final = info["final_info"]
    np.testing.assert_allclose(final["kept"], kept, atol=1e-6)
    np.testing.assert_array_equal(final["masked_correct"], masked.correct)
    np.testing.assert_array_equal(final["full_margin_correct"], full.margin_correct)
    np.testing.assert_allclose(final["full_margin"], full.margin)


def test_blur_continues_the_colours_around_and_fades_to_the_mean_colour():
    images = torch.full((1, 3, 64, 64), 50, dtype=torch.uint8)
    images[:, :, 30:, 30:34] = 200  # dropped: must not shine through
    keep = torch.ones((1, 64, 64), dtype=torch.bool)
    keep[:, 30:, 30:34] = False
    assert (make_fill("blur")(images, keep, (9.0, 9.0, 9.0)) == 50).all()
    nothing = make_fill("blur")(images, torch.zeros_like(keep), (9.0, 9.0, 9.0))
    assert (nothing == 9).all()


def test_inpainting_continues_a_gradient_from_what_is_kept():
    ramp = torch.arange(40, dtype=torch.uint8).mul(5).expand(2, 3, 40, 40).contiguous()
    images, keep = ramp.clone(), torch.ones((3, 40, 40), dtype=torch.bool)
    keep[0, 15:25, 15:25] = False
    keep[2] = False
    images = torch.cat([images, images[:1]])
    images[0, :, 15:25, 15:25] = 255
    filled = make_fill("inpaint")(images, keep, (9.0, 9.0, 9.0))
    assert (filled[0].int() - ramp[0].int()).abs().max() < 20
    assert torch.equal(filled[1], images[1])
    assert (filled[2] == 9).all()


def test_evaluate_scores_equal_masks_once_and_leaves_the_episode_alone():
    env = SARFaceVectorEnv(2, **toys())
    env.reset(seed=0)
    indices, state = np.array([0, 1]), env.episodes.state_dict()
    masks = torch.ones((2, 5, 12), dtype=torch.bool)
    masks[:, 1:3, 3] = False  # the same mask twice
    masks[:, 4] = False
    # A bit of an absent region is a no-op, so this equals keep-all.
    present = env.core.present(torch.from_numpy(indices))
    masks[:, 3] = present
    outcome = env.evaluate(indices, masks)
    assert outcome.reward.shape == (2, 5)
    distinct = {
        (i, tuple((masks[i, g] | ~present[i]).tolist())) for i in range(2) for g in range(5)
    }
    assert env.core.calls == len(distinct)
    one_by_one = torch.stack([env.evaluate(indices, masks[:, g]).reward for g in range(5)], 1)
    assert torch.equal(outcome.reward, one_by_one)
    assert env.episodes.state_dict() == state


def test_full_images_are_scored_once_a_version():
    env = SARFaceVectorEnv(1, **toys())
    scorer, everything = env.core.scorer, torch.arange(len(FACES))
    env.core.full_score(everything)
    env.core.full_score(everything)
    assert scorer.scored == len(FACES)
    scorer.version += 1
    env.core.full_score(everything[:3])
    assert scorer.scored == len(FACES) + 3


def test_rendering():
    env = SARFaceEnv(**toys(), render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(np.zeros(12, np.int8))
    after = env.render()
    assert before.dtype == np.uint8
    assert before.shape == after.shape == (120, 3 * 120 + 150, 3)
    np.testing.assert_array_equal(before[:, :240], after[:, :240])
    assert (before[:, -120:] != after[:, -120:]).any()
    assert SARFaceEnv(**toys()).render() is None
    vector = SARFaceVectorEnv(2, **toys(), render_mode="rgb_array")
    vector.reset(seed=0)
    vector.step(np.zeros((2, 12), np.int8))
    # Of the decision taken, not of the face that autoreset already shows.
    np.testing.assert_array_equal(vector.render()[0], after)


def test_action_masks_let_absent_regions_only_be_kept():
    env = SARFaceVectorEnv(4, **toys())
    _, info = env.reset(seed=0)
    masks = env.action_masks().reshape(4, 12, 2)
    np.testing.assert_array_equal(masks[..., 0], info["action_mask"])
    assert masks[..., 1].all()


def test_stock_ppo_runs():
    env = SARFaceEnv(**toys())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
        model.learn(16)
    action, _ = model.predict(env.reset()[0])
    assert env.action_space.contains(action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "nope"}, "unknown partition 'nope'"),
        ({"reward": "nope"}, "unknown reward 'nope'"),
        ({"fill": "nope"}, "unknown fill 'nope'; there are zero, mean, blur, inpaint"),
        ({"observation": "nope"}, "unknown observation 'nope'; there are regions"),
        ({"split": "nope"}, "unknown split 'nope'; there are train, val, test"),
        ({"dataset": "nope"}, "unknown dataset 'nope'"),
        ({"render_mode": "nope"}, "unknown render mode 'nope'; there are rgb_array"),
        ({"obs_size": 0}, "obs_size must be positive"),
    ],
)
def test_unknown_names_list_what_exists(options, message):
    with pytest.raises(ValueError, match=message):
        SARFaceEnv(**{**toys(), **options})


def test_wrong_use_is_explained():
    with pytest.raises(TypeError, match="unknown option colour; there are dataset, split"):
        SARFaceEnv(colour="red")
    env = SARFaceVectorEnv(2, **toys())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.ones((2, 12)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be \(2, 12\) keep bits, got \(2, 3\)"):
        env.step(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"0 \(drop\) or 1 \(keep\)"):
        env.step(np.full((2, 12), 2))
    with pytest.raises(ValueError, match=r"must lie in 0..11, got 12"):
        env.reset(options={"index": 12})
    with pytest.raises(ValueError, match="must be an integer or 2 of them"):
        env.reset(options={"index": [1, 2, 3]})
    with pytest.raises(ValueError, match="expected 2 seeds, got 3"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"masks must be \(1, 12\) or \(1, G, 12\)"):
        env.evaluate([0], torch.ones(2, 12))
    with pytest.raises(ValueError, match=r"lie in 0\.\.11"):
        env.evaluate([12], torch.ones(1, 12))
    with pytest.raises(ValueError, match="num_envs"):
        SARFaceVectorEnv(0, **toys())
    unparsed = toy_faces()
    unparsed.parsing = None
    with pytest.raises(ValueError, match="no parsing maps"):
        SARFaceEnv(dataset=unparsed, recognizer=ToyScorer())
    SARFaceEnv(dataset=unparsed, recognizer=ToyScorer(), partition="grid2x2").reset(seed=0)
