"""Margin heads: class weights, the margin-penalised target logit, and the training logits.

All heads share one convention. With a unit embedding `e` and unit class weights `w_j`, the cosine
to class j is `e . w_j`; a head replaces the target's cosine by a smaller, *penalised* one, so that
training asks for more than a plain arg-max. `penalise` is that replacement alone: training scales
and feeds it to cross-entropy, and judging margin correctness compares it with the other cosines.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class MarginHead(nn.Module):
    """Class weights on the unit sphere with a margin on the target class.

    Args:
        dim: length of the embedding.
        classes: number of identities.
        s: scale of the logits.
        m: margin, in the head's own unit (cosine or radian).
    """

    kind = ""

    def __init__(self, dim: int, classes: int, s: float = 64.0, m: float = 0.4):
        super().__init__()
        self.s, self.m = s, m
        self.weight = nn.Parameter(F.normalize(torch.randn(classes, dim), dim=1))

    def unit_weights(self) -> Tensor:
        """Class weights of length one, `(C, D)`."""
        return F.normalize(self.weight, dim=1)

    def cosines(self, embedding: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cosine of every unit embedding `(N, D)` to every class: `(N, C)`.

        Args:
            embedding: unit embeddings.
            weights: `unit_weights()`, where they are known already.
        """
        weights = self.unit_weights() if weights is None else weights
        return embedding.mm(weights.T)

    def penalise(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """Target logit after the margin, unscaled: `(N,)`.

        Args:
            cosine: cosine to the target class, `(N,)`.
            norm: length of the raw feature, `(N,)`; only AdaFace looks at it.
        """
        raise NotImplementedError

    def observe(self, norm: Tensor) -> None:
        """Update running statistics from the feature norms `(N,)` of a training batch."""

    def forward(self, embedding: Tensor, norm: Tensor, target: Tensor) -> Tensor:
        """Scaled training logits `(N, C)` of unit embeddings `(N, D)`, norms `(N, 1)`."""
        norm = norm.flatten()
        if self.training:
            self.observe(norm)
        cosines = self.cosines(embedding)
        index = target[:, None]
        penalised = self.penalise(cosines.gather(1, index).squeeze(1), norm)
        return self.s * cosines.scatter(1, index, penalised[:, None])

    def hyperparameters(self) -> dict[str, float]:
        """What, beside the shape of the weights, rebuilds this head."""
        return {"s": self.s, "m": self.m}


class CosFace(MarginHead):
    """Additive cosine margin: `cos(theta) - m` (Wang et al., 2018, arXiv 1801.09414)."""

    kind = "cosface"

    def penalise(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return cosine - self.m


def _cos_of_shifted_angle(cosine: Tensor, shift: Tensor | float) -> Tensor:
    """`cos(theta + shift)` with the angle held in [0, pi], so that it stays monotone."""
    # acos has an infinite slope at +-1; stopping just short of it keeps gradients finite.
    theta = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    return torch.cos((theta + shift).clamp(0, math.pi))


class ArcFace(MarginHead):
    """Additive angular margin: `cos(theta + m)` (Deng et al., 2019, arXiv 1801.07698)."""

    kind = "arcface"

    def __init__(self, dim: int, classes: int, s: float = 64.0, m: float = 0.5):
        super().__init__(dim, classes, s, m)

    def penalise(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return _cos_of_shifted_angle(cosine, self.m)


def _all_processes(values: Tensor) -> Tensor:
    """The values `(N,)` of every process that trains this head, one after the other."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class AdaFace(MarginHead):
    """Margin that follows image quality, read off the feature norm (arXiv 2204.00964).

    `z = clip((norm - mean) / (std + eps) * h, -1, 1)`; the target logit becomes
    `cos(theta - m z) - (m + m z)`. `mean` and `std` are moving averages over training batches and
    stay frozen in evaluation mode.
    """

    kind = "adaface"

    def __init__(
        self,
        dim: int,
        classes: int,
        s: float = 64.0,
        m: float = 0.4,
        h: float = 0.333,
        t_alpha: float = 0.01,
    ):
        super().__init__(dim, classes, s, m)
        self.h, self.t_alpha = h, t_alpha
        # The starting values of the paper's code; any network leaves them within a few hundred
        # batches at t_alpha = 0.01.
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))
        self.norm_mean: Tensor
        self.norm_std: Tensor

    def penalise(self, cosine: Tensor, norm: Tensor) -> Tensor:
        norm = norm.detach().clamp(0.001, 100)
        z = ((norm - self.norm_mean) / (self.norm_std + 1e-3) * self.h).clamp(-1, 1)
        return _cos_of_shifted_angle(cosine, -self.m * z) - (self.m + self.m * z)

    @torch.no_grad()
    def observe(self, norm: Tensor) -> None:
        norm = _all_processes(norm.clamp(0.001, 100))
        self.norm_mean.lerp_(norm.mean(), self.t_alpha)
        self.norm_std.lerp_(norm.std(), self.t_alpha)

    def hyperparameters(self) -> dict[str, float]:
        return {"s": self.s, "m": self.m, "h": self.h, "t_alpha": self.t_alpha}


HEADS: dict[str, type[MarginHead]] = {head.kind: head for head in (CosFace, ArcFace, AdaFace)}


def build_head(kind: str, dim: int, classes: int, **hyperparameters: float) -> MarginHead:
    """Head by name: `cosface`, `arcface` or `adaface`, with its defaults unless overridden.

    Raises:
        ValueError: the name is none of these.
    """
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}; there are {', '.join(sorted(HEADS))}")
    return HEADS[kind](dim, classes, **hyperparameters)
