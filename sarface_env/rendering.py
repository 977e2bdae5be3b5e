"""Pictures of faces, their regions in a fixed palette, and what a mask keeps."""

import colorsys

import cv2
import numpy as np
import torch
from torch import Tensor

from sarface_env.core import RegionSelection

_SCALE = 3
_LEGEND = 150


def palette(regions: int) -> np.ndarray:
    """One RGB colour a region, uint8 `(R, 3)`: the golden angle around the hue circle."""
    colours = [
        colorsys.hsv_to_rgb((0.1 + 0.618034 * i) % 1, 0.45 + 0.2 * (i % 3), 0.95 - 0.18 * (i % 2))
        for i in range(regions)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8)


def panels(core: RegionSelection, indices: Tensor, masks: Tensor) -> list[list[np.ndarray]]:
    """For every face its image, its coloured regions and its masked image: uint8 RGB `(H, W, 3)`.

    Args:
        core: holds the faces.
        indices: faces `(N,)`.
        masks: keep bits `(N, K)`.
    """
    colours = palette(len(core.partition.names))
    images = core.faces.images[indices]
    masked = core.apply(indices, masks).cpu()
    regions = colours[core.regions(indices).numpy()]
    rgb = [x.flip(1).permute(0, 2, 3, 1).numpy() for x in (images, masked)]
    return [[rgb[0][i], regions[i], rgb[1][i]] for i in range(len(indices))]


def render_faces(core: RegionSelection, indices: Tensor, masks: Tensor | None) -> list[np.ndarray]:
    """One frame a face: the image, its regions with a legend, and what was kept, side by side.

    Args:
        core: holds the faces.
        indices: faces `(N,)`.
        masks: keep bits `(N, K)`; None before a decision, when everything is kept.
    """
    if masks is None:
        masks = torch.ones((len(indices), core.bits), dtype=torch.bool)
    present = core.region_pixels(indices) > 0
    kept = core.partition.region_bits(masks)
    frames = []
    for i, parts in enumerate(panels(core, indices, masks)):
        big = [
            cv2.resize(p, None, fx=_SCALE, fy=_SCALE, interpolation=cv2.INTER_NEAREST)
            for p in parts
        ]
        legend = _legend(core, present[i].tolist(), kept[i].tolist(), big[0].shape[0])
        frames.append(np.concatenate([big[0], big[1], legend, big[2]], 1))
    return frames


def _legend(
    core: RegionSelection, present: list[bool], kept: list[bool], height: int
) -> np.ndarray:
    """Names of the regions a face has, in their colours; dropped ones are struck out."""
    colours = palette(len(core.partition.names))
    image = np.full((height, _LEGEND, 3), 255, np.uint8)
    shown = [r for r, here in enumerate(present) if here]
    line = min(14, height // max(len(shown), 1))
    # Below this, names overlap: a fine grid shows its colours alone.
    if line < 8:
        return image[:, :0]
    for row, region in enumerate(shown):
        y = row * line
        colour = tuple(int(c) for c in colours[region])
        cv2.rectangle(image, (4, y + 2), (12, y + line - 3), colour, -1)
        text = core.partition.names[region]
        ink = (0, 0, 0) if kept[region] else (150, 150, 150)
        place = (16, y + line - 4)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.34, ink, 1, cv2.LINE_AA)
        if not kept[region]:
            cv2.line(image, (15, y + line // 2), (16 + 6 * len(text), y + line // 2), (200, 0, 0))
    return image
