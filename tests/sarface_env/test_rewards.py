"""Margin correctness and rewards against numbers worked by hand."""

import math
from functools import partial

import pytest
import torch

from recognizer.backbones.tiny import TinyIR
from recognizer.heads import HEADS, AdaFace, ArcFace, CosFace, build_head
from recognizer.recognizer import InputSpec, Recognizer
from sarface_env.rewards import Flip, PatchDrop, make_reward
from sarface_env.scorers import MarginScorer, Score, margin_score


def head_in_the_plane(kind, **hyper):
    """Two classes at 0 and 90 degrees in two dimensions."""
    head = build_head(kind, 2, 2, **hyper).eval()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))  # lengths must not matter
    return head


def score_at(head, degrees, norm=20.0, target=0):
    angle = math.radians(degrees)
    embedding = torch.tensor([[math.cos(angle), math.sin(angle)]])
    cosines = head.cosines(embedding)
    penalise = partial(head.penalise, norm=torch.tensor([norm]))
    return margin_score(cosines, torch.tensor([target]), penalise)


def test_cosface_by_hand():
    head = head_in_the_plane("cosface", m=0.4)
    # At 20 degrees: cos 0.9397 - 0.4 = 0.5397 against sin 0.3420.
    score = score_at(head, 20)
    assert score.margin.item() == pytest.approx(0.9396926 - 0.4 - 0.3420201, abs=1e-6)
    assert score.correct.item()
    assert score.margin_correct.item()
    # At 40 degrees it is right (0.766 > 0.643) but not by the margin (0.366 < 0.643).
    score = score_at(head, 40)
    assert score.correct.item()
    assert not score.margin_correct.item()
    # At 50 degrees it is wrong.
    assert not score_at(head, 50).correct.item()


def test_arcface_by_hand():
    head = head_in_the_plane("arcface", m=math.radians(30))
    # At 20 degrees the penalised angle is 50: cos 50 = 0.6428 against sin 20 = 0.3420.
    assert score_at(head, 20).margin.item() == pytest.approx(0.6427876 - 0.3420201, abs=1e-5)
    # The bound lies where cos(theta + 30) = sin(theta), at 30 degrees.
    assert score_at(head, 29.9).margin_correct.item()
    assert not score_at(head, 30.1).margin_correct.item()


def test_arcface_penalty_never_helps_beyond_180_degrees():
    head = head_in_the_plane("arcface", m=0.5)
    cosine = torch.tensor([-0.9999, -0.95, -0.5, 0.0, 0.5, 0.9999])
    penalised = head.penalise(cosine, torch.ones(6))
    assert (penalised <= cosine + 1e-6).all()
    assert (penalised.diff() >= -1e-6).all()


@pytest.mark.parametrize(
    ("norm", "z"),
    # mean 20, std 10, h 0.333: z = (norm - 20) / 10.001 * 0.333, clipped to [-1, 1]
    [(20.0, 0.0), (30.0, 0.3329667), (90.0, 1.0), (0.5, -0.6492851)],
)
def test_adaface_by_hand(norm, z):
    head = head_in_the_plane("adaface", m=0.4, h=0.333)
    head.norm_mean.fill_(20.0)
    head.norm_std.fill_(10.0)
    theta = math.radians(25)
    expected = math.cos(theta - 0.4 * z) - (0.4 + 0.4 * z) - math.sin(theta)
    assert score_at(head, 25, norm).margin.item() == pytest.approx(expected, abs=1e-5)


def test_adaface_statistics_move_in_training_and_freeze_in_evaluation():
    head = AdaFace(2, 2, t_alpha=0.1)
    norm = torch.tensor([[10.0], [14.0]])
    args = torch.eye(2), norm, torch.tensor([0, 1])
    head.train()(*args)
    assert head.norm_mean.item() == pytest.approx(0.9 * 20 + 0.1 * 12)
    assert head.norm_std.item() == pytest.approx(0.9 * 100 + 0.1 * math.sqrt(8), rel=1e-6)
    head.eval()(*args)
    assert head.norm_mean.item() == pytest.approx(0.9 * 20 + 0.1 * 12)


