"""Rounds of agent and recognizer, and the recognizer's steps on masked faces."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from agents.alternating import AlternatingOptions, Alternation
from recognizer.backbones import build_backbone
from recognizer.recognizer import InputSpec, Recognizer
from recognizer.training import TrainingDivergedError
from recognizer.verification import embed_flipped
from sarface_env import SARFaceVectorEnv
from sarface_env.recognizer_updates import RecognizerUpdates
from sarface_env.scorers import EnrolledScorer, MarginScorer
from tests.toys import ToyScorer, tiny_recognizer, toy_faces


def make_env(num_envs=4, scorer=None, faces=None):
    return SARFaceVectorEnv(
        num_envs,
        dataset=faces or toy_faces(size=32),
        recognizer=scorer or MarginScorer(tiny_recognizer(), "cpu"),
        partition="grid2x3",
        observation="regions+image",
    )


def plain_recognizer():
    """A network that does the same in training as in judging: without dropout and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 64), nn.Tanh()
        return Recognizer(nn.Sequential(*layers, nn.Linear(64, 16)), InputSpec(), name="plain")


def mean_loss(updates, steps, predict=None):
    """Train until `steps` steps have been made; the mean loss of those made."""
    before, losses = updates.step, []
    last = updates.learn(steps, predict, losses.append)
    assert len(losses) + 1 == steps - before
    return np.mean([*losses, last])


class Scripted:
    """An agent or a recognizer's training that only counts; `log` tells in which order."""

    batch_size = 10

    def __init__(self, name, log):
        self.name, self.log, self.steps, self.step = name, log, 0, 0

    def learn(self, steps, *rest):
        self.log.append((self.name, steps))
        self.steps = self.step = steps
        return 0.5

    def predict(self, obs):
        raise AssertionError


def test_rounds_stop_when_the_score_does_not_rise_and_the_best_is_kept():
    log, kept, phases = [], [], []
    scores = iter([0.3, 0.5, 0.4, 0.6, 0.6, 0.6, 0.9])
    training = Alternation(
        Scripted("agent", log),
        Scripted("recognizer", log),
        lambda: {"validation/margin_correct": next(scores)},
        AlternatingOptions(rounds=9, policy_steps=100, recognizer_steps=7, patience=2),
    )
    training.run(None, phases.append, lambda: kept.append(training.best))
    rounds = [[("agent", 100 * n), ("recognizer", 7 * n)] for n in range(1, 6)]
    assert log == [call for both in rounds for call in both]
    assert kept == [0.3, 0.5, 0.6]
    assert (training.best, training.round, training.stale) == (0.6, 5, 2)
    assert phases[0] == {"validation/margin_correct": 0.3, "validation/round": 0}
    assert phases[2] == {
        "losses/recognizer": 0.5,
        "validation/margin_correct": 0.5,
        "validation/round": 1,
    }
    assert training.faces == 500 + 35 * 10


@pytest.mark.parametrize("masks", ["agent", "greedy"])
def test_the_agent_samples_or_takes_what_is_likeliest(masks):
    class Agent(Scripted):
        def predict(self, obs, deterministic=False):
            self.log.append(deterministic)
            return obs, None

    class Updates(Scripted):
        def learn(self, steps, predict, after_step):
            assert predict("shown") == "shown"
            after_step(0.25)
            return 0.5

    asked, steps = [], []
    training = Alternation(
        Agent("agent", asked),
        Updates("recognizer", []),
        lambda: {"validation/margin_correct": 0.5},
        AlternatingOptions(rounds=1, policy_steps=0, recognizer_steps=2, masks=masks),
    )
    training.run(lambda *step: steps.append(step), lambda _: None, lambda: None)
    assert asked == [masks == "greedy"]
    assert steps == [(0, {"losses/recognizer": 0.25})]


def test_the_recognizer_is_shown_masked_faces_mixed_with_full_ones(monkeypatch):
    env = make_env()
    updates = RecognizerUpdates(env, batch_size=6, mix=0.5)
    seen, forward = [], updates.objective.forward
    monkeypatch.setattr(
        updates.objective, "forward", lambda x, y: (seen.append((x, y)), forward(x, y))[1]
    )
    asked = []

    def drop_all(obs):
        asked.append(obs)
        return np.zeros((6, 6), np.int8)

    updates.learn(40, drop_all)
    grey = torch.tensor(env.core.scorer.mean_colour).round().to(torch.uint8).view(3, 1, 1)
    faces = env.core.faces
    masked = 0
    for images, labels in seen:
        for image, label in zip(images, labels, strict=True):
            if (image == grey).all():  # the grid's cells are the whole face
                masked += 1
            else:
                assert label in faces.labels[(faces.images == image).flatten(1).all(1)]
    assert abs(masked / 240 - 0.5) < 4 * 0.5 / 240**0.5
    assert asked[0].shape == (6, 4, 32, 32)
    # Every pass over the 12 faces shows each once: two steps of six.
    labels = torch.cat([labels for _, labels in seen[:2]])
    assert sorted(labels.tolist()) == sorted(faces.labels.tolist())


