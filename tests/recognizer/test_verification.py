"""The verification protocol against hand-worked numbers and a slow, obvious implementation."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from recognizer.data.verification_sets import PairSet
from recognizer.recognizer import InputSpec, Recognizer
from recognizer.verification import (
    embed_flipped,
    normalized_distances,
    pair_distances,
    verify,
    verify_set,
)


def test_hand_worked() -> None:
    # Fold 1 is best split anywhere between 0.3 and 0.6, fold 2 between 0.6 and 0.7.
    distance = np.array([0.1, 0.3, 0.6, 0.9, 0.2, 0.6, 0.7, 0.8])
    same = np.array([1, 1, 0, 0, 1, 1, 0, 0], dtype=bool)
    folds = np.array([1] * 4 + [2] * 4)
    result = verify(distance, same, folds, samples=0)
    # Fold 1 is judged by fold 2's threshold, 0.65, and accepts the wrong pair at 0.6; fold 2 is
    # judged by 0.45 and rejects the right pair at 0.6. Observed distances around: 0.3, 0.6, 0.7.
    np.testing.assert_allclose(result.thresholds, [0.65, 0.45])
    np.testing.assert_allclose(result.fold_accuracy, [0.75, 0.75])
    assert result.metrics["accuracy"] == pytest.approx(0.75)
    # No false accept allowed: 0.1, 0.2 and 0.3 pass; the tie at 0.6 may not be split.
    assert result.metrics["tar@far=0.001"] == pytest.approx(0.75)
    # 16 (same, different) comparisons: all won but one tie, which counts a half.
    assert result.metrics["auc"] == pytest.approx(15.5 / 16)
    # From (FAR 0, TAR 3/4) to (1/4, 1): FAR = FRR = 1/8.
    assert result.metrics["eer"] == pytest.approx(0.125)
    assert result.different == 4


def test_one_fold_is_reported_by_the_threshold_of_the_other() -> None:
    distance = np.array([0.1, 0.3, 0.6, 0.9, 0.2, 0.6, 0.7, 0.8])
    same = np.array([1, 1, 0, 0, 1, 1, 0, 0], dtype=bool)
    folds = np.array([1] * 4 + [2] * 4)
    people = np.array([[0, 0], [1, 1], [0, 1], [1, 0], [2, 2], [3, 3], [2, 3], [3, 2]])
    result = verify(distance, same, folds, people, samples=200, only=[2])
    np.testing.assert_allclose(result.thresholds, [0.45])
    np.testing.assert_allclose(result.fold_accuracy, [0.75])
    assert result.metrics["accuracy"] == pytest.approx(0.75)
    # Of fold 2 alone, the nearest two are the same person.
    assert result.metrics["tar@far=0.001"] == 1
    assert result.metrics["auc"] == 1
    assert result.different == 2
    # Equal draws: a run less itself is nothing, whatever was drawn.
    again = verify(distance, same, folds, people, samples=200, only=[2])
    np.testing.assert_array_equal(result.samples["accuracy"], again.samples["accuracy"])
    assert len(set(result.samples["accuracy"].tolist())) > 1


def slow(distance, same, folds, weight):
    """The definitions, one pair at a time; `weight` says how often a pair counts."""
    levels = sorted(set(distance))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    thresholds = [levels[0] - 1, *middles, levels[-1] + 1]
    everyone = range(len(distance))

    def right(threshold, chosen):
        return sum(weight[i] for i in chosen if (distance[i] < threshold) == same[i])

    accuracies = []
    for fold in sorted(set(folds)):
        others = [i for i in everyone if folds[i] != fold]
        own = [i for i in everyone if folds[i] == fold]
        threshold = max(thresholds, key=lambda t: right(t, others))
        accuracies.append(right(threshold, own) / sum(weight[i] for i in own))
    positive = sum(weight[i] for i in everyone if same[i])
    negative = sum(weight[i] for i in everyone if not same[i])
    far = [sum(weight[i] for i in everyone if not same[i] and distance[i] < t) for t in thresholds]
    tar = [sum(weight[i] for i in everyone if same[i] and distance[i] < t) for t in thresholds]
    wins = sum(
        weight[i] * weight[j] * ((distance[i] < distance[j]) + 0.5 * (distance[i] == distance[j]))
        for i in everyone
        for j in everyone
        if same[i] and not same[j]
    )
    return {
        "accuracy": np.mean(accuracies),
        "tar@far=0.001": max(t / positive for f, t in zip(far, tar, strict=True) if f == 0),
        "auc": wins / positive / negative,
    }


def random_pairs(seed: int):
    rng = np.random.default_rng(seed)
    people = rng.integers(0, 12, (90, 2))
    people[::2, 1] = people[::2, 0]
    same = people[:, 0] == people[:, 1]
    distance = np.round(rng.normal(1 - 0.5 * same, 0.4), 1)  # rounded, for many ties
    return distance, same, rng.integers(0, 3, 90), people


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_slow_implementation(seed: int) -> None:
    distance, same, folds, _ = random_pairs(seed)
    metrics = verify(distance, same, folds, samples=0).metrics
    for key, value in slow(distance, same, folds, np.ones(90)).items():
        assert metrics[key] == pytest.approx(value), key


def test_bootstrap_resamples_people() -> None:
    distance, same, folds, people = random_pairs(7)
    result = verify(distance, same, folds, people, samples=40, seed=3)
    drawn = np.random.default_rng(3).multinomial(12, [1 / 12] * 12, 40)
    values: dict[str, list[float]] = {}
    for times in drawn:
        weight = [times[a] if a == b else times[a] * times[b] for a, b in people]
        for key, value in slow(distance, same, folds, weight).items():
            values.setdefault(key, []).append(value)
    for key, value in values.items():
        assert result.intervals[key] == pytest.approx(np.percentile(value, [2.5, 97.5])), key
    assert result.resampled == "people"
    assert verify(distance, same, folds, samples=5).resampled == "pairs"


def test_pairs_of_few_people_are_less_certain_than_pairs_of_many() -> None:
    """One person's pairs agree with each other; resampling pairs would not notice."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 20)
    easy = rng.random(20) < 0.7
    same = np.tile([True, False], 200)
    distance = np.where(same == easy[people], 0.5, 1.5) + 0.1 * rng.random(400)
    both = np.stack([people, np.where(same, people, people + 20)], 1)
    folds = np.arange(400) // 40

    def width(people):
        low, high = verify(distance, same, folds, people, samples=300).intervals["accuracy"]
        return high - low

    assert width(both) > 2 * width(None)


