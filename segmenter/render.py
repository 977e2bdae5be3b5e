"""Pictures of label maps."""

import cv2
import numpy as np
import torch
from torch import Tensor

from segmenter.labels import palette


def colour_labels(labels: Tensor) -> Tensor:
    """Return label maps (N, H, W) as uint8 BGR pictures (N, 3, H, W)."""
    return palette()[labels.long()].movedim(-1, 1)


def contact_sheet(
    images: Tensor, maps: list[Tensor], columns: int = 8, cell: int = 128
) -> np.ndarray:
    """Return one uint8 BGR picture (H, W, 3): each face above its label maps, `columns` abreast.

    `images` uint8 (N, 3, H, W) BGR; each of `maps` uint8 (N, H, W).
    """
    stack = torch.stack([images, *(colour_labels(m) for m in maps)], 1)
    cells = stack.permute(0, 1, 3, 4, 2).numpy()
    rows = []
    for start in range(0, len(cells), columns):
        strips = [
            np.vstack([cv2.resize(picture, (cell, cell)) for picture in face])
            for face in cells[start : start + columns]
        ]
        strips += [np.zeros_like(strips[0])] * (columns - len(strips))
        rows.append(np.hstack(strips))
    return np.vstack(rows)
