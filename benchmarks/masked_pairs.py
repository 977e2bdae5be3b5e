"""Verification and identification of faces of which a policy shows only a part."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.evaluation import bootstrap_interval
from recognizer.data.disk_cache import cache_folder
from recognizer.data.faces import FaceSet
from recognizer.engine import InferenceEngine
from recognizer.enrolment import embed_cached, enrol
from recognizer.verification import FARS, Verification, pair_distances, verify
from sarface_env.core import RegionSelection
from sarface_env.env import SARFaceVectorEnv
from sarface_env.episodes import Episodes
from sarface_env.fills import make_fill
from sarface_env.options import EnvOptions
from sarface_env.photographs import Photographs, load_photographs, occluder_kinds, pairs_among
from sarface_env.scorers import EnrolledScorer

_BATCH = 256
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
    options: Photographs, report: Sequence[int], others: Sequence[int], seeds: Sequence[int]
) -> PairFaces:
    """The faces of the pairs of some folds; what cannot be used is listed before work starts.

    Args:
        options: where they are, and how they are made.
        report: folds to report, counted from 1.
        others: folds that only help to choose thresholds.
        seeds: of the occlusion: every pair is judged once for each.
    """
    folds = [*report, *others]
    options = replace(options, pairs=tuple(sorted(folds)))
    sets = [load_photographs(replace(options, occlusion_seed=seed)) for seed in seeds]
    files = sets[0].files
    found, unusable = pairs_among(options.path, folds, files)
    shift = len(files) * np.arange(len(sets))
    kinds = [occluder_kinds(files, options.occlusion, seed) for seed in seeds]
    ways = len(sets)
    return PairFaces(
        sets[0] if ways == 1 else _joined(sets),
        ways,
        (found.pairs + shift[:, None, None]).reshape(-1, 2),
        np.tile(found.issame, ways),
        np.tile(np.array(folds)[found.fold], ways),
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


class Judge:
    """Judges what is kept of pair faces by one recognizer.

    Args:
        engine: of the recognizer.
        data: the pair faces.
        seed: of the bootstrap; equal for all that is compared.
        samples: of the bootstrap.
        cache: folder in which embeddings are kept.

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
    ):
        self.engine, self.data, self.seed, self.samples = engine, data, seed, samples
        self.cache = cache
        self.mean_colour = engine.recognizer.spec.mean_bgr()
        self.gallery = enrol(engine, data.clean, "gallery", cache)
        place = torch.full((len(data.faces) // data.ways,), -1)
        place[self.gallery.faces] = torch.arange(len(self.gallery.faces))
        self._place = place.repeat(data.ways)
        self.probes = (self._place >= 0).numpy() & data.reported
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
        put = make_fill(fill)
        for rows in changed.split(_CHUNK) if len(changed) else ():
            images = put(self.data.faces.images[rows], keep[rows], self.mean_colour)
            embeddings[rows] = self._embed(images, name)
        return self._result(embeddings)

    def _embed(self, images: Tensor, name: str) -> Tensor:
        parts = images.split(_CHUNK)
        return torch.cat([embed_cached(self.engine, part, name, self.cache) for part in parts])

    def _result(self, embeddings: Tensor) -> dict[str, Any]:
        data = self.data
        found = verify(
            pair_distances(embeddings, data.pairs),
            data.same,
            data.fold,
            data.people,
            self.samples,
            self.seed,
            data.report,
        )
        probes = torch.from_numpy(np.flatnonzero(self.probes))
        cosines = self.gallery.cosines(embeddings[probes], self._place[probes])
        right = cosines.argmax(1) == self.gallery.labels[self._place[probes]]
        return {"verification": found, "right": right.numpy().astype(float)}

    def summary(self, result: dict[str, Any]) -> dict[str, Any]:
        """Numbers of a result, for JSON."""
        found: Verification = result["verification"]
        right = result["right"]
        people, kinds = self._probe_people(), self.data.kinds[self.probes]
        return {
            "metrics": found.metrics,
            "intervals_95": found.intervals,
            "rank1": {
                "mean": right.mean(),
                "interval_95": bootstrap_interval(right, people),
                "by_occluder": {kind: right[kinds == kind].mean() for kind in np.unique(kinds)},
            },
        }

    def difference(self, result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Paired differences of two results with 95 % intervals over people."""
        a, b = result["verification"], other["verification"]
        out = {}
        for key in METRICS:
            low, high = np.percentile(a.samples[key] - b.samples[key], [2.5, 97.5])
            out[key] = {"mean": a.metrics[key] - b.metrics[key], "interval_95": [low, high]}
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


# Policies as the pixels they keep.


class OracleScorer(EnrolledScorer):
    """What oracles look at: the margin of pair faces among the people of the pairs.

    People with a single image are known by it, uncovered; the others by their other images.
    """

    def __init__(self, judge: Judge):
        data = judge.data
        device = judge.engine.recognizer.device
        super().__init__(judge.engine.recognizer, data.clean, device, cache=judge.cache, least=1)
        self.targets = self.targets.repeat(data.ways)


def region_env(
    faces: FaceSet, scorer: Any, options: EnvOptions, reward: str = "margin"
) -> SARFaceVectorEnv:
    """The environment of a run's options over other faces."""
    return SARFaceVectorEnv(
        2,
        dataset=faces,
        recognizer=scorer,
        partition=options.partition,
        fill=options.fill,
        observation=options.observation,
        obs_size=options.obs_size,
        reward=reward,
    )


def kept_by(env: SARFaceVectorEnv, masks: Callable[[np.ndarray, np.ndarray], Tensor]) -> Tensor:
    """Pixels kept `(N, H, W)` of all faces by `masks(observations, face numbers)`."""
    core, keep = env.core, []
    for rows in np.array_split(np.arange(len(core)), -(-len(core) // _BATCH)):
        shown = Episodes(core, len(rows), env.options.observation, env.options.obs_size)
        shown.begin(rows)
        index = torch.from_numpy(rows)
        keep.append(core.keep_pixels(index, masks(shown.observe(), rows)))
    return torch.cat(keep)


def covered_regions(core: RegionSelection, rows: np.ndarray) -> Tensor:
    """Keep bits `(n, K)` that drop the regions more than half of which is covered."""
    index = torch.from_numpy(rows)
    if core.faces.occluders is None:
        return torch.ones((len(rows), core.bits), dtype=torch.bool)
    regions, covered = core.regions(index).flatten(1), core.faces.occluders[index].flatten(1)
    share = torch.zeros(len(rows), len(core.partition.names))
    share.scatter_add_(1, regions.long(), covered.float())
    share /= core.region_pixels(index).clamp_min(1)
    return share[:, list(core.partition.selectable)] <= 0.5


def greedy_masks(core: RegionSelection, rows: np.ndarray) -> Tensor:
    """Keep bits `(n, K)` that raise the margin of faces most, as an oracle finds them greedily.

    Regions are dropped in the order of what dropping each alone gains, as far as the margin of the
    face is highest: about K + K / 2 images a face.
    """
    index = torch.from_numpy(rows)
    alone = ~torch.eye(core.bits, dtype=torch.bool)
    outcome = core.evaluate(index, alone.expand(len(rows), -1, -1))
    gain = outcome.masked.margin - outcome.full.margin
    gain.masked_fill_(~core.present(index), 0)
    masks = _prefixes(gain)
    margin = core.evaluate(index, masks).masked.margin
    best = margin.argmax(1)
    return masks[torch.arange(len(rows)), best]


def _prefixes(gain: Tensor) -> Tensor:
    """Keep-all, and the masks that drop the 1, 2, ... bits of the highest gain `(n, K)` above 0.

    Returns:
        `(n, K + 1, K)`; those behind the last gain are keep-all too.
    """
    k = gain.shape[1]
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    many = torch.arange(k + 1).view(1, -1, 1)
    useful = many <= (gain > 0).sum(1)[:, None, None]
    return ~((rank[:, None] < many) & useful & (gain > 0)[:, None])


def fixed_mask(core: RegionSelection, calls: int = 60_000, seed: int = 0) -> Tensor:
    """The one mask `(K,)` that raises the mean margin most, found on about `calls` images.

    The bits are dropped in the order of what dropping each alone gains on average, as far as the
    mean is highest; then every bit is flipped once more if that helps.
    """
    faces = min(len(core), max(1, calls // (3 * core.bits)))
    index = torch.from_numpy(np.random.default_rng(seed).permutation(len(core))[:faces])

    def worth(masks: Tensor) -> Tensor:
        parts = index.split(_BATCH)
        margins = [
            core.evaluate(part, masks.expand(len(part), -1, -1)).masked.margin for part in parts
        ]
        return torch.cat(margins).mean(0)

    keep = torch.ones(core.bits, dtype=torch.bool)
    full = worth(keep[None])
    gain = worth(~torch.eye(core.bits, dtype=torch.bool)) - full
    masks = _prefixes(gain[None])[0]
    values = worth(masks)
    best, mask = values.max(), masks[values.argmax()]
    for bit in range(core.bits):
        flipped = mask.clone()
        flipped[bit] ^= True
        value = worth(flipped[None])[0]
        if value > best:
            best, mask = value, flipped
    return mask


def cached_masks(core: RegionSelection, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` returns for the faces of a core, kept in `$SARFACE_CACHE`."""
    digest = hashlib.blake2b(digest_size=16)
    recognizer = core.scorer.gallery.embeddings  # type: ignore[attr-defined]
    maps = core.faces.parsing if core.partition.needs_parsing else None
    digest.update(json.dumps([name, core.partition.name, core.fill_name]).encode())
    for part in (core.faces.images, maps, recognizer):
        if part is not None:
            for rows in part.split(1024):
                digest.update(rows.contiguous().numpy().data)
    path = cache_folder() / f"masks-{digest.hexdigest()}.npy"
    if not path.is_file():
        masks = make().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            np.save(file, masks)
        partial.replace(path)
    return torch.from_numpy(np.load(path))
