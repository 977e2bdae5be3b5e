"""From a flat drawing of the synthetic face world to a lit photograph and its label map."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np

from recognizer.data.faceworld.canvas import (
    CLOTH,
    HAIR,
    HAT,
    L_EYE,
    L_LIP,
    NECK,
    NECKLACE,
    NOSE,
    SIZE,
    SKIN,
)
from recognizer.data.faceworld.people import Identity, Pose


class Camera(Protocol):
    """What of the configuration the photograph depends on."""

    @property
    def lighting(self) -> float: ...

    @property
    def noise(self) -> float: ...


def majority(codes: np.ndarray) -> np.ndarray:
    """The code that covers most of every 2 x 2 block."""
    a, b, c, d = codes[::2, ::2], codes[::2, 1::2], codes[1::2, ::2], codes[1::2, 1::2]
    result = a.copy()
    alone = np.nonzero((a != b) & (a != c) & (a != d))
    b, c, d = b[alone], c[alone], d[alone]
    result[alone] = np.where((b == c) | (b == d), b, np.where(c == d, c, a[alone]))
    return result


@lru_cache(maxsize=1)
def _groups() -> np.ndarray:
    """Which codes take the shading of the face, the neck and the hair: (3, 256) of 0 or 1."""
    groups = np.zeros((3, 256), np.float32)
    groups[0, [SKIN, NOSE, *range(L_EYE, L_LIP + 1)]] = 1  # eyes, brows, ears, mouth, lips
    groups[0, [L_EYE, L_EYE + 1]] = 0.6
    groups[1, [NECK, CLOTH, NECKLACE]] = 1, 0.35, 0.5
    groups[2, [HAIR, HAT]] = 1, 0.8
    return groups


_RAMP = np.linspace(-1, 1, SIZE, dtype=np.float32)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Normal noise to cut pieces from; drawing it anew for every picture costs too much time."""
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


@lru_cache(maxsize=1)
def _half_grid() -> np.ndarray:
    """Canvas coordinates of every second pixel of the picture, (2, 56 * 56)."""
    y, x = np.mgrid[: SIZE // 2, : SIZE // 2].astype(np.float32) * 4 + 2
    return np.stack([x.ravel(), y.ravel()])


def photograph(
    pixels: np.ndarray,
    codes: np.ndarray,
    who: Identity,
    pose: Pose,
    rng: np.random.Generator,
    camera: Camera,
) -> np.ndarray:
    """Shade the flat picture as if lit, and take it with a real camera."""
    u = rng.uniform(-1, 1, 8).astype(np.float32)
    half = SIZE // 2
    inverse = cv2.invertAffineTransform(pose.placement()).astype(np.float32)
    gx, gy = inverse[:, :2] @ _half_grid() + inverse[:, 2:]
    side_light = 0.16 * camera.lighting * u[0]

    blobs = _relief(who, pose)
    bumps = (gx - blobs[:, :1]) * (1 / blobs[:, 2:3])
    dy = (gy - blobs[:, 1:2]) * (1 / blobs[:, 3:4])
    bumps *= bumps
    dy *= dy
    bumps += dy
    bumps = cv2.exp(np.negative(bumps, out=bumps))  # several times faster than numpy's
    across = np.clip(gx / who.half_width, -1.3, 1.3)
    form = blobs[:, 4] @ bumps - 0.2 * across**4 + side_light * across + 0.04
    under_chin = -0.34 / (1 + np.exp((gy - who.chin - 5) / 2.5)) + 0.12 * side_light * across
    gloss = 0.22 * np.exp(-(((gy - who.top - 9) / 6) ** 2)) - 0.1 * across**2 + side_light * across
    fields = np.stack([form, under_chin, gloss, bumps[-2] + bumps[-1]], -1)
    fields = cv2.resize(fields.reshape(half, half, 4), (SIZE, SIZE))

    groups = _groups()
    face = cv2.LUT(codes, groups[0])
    gain = 1 + face * fields[..., 0]
    gain += cv2.LUT(codes, groups[1]) * fields[..., 1]
    gain += cv2.LUT(codes, groups[2]) * fields[..., 2]
    slope = 0.22 * camera.lighting
    gain *= (1 + slope * u[1] * _RAMP) * (1 + slope * u[2] * _RAMP)[:, None]
    tint = (1 + camera.lighting * (0.18 * u[3] - 0.03 + 0.06 * u[4:7])).tolist()
    pale = gain * (1 - np.float32(who.blush) * face * fields[..., 3])  # blood absorbs blue, green
    gains = cv2.merge([pale * tint[0], pale * tint[1], gain * tint[2]])
    small = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    image: np.ndarray = cv2.cvtColor(small, cv2.COLOR_BGRA2BGR).astype(np.float32)
    image *= gains

    if camera.noise:
        sigma = camera.noise * max(0.0, rng.random() * 2.0 - 0.9)
        if sigma > 0.25:
            image = cv2.GaussianBlur(image, (5, 5), sigma)
        pool = _grain()
        start = int(rng.integers(len(pool) - image.size))
        strength = camera.noise * (0.5 + 4 * rng.random() ** 2)
        grain = pool[start : start + image.size].reshape(image.shape)
        image = cv2.scaleAdd(grain, strength, image)
    return cv2.convertScaleAbs(image)  # the little that noise puts below black is mirrored


def _relief(who: Identity, pose: Pose) -> np.ndarray:
    """Lit and shaded bumps of a face: x, y, radii and strength, (n, 5); cheeks come last."""
    tip, eye_y, mouth = who.nose_tip, who.eye_y, who.mouth_y
    both = [
        (who.eye_x, eye_y - 2.0, 7.5, 4.5, -who.socket),
        (who.eye_x * 0.45, eye_y + 1.0, 3.0, 5.0, -0.1),
        (who.nose_width + 1.5, tip - 1.0, 2.2, 4.0, -0.09),
        (who.mouth_width + 2.0, mouth, 2.5, 3.0, -0.06),
        (17.0, tip - 2.0, 7.0, 6.0, 0.07),
    ]
    middle = [
        (0.0, -25.0, 15.0, 9.0, 0.07),
        (0.0, eye_y + 6.0, 1.8, 9.0, 0.09),
        (0.0, tip - 0.5, 2.6, 2.2, 0.12),
        (0.0, tip + 4.5, 5.0, 2.0, -0.12),
        (0.0, mouth + who.lower_lip + 3.0, 6.5, 2.0, -0.12),
        (0.0, who.chin - 5.0, 5.5, 3.5, 0.06),
        (0.0, mouth + 4.0, who.half_width * 0.75, 12.0, -who.stubble),
        (0.0, who.chin + 2.0, 30.0, 6.0, -0.12),
    ]
    cheeks = [(17.0, 10.0, 8.0, 6.0, 0.0), (-17.0, 10.0, 8.0, 6.0, 0.0)]
    rows = np.array(middle + both + [(-x, *rest) for x, *rest in both] + cheeks)
    rows[:, :2] = pose.turned(rows[:, :2], who.half_width, 2.0)
    return rows.astype(np.float32)
