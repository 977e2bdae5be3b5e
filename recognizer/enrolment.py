"""Class weights without a trained head: the mean embedding of each person's gallery images."""

import hashlib
import io
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recognizer.data.faces import FaceSet
from recognizer.engine import InferenceEngine
from recognizer.heads import MarginHead, build_head
from recognizer.runs import write_atomically
from recognizer.verification import embed_flipped

_log = logging.getLogger(__name__)


@dataclass
class Gallery:
    """Enrolled people and the faces they were enrolled with.

    Judging a gallery face against its own person leaves that face out of the mean, so no face is
    scored against itself, unless it is the only one and enrolled nevertheless.

    Attributes:
        embeddings: Unit embeddings `(N, D)` of the gallery faces.
        labels: Person of every gallery face, int64 `(N,)`, `0 .. C - 1`.
        names: Name of every person, C of them.
        faces: Row of every gallery face in the set it came from, int64 `(N,)`.
        single: Names of people left out because they have a single image.
        sums: Sum of the embeddings of every person, `(C, D)`.
        weights: Unit class weights from all gallery faces, `(C, D)`.
    """

    embeddings: Tensor
    labels: Tensor
    names: list[str]
    faces: Tensor
    single: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = (len(self.names), self.embeddings.shape[1])
        self.sums = self.embeddings.new_zeros(size).index_add_(0, self.labels, self.embeddings)
        self.counts = torch.bincount(self.labels, minlength=len(self.names))
        self.weights = F.normalize(self.sums)

    def cosines(self, embedding: Tensor, face: Tensor) -> Tensor:
        """Cosines to every person, leaving the queried gallery face out of its own person.

        Args:
            embedding: Unit embeddings `(B, D)` of possibly altered gallery faces.
            face: Which gallery faces they are, int64 `(B,)`, rows of `embeddings`.

        Returns:
            `(B, C)`.
        """
        label, embeddings = self.labels[face, None], self.embeddings[face]
        alone = (self.counts[label] == 1).to(embeddings.dtype)
        others = F.normalize(self.sums[label[:, 0]] - (1 - alone) * embeddings)
        own = (embedding * others).sum(1, keepdim=True)
        return (embedding @ self.weights.T).scatter_(1, label, own)

    def to(self, device: torch.device) -> "Gallery":
        """The same gallery on another device."""
        return replace(self, embeddings=self.embeddings.to(device), labels=self.labels.to(device))

    def head(self, kind: str = "cosface", **hyperparameters: float) -> MarginHead:
        """A margin head with these class weights, for faces outside the gallery."""
        head = build_head(kind, self.sums.shape[1], len(self.names), **hyperparameters)
        head.weight.data.copy_(self.weights)
        return head


def enrol(
    engine: InferenceEngine,
    faces: FaceSet,
    progress: str = "enrolling",
    cache: Path | None = None,
    least: int = 2,
) -> Gallery:
    """Enrol everybody with two or more images, by flip-augmented embeddings.

    Args:
        engine: Of the recognizer.
        faces: Aligned for the recognizer.
        progress: Label of the progress bar; empty for none.
        cache: Folder to keep the embeddings in, under a hash of weights and images.
        least: Images that a person needs. With 1, people with a single image are known by it: for
            oracles, which may see what they want to reach.

    Raises:
        ValueError: Nobody has two images.
    """
    counts = torch.bincount(faces.labels, minlength=faces.classes)
    names = faces.names or [str(person) for person in range(faces.classes)]
    rows = (counts[faces.labels] >= least).nonzero().flatten()
    people, labels = faces.labels[rows].unique(return_inverse=True)
    single = [names[person] for person in (counts == 1).nonzero().flatten() if least > 1]
    if not len(people):
        raise ValueError(f"enrolment needs people with two or more images; {len(single)} have one")
    if single:
        shown = ", ".join([*single[:10], *["..."][: len(single) - 10]])
        _log.info("%d people with a single image are not enrolled: %s", len(single), shown)
    # Not a copy where it can be a memory-mapped file.
    images = faces.images if len(rows) == len(faces) else faces.images[rows]
    embeddings = embed_cached(engine, images, progress, cache)
    return Gallery(embeddings, labels, [names[person] for person in people], rows, single)


def embed_cached(
    engine: InferenceEngine, images: Tensor, progress: str = "", cache: Path | None = None
) -> Tensor:
    """`embed_flipped`, kept in a folder under a hash of weights and images."""
    if cache is None:
        return embed_flipped(engine, images, progress=progress)
    network = engine.recognizer
    about: tuple[object, ...] = (network.spec, images.shape)
    if engine.precision != "float32":
        about += (engine.precision,)
    digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
    for name, value in network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    for part in images.split(1024):
        digest.update(part.cpu().contiguous().numpy().data)
    path = cache / f"enrolled-{digest.hexdigest()}.npy"
    if path.is_file():
        return torch.from_numpy(np.load(path))
    embeddings = embed_flipped(engine, images, progress=progress)
    cache.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, embeddings.numpy())
    write_atomically(path, file.getvalue())
    return embeddings
