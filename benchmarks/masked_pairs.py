"""Verification and identification of faces of which a policy shows only a part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.evaluation import bootstrap_interval
from recognizer.data.faces import FaceSet
from recognizer.engine import InferenceEngine
from recognizer.enrolment import embed_cached, enrol
from recognizer.verification import (
    FARS,
    Verification,
    normalized_distances,
    pair_distances,
    verify,
)
from sarface_env.fills import make_fill
from sarface_env.photographs import Photographs, load_photographs, occluder_kinds, pairs_among

_CHUNK = 2048  # images embedded between two writes of the cache
METRICS = ("accuracy", *(f"tar@far={far:g}" for far in FARS), "auc", "eer")


@dataclass
class PairFaces:
    """The faces of pairs, occluded in one or several ways, one way after the other.

    Attributes:
        faces: `(S * N)` of them for S ways and N images.
        ways: S.
        pairs: int64 `(S * P, 2)`, rows of `faces`; both faces of a pair are occluded in one way.
        same: bool `(S * P,)`.
        fold: of every pair `(S * P,)`, counted from 1.
        report: the folds that are reported; the others only help to choose thresholds.
        kinds: what covers each face `(S * N,)`.
        unusable: pairs that are left out because an image of them cannot be used.
    """

    faces: FaceSet
    ways: int
    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    report: list[int]
    kinds: np.ndarray
    unusable: int

    @property
    def people(self) -> np.ndarray:
        """Person of both faces of every pair `(S * P, 2)`."""
        return self.faces.labels.numpy()[self.pairs]

    @property
    def clean(self) -> FaceSet:
        """The N faces uncovered."""
        n = len(self.faces) // self.ways
        images = self.faces.images if self.faces.clean is None else self.faces.clean
        return FaceSet(images[:n], self.faces.labels[:n], self.faces.names)

    @property
    def reported(self) -> np.ndarray:
        """Which faces are of reported pairs, bool `(S * N,)`."""
        rows = np.zeros(len(self.faces), bool)
        rows[self.pairs[np.isin(self.fold, self.report)]] = True
        return rows


def load_pair_faces(
    options: Photographs,
    report: Sequence[int],
    others: Sequence[int],
    seeds: Sequence[int],
    most: int | None = None,
) -> PairFaces:
    """The faces of the pairs of some folds; what cannot be used is listed before work starts.

    Args:
        options: where they are, and how they are made.
        report: folds to report, counted from 1.
        others: folds that only help to choose thresholds.
        seeds: of the occlusion: every pair is judged once for each.
        most: pairs of each kind and fold; all by default. The faces of others are made too, but
            not looked at.
    """
    folds = [*report, *others]
    options = replace(options, pairs=tuple(sorted(folds)))
    sets = [load_photographs(replace(options, occlusion_seed=seed)) for seed in seeds]
    found, unusable = pairs_among(options.path, folds, sets[0].files)
    pairs, same, fold = found.pairs, found.issame, np.array(folds)[found.fold]
    if most is not None:
        order = [np.flatnonzero((fold == f) & (same == s))[:most] for f in folds for s in (1, 0)]
        chosen = np.concatenate(order)
        rows, inverse = np.unique(pairs[chosen], return_inverse=True)
        pairs, same, fold = inverse.reshape(-1, 2), same[chosen], fold[chosen]
        sets = [_rows(faces, torch.from_numpy(rows)) for faces in sets]
    files = sets[0].files
    shift = len(files) * np.arange(len(sets))
    kinds = [occluder_kinds(files, options.occlusion, seed) for seed in seeds]
    ways = len(sets)
    return PairFaces(
        sets[0] if ways == 1 else _joined(sets),
        ways,
        (pairs + shift[:, None, None]).reshape(-1, 2),
        np.tile(same, ways),
        np.tile(fold, ways),
        list(report),
        np.concatenate(kinds),
        unusable,
    )


def _joined(sets: list[FaceSet]) -> FaceSet:
    def all_of(name: str) -> Any:
        parts = [getattr(faces, name) for faces in sets]
        return None if parts[0] is None else torch.cat(parts)

    names = ("images", "labels", "parsing", "occluders", "clean")
    files = [file for faces in sets for file in faces.files]
    return FaceSet(**{n: all_of(n) for n in names}, names=sets[0].names, files=files)


def _rows(faces: FaceSet, rows: Tensor) -> FaceSet:
    """Some faces of a set; people who are on none of them lose their number."""
    people, labels = faces.labels[rows].unique(return_inverse=True)
    parts = {name: getattr(faces, name) for name in ("parsing", "occluders", "clean")}
    return FaceSet(
        faces.images[rows],
        labels,
        **{name: part[rows] for name, part in parts.items() if part is not None},
        names=[faces.names[person] for person in people],
        files=[faces.files[row] for row in rows],
    )


def mean_result(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of results, such as those of training seeds, drawn alike by the bootstrap."""
    right = np.mean([result["right"] for result in results], 0)
    kinds = [key for key in ("verification", "normalized") if key in results[0]]
    return {"right": right} | {k: _mean_verification([r[k] for r in results]) for k in kinds}


