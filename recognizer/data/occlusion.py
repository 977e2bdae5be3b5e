"""Occlusion of real faces for evaluation: seeded per image, with the exact occluder mask.

Shapes are designed on the 112 x 112 template and carried to every face by its five points, so a
mask sits on the nose and sunglasses on the eyes whatever the image's size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from recognizer.data.align import ARCFACE_112, Template, similarity_transform, transform_points

_SHIFT = 4  # fractional bits of polygon vertices


@dataclass(frozen=True)
class _Occluder:
    """Polygons on the template, what they are filled with, and lines that darken them."""

    outlines: list[np.ndarray]
    paint: np.ndarray | None  # (H, W, 3) in image pixels; None: the donor image, moved
    strokes: list[np.ndarray] = field(default_factory=list)


def occlude(
    images: Tensor,
    points: np.ndarray | Template,
    kind: str,
    seed: int = 0,
    severity: float = 1.0,
    indices: np.ndarray | None = None,
    donors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cover part of every face.

    Args:
        images: uint8 BGR `(N, 3, H, W)`; left unchanged.
        points: five points a face `(N, 5, 2)` in pixels, or the template the images are aligned to.
        kind: one of `OCCLUSIONS`. `"mixed"` chooses any other kind, or none, for each face.
        seed: with an image's index, decides everything about its occluder.
        severity: 1 is typical; sizes grow with it, from 0.25 to 2.
        indices: the images' numbers `(N,)`, by default `0 .. N - 1`. With them and `donors`, the
            result does not depend on how a set is cut into batches.
        donors: uint8 BGR `(M, 3, H, W)`, photographs that patches are cut from, by default
            `images` themselves. A face never gets a patch of an equal image.

    Returns:
        The occluded copies, uint8 BGR `(N, 3, H, W)`, and bool `(N, H, W)`, True on the occluder.

    Raises:
        ValueError: unknown kind, wrong shapes, or no donor that differs from an image.
    """
    if kind not in OCCLUSIONS:
        raise ValueError(f"unknown occlusion {kind!r}; there are {', '.join(OCCLUSIONS)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not 0.25 <= severity <= 2:
        raise ValueError(f"severity must be in [0.25, 2], got {severity}")
    n, _, height, width = images.shape
    if isinstance(points, Template):
        points = np.broadcast_to(points.resized(width), (n, 5, 2))
    indices = np.arange(n) if indices is None else np.asarray(indices)
    if np.shape(points) != (n, 5, 2) or indices.shape != (n,):
        raise ValueError(
            f"points must be ({n}, 5, 2) and indices ({n},), "
            f"got {np.shape(points)} and {indices.shape}"
        )
    source = images if donors is None else donors
    if source.dtype != torch.uint8 or source.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"donors must be uint8 (M, 3, {height}, {width}), "
            f"got {source.dtype} {tuple(source.shape)}"
        )
    to_image = similarity_transform(ARCFACE_112.resized(112), np.asarray(points))
    pictures = np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))
    masks = np.zeros((n, height, width), np.uint8)
    for i, picture in enumerate(pictures):
        rng = np.random.default_rng([seed, int(indices[i])])
        drawn = _draw(kind, rng)
        if drawn == "none":
            continue
        occluder = _KINDS[drawn](rng, severity, (height, width))
        paint = occluder.paint
        if paint is None:
            paint = _donor(images[i], source, rng)
        _lay_over(picture, masks[i], occluder, paint, to_image[i])
    occluded = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    return occluded.to(images.device), torch.from_numpy(masks).bool().to(images.device)


def kinds_drawn(kind: str, seed: int, indices: np.ndarray) -> list[str]:
    """What `occlude` covers the images with these numbers with: a kind each, or `none`."""
    return [_draw(kind, np.random.default_rng([seed, int(index)])) for index in indices]


def _draw(kind: str, rng: np.random.Generator) -> str:
    return _CHOICES[rng.integers(len(_CHOICES))] if kind == "mixed" else kind


