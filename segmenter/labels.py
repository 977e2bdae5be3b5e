"""The nineteen face-parsing classes, and the orders in which files number them."""

import torch

CLASSES: tuple[str, ...] = (
    "background",
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)
"""Class names in CelebAMask-HQ order; a label map holds indices into this tuple.

`l_` and `r_` are the person's left and right (and `l_lip` is the lower lip): in the picture of a
face looking at the camera, `l_eye` lies to the right of `r_eye`.
"""

RARE_CLASSES: tuple[str, ...] = ("hat", "ear_r", "neck_l")
"""Classes present in few faces, left out of the mean over the sixteen common ones."""

# The order of the widely used BiSeNet weights (zllrunning, yakhyo).
_BISENET_CLASSES = (
    "background skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip "
    "neck neck_l cloth hair hat"
).split()

BISENET_TO_CELEBAMASK = torch.tensor([CLASSES.index(c) for c in _BISENET_CLASSES])
"""`BISENET_TO_CELEBAMASK[i]` is the CelebAMask-HQ label of BiSeNet's class i."""


def mirror_table() -> torch.Tensor:
    """Return the uint8 table (19,) that swaps left and right classes, for mirrored faces."""
    table = torch.arange(len(CLASSES), dtype=torch.uint8)
    for i, name in enumerate(CLASSES):
        if name[:2] in ("l_", "r_") and name not in ("l_lip",):
            table[i] = CLASSES.index(("r_" if name[0] == "l" else "l_") + name[2:])
    return table


def palette() -> torch.Tensor:
    """Return distinct BGR colours (19, 3), uint8, background black, for drawing label maps."""
    import cv2
    import numpy as np

    n = len(CLASSES) - 1
    hue = (np.arange(n) * 0.618034 % 1 * 180).astype(np.uint8)
    hsv = np.stack([hue, np.full(n, 200, np.uint8), np.where(np.arange(n) % 2, 255, 180)], 1)
    bgr = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2BGR)[0]
    return torch.from_numpy(np.concatenate([np.zeros((1, 3), np.uint8), bgr]))