@pytest.mark.parametrize(
    ("distance", "same", "folds", "message"),
    [
        ([1, 2], [True, False, True], [0, 1], "2 distances, 3 labels and 2 folds"),
        ([1, 2], [True, False], [4, 4], "there is 1 fold"),
        ([1, 2], [True, True], [0, 1], "all 2 pairs are same"),
        ([1, np.nan], [True, False], [0, 1], "1 distances are not finite"),
    ],
)
def test_bad_input(distance, same, folds, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(np.array(distance), np.array(same), np.array(folds))


def test_likeness_relative_to_that_to_strangers_by_hand() -> None:
    # In the plane, by their cosines to strangers (1, 0) and (0, 1).
    a, b = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = normalized_distances(torch.stack([a, b]), np.array([[0, 1], [1, 1]]), torch.eye(2))
    # a: mean 0.5, deviation sqrt(0.5); b: mean 0.7, deviation sqrt(0.02).
    expected = ((0.6 - 0.5) / 0.5**0.5 + (0.6 - 0.7) / 0.02**0.5) / 2
    assert found.tolist() == pytest.approx([-expected, -(1 - 0.7) / 0.02**0.5])
    # Those who are less alike than the nearest ones do not count.
    cohort = torch.cat([torch.eye(2), -torch.eye(2)])
    again = normalized_distances(torch.stack([a, b]), np.array([[0, 1], [1, 1]]), cohort, nearest=2)
    assert again.tolist() == pytest.approx(found.tolist())


def test_faces_that_are_near_everybody_get_a_threshold_of_their_own() -> None:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(120, 2, 16))
    people[:, 1] = people[:, 0] + 0.5 * rng.normal(size=(120, 16))
    people[1::2] += 4  # half of the people have much in common
    unit = torch.nn.functional.normalize(torch.from_numpy(people.reshape(240, 16)), dim=1).float()
    cohort = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(50, 16)) + 2), dim=1)
    index = np.arange(0, 200, 2)
    same = np.r_[np.ones(100, bool), np.zeros(100, bool)]
    pairs = np.r_[np.c_[index, index + 1], np.c_[index, index + 4]]
    folds = np.tile([0, 1], 100)
    plain = verify(pair_distances(unit, pairs), same, folds, samples=0).metrics["accuracy"]
    distance = normalized_distances(unit, pairs, cohort)
    assert verify(distance, same, folds, samples=0).metrics["accuracy"] > plain + 0.1


def test_flip_augmented_embedding() -> None:
    class FirstAndLastColumn(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1], x[:, 1, 0, 0]], 1)

    spec = InputSpec(size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = 30
    images[:, 1] = 20
    # Image (30, 0, 20) plus mirror (0, 30, 20), to unit length.
    want = torch.tensor([30.0, 30, 40]) / 3400**0.5
    out = embed_flipped(Recognizer(FirstAndLastColumn(), spec).embed, images, batch_size=2)
    torch.testing.assert_close(out, want.expand(3, 3))
    pairs = np.array([[0, 1]])
    np.testing.assert_allclose(pair_distances(torch.eye(3), pairs), [2.0])


def test_verifies_a_set_over_its_people() -> None:
    # Two people in each fold; the wrong pairs lie twice as far apart as the right ones.
    embeddings = torch.tensor([[0.0], [1], [3], [4], [10], [11], [13], [14]])
    pairs = np.array([[0, 1], [1, 2], [4, 5], [5, 6]])
    same = np.array([True, False, True, False])
    people = ["a", "a", "b", "b", "c", "c", "d", "d"]
    folds = np.array([0, 0, 1, 1])
    result = verify_set(embeddings, PairSet("toy", [b""] * 8, pairs, same, folds, people))
    assert result.metrics["accuracy"] == 1
    assert result.resampled == "people"
    assert result.thresholds.tolist() == [2.5, 2.5]
    unnamed = verify_set(embeddings, PairSet("toy", [b""] * 8, pairs, same, folds))
    assert unnamed.resampled == "linked people"
    assert unnamed.intervals == result.intervals
