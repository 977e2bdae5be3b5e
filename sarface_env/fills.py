"""Fills: what is put in place of dropped pixels."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[float, float, float]
Fill = Callable[[Tensor, Tensor, Colour], Tensor]
"""`fill(images, keep, mean_colour)`: uint8 `(N, 3, H, W)`, `(N, H, W)`, BGR -> uint8.

`keep` is bool, or uint8 with 255 for kept pixels and 0 for dropped ones, which is faster. The
images may be overwritten.
"""


def zero(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """Black, as in the published method."""
    return images.bitwise_and_(_bits(keep))


def mean(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """The model's mean colour, which its normalisation maps to zero."""
    colour = _bytes(mean_colour, images.device)
    # Ten times faster than `where`, which branches on every pixel.
    return images.bitwise_xor_(colour).bitwise_and_(_bits(keep)).bitwise_xor_(colour)


@functools.cache
def _bytes(colour: Colour, device: torch.device) -> Tensor:
    return torch.tensor(colour, device=device).round().to(torch.uint8).view(1, 3, 1, 1)


def _bits(keep: Tensor) -> Tensor:
    """255 where pixels are kept, `(N, 1, H, W)` uint8, else 0."""
    return (keep.view(torch.uint8).neg() if keep.dtype == torch.bool else keep)[:, None]


def blur(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """The colour of the kept pixels around, blurred over about a quarter of the image."""
    keep = keep.bool()
    weight = keep[:, None].float()
    size = images.shape[-1] // 8 * 2 + 1

    def around(x: Tensor) -> Tensor:
        # Down and then across: far fewer additions than over a square, and the same mean.
        x = F.avg_pool2d(x, (size, 1), 1, (size // 2, 0), count_include_pad=False)
        return F.avg_pool2d(x, (1, size), 1, (0, size // 2), count_include_pad=False)

    colours, share = around(images * weight), around(weight)
    colour = torch.tensor(mean_colour, device=images.device).view(1, 3, 1, 1)
    # Far from everything kept, fade to the mean colour.
    smooth = (colours + 1e-3 * colour) / (share + 1e-3)
    return torch.where(keep[:, None], images, smooth.round().clamp(0, 255).to(torch.uint8))


def inpaint(images: Tensor, keep: Tensor, mean_colour: Colour) -> Tensor:
    """Telea's inpainting (2004) from the edges of what is kept, by OpenCV.

    Slow, and on the CPU wherever the images are: with 30 % dropped, a thread fills about 170
    images of 112 x 112 a second, or 95 of 150 x 150. An image of which nothing is kept becomes the
    mean colour.
    """
    filled = mean(images.clone(), keep, mean_colour)
    holes = (keep == 0).to(torch.uint8).cpu().numpy()
    todo = np.flatnonzero(holes.any((1, 2)) & ~holes.all((1, 2)))
    if not len(todo):
        return filled
    pictures = np.ascontiguousarray(images.cpu().numpy()[todo].transpose(0, 2, 3, 1))

    def work(row: int) -> np.ndarray:
        return cv2.inpaint(pictures[row], holes[todo[row]], 3, cv2.INPAINT_TELEA)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = np.stack(list(pool.map(work, range(len(todo)))))
    filled[torch.from_numpy(todo)] = torch.from_numpy(done).permute(0, 3, 1, 2).to(images.device)
    return filled


FILLS: dict[str, Fill] = {"zero": zero, "mean": mean, "blur": blur, "inpaint": inpaint}


def make_fill(name: str) -> Fill:
    """Fill by name.

    Raises:
        ValueError: the name is unknown; the message lists what exists.
    """
    if name not in FILLS:
        raise ValueError(f"unknown fill {name!r}; there are {', '.join(FILLS)}")
    return FILLS[name]
