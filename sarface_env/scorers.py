"""Scorers: how good a possibly masked image is for the task at hand.

The environment knows nothing of recognizers: anything with `score(images, targets) -> Score` can
judge masks. `MarginScorer` is the one for face recognizers with a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from recognizer.data.faces import FaceSet
from recognizer.engine import InferenceEngine, Precision
from recognizer.enrolment import enrol
from recognizer.recognizer import Recognizer, resolve_device


@dataclass
class Score:
    """What a scorer says of a batch; all `(N,)`.

    Attributes:
        correct: bool, right without any margin.
        margin_correct: bool, right with the margin the model was trained for.
        margin: float32, by how much (above zero: margin-correct).
        contrast: float32, how much more the model sees of the target than of the average other
            class. It says less than the margin, and more steadily: which class is the best other
            depends on the mask. By default the margin.
    """

    correct: Tensor
    margin_correct: Tensor
    margin: Tensor
    contrast: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.contrast is None:
            self.contrast = self.margin

    def __getitem__(self, index: Tensor | slice) -> "Score":
        return Score(*(value[index] for value in vars(self).values()))


class Scorer(Protocol):
    """What the environment asks of the model whose input it masks.

    Attributes:
        device: where `score` computes; images and targets may come from anywhere.
        mean_colour: BGR in 0-255, the colour that means "nothing" to the model.
        version: changes whenever scores may have changed, so that caches can follow.

    One that judges every face of a set by something of its own has `targets`, int64 `(N,)`, what
    it wants to be asked instead of the faces' labels. One that knows how sure it is has
    `confidence(images, targets)`, see `MarginScorer`.
    """

    device: torch.device
    mean_colour: tuple[float, float, float]
    version: int

    def score(self, images: Tensor, targets: Tensor) -> Score:
        """Scores of uint8 BGR images `(N, 3, H, W)` with targets `(N,)` int64."""
        ...


def margin_score(
    cosines: Tensor, targets: Tensor, penalise: Callable[[Tensor], Tensor] | None = None
) -> Score:
    """Correctness and margin from cosines `(N, C)`, which are overwritten, to all classes.

    An image is *correct* when its target's cosine beats every other one, *margin-correct* when the
    penalised target cosine still does; the *margin* is the latter's lead over the best other, the
    *contrast* the lead of the target's cosine over the mean of the others.

    Args:
        cosines: to all classes.
        targets: classes, int64 `(N,)`.
        penalise: what the margin makes of target cosines `(N,)`; None for no margin.
    """
    # Behind a network every operation finds a cold cache: few of them are what is fast here.
    index = targets.unsqueeze(1)
    target = cosines.gather(1, index).squeeze(1)
    best_other = cosines.scatter_(1, index, -2.0).amax(1)
    margin = (target if penalise is None else penalise(target)) - best_other
    others = max(cosines.shape[1] - 1, 1)
    contrast = torch.sub(target, cosines.sum(1).add_(2), alpha=1 / others)
    return Score(target > best_other, margin > 0, margin, contrast)


class _RecognizerScorer:
    """What all scorers that embed faces share; subclasses give `_judge`."""

    def __init__(
        self,
        recognizer: Recognizer,
        device: str | torch.device,
        batch_size: int,
        precision: Precision,
    ):
        self.device = resolve_device(device)
        self.precision = precision
        self.batch_size = batch_size
        self.recognizer = recognizer
        self.mean_colour = recognizer.spec.mean_bgr()
        self.version = 0
        self.refresh()

    @property
    def size(self) -> int:
        """Side of the images that the recognizer was trained on."""
        return self.recognizer.spec.size

    def refresh(self) -> None:
        """Take over changed recognizer weights; everything scored before is out of date."""
        self.recognizer.to(self.device).eval()
        self._engine = InferenceEngine(self.recognizer, self.precision)
        self.precision = self._engine.precision  # measured once
        self.version += 1

    def score(self, images: Tensor, targets: Tensor) -> Score:
        """Scores of uint8 BGR images `(N, 3, H, W)` with targets `(N,)` int64, on `device`."""
        if len(images) <= self.batch_size:
            embedding, norm = self._engine(images)  # without gradients, as all weights here are
            targets = targets.to(self.device)
            return self._judge(self._cosines(embedding, targets), norm.squeeze(1), targets)
        parts = []
        batches = (tensor.split(self.batch_size) for tensor in (images, targets))
        for image, target in zip(*batches, strict=True):
            score = self.score(image, target)
            parts.append(tuple(vars(score).values()))
        return Score(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def confidence(self, images: Tensor, targets: Tensor) -> Tensor:
        """How sure the recognizer is of whom it sees, `(N,)` float32 on `device`.

        That is the lead of the best class's cosine over the second best, whichever they are, so it
        can be had where nobody knows who somebody is: targets only say which enrolled images are
        left out, because they are the ones that are asked about.

        Args:
            images: uint8 BGR `(N, 3, H, W)`.
            targets: `(N,)` int64, as for `score`.
        """
        parts = []
        for image, target in zip(
            images.split(self.batch_size), targets.split(self.batch_size), strict=True
        ):
            cosines = self._cosines(self._engine(image)[0], target.to(self.device))
            best = cosines.topk(min(2, cosines.shape[1]), 1).values
            parts.append(best[:, 0] - best[:, -1])
        return torch.cat(parts) if parts else torch.empty(0, device=self.device)

    def _cosines(self, embedding: Tensor, targets: Tensor) -> Tensor:
        """Cosines of unit embeddings `(N, D)` to all classes `(N, C)`."""
        raise NotImplementedError

    def _judge(self, cosines: Tensor, norm: Tensor, targets: Tensor) -> Score:
        """Scores from cosines `(N, C)`, which are overwritten, and norms `(N,)`."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        # A traced engine does not pickle; it is remade from the recognizer.
        return {k: v for k, v in self.__dict__.items() if k != "_engine"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._engine = InferenceEngine(self.recognizer, self.precision)


class MarginScorer(_RecognizerScorer):
    """Margin correctness of a face recognizer with class weights.

    Args:
        recognizer: with a head whose classes are the targets.
        device: `"auto"`, or anything torch takes.
        batch_size: images a forward pass; bounds the memory.
        precision: of the network; see `recognizer.engine.InferenceEngine`.

    Raises:
        ValueError: the recognizer has no head.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        device: str | torch.device = "auto",
        batch_size: int = 256,
        precision: Precision = "float32",
    ):
        if recognizer.head is None:
            raise ValueError(
                f"recognizer {recognizer.name!r} has no class weights; give it a head, "
                "or enrol people with EnrolledScorer"
            )
        super().__init__(recognizer, device, batch_size, precision)

    @property
    def classes(self) -> int:
        """Number of identities the head tells apart."""
        assert self.recognizer.head is not None
        return len(self.recognizer.head.weight)

    def refresh(self) -> None:
        """Take over changed recognizer weights; everything scored before is out of date."""
        super().refresh()
        assert self.recognizer.head is not None
        self._head = self.recognizer.head
        self._weights = self._head.unit_weights().detach()

    def _cosines(self, embedding: Tensor, targets: Tensor) -> Tensor:
        return self._head.cosines(embedding, self._weights)

    def _judge(self, cosines: Tensor, norm: Tensor, targets: Tensor) -> Score:
        return margin_score(cosines, targets, partial(self._head.penalise, norm=norm))


class EnrolledScorer(_RecognizerScorer):
    """Margin correctness among people enrolled from a set's own faces, without class weights.

    A person's class weight is the mean embedding of the person's uncovered images, without the one
    that is being judged. The margin is that of the recognizer's head, if it has one, on these
    weights; without a head it is zero, and margin-correct means correct.

    Args:
        recognizer: with or without a head.
        faces: whose people are told apart; everybody has two images or more.
        device: `"auto"`, or anything torch takes.
        batch_size: images a forward pass; bounds the memory.
        cache: folder to keep the embeddings of the first enrolment in.
        least: images that a person needs; see `enrol`.
        precision: of the network; see `recognizer.engine.InferenceEngine`.

    Attributes:
        targets: the number of every face's uncovered image, what `score` is to be asked.

    Raises:
        ValueError: people have a single image; lists them.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        faces: FaceSet,
        device: str | torch.device = "auto",
        batch_size: int = 256,
        cache: Path | None = None,
        least: int = 2,
        precision: Precision = "float32",
    ):
        self._cache, self._least = cache, least
        uncovered = faces.images if faces.clean is None else faces.clean
        self._uncovered = FaceSet(uncovered, faces.labels[: len(uncovered)], faces.names)
        self.targets = torch.arange(len(faces)) % len(uncovered)
        super().__init__(recognizer, device, batch_size, precision)

    def refresh(self) -> None:
        """Take over changed recognizer weights, and enrol everybody anew."""
        super().refresh()
        cache = self._cache if self.version == 1 else None
        gallery = enrol(self._engine, self._uncovered, cache=cache, least=self._least)
        if gallery.single:
            raise ValueError(
                f"{len(gallery.single)} people have a single image, so nothing to recognize them "
                f"by; leave them out: {', '.join(gallery.single[:20])}"
                + (", ..." if len(gallery.single) > 20 else "")
            )
        self.gallery = gallery.to(self.device)

    def _cosines(self, embedding: Tensor, targets: Tensor) -> Tensor:
        return self.gallery.cosines(embedding, targets)

    def _judge(self, cosines: Tensor, norm: Tensor, targets: Tensor) -> Score:
        head = self.recognizer.head
        penalise = None if head is None else partial(head.penalise, norm=norm)
        return margin_score(cosines, self.gallery.labels[targets], penalise)