def test_training_logits_are_scaled_and_penalise_the_target_only():
    for head in (CosFace(2, 2, s=10, m=0.2), ArcFace(2, 2, s=10, m=0.2)):
        head.weight.data = torch.eye(2)
        logits = head(torch.tensor([[0.6, 0.8]]), torch.ones(1, 1), torch.tensor([1]))
        assert logits[0, 0].item() == pytest.approx(6.0, abs=1e-5)
        assert logits[0, 1].item() < 8.0
    assert head.penalise(torch.tensor([0.8]), torch.ones(1)).item() * 10 == pytest.approx(
        logits[0, 1].item()
    )


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_gradients_are_finite_when_an_embedding_hits_its_class(kind):
    head = build_head(kind, 2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    embedding = torch.eye(2).requires_grad_()
    head(embedding, torch.ones(2, 1), torch.tensor([0, 1])).logsumexp(1).sum().backward()
    assert torch.isfinite(embedding.grad).all()


def flags(correct, margin_correct, margin):
    return Score(torch.tensor(correct), torch.tensor(margin_correct), torch.tensor(margin).float())


FULL = flags([False, True, True, False], [False, False, True, False], [-0.3, -0.1, 0.1, -0.2])
MASKED = flags([True, True, False, False], [True, False, False, False], [0.1, -0.2, -0.1, -0.2])
KEPT = torch.tensor([0.5, 1.0, 0.25, 0.75])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flip", [1, 0, -1, 0]),
        ("flip_plain", [1, 0, -1, 0]),
        ("margin", [1, -0.5, -1, 0]),
        ("contrast", [1, -0.5, -1, 0]),  # the margin, of a scorer that knows nothing better
        ("patchdrop", [0.75, -0.5, -0.5, -0.5]),
        ("flip+0.5*margin", [1.5, -0.25, -1.5, 0]),
        ("2*flip", [2, 0, -2, 0]),
    ],
)
def test_rewards_by_hand(name, expected):
    reward = make_reward(name)(FULL, MASKED, KEPT)
    assert reward.tolist() == pytest.approx(expected)


def test_contrast_is_the_lead_over_the_average_other():
    cosines = torch.tensor([[0.5, 0.3, 0.1, -0.4], [0.9, 0.2, 0.6, 0.4]])
    full = margin_score(cosines.clone(), torch.tensor([0, 1]), lambda target: target - 0.1)
    assert full.contrast.tolist() == pytest.approx([0.5, 0.2 - 1.9 / 3])
    assert full.margin.tolist() == pytest.approx([0.1, -0.8])
    # One of three others falls by 0.3, so their average by 0.1; the best other stays.
    fallen = cosines - torch.tensor([0, 0, 0, 0.3])
    masked = margin_score(fallen.clone(), torch.tensor([0, 1]), lambda target: target - 0.1)
    assert (masked.margin == full.margin).all()
    reward = make_reward("contrast")(full, masked, torch.ones(2))
    assert reward.tolist() == pytest.approx([0.5, 0.5])
    assert full[1:].contrast.tolist() == pytest.approx([0.2 - 1.9 / 3])


def test_judges_differ():
    # The second face is right without a margin before and after; the third loses both.
    full = flags([True], [False], [-0.1])
    masked = flags([True], [True], [0.1])
    kept = torch.ones(1)
    assert Flip()(full, masked, kept).item() == 1
    assert Flip(judge="correct")(full, masked, kept).item() == 0
    assert Flip(sparsity=0.2)(full, masked, torch.tensor([0.75])).item() == pytest.approx(1.05)
    assert PatchDrop(judge="correct")(full, masked, torch.tensor([0.5])).item() == 0.75


def test_bounds_hold():
    for name in ("flip", "margin", "contrast", "flip_plain"):
        reward = make_reward(name)
        assert (reward(FULL, MASKED, KEPT) <= reward.bound(FULL)).all()


def test_unknown_rewards_list_what_exists():
    with pytest.raises(ValueError, match=r"unknown reward 'speed'.*flip, flip_plain, margin"):
        make_reward("flip+speed")


def test_a_scorer_needs_a_head():
    with pytest.raises(ValueError, match="no class weights"):
        MarginScorer(Recognizer(TinyIR(), InputSpec()), "cpu")


def test_scorer_agrees_with_eager_evaluation():
    torch.manual_seed(0)
    recognizer = Recognizer(TinyIR(), InputSpec(), CosFace(128, 5, m=0.05)).eval()
    images = torch.randint(0, 256, (7, 3, 112, 112), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    score = MarginScorer(recognizer, "cpu", batch_size=3).score(images, targets)
    with torch.no_grad():
        embedding, _ = recognizer.embed(images)
        cosines = embedding @ torch.nn.functional.normalize(recognizer.head.weight, dim=1).T
    for i, y in enumerate(targets.tolist()):
        others = [cosines[i, j].item() for j in range(5) if j != y]
        own = cosines[i, y].item()
        assert score.margin[i].item() == pytest.approx(own - 0.05 - max(others), abs=1e-5)
        assert score.correct[i].item() == (own > max(others))
