"""Searches for good masks over many regions: regions ranked once, then dropped in that order.

Ascending one flip at a time costs K scores a flip, too many where a recognizer is slow and regions
are dozens. These take about two scores a region, and are as good where regions add up.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Evaluate = Callable[[Any, Tensor], Any]
_BATCH = 64  # faces whose masks are scored at a time


def worth(outcome: Any) -> Tensor:
    """Order by reward, then by margin: margins lie within (-2, 2), rewards on a coarser grid."""
    return outcome.reward.double() + 1e-4 * outcome.masked.margin.double()


def best_masks(evaluate: Evaluate, indices: Tensor, bits: int) -> Tensor:
    """A good mask for each face, `(N, K)`.

    Regions are dropped in the order of what dropping each alone gains, as far as that is best.

    Args:
        evaluate: outcomes `(n, G)` of masks `(n, G, K)` on faces `(n,)`.
        indices: the faces `(N,)`.
        bits: K.
    """
    masks = []
    for part in indices.split(_BATCH):
        full, alone = _alone(evaluate, part, bits)
        tried = _prefixes(alone - full[:, None])
        best = worth(evaluate(part, tried)).argmax(1)
        masks.append(tried[torch.arange(len(part)), best])
    return torch.cat(masks)


def best_mask(evaluate: Evaluate, indices: Tensor, bits: int) -> Tensor:
    """A good mask for all faces together, `(K,)`.

    As `best_masks` on average; then every bit is flipped once more if that helps.
    """

    def mean(masks: Tensor) -> Tensor:
        parts = [evaluate(p, masks.expand(len(p), -1, -1)) for p in indices.split(_BATCH)]
        return torch.cat([worth(outcome) for outcome in parts]).mean(0)

    alone = mean(_each_dropped(bits))
    tried = _prefixes((alone[1:] - alone[0])[None])[0]
    values = mean(tried)
    best, mask = values.max(), tried[values.argmax()]
    for bit in range(bits):
        flipped = mask.clone()
        flipped[bit] ^= True
        value = mean(flipped[None])[0]
        if value > best:
            best, mask = value, flipped
    return mask


def _each_dropped(bits: int) -> Tensor:
    """Keep-all and then the masks that drop one region `(K + 1, K)`."""
    return torch.cat([torch.ones((1, bits), dtype=torch.bool), ~torch.eye(bits, dtype=torch.bool)])


def _alone(evaluate: Evaluate, indices: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Worth of keep-all `(N,)` and of dropping each region alone `(N, K)`."""
    value = worth(evaluate(indices, _each_dropped(bits).expand(len(indices), -1, -1)))
    return value[:, 0], value[:, 1:]


def _prefixes(gain: Tensor) -> Tensor:
    """Keep-all, and the masks that drop the 1, 2, ... bits of the highest gain `(n, K)` above 0.

    Returns:
        `(n, K + 1, K)`; those behind the last gain drop what the last one did.
    """
    many = torch.arange(gain.shape[1] + 1)[:, None]
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ~((rank[:, None] < many) & (gain > 0)[:, None])
