"""Hand-drawn faces whose labels are known."""

import cv2
import numpy as np

from segmenter.labels import CLASSES, palette


def draw_labels(size: int = 64, glasses: bool = False, eyes: bool = True) -> np.ndarray:
    """A frontal face; in units of the side: eyes at (.35, .4), (.65, .4), mouth (.4-.6, .72)."""
    mask = np.zeros((size, size), np.uint8)

    def ellipse(name: str, x: float, y: float, rx: float, ry: float) -> None:
        centre = (round(x * size), round(y * size))
        axes = (max(1, round(rx * size)), max(1, round(ry * size)))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, CLASSES.index(name), -1)

    ellipse("hair", 0.5, 0.35, 0.42, 0.34)
    ellipse("skin", 0.5, 0.55, 0.33, 0.4)
    ellipse("nose", 0.5, 0.53, 0.05, 0.1)
    if eyes:  # the person's right eye is on the left of the picture
        ellipse("r_eye", 0.35, 0.4, 0.06, 0.03)
        ellipse("l_eye", 0.65, 0.4, 0.06, 0.03)
    if glasses:
        ellipse("eye_g", 0.35, 0.4, 0.12, 0.08)
        ellipse("eye_g", 0.65, 0.4, 0.12, 0.08)
    ellipse("l_lip", 0.5, 0.72, 0.1, 0.03)
    return mask


def draw_face(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """A BGR picture in which every class has a colour of its own, and noise."""
    noise = np.random.default_rng(seed).normal(0, 8, (*mask.shape, 3))
    return np.clip(palette().numpy()[mask] + noise, 0, 255).astype(np.uint8)


def write_compact(root, count: int, size: int = 64) -> None:
    """A data set in the compact folder form: faces shifted a little from one to the next."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for index in range(count):
        mask = np.roll(
            draw_labels(size, glasses=index % 3 == 0), (index % 5 - 2, index % 7 - 3), (0, 1)
        )
        cv2.imwrite(str(root / "images" / f"{index:04d}.png"), draw_face(mask, index))
        cv2.imwrite(str(root / "masks" / f"{index:04d}.png"), mask)