def _mean_verification(found: list[Verification]) -> Verification:
    samples = {key: np.mean([v.samples[key] for v in found], 0) for key in found[0].samples}
    intervals = {key: tuple(np.percentile(values, [2.5, 97.5])) for key, values in samples.items()}
    return replace(
        found[0],
        metrics={key: float(np.mean([v.metrics[key] for v in found])) for key in found[0].metrics},
        intervals=intervals,
        samples=samples,
    )


class Judge:
    """Judges what is kept of pair faces by one recognizer.

    Args:
        engine: of the recognizer.
        data: the pair faces.
        seed: of the bootstrap; equal for all that is compared.
        samples: of the bootstrap.
        cache: folder in which embeddings are kept.
        cohort: uncovered faces of people who are in no pair; with them, pairs are also judged by
            `normalized_distances`.

    Attributes:
        full: the result of the faces with everything kept.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        data: PairFaces,
        seed: int = 0,
        samples: int = 1000,
        cache: Path | None = None,
        cohort: FaceSet | None = None,
    ):
        self.engine, self.data, self.seed, self.samples = engine, data, seed, samples
        self.cache = cache
        self.mean_colour = engine.recognizer.spec.mean_bgr()
        self.gallery = enrol(engine, data.clean, "gallery", cache)
        place = torch.full((len(data.faces) // data.ways,), -1)
        place[self.gallery.faces] = torch.arange(len(self.gallery.faces))
        self._place = place.repeat(data.ways)
        self.probes = (self._place >= 0).numpy() & data.reported
        self._cohort = None if cohort is None else enrol(engine, cohort, "cohort", cache).weights
        self._full = self._embed(data.faces.images, "full images")
        self.full = self._result(self._full)

    def clean(self) -> dict[str, Any]:
        """Result of the uncovered faces."""
        embeddings = self._embed(self.data.clean.images, "uncovered")
        return self._result(embeddings.repeat(self.data.ways, 1))

    def masked(self, keep: Tensor, fill: str, name: str) -> dict[str, Any]:
        """Result of the faces with the pixels `keep`, bool `(N, H, W)`, the others filled."""
        embeddings = self._full.clone()
        changed = (~keep.flatten(1).all(1)).nonzero().flatten()
        for rows in changed.split(_CHUNK) if len(changed) else ():
            embeddings[rows] = self._embed(self.show(rows, keep, fill), name)
        return self._result(embeddings)

    def show(self, rows: Tensor, keep: Tensor, fill: str) -> Tensor:
        """What the recognizer is shown of some faces, uint8 BGR `(n, 3, H, W)`."""
        return make_fill(fill)(self.data.faces.images[rows], keep[rows], self.mean_colour)

    def _embed(self, images: Tensor, name: str) -> Tensor:
        parts = images.split(_CHUNK)
        return torch.cat([embed_cached(self.engine, part, name, self.cache) for part in parts])

    def _result(self, embeddings: Tensor) -> dict[str, Any]:
        data = self.data
        distances = {"verification": pair_distances(embeddings, data.pairs)}
        if self._cohort is not None:
            distances["normalized"] = normalized_distances(embeddings, data.pairs, self._cohort)
        how = (data.same, data.fold, data.people, self.samples, self.seed, data.report)
        found = {name: verify(distance, *how) for name, distance in distances.items()}
        probes = torch.from_numpy(np.flatnonzero(self.probes))
        cosines = self.gallery.cosines(embeddings[probes], self._place[probes])
        right = cosines.argmax(1) == self.gallery.labels[self._place[probes]]
        return found | {"right": right.numpy().astype(float)}

    def summary(self, result: dict[str, Any]) -> dict[str, Any]:
        """Numbers of a result, for JSON."""
        found: Verification = result["verification"]
        right = result["right"]
        people, kinds = self._probe_people(), self.data.kinds[self.probes]
        out = {"metrics": found.metrics, "intervals_95": found.intervals}
        if "normalized" in result:
            relative: Verification = result["normalized"]
            metrics, intervals = relative.metrics, relative.intervals
            out["normalized"] = {"metrics": metrics, "intervals_95": intervals}
        return out | {
            "rank1": {
                "mean": right.mean(),
                "interval_95": bootstrap_interval(right, people),
                "by_occluder": {kind: right[kinds == kind].mean() for kind in np.unique(kinds)},
            },
        }

    def difference(self, result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Paired differences of two results with 95 % intervals over people."""
        out: dict[str, Any] = {}
        for judged, prefix in (("verification", ""), ("normalized", "normalized ")):
            if judged not in result:
                continue
            a, b = result[judged], other[judged]
            for key in METRICS:
                low, high = np.percentile(a.samples[key] - b.samples[key], [2.5, 97.5])
                mean = a.metrics[key] - b.metrics[key]
                out[prefix + key] = {"mean": mean, "interval_95": [low, high]}
        gain = result["right"] - other["right"]
        interval = bootstrap_interval(gain, self._probe_people())
        out["rank1"] = {"mean": gain.mean(), "interval_95": interval}
        return out

    def _probe_people(self) -> np.ndarray:
        return self.data.faces.labels.numpy()[self.probes]


