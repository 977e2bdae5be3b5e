"""What training watches: class by class on held-out images, and the field's verification."""

from collections.abc import Callable
from pathlib import Path

import torch

from recognizer.data.chips import chips
from recognizer.data.faces import FaceSet
from recognizer.data.verification_sets import read_pair_set
from recognizer.recognizer import Recognizer
from recognizer.verification import embed_flipped, pair_distances, verify

# Takes a recognizer in evaluation mode; the first of its metrics is its score.
Validation = Callable[[Recognizer], dict[str, float]]


class HeldOut:
    """Correct and margin-correct rate on images of the head's own classes, and the mean margin."""

    def __init__(self, faces: FaceSet, batch_size: int = 256):
        self.faces, self.batch_size = faces, batch_size

    @torch.no_grad()
    def __call__(self, recognizer: Recognizer) -> dict[str, float]:
        """Metrics `held_out/...`; rates are fractions, the margin is a difference of cosines."""
        head = recognizer.head
        assert head is not None
        correct = margin_correct = margin = 0.0
        batches = (x.split(self.batch_size) for x in (self.faces.images, self.faces.labels))
        for images, labels in zip(*batches, strict=True):
            embedding, norm = recognizer.embed(images)
            cosines, index = head.cosines(embedding), labels.to(embedding.device)[:, None]
            target = cosines.gather(1, index).squeeze(1)
            others = cosines.scatter(1, index, -2.0).amax(1)
            lead = head.penalise(target, norm.flatten()) - others
            correct += (target > others).sum().item()
            margin_correct += (lead > 0).sum().item()
            margin += lead.sum().item()
        n = len(self.faces)
        return {
            "held_out/margin_correct": margin_correct / n,
            "held_out/correct": correct / n,
            "held_out/margin": margin / n,
        }


class VerificationSet:
    """Accuracy, TAR@FAR, AUC and EER on a `.bin` file or a folder with `pairs.txt`.

    Args:
        path: the set; its images are aligned for the recognizer once and kept.
        size: side of the recognizer's input.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a verification set.
    """

    def __init__(self, path: str | Path, size: int):
        self.pairs = read_pair_set(path)
        self.images, _ = chips(self.pairs, size, path)

    def __call__(self, recognizer: Recognizer) -> dict[str, float]:
        """Metrics `NAME/accuracy` and so on, fractions."""
        pairs = self.pairs
        distance = pair_distances(embed_flipped(recognizer.embed, self.images), pairs.pairs)
        result = verify(distance, pairs.issame, pairs.fold, samples=0)
        return {f"{pairs.name}/{key}": value for key, value in result.metrics.items()}
