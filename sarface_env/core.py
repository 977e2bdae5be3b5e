"""The batched core: faces, regions, masks and scores, without any episode."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recognizer.data.faces import FaceSet
from sarface_env.fills import make_fill
from sarface_env.mask_scores import FIELDS, MaskScores, as_array, as_score
from sarface_env.partitions import Partition
from sarface_env.rewards import Reward
from sarface_env.scorers import Score, Scorer

_CHUNK = 64  # images masked at once
_BATCH = 1024  # images masked before any is scored


@dataclass
class Outcome:
    """What a mask did to a face; every field `(N,)`, or `(N, G)` for groups of masks.

    Attributes:
        reward: float32.
        full: score of the face with everything kept.
        masked: score of the face with the mask applied.
        kept: float32, fraction of pixels kept.
    """

    reward: Tensor
    full: Score
    masked: Score
    kept: Tensor


class RegionSelection:
    """Scores keep/drop masks over the regions of a fixed set of faces.

    Region maps are computed once a face, scores of full images once a face and scorer version.
    Scores of masked images are remembered too, as many as fit into a table.

    Args:
        faces: with parsing maps, unless the partition ignores them.
        partition: cuts parsing maps into regions.
        scorer: judges images.
        reward: of the full image's score, the masked image's score and the fraction kept.
        fill: name of what replaces dropped pixels.

    Attributes:
        calls: images scored so far, the cost that learning is measured in.
    """

    def __init__(
        self,
        faces: FaceSet,
        partition: Partition,
        scorer: Scorer,
        reward: Reward,
        fill: str = "mean",
    ):
        if partition.needs_parsing and faces.parsing is None:
            raise ValueError("the faces have no parsing maps; parse them with a segmenter first")
        self._targets = _targets(faces, scorer).numpy()
        self.faces, self.partition, self.scorer, self.reward = faces, partition, scorer, reward
        self.fill_name = fill
        self._fill = make_fill(fill)
        self.calls = 0
        n, (h, w) = len(faces), faces.images.shape[2:]
        self._images = _rows(faces.images)
        # Untouched pages of an empty tensor take no memory, so this grows with the faces seen.
        self._regions = torch.empty((n, h, w), dtype=torch.uint8)
        self._pixels = torch.empty((n, len(partition.names)), dtype=torch.int32)
        # Numpy where few numbers a face are looked up: its calls are shorter than torch's.
        self._selectable_pixels = np.empty((n, self.bits), np.int32)
        self._has_regions, self._has_all_regions = np.zeros(n, np.bool_), False
        # Scores of full images, NaN where they are not known.
        self._full = np.full((len(FIELDS), n), np.nan, np.float32)
        self._masked, self._version = MaskScores(n, self.bits), scorer.version

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def bits(self) -> int:
        """Number of selectable regions, K."""
        return len(self.partition.selectable)

    def _ensure_regions(self, faces: np.ndarray) -> None:
        if self._has_all_regions:
            return
        there = self._has_regions[faces]
        if there.all():
            return
        for part in torch.from_numpy(np.unique(faces[~there])).split(1024):
            if self.faces.parsing is None:
                labels = torch.zeros((len(part), *self._regions.shape[1:]), dtype=torch.uint8)
            else:
                labels = self.faces.parsing[part]
            regions = self.partition(labels)
            self._regions[part] = regions
            pixels = self.partition.presence(regions).int()
            self._pixels[part] = pixels
            self._selectable_pixels[part] = pixels[:, list(self.partition.selectable)]
            self._has_regions[part] = True
        self._has_all_regions = bool(self._has_regions.all())

    def regions(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Region maps `(N, H, W)` uint8 of faces `(N,)`, in `out` if it is given."""
        self._ensure_regions(indices.numpy())
        return torch.index_select(self._regions, 0, indices, out=out)

    def region_pixels(self, indices: Tensor) -> Tensor:
        """Pixels of every region, `(N, R)` int32, of faces `(N,)`."""
        self._ensure_regions(indices.numpy())
        return self._pixels.index_select(0, indices)

    def present(self, indices: Tensor) -> Tensor:
        """Which selectable regions a face has, `(N, K)` bool; the others are no-ops."""
        faces = indices.numpy()
        self._ensure_regions(faces)
        return torch.from_numpy(self._selectable_pixels[faces] > 0)

    def full_score(self, indices: Tensor) -> Score:
        """Scores of the full images of faces `(N,)`."""
        return as_score(self._full_scores(indices.numpy()))

    def _full_scores(self, faces: np.ndarray) -> np.ndarray:
        """Scores of the full images of faces `(N,)`: `(4, N)`, remembered or new."""
        self._follow_scorer()
        full = self._full.take(faces, 1)
        unknown = np.isnan(full[0])
        if unknown.any():
            new = np.unique(faces[unknown])
            self.calls += len(new)
            images = self.faces.images[torch.from_numpy(new)]
            score = self.scorer.score(images, torch.from_numpy(self._targets[new]))
            self._full[:, new] = as_array(score)
            full = self._full.take(faces, 1)
        return full

    def keep_pixels(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Pixels kept, `(N, H, W)` bool, of faces `(N,)` under masks `(N, K)`."""
        return self.partition.keep_pixels(self.regions(indices), masks)

    def apply(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Masked images `(N, 3, H, W)` uint8 of faces `(N,)` under masks `(N, K)`.

        They are on the scorer's device.
        """
        faces = indices.numpy()
        self._ensure_regions(faces)
        return self._apply(faces, masks.bool().cpu().numpy())

    def _apply(self, faces: np.ndarray, masks: np.ndarray) -> Tensor:
        indices, device = torch.from_numpy(faces), self.scorer.device
        rows = self._images.index_select(0, indices).to(device)
        images = rows.view(torch.uint8).view(-1, *self.faces.images.shape[1:])
        # Few at a time, which stay in the processor's cache from one operation to the next.
        for start in range(0, len(faces), _CHUNK):
            part = slice(start, start + _CHUNK)
            regions = self._regions.index_select(0, indices[part]).to(device)
            few, pixels = images[part], self.partition.keep_bytes(regions, masks[part])
            filled = self._fill(few, pixels, self.scorer.mean_colour)
            if filled is not few:
                few.copy_(filled)
        return images

    def kept_fraction(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Fraction of pixels kept, `(N,)` float32, of faces `(N,)` under masks `(N, K)`."""
        faces = indices.numpy()
        self._ensure_regions(faces)
        return torch.from_numpy(self._kept(self._selectable_pixels[faces], masks.bool().numpy()))

    def _kept(self, pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Fraction of pixels kept, given those of every selectable region `(N, K)`."""
        dropped = (pixels * ~masks).sum(1)
        total = self._regions.shape[1] * self._regions.shape[2]
        return (total - dropped).astype(np.float32) / np.float32(total)

    def evaluate(self, indices: Tensor, masks: Tensor) -> Outcome:
        """Scores masks on faces; touches no episode.

        Masks that treat every region present alike are scored once, also when they come again
        later, as far as the table of scores reaches. A mask that keeps everything present costs
        nothing once the full image's score is known.

        Args:
            indices: faces, int64 `(N,)`.
            masks: keep bits, `(N, K)`, or `(N, G, K)` for a group of masks a face.

        Raises:
            ValueError: the shapes do not fit, or an index is out of range.
        """
        if masks.shape[0] != len(indices) or masks.shape[-1] != self.bits or masks.ndim > 3:
            raise ValueError(
                f"masks must be ({len(indices)}, {self.bits}) or ({len(indices)}, G, {self.bits}), "
                f"got {tuple(masks.shape)}"
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(f"face indices must lie in 0..{len(self) - 1}")
        faces, bits = indices.numpy(), masks.reshape(-1, self.bits).bool().cpu().numpy()
        if masks.ndim == 2:
            return self.decide(faces, bits)
        outcome = self.decide(np.repeat(faces, masks.shape[1]), bits)
        return _reshape(outcome, tuple(masks.shape[:2]))

    def decide(self, faces: np.ndarray, masks: np.ndarray) -> Outcome:
        """`evaluate` for arrays that need no checking: faces int64 `(N,)`, masks bool `(N, K)`."""
        self._ensure_regions(faces)
        pixels = self._selectable_pixels[faces]
        bits = masks | (pixels == 0)
        kept = torch.from_numpy(self._kept(pixels, bits))
        full, whole = self._full_scores(faces), bits.all(1)
        if whole.all():
            masked = full.copy()
        elif whole.any():
            masked, todo = full.copy(), np.flatnonzero(~whole)
            masked[:, todo] = self._masked_scores(faces[todo], bits[todo])
        else:
            masked = self._masked_scores(faces, bits)
        before, after = as_score(full), as_score(masked)
        return Outcome(self.reward(before, after, kept).float(), before, after, kept)

    def confidence(self, indices: Tensor, masks: Tensor) -> Tensor:
        """How sure the recognizer is of the faces `(N,)` under masks `(N, G, K)`: `(N, G)`.

        It says nothing of who they are; see `MarginScorer.confidence`. Masks that treat every
        region present alike are asked once; nothing is remembered.

        Raises:
            TypeError: the scorer does not know how sure it is.
        """
        if not hasattr(self.scorer, "confidence"):
            raise TypeError(f"{type(self.scorer).__name__} has no confidence(images, targets)")
        n, g, k = masks.shape
        faces = indices.repeat_interleave(g)
        bits = masks.reshape(-1, k).bool() | ~self.present(faces)
        pairs = torch.cat([faces[:, None], bits], 1)
        pairs, where = pairs.unique(dim=0, return_inverse=True)
        self.calls += len(pairs)
        parts = []
        for part in pairs.split(_BATCH):
            images = self.apply(part[:, 0], part[:, 1:].bool())
            targets = torch.from_numpy(self._targets[part[:, 0].numpy()])
            parts.append(self.scorer.confidence(images, targets).cpu())
        return torch.cat(parts)[where].view(n, g)

    def reward_bound(self, full: Score) -> Tensor:
        """The most any mask can earn on faces with these full scores, `(N,)`; maybe infinite."""
        bound = getattr(self.reward, "bound", None)
        return torch.full_like(full.margin, torch.inf) if bound is None else bound(full)

    def forget_masks(self) -> None:
        """Score every mask anew, to count what it costs."""
        self._masked.clear()

    def state_dict(self) -> dict[str, Any]:
        """Calls so far, and the scores of full and of masked images that are known.

        Scored again, in other batches, they would differ in the last digit of a float.
        """
        self._follow_scorer()
        known = np.flatnonzero(~np.isnan(self._full[0]))
        full = vars(as_score(self._full[:, known]))
        masked = self._masked.state_dict()
        return {"calls": self.calls, "faces": torch.from_numpy(known), **full, "masked": masked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, with the scorer that it was taken with."""
        faces, self.calls = state["faces"].numpy(), state["calls"]
        self._full[:] = np.nan
        self._full[:, faces] = as_array(Score(*(state[field] for field in FIELDS)))
        self._masked.load_state_dict(state["masked"])
        self._version = self.scorer.version

    def _follow_scorer(self) -> None:
        """Forget what an older version of the scorer said."""
        if self._version != self.scorer.version:
            self._full[:] = np.nan
            self._masked.clear()
            self._version = self.scorer.version

    def _masked_scores(self, faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Scores `(4, N)` of faces `(N,)` under masks `(N, K)` bool, remembered or new."""
        keys = self._masked.keys(faces, masks)
        slots = self._masked.slots(keys)
        ordered = np.sort(slots)
        if not (ordered[1:] == ordered[:-1]).any():  # then no two keys are equal either
            return self._distinct_scores(faces, masks, keys, slots)
        # By rows only where there is more than one column: sorting numbers is faster.
        axis = 0 if keys.shape[1] > 1 else None
        _, rows, where = np.unique(keys, axis=axis, return_index=True, return_inverse=True)
        scores = self._distinct_scores(faces[rows], masks[rows], keys[rows], slots[rows])
        return scores[:, where.reshape(-1)]

    def _distinct_scores(
        self, faces: np.ndarray, masks: np.ndarray, keys: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """`_masked_scores` of pairs that are all different, given their keys and slots."""
        known, scores = self._masked.find(keys, slots)
        if known.any():
            new = np.flatnonzero(~known)
            if len(new):
                scores[:, new] = self._score_new(faces[new], masks[new], keys[new], slots[new])
            return scores
        return self._score_new(faces, masks, keys, slots)

    def _score_new(
        self, faces: np.ndarray, masks: np.ndarray, keys: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        self.calls += len(faces)
        targets = torch.from_numpy(self._targets[faces])
        parts = []
        for start in range(0, len(faces), _BATCH):
            part = slice(start, start + _BATCH)
            images = self._apply(faces[part], masks[part])
            parts.append(as_array(self.scorer.score(images, targets[part])))
        scores = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        self._masked.add(keys, slots, scores)
        return scores


def _targets(faces: FaceSet, scorer: Scorer) -> Tensor:
    """What the scorer is asked of every face, `(N,)`: its label, or what the scorer says."""
    targets = getattr(scorer, "targets", None)
    if targets is not None:
        if targets.shape != faces.labels.shape:
            raise ValueError(
                f"the scorer is made for {len(targets)} faces, there are {len(faces)} here"
            )
        return targets
    classes = getattr(scorer, "classes", None)
    if classes is not None and len(faces) and int(faces.labels.max()) >= classes:
        raise ValueError(
            f"the faces have identities up to {int(faces.labels.max())}, but the scorer "
            f"tells only {classes} apart"
        )
    return faces.labels


def _rows(images: Tensor) -> Tensor:
    """Images `(N, 3, H, W)` as rows of numbers, of four bytes if they fit.

    Rows of less than 32,768 numbers are gathered in all threads, longer ones in one.
    """
    rows = images.flatten(1)
    fit = rows.shape[1] % 4 == 0 and rows.storage_offset() % 4 == 0
    return rows.view(torch.int32) if fit else rows


def _reshape(outcome: Outcome, shape: tuple[int, ...]) -> Outcome:
    def scores(s: Score) -> Score:
        return Score(*(value.view(shape) for value in vars(s).values()))

    return Outcome(
        outcome.reward.view(shape),
        scores(outcome.full),
        scores(outcome.masked),
        outcome.kept.view(shape),
    )
