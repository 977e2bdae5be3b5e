import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents.baselines import FixedMask, KeepAll
from agents.confident import MostConfident, any_of, random_masks, second_looks, with_flips
from agents.evaluation import evaluate
from sarface_env import SARFaceVectorEnv
from sarface_env.scorers import EnrolledScorer, MarginScorer
from tests.toys import ToyScorer, tiny_recognizer, toy_faces

FACES = toy_faces(n=10, size=112)
BITS = 6


def make_env(scorer=None, faces=FACES, num_envs=4):
    scorer = scorer or MarginScorer(tiny_recognizer(), "cpu")
    return SARFaceVectorEnv(num_envs, dataset=faces, recognizer=scorer, partition="grid2x3")


def masked_by_hand(face, mask):
    """The face with the dropped cells of a 2x3 grid painted in the mean colour."""
    image = FACES.images[face].clone()
    colour = torch.tensor(tiny_recognizer().spec.mean_bgr()).round().to(torch.uint8)
    edges = [0, 38, 75, 112]  # first pixels at or beyond a third, and two
    for bit, keep in enumerate(mask):
        if not keep:
            row, column = divmod(bit, 3)
            rows, columns = slice(56 * row, 56 * row + 56), slice(*edges[column : column + 2])
            image[:, rows, columns] = colour[:, None, None]
    return image


@torch.no_grad()
def features(images):
    unit, norm = tiny_recognizer().eval().embed(images)
    return unit * norm


def embedded(images):
    return F.normalize(features(images))


def lead(cosines):
    best = cosines.sort(descending=True).values
    return best[:, 0] - best[:, 1]


def test_confidence_is_the_lead_of_the_best_class():
    core = make_env().core
    indices, masks = torch.tensor([3, 7]), torch.rand(2, 5, BITS) < 0.5
    found = core.confidence(indices, masks)
    for row, face in enumerate(indices):
        images = torch.stack([masked_by_hand(face, mask) for mask in masks[row]])
        weights = F.normalize(tiny_recognizer().head.weight.detach())
        torch.testing.assert_close(
            found[row], lead(embedded(images) @ weights.T), atol=1e-5, rtol=0
        )


def test_confidence_among_enrolled_people_leaves_the_asked_image_out():
    faces = toy_faces(n=10, size=112, classes=3)
    core = make_env(EnrolledScorer(tiny_recognizer(), faces, "cpu"), faces).core
    everything = torch.ones(10, 1, BITS, dtype=torch.bool)
    found = core.confidence(torch.arange(10), everything).squeeze(1)
    unit = embedded(faces.images)
    enrolled = F.normalize(features(faces.images) + features(faces.images.flip(3)))
    for face in range(10):
        others = torch.arange(10) != face
        means = [enrolled[others & (faces.labels == who)].sum(0) for who in range(3)]
        cosines = unit[face : face + 1] @ F.normalize(torch.stack(means)).T
        torch.testing.assert_close(found[face : face + 1], lead(cosines), atol=1e-5, rtol=0)


def test_takes_the_surest_mask_and_does_not_know_the_label():
    tried = torch.rand(10, 8, BITS) < 0.5
    chosen = []
    for labels in (FACES.labels, FACES.labels.flip(0)):
        faces = toy_faces(n=10, size=112)
        faces.labels = labels
        env = make_env(faces=faces, num_envs=10)
        policy = MostConfident(env, lambda obs: tried, "surest")
        result = evaluate(policy, env, np.arange(10))
        assert (result.labels == labels.numpy()).all()
        chosen.append(result.masks)
    best = env.core.confidence(torch.arange(10), tried).argmax(1)
    np.testing.assert_array_equal(chosen[0], tried[torch.arange(10), best].numpy())
    np.testing.assert_array_equal(chosen[0], chosen[1])


def test_equal_masks_are_looked_at_once_and_the_first_is_taken():
    env = make_env()
    env.reset(options={"index": np.arange(4)})
    keep = FixedMask(env, torch.ones(BITS))
    policy = MostConfident(env, any_of([KeepAll(env), keep, keep]), "surest")
    before = env.core.calls
    actions, _ = policy.predict(np.zeros((4, 1)))
    assert env.core.calls - before == 4
    assert actions.dtype == np.int8
    assert actions.all()


def test_proposals():
    env = make_env()
    obs, _ = env.reset(seed=0)
    mask = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool)
    flips = with_flips(FixedMask(env, mask))(obs)
    assert flips.shape == (4, BITS + 1, BITS)
    assert ((flips ^ mask).sum(2) == torch.tensor([0] + [1] * BITS)).all()
    first, again = random_masks(BITS, 3, seed=1)(obs), random_masks(BITS, 3, seed=1)(obs)
    assert first.shape == (4, 3, BITS)
    assert torch.equal(first, again)


def test_second_looks_cost_what_they_say():
    env = make_env(num_envs=10)
    mask = torch.tensor([1, 0, 1, 1, 0, 0])
    for policy, looks in zip(second_looks(env, FixedMask(env, mask)), (2, 2, 7, 7), strict=True):
        result = evaluate(policy, env, np.arange(10))
        # What is decided in the end is scored by the step, and so is the full image.
        assert result.calls <= 10 * (looks + 2)
    assert result.calls > 10 * looks


def test_a_scorer_that_does_not_know_its_confidence():
    env = make_env(ToyScorer())
    assert second_looks(env, KeepAll(env)) == []
    with pytest.raises(TypeError, match="ToyScorer has no confidence"):
        env.core.confidence(torch.arange(2), torch.ones(2, 1, BITS))
