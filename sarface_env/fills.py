"""Fills: what is put in place of dropped pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[float, float, float]
Fill = Callable[[Tensor, Tensor, Colour], Tensor]
"""`fill(images, keep, mean_colour)`: uint8 `(N, 3, H, W)`, bool `(N, H, W)`, BGR -> uint8."""


def zero(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """Black, as in the published method."""
    return images * keep[:, None]


def mean(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """The model's mean colour, which its normalisation maps to zero."""
    colour = torch.tensor(mean_colour, device=images.device).round().to(torch.uint8)
    return torch.where(keep[:, None], images, colour.view(1, 3, 1, 1))


def blur(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """The colour of the kept pixels around, blurred over about a quarter of the image."""
    weight = keep[:, None].float()
    size = images.shape[-1] // 8 * 2 + 1

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)

    colours, share = around(images * weight), around(weight)
    colour = torch.tensor(mean_colour, device=images.device).view(1, 3, 1, 1)
    # Far from everything kept, fade to the mean colour.
    smooth = (colours + 1e-3 * colour) / (share + 1e-3)
    return torch.where(keep[:, None], images, smooth.round().clamp(0, 255).to(torch.uint8))


FILLS: dict[str, Fill] = {"zero": zero, "mean": mean, "blur": blur}


def make_fill(name: str) -> Fill:
    """Fill by name.

    Raises:
        ValueError: the name is unknown; the message lists what exists.
    """
    if name not in FILLS:
        raise ValueError(f"unknown fill {name!r}; there are {', '.join(FILLS)}")
    return FILLS[name]
