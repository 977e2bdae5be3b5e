"""A set of faces in memory or memory-mapped: what training, environments and protocols share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class FaceSet:
    """Faces with identities.

    Attributes:
        images: uint8 BGR `(N, 3, H, W)`; may be backed by a memory-mapped file.
        labels: int64 `(N,)`, the identity of every face, `0 .. len(names) - 1`.
        names: one name an identity.
        parsing: uint8 `(N, H, W)` face-parsing maps in CelebAMask-HQ order, when there are any.
        occluders: bool or uint8 `(N, H, W)`, non-zero where something covers the face, when known.
            For oracles and analysis only.
        clean: uint8 `(M, 3, H, W)`, the faces uncovered, when `images` are occluded: what people
            are enrolled from. N is a multiple of M: face i, however covered, is `clean[i % M]`.
        alike: int64 `(N, G)`, when faces are covered alike: face i itself, and the faces that the
            same occluder covers.
        files: name of every image, when they came from files.
    """

    images: Tensor
    labels: Tensor
    names: list[str] = field(default_factory=list)
    parsing: Tensor | None = None
    occluders: Tensor | None = None
    clean: Tensor | None = None
    alike: Tensor | None = None
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, channels = self.images.shape[0], tuple(self.images.shape[1:2])
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or channels != (3,):
            raise ValueError(
                "images must be uint8 BGR (N, 3, H, W), "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (n,):
            raise ValueError(
                f"labels must be int64 ({n},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        for name, maps in (("parsing", self.parsing), ("occluders", self.occluders)):
            expected = (n, *self.images.shape[2:])
            if maps is not None and tuple(maps.shape) != expected:
                raise ValueError(f"{name} must be {expected}, got {tuple(maps.shape)}")
        if self.clean is not None and (
            self.clean.shape[1:] != self.images.shape[1:]
            or not len(self.clean)
            or n % len(self.clean)
        ):
            raise ValueError(
                f"clean must be {tuple(self.images.shape)}, or fewer faces of which `images` show "
                f"all equally often; got {tuple(self.clean.shape)}"
            )
        alike = self.alike
        if alike is not None and (alike.dtype != torch.int64 or alike.shape[:-1] != (n,)):
            raise ValueError(
                f"alike must be int64 ({n}, G), got {alike.dtype} {tuple(alike.shape)}"
            )
        if self.parsing is not None and self.parsing.dtype != torch.uint8:
            raise ValueError(f"parsing must be uint8, got {self.parsing.dtype}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of identities."""
        return len(self.names) or (int(self.labels.max()) + 1 if len(self) else 0)
