import numpy as np
import pytest
import torch

from sarface_env import SARFaceVectorEnv
from sarface_env.mask_scores import FIELDS, MaskScores, as_array
from sarface_env.scorers import Score
from tests.toys import ToyScorer, toy_faces

MARGIN_CORRECT, MARGIN = FIELDS.index("margin_correct"), FIELDS.index("margin")


def scores(margin):
    margin = torch.as_tensor(margin, dtype=torch.float32)
    return as_array(Score(margin > 1, margin > 2, margin))


@pytest.mark.parametrize("bits", [1, 12, 56, 57, 118, 119, 250])
def test_keys_tell_every_face_and_mask_apart(bits):
    # One face or one bit of difference is another key, wherever the bit is.
    table = MaskScores(100, bits)
    masks = torch.cat([torch.zeros(1, bits), torch.eye(bits), torch.ones(1, bits)]).bool()
    faces = np.arange(100).repeat(len(masks))
    keys = table.keys(faces, masks.repeat(100, 1).numpy())
    masks_apart = len(masks) - (bits == 1)  # the unit vector is all ones
    assert len(np.unique(keys, axis=0)) == 100 * masks_apart
    assert (keys > 0).any(1).all()
    assert keys.shape[1] == (1 if bits <= 56 else 1 + -(-bits // 64))


def test_it_remembers_the_latest_of_what_does_not_fit():
    table, everything = MaskScores(1000, 12, size=64), {}
    random = np.random.default_rng(0)
    hits = 0
    for step in range(200):
        faces = random.permutation(40)[:16]
        masks = random.random((16, 12)) < 0.9
        keys = table.keys(faces, masks)
        slots = table.slots(keys)
        known, found = table.find(keys, slots)
        for i in np.flatnonzero(known):
            hits += 1
            assert found[MARGIN, i] == everything[tuple(keys[i])]
            assert found[MARGIN_CORRECT, i] == (found[MARGIN, i] > 2)
        new = scores(step + np.arange(16))
        table.add(keys, slots, new)
        everything |= {tuple(k): float(m) for k, m in zip(keys, new[MARGIN], strict=True)}
    assert hits > 100
    copy = MaskScores(1000, 12, size=64)
    copy.load_state_dict(table.state_dict())
    known, found = table.find(keys, slots)
    again, same = copy.find(keys, slots)
    np.testing.assert_array_equal(known, again)
    assert known.sum() > 8  # the others lost their slots to later ones
    np.testing.assert_array_equal(found[:, known], same[:, known])


def test_a_mask_is_scored_once_until_the_scorer_changes():
    scorer = ToyScorer()
    env = SARFaceVectorEnv(4, dataset=toy_faces(), recognizer=scorer)
    faces, masks = np.arange(4), torch.zeros((4, 12), dtype=torch.bool)
    first = env.evaluate(faces, masks)
    calls = env.core.calls
    again = env.evaluate(faces[::-1].copy(), masks)
    assert env.core.calls == calls == scorer.scored
    assert torch.equal(first.masked.margin, again.masked.margin.flip(0))
    scorer.version += 1
    env.evaluate(faces, masks)
    assert scorer.scored == 2 * calls
    env.core.forget_masks()
    env.evaluate(faces, masks)
    assert scorer.scored == 2 * calls + 4


def test_it_goes_with_the_state():
    env, other = (
        SARFaceVectorEnv(4, dataset=toy_faces(), recognizer=ToyScorer()) for _ in range(2)
    )
    env.reset(seed=0)
    masks = torch.zeros((4, 12), dtype=torch.bool)
    before = env.evaluate(np.arange(4), masks)
    other.resume(env.state_dict())
    after = other.evaluate(np.arange(4), masks)
    assert other.core.scorer.scored == 0
    assert other.core.calls == env.core.calls
    assert torch.equal(before.masked.margin, after.masked.margin)