def test_what_a_policy_takes_for_best_is_asked_once_for_each_face_while_it_is_not_trained():
    def masks_of(masks, answers):
        env, applied, asked = make_env(), [], []
        apply = env.core.apply
        env.core.apply = lambda faces, bits: [applied.append((faces, bits)), apply(faces, bits)][1]
        updates = RecognizerUpdates(env, 6, 1.0, masks)
        for steps, keep in answers:
            updates.learn(steps, lambda obs, keep=keep: [asked.append(obs), keep(obs)][1])
        return applied, asked

    def by_face(bits):
        """Keep bits that the first pixel of a face decides."""
        return lambda obs: (obs[:, 1, 0, 0, None] >> np.arange(6) & 1) ^ bits

    greedy, asked = masks_of("greedy", [(10, by_face(0)), (14, by_face(1))])
    sampled, each_time = masks_of("agent", [(10, by_face(0)), (14, by_face(1))])
    assert len(asked) == 2 + 2  # two steps are a pass over the twelve faces
    assert len(each_time) == 14
    for once, again in zip(greedy, sampled, strict=True):
        assert torch.equal(once[0], again[0])
        assert torch.equal(once[1], again[1])


def test_caches_follow_the_recognizer_and_only_the_envs_own_changes():
    recognizer = tiny_recognizer()
    env, other = make_env(scorer=MarginScorer(recognizer, "cpu")), make_env()
    everything = torch.arange(12)
    before, version = env.core.full_score(everything).margin.clone(), env.core.scorer.version
    calls, untouched = env.core.calls, other.core.full_score(everything).margin.clone()
    loss = [mean_loss(RecognizerUpdates(env, 12, 0.0, lr=1e-3), 10) for _ in range(2)]
    assert loss[1] < loss[0]
    after = env.core.full_score(everything).margin
    assert env.core.scorer.version == version + 2
    assert env.core.calls == calls + 12
    assert after.mean() > before.mean()
    fresh = MarginScorer(recognizer, "cpu").score(env.core.faces.images, env.core.faces.labels)
    torch.testing.assert_close(after, fresh.margin)
    other.core.scorer.refresh()
    torch.testing.assert_close(other.core.full_score(everything).margin, untouched)


def test_people_who_are_enrolled_get_class_weights_for_training_alone():
    """They start as what people are known by; who judges enrols everybody anew."""
    recognizer = Recognizer(build_backbone("ir_tiny"), InputSpec(), name="ir_tiny").eval()
    faces, others = (toy_faces(size=32, seed=seed) for seed in (0, 1))
    for known in (faces, others):
        known.labels = torch.arange(12) % 4
    scorer, follower = (EnrolledScorer(recognizer, f, "cpu") for f in (faces, others))
    env, before = make_env(scorer=scorer, faces=faces), scorer.gallery.embeddings.clone()
    updates = RecognizerUpdates(
        env, 6, 0.0, lr=1e-3, head="adaface", margin=0.2, followers=[follower]
    )
    head = updates.trained.head
    assert (head.kind, head.m) == ("adaface", 0.2)
    torch.testing.assert_close(head.weight.data, scorer.gallery.weights)
    losses = [mean_loss(updates, steps) for steps in (4, 12)]
    assert losses[1] < losses[0]
    assert recognizer.head is None
    assert not torch.allclose(scorer.gallery.embeddings, before)
    for own, known in ((scorer, faces), (follower, others)):
        assert own.version == 3
        fresh = EnrolledScorer(recognizer, known, "cpu")
        torch.testing.assert_close(own.gallery.embeddings, fresh.gallery.embeddings)
    state = updates.state_dict()
    again = Recognizer(build_backbone("ir_tiny"), InputSpec(), name="ir_tiny").eval()
    other = make_env(scorer=EnrolledScorer(again, faces, "cpu"), faces=faces)
    resumed = RecognizerUpdates(other, 6, 0.0, head="adaface")
    resumed.load_state_dict(state)
    torch.testing.assert_close(resumed.core.scorer.gallery.embeddings, scorer.gallery.embeddings)