def dropped(data: PairFaces, keep: Tensor, cells: int = 15) -> dict[str, Any]:
    """What is dropped of reported faces, by the kind of their occluder.

    Returns:
        Fractions: of all pixels `kept`; by kind, `faces` that lose anything, and what is dropped of
        the `occluder` and of the `rest`; a `map` of how often each place is dropped, percent.
    """
    rows = data.reported
    out: dict[str, Any] = {"kept": keep[torch.from_numpy(rows)].float().mean().item(), "kinds": {}}
    for kind in np.unique(data.kinds[rows]):
        at = torch.from_numpy(np.flatnonzero(rows & (data.kinds == kind)))
        lost = ~keep[at]
        entry: dict[str, Any] = {"faces": lost.flatten(1).any(1).float().mean().item()}
        if data.faces.occluders is not None:
            cover = data.faces.occluders[at].bool()
            if cover.any():
                entry["occluder"] = lost[cover].float().mean().item()
            entry["rest"] = lost[~cover].float().mean().item()
        places = torch.nn.functional.adaptive_avg_pool2d(lost.float().mean(0)[None], cells)[0]
        entry["map"] = (100 * places).round().int().tolist()
        out["kinds"][kind] = entry
    return out


def mean_dropped(entries: list[Any]) -> Any:
    """Mean of what `dropped` returns, number by number."""
    first = entries[0]
    if isinstance(first, dict):
        return {key: mean_dropped([entry[key] for entry in entries]) for key in first}
    return np.mean(entries, 0).tolist()
