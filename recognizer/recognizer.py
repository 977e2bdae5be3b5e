"""A backbone with the knowledge of what it was trained on, and optionally a classification head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recognizer.heads import MarginHead

_CHUNK = 32  # images prepared at once


@dataclass(frozen=True)
class InputSpec:
    """What a backbone wants to be fed; `mean` and `std` are in its own channel order, 0-255."""

    size: int = 112
    rgb: bool = False
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def mean_bgr(self) -> tuple[float, float, float]:
        """The colour that becomes zero after normalisation, as BGR in 0-255."""
        return self.mean[::-1] if self.rgb else self.mean


class Recognizer(nn.Module):
    """Embeds uint8 BGR faces; the only place that swaps channels, resizes or normalises.

    Args:
        backbone: maps normalised float images `(N, 3, S, S)` to raw features `(N, D)`, or to
            `(unit embedding (N, D), norm (N, 1))` as AdaFace's networks do.
        spec: the input the backbone was trained on.
        head: class weights and margin, when identities are known.
        name: architecture name, a key of `recognizer.backbones.BACKBONES`.
        info: where the weights came from; free text for people and model cards.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: InputSpec,
        head: MarginHead | None = None,
        name: str = "",
        info: dict[str, str] | None = None,
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.spec, self.name, self.info = spec, name, info or {}
        # Not persistent: they are part of the spec, not of the weights.
        for key, value in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(key, torch.tensor(value).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def prepare(self, images: Tensor, channels_last: bool = True) -> Tensor:
        """Normalised float input `(N, 3, S, S)` of uint8 BGR images `(N, 3, H, W)`.

        Args:
            images: of any size; others than S are scaled.
            channels_last: memory layout; convolutions on their own are faster with it, an engine
                that lays out memory itself is not.

        Raises:
            ValueError: the images are not uint8 or not `(N, 3, H, W)`.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "a recognizer takes uint8 BGR images (N, 3, H, W), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        size = (self.spec.size, self.spec.size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(
            (len(images), 3, *size),
            dtype=self.mean.dtype,
            device=self.device,
            memory_format=layout,
        )
        # Numbers where they do: tensors broadcast slowly over three innermost channels.
        mean = self.spec.mean[0] if len(set(self.spec.mean)) == 1 else self.mean
        std = self.spec.std[0] if len(set(self.spec.std)) == 1 else self.std
        # On a CPU few at a time, which stay in its cache from one operation to the next.
        few = _CHUNK if self.device.type == "cpu" else max(1, len(images))
        for part, out in zip(images.split(few), x.split(few), strict=True):
            part = part.to(self.device)
            if self.spec.rgb:
                part = part.flip(1)
            if channels_last:  # while still bytes: four times cheaper than moving floats
                part = part.contiguous(memory_format=torch.channels_last)
            if part.shape[2:] != size:
                part = F.interpolate(part.to(x.dtype), size, mode="bilinear", antialias=True)
            out.copy_(part).sub_(mean).div_(std)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Raw features `(N, D)` of uint8 BGR images `(N, 3, H, W)`."""
        out = self.backbone(self.prepare(images))
        if isinstance(out, tuple):
            embedding, norm = out
            return embedding * norm
        return out

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings `(N, D)` and feature norms `(N, 1)` of uint8 BGR images."""
        feature = self(images)
        norm = feature.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return feature / norm, norm


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`"auto"` is CUDA when there is one, else the CPU; anything else is taken as it is.

    Raises:
        RuntimeError: CUDA in a forked worker process, where it would hang or crash.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RuntimeError(
            "CUDA cannot be used in a forked process once its parent has used it; start workers "
            'with multiprocessing method "spawn", or pass device="cpu"'
        )
    return device
