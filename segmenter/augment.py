"""Training augmentation for face parsing: geometry, light, loss of detail, occluders."""

import cv2
import numpy as np

from segmenter.labels import mirror_table

_MIRROR = mirror_table().numpy()
_BORDERS = (cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT)


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    other: np.ndarray,
    size: int,
    rng: np.random.Generator,
    aligned: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random view of a face and its labels, both `size` x `size`.

    Covers what a parser meets outside CelebAMask-HQ: loose and tight crops, rotation, mirrored
    faces (left and right classes change places), coloured and one-sided light, low resolution,
    blur, noise, JPEG, and occluders. `other` is a second face whose pixels texture the occluders.
    Occluders are labelled background: they are not part of the face. `image` is uint8 (H, W, 3)
    BGR, `mask` uint8 (H, W). `aligned` is the share of views that stay near the face's own place,
    as an aligned photograph does.
    """
    reach = 0.3 if rng.random() < aligned else 1.0
    image, mask = _warp(image, mask, size, reach, rng)
    if rng.random() < 0.35:
        image, mask = _occlude(image, mask, other, rng)
    pixels = _light(image.astype(np.float32), rng)
    pixels = _degrade(pixels, rng)
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


def _warp(
    image: np.ndarray, mask: np.ndarray, size: int, reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], _MIRROR[mask[:, ::-1]]
    zoom = np.exp(reach * rng.uniform(np.log(0.65), np.log(1.7)))
    angle = reach * (rng.normal(0, 12) if rng.random() < 0.9 else rng.uniform(-60, 60))
    aspect = np.exp(reach * rng.normal(0, 0.06))
    shear = reach * rng.normal(0, 0.05)
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2]
    matrix = turn @ np.array([[aspect, shear], [0, 1 / aspect]]) * zoom * size / width
    # A tight crop may wander further before the face leaves it.
    shift = reach * rng.uniform(-1, 1, 2) * 0.12 * max(zoom, 1.0) * size
    offset = size / 2 + shift - matrix @ [width / 2, height / 2]
    affine = np.concatenate([matrix, offset[:, None]], 1)
    border = _BORDERS[rng.integers(3)]
    colour = tuple(float(v) for v in rng.integers(0, 256, 3))
    image = cv2.warpAffine(
        np.ascontiguousarray(image), affine, (size, size), None, cv2.INTER_LINEAR, border, colour
    )
    mask = cv2.warpAffine(
        np.ascontiguousarray(mask), affine, (size, size), None, cv2.INTER_NEAREST, border, (0.0,)
    )
    return image, mask


def _occlude(
    image: np.ndarray, mask: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lay one or two textured blobs over the picture: polygons, ellipses, bars, face masks."""
    size = len(mask)
    image, mask = image.copy(), mask.copy()
    for _ in range(rng.integers(1, 3)):
        shape = np.zeros((size, size), np.uint8)
        centre = rng.uniform(0.15, 0.85, 2) * size
        radii = rng.uniform(0.06, 0.3, 2) * size
        kind = rng.integers(4)
        if kind == 0:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 9)))
            reach = rng.uniform(0.5, 1.2, len(angles))[:, None] * radii
            points = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(shape, [points.astype(np.int32)], 1)
        elif kind == 1:
            box = (tuple(centre.tolist()), tuple((2 * radii).tolist()), rng.uniform(0, 180))
            cv2.ellipse(shape, box, 1, -1)
        elif kind == 2:  # an arm, a microphone, a scarf
            ends = centre + rng.uniform(-1, 1, (2, 2)) * size
            width = int(rng.uniform(0.05, 0.22) * size)
            cv2.line(shape, ends[0].astype(int).tolist(), ends[1].astype(int).tolist(), 1, width)
        else:  # a surgical mask over the lower half of the face that is there
            ys, xs = np.nonzero((mask == 1) | (mask == 2))
            if len(ys) < 50:
                continue
            top = ys.mean() + rng.uniform(-0.05, 0.05) * size
            points = np.stack([xs, ys], 1)[ys > top]
            if len(points) < 3:
                continue
            cv2.fillConvexPoly(shape, cv2.convexHull(points.astype(np.int32)), 1)
        paint = _texture(other, size, rng)
        inside = shape.astype(bool)
        image[inside] = paint[inside]
        mask[inside] = 0
    return image, mask


def _texture(other: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        coarse = rng.normal(0, rng.uniform(0, 40), (rng.integers(1, 12), rng.integers(1, 12), 1))
        paint = rng.uniform(0, 255, 3) + cv2.resize(coarse, (size, size))[..., None]
        return np.clip(paint, 0, 255).astype(np.uint8)
    height, width = other.shape[:2]
    side = int(rng.integers(min(height, width) // 4, min(height, width)))
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return cv2.resize(np.ascontiguousarray(other[y : y + side, x : x + side]), (size, size))


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(pixels)
    if rng.random() < 0.8:
        pixels = 255 * np.power(pixels / 255, np.exp(rng.normal(0, 0.25)))
        mean = pixels.mean()
        pixels = (pixels - mean) * np.exp(rng.normal(0, 0.2)) + mean * np.exp(rng.normal(0, 0.2))
    if rng.random() < 0.6:
        grey = pixels.mean(2, keepdims=True)
        saturation = 0.0 if rng.random() < 0.15 else np.exp(rng.normal(0, 0.3))
        pixels = (grey + (pixels - grey) * saturation) * np.exp(rng.normal(0, 0.08, 3))
    if rng.random() < 0.25:  # one side in shadow
        angle = rng.uniform(0, 2 * np.pi)
        along = np.linspace(-1, 1, size)
        ramp = np.cos(angle) * along[None] + np.sin(angle) * along[:, None]
        edge = 1 / (1 + np.exp(-(ramp + rng.uniform(-0.3, 0.3)) * rng.uniform(1.5, 8)))
        pixels = pixels * (1 - rng.uniform(0.2, 0.75) * edge)[..., None]
    return pixels.astype(np.float32)


def _degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(pixels)
    if rng.random() < 0.35:
        low = max(16, int(size / rng.uniform(1.2, 4)))
        small = cv2.resize(pixels, (low, low), interpolation=cv2.INTER_AREA)
        pixels = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.1:
        length = int(rng.integers(3, 9))
        kernel = np.zeros((length, length), np.float32)
        direction = np.array([np.cos(a := rng.uniform(0, np.pi)), np.sin(a)]) * length / 2
        ends = (length / 2 + np.outer([-1, 1], direction)).astype(int)
        cv2.line(kernel, ends[0].tolist(), ends[1].tolist(), 1.0)
        pixels = cv2.filter2D(pixels, -1, kernel / max(kernel.sum(), 1.0))
    if rng.random() < 0.25:
        pixels = pixels + rng.normal(0, rng.uniform(1, 12), pixels.shape).astype(np.float32)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
        encoded = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), quality)[1]
        pixels = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.float32)
    return pixels
