"""The field's verification protocol: are two faces the same person?

Follows LFW View 2 (Huang et al., 2007) as InsightFace and AdaFace apply it: flip-augmented
embeddings, squared Euclidean distance, the threshold of each fold chosen on the others, folds in
the order of the file. Confidence intervals resample people, because the pairs of one person are
not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recognizer.data.verification_sets import PairSet

FARS = (1e-3, 1e-4)


@torch.inference_mode()
def embed_flipped(
    embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    batch_size: int = 128,
    progress: str = "",
) -> Tensor:
    """Flip-augmented embeddings: image and mirror image, added, then of unit length.

    Args:
        embed: Unit embeddings and norms of uint8 images: an `InferenceEngine`, or the `embed` of
            a `Recognizer` in evaluation mode.
        images: uint8 BGR `(N, 3, H, W)`.
        batch_size: Images per forward pass, mirror images not counted.
        progress: Label of the progress bar; empty for none.

    Returns:
        float32 `(N, D)` on the CPU.
    """
    rows = []
    with tqdm(total=len(images), desc=progress, unit="img", disable=not progress) as bar:
        for batch in images.split(batch_size):
            (straight, norm), (mirrored, mirrored_norm) = embed(batch), embed(batch.flip(-1))
            feature = straight * norm + mirrored * mirrored_norm
            rows.append(F.normalize(feature.float()).cpu())
            bar.update(len(batch))
    return torch.cat(rows) if rows else torch.empty(0, 0)


def pair_distances(embeddings: Tensor, pairs: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance `(N,)` of pairs `(N, 2)` of rows of `(M, D)` embeddings."""
    first, second = embeddings[torch.as_tensor(pairs).long()].double().unbind(1)
    return (first - second).square().sum(1).numpy()


def normalized_distances(
    embeddings: Tensor, pairs: np.ndarray, cohort: Tensor, nearest: int = 200
) -> np.ndarray:
    """Distances of pairs relative to how near each face is to strangers: AS-norm.

    A face of which much is hidden may come nearer to everybody, or to nobody, and then one
    threshold suits it no more. With the cosine s of a pair, and mean and standard deviation of each
    face's cosines to those of a cohort who are most like it, the distance is minus the mean of
    (s - mean) / deviation for both faces (adaptive symmetric score normalization, as compared by
    Matejka et al., Interspeech 2017).

    Args:
        embeddings: Unit embeddings `(M, D)`.
        pairs: Rows of them `(N, 2)`.
        cohort: Unit embeddings of people who are in no pair `(C, D)`, two or more.
        nearest: Of the cohort, how many most like a face count for it.

    Returns:
        `(N,)`; no metric, and of either sign.
    """
    likeness = embeddings.double() @ cohort.double().T
    likeness = likeness.topk(min(nearest, len(cohort)), 1).values
    mean, deviation = likeness.mean(1), likeness.std(1).clamp_min(1e-6)
    rows = torch.as_tensor(pairs).long()
    first, second = embeddings[rows].double().unbind(1)
    cosine = (first * second).sum(1, keepdim=True)
    return -((cosine - mean[rows]) / deviation[rows]).mean(1).numpy()


