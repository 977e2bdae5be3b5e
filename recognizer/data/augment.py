"""Augmentation of whole batches of faces, as a function of uniform random numbers.

Flip, low resolution, crop and photometric changes follow AdaFace (arXiv 2204.00964), which SARFace
trains with. `erase` is this project's own: it prepares a recognizer for the holes that an agent
cuts, with connected blocks of a coarse grid in the colour that the network sees as zero.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of uint8 faces; every field but `fill` is a probability per image.

    Calling it takes the random numbers instead of a generator: a process of several draws those of
    the whole batch and uses its own rows, so that the result does not depend on their number.

    Attributes:
        flip: mirror left and right.
        low_resolution: shrink to 20-100 % and enlarge again, by a random kind of interpolation.
        crop: keep a rectangle of 20-100 % of the area where it is; the rest becomes black.
        photometric: scale brightness, contrast and saturation by 0.5-1.5.
        erase: fill 5-50 % of the image, in connected blobs on a grid of 14 x 14 cells.
        fill: colour of erased cells, BGR in 0-255.
    """

    flip: float = 0.5
    low_resolution: float = 0.0
    crop: float = 0.0
    photometric: float = 0.0
    erase: float = 0.0
    fill: tuple[float, float, float] = (127.5, 127.5, 127.5)

    COLUMNS: ClassVar[int] = 5 + 2 + 4 + 3 + 1 + 25

    def __post_init__(self) -> None:
        for name in ("flip", "low_resolution", "crop", "photometric", "erase"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, got {value}")

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augmented copies of uint8 BGR images `(N, 3, H, W)`.

        Args:
            images: on any device.
            uniform: random numbers in [0, 1), `(N, COLUMNS)`, on any device.
        """
        u = uniform.to(images.device)
        draws = u.split((5, 2, 4, 3, 1, 25), dim=1)
        images = images.clone()
        changes = (_flip, _low_resolution, _crop, _photometric)
        odds = (self.flip, self.low_resolution, self.crop, self.photometric)
        for column, (change, probability) in enumerate(zip(changes, odds, strict=True)):
            rows = (draws[0][:, column] < probability).nonzero().flatten()
            if len(rows):
                parameters = draws[column][rows]  # `_flip` needs none and ignores the first
                images[rows] = change(images[rows], parameters)
        rows = (draws[0][:, 4] < self.erase).nonzero().flatten()
        if len(rows):
            holes = blobs(draws[5][rows], 0.05 + 0.45 * draws[4][rows, 0], images.shape[2:])
            colour = images.new_tensor([round(c) for c in self.fill]).view(1, 3, 1, 1)
            images[rows] = torch.where(holes[:, None], colour, images[rows])
        return images


JITTERED = 6  # random numbers an image for `jitter`
_TURN, _SCALE, _SHIFT, _LIGHT = 5 * math.pi / 180, 0.06, 0.025, 0.2


def jitter(images: Tensor, uniform: Tensor, strength: float = 1.0) -> Tensor:
    """Aligned faces, a little out of place and in another light.

    They are turned by up to 5 degrees, scaled by up to 6 %, shifted by up to 2.5 % of the side, and
    brightness and contrast change by up to 20 %, all times the strength. Beyond the border its
    pixels are repeated.

    Args:
        images: uint8 `(N, 3, H, W)`.
        uniform: random numbers in [0, 1), `(N, JITTERED)`, on the same device.
        strength: 0 leaves the images as they are.
    """
    turn, scale, x, y, brightness, contrast = (strength * (2 * uniform - 1)).unbind(1)
    scale = 1 + _SCALE * scale
    cos, sin = scale * (_TURN * turn).cos(), scale * (_TURN * turn).sin()
    # In units of half a side, as grids count.
    rows = [cos, -sin, 2 * _SHIFT * x], [sin, cos, 2 * _SHIFT * y]
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (
        (1 + _LIGHT * change)[:, None, None, None] for change in (contrast, brightness)
    )
    lit = (moved - mean) * contrast + mean * brightness
    return lit.round_().clamp_(0, 255).to(torch.uint8)


def _flip(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(3)


def _low_resolution(images: Tensor, u: Tensor) -> Tensor:
    # A few sizes instead of one an image, so that images of one size are resized together.
    levels, kinds = torch.linspace(0.2, 1.0, 9)[:-1], ("nearest", "bilinear", "bicubic")
    group = (u[:, 0] * len(levels)).long() * len(kinds) + (u[:, 1] * len(kinds)).long()
    size = images.shape[2:]
    for number in group.unique().tolist():
        rows = (group == number).nonzero().flatten()
        scale, kind = levels[number // len(kinds)].item(), kinds[number % len(kinds)]
        small_size, smooth = [round(scale * s) for s in size], kind != "nearest"
        small = F.interpolate(images[rows].float(), small_size, mode=kind, antialias=smooth)
        large = F.interpolate(small, list(size), mode=kind, antialias=smooth)
        images[rows] = large.round_().clamp_(0, 255).to(torch.uint8)
    return images


def _crop(images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[2:]
    area, ratio = 0.2 + 0.8 * u[:, 0], (4 / 3) ** (2 * u[:, 1] - 1)
    h, w = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    y, x = (1 - h) * u[:, 2], (1 - w) * u[:, 3]
    rows = (torch.arange(height, device=u.device) + 0.5) / height
    columns = (torch.arange(width, device=u.device) + 0.5) / width
    inside_y = (rows >= y[:, None]) & (rows < (y + h)[:, None])
    inside_x = (columns >= x[:, None]) & (columns < (x + w)[:, None])
    return images * (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def _photometric(images: Tensor, u: Tensor) -> Tensor:
    brightness, contrast, saturation = (0.5 + u)[..., None, None, None].unbind(1)
    x = (images * brightness).clamp_(0, 255)
    x = torch.lerp(_grey(x).mean((1, 2, 3), keepdim=True), x, contrast).clamp_(0, 255)
    x = torch.lerp(_grey(x), x, saturation)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _grey(bgr: Tensor) -> Tensor:
    """Luma of ITU-R BT.601."""
    return (bgr * bgr.new_tensor([0.114, 0.587, 0.299]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blobs(u: Tensor, fraction: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Random connected shapes made of the cells of a 14 x 14 grid.

    A smooth random field is cut at the height that leaves the wanted fraction of cells above.

    Args:
        u: uniform random numbers `(N, 25)`, the field's values on a 5 x 5 lattice.
        fraction: share of cells to fill, `(N,)`.
        size: height and width of the result.

    Returns:
        bool `(N, H, W)`, True inside.
    """
    field = F.interpolate(u.view(-1, 1, 5, 5), (14, 14), mode="bicubic", align_corners=True)
    cells = field.flatten(1)
    place = (fraction * cells.shape[1]).long().clamp(1, cells.shape[1]) - 1
    threshold = cells.sort(dim=1, descending=True).values.gather(1, place[:, None])
    inside = (cells >= threshold).view(-1, 1, 14, 14).to(torch.uint8)
    return F.interpolate(inside, list(size)).squeeze(1).bool()
