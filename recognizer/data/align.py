"""Alignment of faces from five points: left eye, right eye, nose, left and right mouth corner.

Left and right are those of the image. Alignment decides accuracy, so the templates are those that
recognizers were trained on.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Template:
    """Where the five points of a face belong in an aligned square image.

    Attributes:
        name: what errors and tables call it.
        size: side of the image in pixels.
        points: five `(x, y)` in pixels.
    """

    name: str
    size: int
    points: tuple[tuple[float, float], ...]

    def resized(self, size: int) -> np.ndarray:
        """The points in an image of another size, `(5, 2)`; pixel centres are whole numbers."""
        points = np.asarray(self.points, np.float64)
        return points if size == self.size else (points + 0.5) * (size / self.size) - 0.5


ARCFACE_112 = Template(
    "arcface_112",
    112,
    (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
)
"""The 112 x 112 crop of ArcFace, AdaFace and every `faces_*_112x112` set."""

RESNET29_150 = Template(
    "resnet29_150", 150, ((47.4, 46.6), (99.7, 46.7), (73.4, 75.2), (49.9, 103.4), (97.3, 103.5))
)
"""dlib's 150 x 150 face chip with 25 % padding: means of the five points over its own chips."""


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift that takes `source` points to `target` points.

    The solution of Umeyama (1991) in two dimensions, where it is one division of complex numbers;
    mirror images are not considered.

    Args:
        source: `(..., P, 2)`.
        target: `(..., P, 2)`, broadcast against `source`.

    Returns:
        float64 `(..., 2, 3)`, as `cv2.warpAffine` takes it.

    Raises:
        ValueError: wrong shapes, fewer than two points, points that are not finite or all equal.
    """
    for name, points in (("source", source), ("target", target)):
        if np.ndim(points) < 2 or np.shape(points)[-1] != 2 or np.shape(points)[-2] < 2:
            raise ValueError(f"{name} points must be (..., P, 2), P >= 2, got {np.shape(points)}")
        if not np.isfinite(points).all():
            raise ValueError(f"{name} points must be finite")
    s = np.asarray(source, np.float64) @ (1, 1j)
    t = np.asarray(target, np.float64) @ (1, 1j)
    s_mean, t_mean = s.mean(-1, keepdims=True), t.mean(-1, keepdims=True)
    s, t = s - s_mean, t - t_mean
    spread = (np.abs(s) ** 2).sum(-1)
    if (spread == 0).any():
        raise ValueError("the source points of a face are all equal")
    turn = (s.conj() * t).sum(-1) / spread
    shift = t_mean[..., 0] - turn * s_mean[..., 0]
    rows = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    return np.stack(np.broadcast_arrays(*rows), -1).reshape(*turn.shape, 2, 3)


def transform_points(points: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Apply affine matrices `(..., 2, 3)` to points `(..., P, 2)`."""
    matrices = np.asarray(matrices)
    linear = np.swapaxes(matrices[..., :2], -1, -2)
    return np.asarray(points) @ linear + matrices[..., None, :, 2]


def between(source: Template, target: Template) -> np.ndarray:
    """The `(2, 3)` matrix from images aligned to one template to another's.

    >>> between(ARCFACE_112, RESNET29_150).shape
    (2, 3)
    """
    return similarity_transform(source.resized(source.size), target.resized(target.size))


def warp_picture(picture: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Warp one picture `(H, W, 3)` by its matrix `(2, 3)` to `(size, size, 3)`.

    Large pictures are averaged down first, since every pixel of the result is interpolated from
    four of the picture's only.
    """
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        height, width = picture.shape[:2]
        smaller = max(1, round(2 * scale * width)), max(1, round(2 * scale * height))
        factor = np.array([width / smaller[0], height / smaller[1]])
        picture = cv2.resize(picture, smaller, interpolation=cv2.INTER_AREA)
        shift = matrix[:, 2] + matrix[:, :2] @ (0.5 * factor - 0.5)
        matrix = np.column_stack([matrix[:, :2] * factor, shift])
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR)


def warp(images: Tensor, matrices: np.ndarray, size: int) -> Tensor:
    """Warp every image by its matrix; pixels from outside the image are black.

    Args:
        images: uint8 `(N, 3, H, W)`.
        matrices: from image to result, `(N, 2, 3)` or one `(2, 3)` for all.
        size: side of the results.

    Returns:
        uint8 `(N, 3, size, size)`.

    Raises:
        ValueError: wrong type or shapes.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    n = len(images)
    matrices = np.asarray(matrices)
    if matrices.shape not in ((2, 3), (n, 2, 3)):
        raise ValueError(f"matrices must be (2, 3) or ({n}, 2, 3), got {matrices.shape}")
    matrices = np.broadcast_to(matrices, (n, 2, 3))
    result = np.empty((n, size, size, 3), np.uint8)
    pictures = np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))
    for picture, matrix, out in zip(pictures, matrices, result, strict=True):
        out[:] = warp_picture(picture, matrix, size)
    return torch.from_numpy(np.ascontiguousarray(result.transpose(0, 3, 1, 2))).to(images.device)


def align(
    images: Tensor,
    points: np.ndarray | Tensor,
    template: Template = ARCFACE_112,
    size: int | None = None,
) -> Tensor:
    """Align faces to a template by five points.

    Args:
        images: uint8 BGR `(N, 3, H, W)`.
        points: `(N, 5, 2)`, x and y in pixels of the images.
        template: where the points shall lie.
        size: side of the results, by default the template's own.

    Returns:
        uint8 BGR `(N, 3, size, size)`.

    Raises:
        ValueError: wrong type or shapes, or points that do not determine a transform.
    """
    points = np.asarray(points)
    if points.shape != (len(images), 5, 2):
        raise ValueError(f"points must be ({len(images)}, 5, 2), got {points.shape}")
    size = size or template.size
    return warp(images, similarity_transform(points, template.resized(size)), size)