def _lay_over(
    picture: np.ndarray, mask: np.ndarray, what: _Occluder, paint: np.ndarray, to_image: np.ndarray
) -> None:
    """Draw an occluder into `picture` and its area into `mask`, both in place."""
    for outline in what.outlines:
        cv2.fillPoly(mask, [_fixed(outline, to_image)], 1, cv2.LINE_8, _SHIFT)
    if what.strokes:
        dark = np.zeros_like(mask)
        width = max(1, round(1.2 * float(np.hypot(*to_image[:, 0]))))
        lines = [_fixed(stroke, to_image) for stroke in what.strokes]
        cv2.polylines(dark, lines, False, 1, width, cv2.LINE_8, _SHIFT)
        paint = np.where(dark[..., None] > 0, paint * 0.72, paint).astype(np.uint8)
    np.copyto(picture, paint, where=mask[..., None].astype(bool))


def _fixed(points: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    return np.rint(transform_points(points, to_image) * (1 << _SHIFT)).astype(np.int32)


def _donor(image: Tensor, donors: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Another photograph, shifted about and perhaps mirrored, (H, W, 3)."""
    start = int(rng.integers(len(donors)))
    for k in range(len(donors)):
        donor = donors[(start + k) % len(donors)]
        if not torch.equal(donor, image):
            picture = donor.cpu().numpy().transpose(1, 2, 0)
            shift = rng.integers(-30, 31, 2) * picture.shape[0] // 150
            picture = np.roll(picture, shift, (0, 1))
            return picture[:, ::-1] if rng.random() < 0.5 else picture
    raise ValueError("patches need a donor image that differs from the face; pass donors=")


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random pattern between two colours, unevenly lit, uint8 (H, W, 3)."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(size)
    kind, angle, period = rng.integers(4), rng.uniform(0, np.pi), rng.uniform(0.05, 0.2)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    if kind == 0:
        weight = (np.sin(2 * np.pi * along) > 0).astype(np.float32)
    elif kind == 1:
        across = (y * np.cos(angle) - x * np.sin(angle)) / period
        weight = ((np.floor(along) + np.floor(across)) % 2).astype(np.float32)
    else:
        cells = int(rng.integers(3, 6) if kind == 2 else rng.integers(12, 40))
        noise = rng.random((cells, cells), np.float32)
        weight = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    colours = rng.uniform(10, 245, (2, 3)).astype(np.float32)
    light = 1 + rng.uniform(-0.35, 0.35) * (2 * x - 1) + rng.uniform(-0.35, 0.35) * (2 * y - 1)
    texture = (colours[0] + (colours[1] - colours[0]) * weight[..., None]) * light[..., None]
    return _grain(texture, 4, rng)


def _cloth(colour: np.ndarray, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """One colour, unevenly lit, uint8 (H, W, 3)."""
    x = np.linspace(-1, 1, size[1], dtype=np.float32)
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    light = 1 + rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.2, 0.2) * y
    return _grain(colour.astype(np.float32) * light[..., None], 3, rng)


def _grain(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    noise = strength * rng.standard_normal(picture.shape[:2], np.float32)
    return np.clip(picture + noise[..., None], 0, 255).astype(np.uint8)


def _turned(points: np.ndarray, angle: float, centre: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + centre


def _patch(rng: np.random.Generator, severity: float, size: tuple[int, int]) -> _Occluder:
    half = rng.uniform((18.5, 13.0), (33.5, 22.5)) * severity
    centre = np.array([rng.uniform(44, 68), rng.choice([rng.uniform(38, 52), rng.uniform(78, 94)])])
    corners = np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)]) * half
    return _Occluder([_turned(corners, rng.normal(0, 0.15), centre)], None)


def _object(rng: np.random.Generator, severity: float, size: tuple[int, int]) -> _Occluder:
    centre = rng.uniform((28, 38), (84, 96))
    if rng.random() < 0.4:  # an arm that comes in from the side or from below
        half = rng.uniform(9, 14) * severity
        angle = rng.uniform(-0.5, np.pi + 0.5)
        arm = np.array([(-half, half), (-half, -half), (160, -1.2 * half), (160, 1.2 * half)])
        return _Occluder([_turned(arm, angle, centre)], _texture(rng, size))
    corners = int(rng.integers(4, 9))
    angles = np.sort(
        rng.uniform(0, 2 * np.pi / corners, corners) + np.arange(corners) * 2 * np.pi / corners
    )
    radii = rng.uniform(17, 32, corners) * severity
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1) + centre
    return _Occluder([outline], _texture(rng, size))


def _sunglasses(rng: np.random.Generator, severity: float, size: tuple[int, int]) -> _Occluder:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    roundness = rng.uniform(0.55, 1.0)
    lens = np.sign(circle) * np.abs(circle) ** roundness
    lens = lens * (rng.uniform(11.5, 15), rng.uniform(8, 12)) * (0.6 + 0.4 * severity)
    left, right = np.array([38.3, 52.5]), np.array([73.5, 52.5])
    reach = float(lens[:, 0].max())
    bridge = np.array([(36.0, 48.5), (76.0, 48.5), (76.0, 51.5), (36.0, 51.5)])
    arms = []
    for eye, side in ((left, -1), (right, 1)):
        a, b = eye[0] + side * (reach - 2), eye[0] + side * (reach + 16)
        arms.append(np.array([(a, 47.5), (b, 46.0), (b, 48.5), (a, 51.0)]))
    dark = np.full(3, rng.uniform(8, 45)) + rng.uniform(0, 18, 3)
    outlines = [lens + left, lens + right, bridge, *arms]
    return _Occluder(outlines, _cloth(dark, rng, size))


def _mask(rng: np.random.Generator, severity: float, size: tuple[int, int]) -> _Occluder:
    top = rng.uniform(60, 66) - 8 * (severity - 1)
    low = rng.uniform(112, 118)
    half = [(13.0, top + 3), (34.0, top + 3.5), (48.0, top - 3), (56.0, top - 5)]
    edge = half + [(112 - x, y) for x, y in half[-2::-1]]
    chin = [(97.0, 90.0), (84.0, low - 9), (68.0, low), (44.0, low), (28.0, low - 9), (15.0, 90.0)]
    outline = np.array(edge + chin)
    straps = [np.array([(14, top + 4), (-6, top - 10), (-6, top - 12), (14, top + 1)])]
    straps.append(straps[0] * (-1, 1) + (112, 0))
    palette = np.array([(214, 190, 150), (235, 235, 235), (40, 38, 38), (190, 170, 225)], float)
    colour = palette[rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])] + rng.uniform(-15, 10, 3)
    paint = _texture(rng, size) if rng.random() < 0.4 else _cloth(colour, rng, size)
    folds = [np.array([(16, y + 2), (56, y), (96, y + 2)]) for y in (top + 15, top + 24, top + 33)]
    return _Occluder([outline, *straps], paint, folds)


def _scarf(rng: np.random.Generator, severity: float, size: tuple[int, int]) -> _Occluder:
    top = rng.uniform(92, 101) - 10 * (severity - 1)
    edge = np.array(
        [(-40, top - 18), (8, top - 8), (34, top), (56, top + 2), (78, top), (104, top - 8)]
    )
    rest = np.array([(152, top - 18), (152, 220), (-40, 220)])
    folds = [edge + (0, 7.0 * k + rng.uniform(-2, 2)) for k in (1, 2, 3)]
    return _Occluder([np.concatenate([edge, rest])], _texture(rng, size), folds)


_KINDS: dict[str, Callable[[np.random.Generator, float, tuple[int, int]], _Occluder]] = {
    "patch": _patch,
    "object": _object,
    "sunglasses": _sunglasses,
    "mask": _mask,
    "scarf": _scarf,
}
_CHOICES = (*_KINDS, "none")
OCCLUSIONS = (*_KINDS, "mixed")
