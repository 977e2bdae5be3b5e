"""Scorers: how good a possibly masked image is for the task at hand.

The environment knows nothing of recognizers: anything with `score(images, targets) -> Score` can
judge masks. `MarginScorer` is the one for face recognizers with a head.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recognizer.engine import InferenceEngine
from recognizer.recognizer import Recognizer, resolve_device


@dataclass
class Score:
    """What a scorer says of a batch; all `(N,)`.

    Attributes:
        correct: bool, right without any margin.
        margin_correct: bool, right with the margin the model was trained for.
        margin: float32, by how much (above zero: margin-correct).
    """

    correct: Tensor
    margin_correct: Tensor
    margin: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Score":
        return Score(self.correct[index], self.margin_correct[index], self.margin[index])


class Scorer(Protocol):
    """What the environment asks of the model whose input it masks.

    Attributes:
        device: where `score` computes; images and targets may come from anywhere.
        mean_colour: BGR in 0-255, the colour that means "nothing" to the model.
        version: changes whenever scores may have changed, so that caches can follow.
    """

    device: torch.device
    mean_colour: tuple[float, float, float]
    version: int

    def score(self, images: Tensor, targets: Tensor) -> Score:
        """Scores of uint8 BGR images `(N, 3, H, W)` with targets `(N,)` int64."""
        ...


def margin_score(head_cosines: Tensor, penalised: Tensor, targets: Tensor) -> Score:
    """Correctness and margin from cosines `(N, C)` and penalised target cosines `(N,)`.

    An image is *correct* when its target's cosine beats every other one, *margin-correct* when the
    penalised target cosine still does; the *margin* is the latter's lead over the best other.
    """
    index = targets[:, None]
    target = head_cosines.gather(1, index).squeeze(1)
    best_other = head_cosines.scatter(1, index, -2.0).amax(1)
    margin = penalised - best_other
    return Score(target > best_other, margin > 0, margin)


class MarginScorer:
    """Margin correctness of a face recognizer with class weights.

    Args:
        recognizer: with a head whose classes are the targets.
        device: `"auto"`, or anything torch takes.
        batch_size: images a forward pass; bounds the memory.

    Raises:
        ValueError: the recognizer has no head.
    """

    def __init__(
        self, recognizer: Recognizer, device: str | torch.device = "auto", batch_size: int = 256
    ):
        if recognizer.head is None:
            raise ValueError(
                f"recognizer {recognizer.name!r} has no class weights; give it a head, "
                "or enrol people with recognizer.enrolment"
            )
        self.device = resolve_device(device)
        self.batch_size = batch_size
        self.recognizer = recognizer
        self.mean_colour = recognizer.spec.mean_bgr()
        self.version = 0
        self.refresh()

    @property
    def classes(self) -> int:
        """Number of identities the head tells apart."""
        assert self.recognizer.head is not None
        return len(self.recognizer.head.weight)

    def refresh(self) -> None:
        """Take over changed recognizer weights; everything scored before is out of date."""
        self.recognizer.to(self.device).eval()
        self._engine = InferenceEngine(self.recognizer)
        self.version += 1

    @torch.no_grad()
    def score(self, images: Tensor, targets: Tensor) -> Score:
        """Scores of uint8 BGR images `(N, 3, H, W)` with targets `(N,)` int64, on `device`."""
        parts = [
            self._score_batch(x, y)
            for x, y in zip(
                images.split(self.batch_size), targets.split(self.batch_size), strict=True
            )
        ]
        return Score(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _score_batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head = self.recognizer.head
        assert head is not None
        embedding, norm = self._engine(images)
        targets = targets.to(self.device)
        cosines = head.cosines(embedding)
        target = cosines.gather(1, targets[:, None]).squeeze(1)
        score = margin_score(cosines, head.penalise(target, norm.flatten()), targets)
        return score.correct, score.margin_correct, score.margin

    def __getstate__(self) -> dict:
        # A traced engine does not pickle; it is remade from the recognizer.
        return {k: v for k, v in self.__dict__.items() if k != "_engine"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._engine = InferenceEngine(self.recognizer)
