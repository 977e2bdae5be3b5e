"""Class weights without a trained head: the mean embedding of each person's gallery images."""

import logging
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from recognizer.data.faces import FaceSet
from recognizer.heads import MarginHead, build_head
from recognizer.recognizer import Recognizer
from recognizer.verification import embed_flipped

_log = logging.getLogger(__name__)


@dataclass
class Gallery:
    """Enrolled people and the faces they were enrolled with.

    Judging a gallery face against its own person leaves that face out of the mean, so no face is
    scored against itself.

    Attributes:
        embeddings: Unit embeddings `(N, D)` of the gallery faces.
        labels: Person of every gallery face, int64 `(N,)`, `0 .. C - 1`.
        names: Name of every person, C of them.
        faces: Row of every gallery face in the set it came from, int64 `(N,)`.
        single: Names of people left out because they have a single image.
    """

    embeddings: Tensor
    labels: Tensor
    names: list[str]
    faces: Tensor
    single: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = (len(self.names), self.embeddings.shape[1])
        self.sums = self.embeddings.new_zeros(size).index_add_(0, self.labels, self.embeddings)

    @property
    def weights(self) -> Tensor:
        """Unit class weights `(C, D)` from all gallery faces."""
        return F.normalize(self.sums)

    def cosines(self, embedding: Tensor, face: Tensor) -> Tensor:
        """Cosines to every person, leaving the queried gallery face out of its own person.

        Args:
            embedding: Unit embeddings `(B, D)` of possibly altered gallery faces.
            face: Which gallery faces they are, int64 `(B,)`, rows of `embeddings`.

        Returns:
            `(B, C)`.
        """
        label = self.labels[face, None]
        others = F.normalize(self.sums[label[:, 0]] - self.embeddings[face])
        own = (embedding * others).sum(1, keepdim=True)
        return (embedding @ self.weights.T).scatter(1, label, own).clamp(-1, 1)

    def head(self, kind: str = "cosface", **hyperparameters: float) -> MarginHead:
        """A margin head with these class weights, for faces outside the gallery."""
        head = build_head(kind, self.sums.shape[1], len(self.names), **hyperparameters)
        head.weight.data.copy_(self.weights)
        return head


def enrol(recognizer: Recognizer, faces: FaceSet, progress: str = "enrolling") -> Gallery:
    """Enrol everybody with two or more images, by flip-augmented embeddings.

    Args:
        recognizer: In evaluation mode.
        faces: Aligned for the recognizer.
        progress: Label of the progress bar; empty for none.

    Raises:
        ValueError: Nobody has two images.
    """
    counts = torch.bincount(faces.labels, minlength=faces.classes)
    names = faces.names or [str(person) for person in range(faces.classes)]
    rows = (counts[faces.labels] > 1).nonzero().flatten()
    people, labels = faces.labels[rows].unique(return_inverse=True)
    single = [names[person] for person in (counts == 1).nonzero().flatten()]
    if not len(people):
        raise ValueError(f"enrolment needs people with two or more images; {len(single)} have one")
    if single:
        _log.info("%d people with a single image are not enrolled: %s", len(single), single)
    embeddings = embed_flipped(recognizer.embed, faces.images[rows], progress=progress)
    return Gallery(embeddings, labels, [names[person] for person in people], rows, single)