@dataclass(frozen=True)
class Verification:
    """What a verification run found. Rates are fractions, intervals 95 % (low, high).

    Attributes:
        metrics: `accuracy`, `tar@far=0.001`, `tar@far=0.0001`, `auc`, `eer`.
        intervals: The same keys; bootstrap percentiles.
        fold_accuracy: Accuracy of each fold, in file order.
        thresholds: Squared distance that each fold was judged by.
        samples: The same keys; their values in every bootstrap sample `(S,)`. Equal pairs and seed
            give equal samples, so that those of two runs can be subtracted: a paired bootstrap.
        resampled: What the bootstrap drew: `people`; `linked people` where a set does not name them
            and pairs tell who is one; `pairs` where nothing is known of people.
        roc: FAR and TAR at every distinct threshold, ascending.
        different: Number of pairs of different people; no FAR below 1/different can be seen.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    samples: dict[str, np.ndarray]
    fold_accuracy: np.ndarray
    thresholds: np.ndarray
    resampled: str
    roc: tuple[np.ndarray, np.ndarray]
    different: int


def verify(
    distance: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    people: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
    only: Sequence[int] | None = None,
) -> Verification:
    """Judge pairs of faces by their distance.

    Each fold is judged by the threshold that is best on all other folds, found exactly among all
    observed distances (the lowest of equally good ones) instead of on a grid: the embeddings of
    some networks are so close together that the usual step of 0.01 is coarse.
    TAR at a FAR is the highest TAR at a threshold whose FAR does not exceed it.

    Args:
        distance: Squared Euclidean distances `(N,)`, or others that are small for like faces.
        same: Whether a pair is one person, bool `(N,)`.
        folds: Fold of every pair `(N,)`; any integers, never shuffled.
        people: Person indices of both faces `(N, 2)`, or None where the file does not name them.
        samples: Bootstrap samples. Drawing a person m times counts its own pairs m times, and a
            pair with another person drawn n times m * n times.
        seed: Seed of the bootstrap.
        only: Folds that are reported; the others then only help to choose thresholds. All by
            default.

    Raises:
        ValueError: Fewer than two folds, lengths that differ, or only one kind of pair.
    """
    distance, same = np.asarray(distance, dtype=np.float64), np.asarray(same, dtype=bool)
    names, folds = np.unique(folds, return_inverse=True)
    reported = np.ones(len(names), bool) if only is None else np.isin(names, only)
    counted = reported[folds]
    if not len(distance) == len(same) == len(folds):
        raise ValueError(
            f"{len(distance)} distances, {len(same)} labels and {len(folds)} folds do not match"
        )
    if len(names) < 2:
        raise ValueError(f"the threshold is chosen on the other folds; there is {len(names)} fold")
    if len(set(same[counted].tolist())) < 2:
        which = "same" if same[counted].any() else "different"
        raise ValueError(f"all {counted.sum()} pairs are {which}")
    if not np.isfinite(distance).all():
        raise ValueError(f"{(~np.isfinite(distance)).sum()} distances are not finite")
    judge = _Judge(distance, same, folds, reported)
    metrics, accuracy, thresholds, roc = judge(np.ones((1, len(same))))
    weights = _bootstrap_weights(same, people, samples, np.random.default_rng(seed))
    # In a small set, a sample can miss one kind of pair; nothing can be said of it.
    weights = weights[(weights @ (same & counted) > 0) & (weights @ (~same & counted) > 0)]
    chunks = [judge(weights[i : i + 32])[0] for i in range(0, len(weights), 32)]
    drawn = {key: np.concatenate([c[key] for c in chunks]) for key in metrics if chunks}
    intervals = {}
    for key, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        intervals[key] = (float(low), float(high))
    return Verification(
        metrics={key: float(value[0]) for key, value in metrics.items()},
        intervals=intervals,
        samples=drawn,
        fold_accuracy=accuracy[0][reported],
        thresholds=thresholds[0][reported],
        resampled="pairs" if people is None else "people",
        roc=(roc[0][0], roc[1][0]),
        different=int((~same & counted).sum()),
    )


def verify_set(
    embeddings: Tensor, pairs: PairSet, samples: int = 1000, seed: int = 0
) -> Verification:
    """`verify` for a verification set, given the embeddings `(N, D)` of its images.

    Where the set does not name its people, as no `.bin` file does, the bootstrap draws those that
    its pairs of the same person tell apart (`PairSet.linked_people`). On two folds of LFW, of which
    the names are known, that widens the interval as the true people do; over pairs it is half.
    """
    people = pairs.linked_people()[pairs.pairs]
    distance = pair_distances(embeddings, pairs.pairs)
    result = verify(distance, pairs.issame, pairs.fold, people, samples, seed)
    return replace(result, resampled="people" if pairs.people else "linked people")


def _bootstrap_weights(
    same: np.ndarray, people: np.ndarray | None, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each pair counts in each bootstrap sample: `(samples, N)`."""
    if people is None:
        return rng.multinomial(len(same), np.full(len(same), 1 / len(same)), samples)
    count = int(people.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), samples)
    return drawn[:, people[:, 0]] * np.where(same, 1, drawn[:, people[:, 1]])


class _Judge:
    """All metrics for a batch of pair weights `(B, N)`, from cumulative sums in distance order.

    Accepting the k nearest pairs as "same" is a threshold for every k that does not split a tie.
    """

    def __init__(
        self, distance: np.ndarray, same: np.ndarray, folds: np.ndarray, reported: np.ndarray
    ):
        self.order = np.argsort(distance, kind="stable")
        ordered = distance[self.order]
        self.same, self.reported = same[self.order], reported
        self.counted = reported[folds][self.order]
        self.in_fold = folds[self.order] == np.arange(folds.max() + 1)[:, None]
        self.accepted = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1, len(ordered)]
        edges = np.r_[ordered[0], ordered, ordered[-1]]
        self.threshold = (edges[self.accepted] + edges[self.accepted + 1]) / 2

    def __call__(self, weights: np.ndarray):
        weights = weights[:, self.order].astype(np.float64)
        accuracy, best = self._fold_accuracy(weights)
        far = self._cumulate(weights * (self.counted & ~self.same))
        tar = self._cumulate(weights * (self.counted & self.same))
        far, tar = far / far[:, -1:], tar / tar[:, -1:]
        metrics = {"accuracy": np.nanmean(accuracy[:, self.reported], 1)}
        for target in FARS:
            metrics[f"tar@far={target:g}"] = np.where(far <= target, tar, 0).max(1)
        metrics["auc"] = np.trapezoid(tar, far, axis=1)
        metrics["eer"] = _equal_error_rate(far, tar)
        return metrics, accuracy, self.threshold[best], (far, tar)

    def _fold_accuracy(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        signed = np.where(self.same, weights, -weights)
        # Relative to rejecting everything, right answers won by accepting the k nearest: (B, F, K).
        gain = self._cumulate(signed[:, None] * self.in_fold)
        best = (gain.sum(1, keepdims=True) - gain).argmax(2)
        rejected = (weights * ~self.same) @ self.in_fold.T
        total = weights @ self.in_fold.T
        right = np.take_along_axis(gain, best[..., None], 2)[..., 0] + rejected
        # A bootstrap sample may miss every pair of a small fold.
        return np.divide(right, total, out=np.full_like(total, np.nan), where=total > 0), best

    def _cumulate(self, weights: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.zeros_like(weights[..., :1]), weights.cumsum(-1)], -1)
        return sums[..., self.accepted]


def _equal_error_rate(far: np.ndarray, tar: np.ndarray) -> np.ndarray:
    """Where FAR = 1 - TAR on the straight line between the two thresholds around it: `(B,)`."""
    excess = far + tar - 1  # ascends from -1 to 1
    after = (excess >= 0).argmax(1)[:, None]
    f0, f1 = (np.take_along_axis(far, after - i, 1)[:, 0] for i in (1, 0))
    e0, e1 = (np.take_along_axis(excess, after - i, 1)[:, 0] for i in (1, 0))
    return f0 + (f1 - f0) * e0 / (e0 - e1)
