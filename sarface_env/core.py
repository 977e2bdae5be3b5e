"""The batched core: faces, regions, masks and scores, without any episode."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recognizer.data.faces import FaceSet
from sarface_env.fills import make_fill
from sarface_env.mask_scores import FIELDS, SCORE, MaskScores, as_array, as_score
from sarface_env.partitions import Partition
from sarface_env.rewards import Reward
from sarface_env.scorers import Score, Scorer

_CHUNK = 32


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
        self._targets = _targets(faces, scorer)
        self.faces, self.partition, self.scorer, self.reward = faces, partition, scorer, reward
        self.fill_name = fill
        self._fill = make_fill(fill)
        self.calls = 0
        n, (h, w) = len(faces), faces.images.shape[2:]
        # Untouched pages of an empty tensor take no memory, so this grows with the faces seen.
        self._regions = torch.empty((n, h, w), dtype=torch.uint8)
        self._pixels = torch.empty((n, len(partition.names)), dtype=torch.int32)
        # Numpy where few numbers a face are looked up: its calls are shorter than torch's.
        self._selectable_pixels = np.empty((n, self.bits), np.int32)
        self._has_regions = np.zeros(n, np.bool_)
        self._full = np.empty(n, SCORE)
        self._full_version = np.full(n, -1)
        self._masked, self._masked_version = MaskScores(n, self.bits), scorer.version

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def bits(self) -> int:
        """Number of selectable regions, K."""
        return len(self.partition.selectable)

    def _ensure_regions(self, indices: Tensor) -> None:
        faces = indices.numpy()
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

    def regions(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Region maps `(N, H, W)` uint8 of faces `(N,)`, in `out` if it is given."""
        self._ensure_regions(indices)
        return torch.index_select(self._regions, 0, indices, out=out)

    def region_pixels(self, indices: Tensor) -> Tensor:
        """Pixels of every region, `(N, R)` int32, of faces `(N,)`."""
        self._ensure_regions(indices)
        return self._pixels.index_select(0, indices)

    def present(self, indices: Tensor) -> Tensor:
        """Which selectable regions a face has, `(N, K)` bool; the others are no-ops."""
        self._ensure_regions(indices)
        return torch.from_numpy(self._selectable_pixels[indices.numpy()] > 0)

    def full_score(self, indices: Tensor) -> Score:
        """Scores of the full images of faces `(N,)`."""
        return as_score(self._full_scores(indices.numpy()))

    def _full_scores(self, faces: np.ndarray) -> np.ndarray:
        stale = self._full_version[faces] != self.scorer.version
        if stale.any():
            new = np.unique(faces[stale])
            self.calls += len(new)
            rows = torch.from_numpy(new)
            score = self.scorer.score(self.faces.images[rows], self._targets[rows])
            self._full[new] = as_array(score)
            self._full_version[new] = self.scorer.version
        return self._full[faces]

    def keep_pixels(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Pixels kept, `(N, H, W)` bool, of faces `(N,)` under masks `(N, K)`."""
        return self.partition.keep_pixels(self.regions(indices), masks)

    def apply(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Masked images `(N, 3, H, W)` uint8 of faces `(N,)` under masks `(N, K)`.

        They are on the scorer's device.
        """
        self._ensure_regions(indices)
        device, images = self.scorer.device, self.faces.images
        masked = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8, device=device)
        # Few at a time, which stay in the processor's cache from one operation to the next.
        parts = (tensor.split(_CHUNK) for tensor in (masked, indices, masks.bool()))
        for out, faces, keep in zip(*parts, strict=True):
            regions = self._regions.index_select(0, faces).to(device)
            pixels = self.partition.keep_pixels(regions, keep.to(device))
            if device == images.device:
                torch.index_select(images, 0, faces, out=out)
            else:
                out.copy_(images.index_select(0, faces))
            filled = self._fill(out, pixels, self.scorer.mean_colour)
            if filled is not out:
                out.copy_(filled)
        return masked

    def kept_fraction(self, indices: Tensor, masks: Tensor) -> Tensor:
        """Fraction of pixels kept, `(N,)` float32, of faces `(N,)` under masks `(N, K)`."""
        self._ensure_regions(indices)
        return torch.from_numpy(self._kept(indices.numpy(), masks.bool().numpy()))

    def _kept(self, faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
        dropped = (self._selectable_pixels[faces] * ~masks).sum(1)
        total = self._regions[0].numel()
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
        group = masks.shape[1:-1]
        self._ensure_regions(indices)
        faces = indices.numpy()
        faces = np.repeat(faces, group[0]) if group else faces
        bits = masks.reshape(-1, self.bits).bool().cpu().numpy()
        bits = bits | (self._selectable_pixels[faces] == 0)

        full = self._full_scores(faces)
        masked = full.copy()
        todo = np.flatnonzero(~bits.all(1))
        if len(todo):
            masked[todo] = self._masked_scores(faces[todo], bits[todo])
        outcome = Outcome(
            torch.empty(0),
            as_score(full),
            as_score(masked),
            torch.from_numpy(self._kept(faces, bits)),
        )
        outcome.reward = self.reward(outcome.full, outcome.masked, outcome.kept).float()
        return _reshape(outcome, (len(indices), *group)) if group else outcome

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
        known = np.flatnonzero(self._full_version == self.scorer.version)
        full = vars(as_score(self._full[known]))
        masked = self._masked.state_dict()
        return {"calls": self.calls, "faces": torch.from_numpy(known), **full, "masked": masked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, with the scorer that it was taken with."""
        faces, self.calls = state["faces"].numpy(), state["calls"]
        self._full[faces] = as_array(Score(*(state[field] for field in FIELDS)))
        self._full_version[:] = -1
        self._full_version[faces] = self.scorer.version
        self._masked.load_state_dict(state["masked"])
        self._masked_version = self.scorer.version

    def _follow_scorer(self) -> None:
        """Forget what an older version of the scorer said of masks."""
        if self._masked_version != self.scorer.version:
            self._masked.clear()
            self._masked_version = self.scorer.version

    def _masked_scores(self, faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Scores of faces `(N,)` under masks `(N, K)` bool, remembered or new."""
        self._follow_scorer()
        keys = self._masked.keys(faces, masks)
        # By rows only where there is more than one column: sorting numbers is faster.
        keys, rows, where = np.unique(
            keys, axis=0 if keys.shape[1] > 1 else None, return_index=True, return_inverse=True
        )
        keys = keys.reshape(len(rows), -1)
        known, scores = self._masked.find(keys)
        if not known.all():
            new = rows[~known]
            scores[~known] = self._score_new(faces[new], masks[new])
            self._masked.add(keys[~known], scores[~known])
        return scores[where.reshape(-1)]

    def _score_new(self, faces: np.ndarray, masks: np.ndarray, chunk: int = 1024) -> np.ndarray:
        self.calls += len(faces)
        scores = []
        parts = (torch.from_numpy(array).split(chunk) for array in (faces, masks))
        for i, m in zip(*parts, strict=True):
            scores.append(as_array(self.scorer.score(self.apply(i, m), self._targets[i])))
        return np.concatenate(scores)


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


def _reshape(outcome: Outcome, shape: tuple[int, ...]) -> Outcome:
    def scores(s: Score) -> Score:
        return Score(s.correct.view(shape), s.margin_correct.view(shape), s.margin.view(shape))

    return Outcome(
        outcome.reward.view(shape),
        scores(outcome.full),
        scores(outcome.masked),
        outcome.kept.view(shape),
    )