def test_without_a_head_masked_faces_are_drawn_to_the_whole_ones_embeddings():
    recognizer = plain_recognizer()
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4
    env = make_env(scorer=EnrolledScorer(recognizer, faces, "cpu"), faces=faces)
    whole = embed_flipped(recognizer.embed, faces.images)
    masks = torch.rand((12, env.core.bits), generator=torch.Generator().manual_seed(0)) < 0.5
    shown = env.core.apply(torch.arange(12), masks)

    def near() -> float:
        return float((embed_flipped(recognizer.embed, shown) * whole).sum(1).mean())

    before = near()
    updates = RecognizerUpdates(env, 12, 1.0, lr=1e-3, head="none")
    first, last = (mean_loss(updates, n, lambda obs: masks[: len(obs)]) for n in (5, 30))
    assert last < first
    assert near() > before + 0.1 * (1 - before)
    with pytest.raises(ValueError, match=r"head none .* here a MarginScorer judges"):
        RecognizerUpdates(make_env(), 4, head="none")


def test_without_a_head_people_are_told_apart_by_their_means():
    recognizer = plain_recognizer()
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4
    env = make_env(scorer=EnrolledScorer(recognizer, faces, "cpu"), faces=faces)
    whole = embed_flipped(recognizer.embed, faces.images).double().numpy()
    means = np.stack([whole[person::4].sum(0) for person in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = []
    for images in (faces.images, faces.images.flip(-1)):  # which of them is left to chance
        own = recognizer.embed(images)[0].double().detach().numpy()
        powers = np.exp(own @ means.T / 0.1)
        right = powers[np.arange(12), np.arange(12) % 4] / powers.sum(1)
        expected.append((1 - (own * whole).sum(1)).mean() - 0.1 * np.log(right).mean())
    updates = RecognizerUpdates(env, 12, 0.0, head="none", temperature=0.1)
    loss = mean_loss(updates, 1)
    assert min(abs(loss - value) for value in expected) < 1e-5
    with pytest.raises(ValueError, match="temperature goes with head none; head arcface has"):
        AlternatingOptions(head="arcface", temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        AlternatingOptions(head="none", temperature=-1)


def test_frozen_layers_stay_as_they_are_and_the_others_learn():
    recognizer = plain_recognizer()
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4
    env = make_env(scorer=EnrolledScorer(recognizer, faces, "cpu"), faces=faces)
    layers = [m for m in recognizer.backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    before = [layer.weight.detach().clone() for layer in layers]
    updates = RecognizerUpdates(env, 12, 0.0, lr=1e-3, head="none", frozen=1)
    updates.learn(2, lambda obs: np.ones((len(obs), env.core.bits)))
    same = [torch.equal(old, layer.weight) for old, layer in zip(before, layers, strict=True)]
    assert same == [True, False]
    with pytest.raises(ValueError, match=rf"less than the backbone's {len(layers)} layers: 2"):
        RecognizerUpdates(env, 12, head="none", frozen=2)


def test_jittered_faces_are_drawn_to_what_the_faces_are_as_they_are():
    recognizer = plain_recognizer()
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4
    env = make_env(scorer=EnrolledScorer(recognizer, faces, "cpu"), faces=faces)
    loss = {}
    for strength in (0.0, 1.0, 3.0):
        updates = RecognizerUpdates(env, 12, 0.0, lr=0.0, head="none", jitter=strength)
        loss[strength] = mean_loss(updates, 4)
    assert loss[0.0] < loss[1.0] < loss[3.0]
    with pytest.raises(ValueError, match="jitter must be at least 0, got -1"):
        AlternatingOptions(jitter=-1)


@pytest.mark.parametrize("head", ["none", "cosface"])
def test_where_bfloat16_judges_training_is_of_mixed_precision(head):
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4
    losses, gradients = {}, {}
    for precision in ("float32", "bfloat16"):
        recognizer, computed = plain_recognizer(), []
        scorer = EnrolledScorer(recognizer, faces, "cpu", precision=precision)
        env = make_env(scorer=scorer, faces=faces)
        updates = RecognizerUpdates(
            env, 12, 0.0, head=head, temperature=0.1 if head == "none" else 0.0
        )
        first = updates.trained.backbone[2]
        first.register_forward_hook(lambda *step, seen=computed: seen.append(step[-1].dtype))
        losses[precision] = mean_loss(updates, 1)
        gradients[precision] = first.weight.grad
        assert first.weight.dtype == first.weight.grad.dtype == torch.float32
        assert computed[0] == getattr(torch, precision)
    # Of eight bits, so the same in two or three digits.
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    likeness = torch.cosine_similarity(*(g.flatten() for g in gradients.values()), 0)
    assert 0.99 < likeness < 1 - 1e-7


@pytest.mark.parametrize("enrolled", [True, False])
def test_what_judges_lies_between_the_first_and_the_trained_weights(enrolled):
    faces = toy_faces(size=32)
    faces.labels = torch.arange(12) % 4

    def updates_of(blend):
        if enrolled:
            scorer = EnrolledScorer(plain_recognizer(), faces, "cpu")
        else:
            scorer = MarginScorer(tiny_recognizer(), "cpu")
        env = make_env(scorer=scorer, faces=faces if enrolled else None)
        return RecognizerUpdates(env, 6, 0.5, lr=1e-2, blend=blend), scorer

    def weights(recognizer):
        return torch.cat([p.detach().flatten() for p in recognizer.backbone.parameters()])

    (half, judge), (whole, trained) = updates_of(0.5), updates_of(1.0)
    first = weights(judge.recognizer).clone()
    everything = torch.zeros(12, dtype=torch.long), half.core.faces.images
    before = judge.score(everything[1], everything[0]).margin
    for steps in (3, 5):  # what is judged by does not change what is trained
        for updates in (half, whole):
            updates.learn(steps, lambda obs: np.zeros((len(obs), 6)))
        last = weights(trained.recognizer)
        assert torch.equal(weights(half.trained), last)
        assert torch.allclose(weights(judge.recognizer), (first + last) / 2, atol=1e-7)
        assert not torch.allclose(first, last, atol=1e-3)
        assert not torch.equal(judge.score(everything[1], everything[0]).margin, before)
    again, resumed = updates_of(0.5)
    again.load_state_dict(half.state_dict())
    assert torch.equal(weights(resumed.recognizer), weights(judge.recognizer))
    assert torch.equal(weights(again.trained), last)
    with pytest.raises(ValueError, match=r"blend must lie in \[0, 1\], got 2"):
        RecognizerUpdates(make_env(), 4, blend=2)


def test_the_rate_rises_before_it_falls():
    updates, rates = RecognizerUpdates(make_env(), 12, lr=1e-3, decay_steps=8, warmup=4), []
    for step in range(1, 9):
        updates.learn(step, lambda obs: np.ones((len(obs), updates.core.bits)))
        rates.append(updates.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.25e-3)
    assert rates[2] == pytest.approx(0.75e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[4] == pytest.approx(0.5e-3)
    assert max(rates) == rates[3]


def test_chance_masks_up_to_a_share_of_the_regions_and_rates_fall_to_zero(monkeypatch):
    env, seen = make_env(), []
    apply = env.core.apply
    monkeypatch.setattr(
        env.core, "apply", lambda faces, masks: [seen.append(masks.clone()), apply(faces, masks)][1]
    )
    updates = RecognizerUpdates(env, 12, 0.75, "random", lr=1e-3, decay_steps=40)
    rates = []
    for step in range(1, 41):
        updates.learn(step, None)  # chance asks no policy
        rates.append(updates.optimizer.param_groups[0]["lr"])
    assert rates[0] == 1e-3
    assert rates[20] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 39 / 40)) / 2)
    dropped = (~torch.cat(seen)).float().mean(1)
    # Half of 0.6 on average, of three quarters of the faces.
    assert 0.19 < dropped.mean() < 0.26
    assert (dropped == 0).float().mean() > 0.25
    assert dropped.max() > 0.6


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"with class weights .* here a ToyScorer judges"):
        RecognizerUpdates(make_env(scorer=ToyScorer()))
    with pytest.raises(ValueError, match="12 faces are too few for a batch of 64"):
        RecognizerUpdates(make_env())
    with pytest.raises(ValueError, match=r"mix must lie in \[0, 1\], got 2"):
        RecognizerUpdates(make_env(), 4, mix=2)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        AlternatingOptions(rounds=0)
    updates = RecognizerUpdates(make_env(), 4, mix=0.0)
    updates.folder = tmp_path
    updates.trained.head.weight.data.fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match=r"at its step 0; the batch is in .*diverged"):
        updates.learn(3, None)
    assert torch.load(tmp_path / "diverged.pt", weights_only=True)["images"].shape == (4, 3, 32, 32)
