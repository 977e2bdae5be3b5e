"""The canvas of the synthetic face world: shapes that carry colour and label together.

Every shape is filled once into a canvas of four channels, colour in the first three and a *code*
in the last, so the label map cannot disagree with the picture. A code is the CelebAMask-HQ class
(0 to 18) plus 32 times the kind of occluder (0 none). Left and right are the person's own, as in
CelebAMask-HQ: `l_eye` lies on the right-hand side of the image.

Coordinates are pixels of the 112 x 112 picture with the origin between nose and eyes, y down.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

SIZE = 112
SUPERSAMPLING = 2

(BACKGROUND, SKIN, NOSE, GLASSES, L_EYE, R_EYE, L_BROW, R_BROW, L_EAR, R_EAR) = range(10)
(MOUTH, U_LIP, L_LIP, HAIR, HAT, EARRING, NECKLACE, NECK, CLOTH) = range(10, 19)

_SHIFT = 4  # fractional bits of polygon vertices
_ANGLES = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


@lru_cache(maxsize=64)
def _spline_matrix(points: int, per_segment: int, closed: bool) -> np.ndarray:
    """Matrix from control points to samples of the Catmull-Rom spline through them."""
    t = np.arange(per_segment) / per_segment
    basis = 0.5 * np.stack(
        [
            -t + 2 * t**2 - t**3,
            2 - 5 * t**2 + 3 * t**3,
            t + 4 * t**2 - 3 * t**3,
            -(t**2) + t**3,
        ],
        1,
    )
    segments = points if closed else points - 1
    matrix = np.zeros((segments * per_segment + (not closed), points))
    for s in range(segments):
        for k in range(4):
            i = (s + k - 1) % points if closed else min(max(s + k - 1, 0), points - 1)
            matrix[s * per_segment : (s + 1) * per_segment, i] += basis[:, k]
    if not closed:
        matrix[-1, -1] = 1.0
    return matrix


def spline(points: object, per_segment: int = 5, closed: bool = True) -> np.ndarray:
    """Sample a Catmull-Rom spline through `points` (n, 2)."""
    p = np.asarray(points, float)
    return _spline_matrix(len(p), per_segment, closed) @ p


def mix(a: np.ndarray, b: object, t: float) -> np.ndarray:
    """Blend two colours: `a` at t = 0, `b` at t = 1."""
    return a + (np.asarray(b, float) - a) * t


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """The outline of an ellipse, (20, 2)."""
    p = CIRCLE * (rx, ry)
    if angle:
        c, s = np.cos(angle), np.sin(angle)
        p = p @ np.array([[c, s], [-s, c]])
    return p + np.array((x, y))


class Canvas:
    """A supersampled picture that carries colour and code together.

    `placement` maps face coordinates to canvas pixels. `code` overrides the class of whatever is
    drawn (a poster of a face is background), `kind` marks it as an occluder.
    """

    def __init__(self, pixels: np.ndarray, placement: np.ndarray) -> None:
        self.pixels = pixels
        self.placement = placement
        self.unit = float(np.hypot(placement[0, 0], placement[1, 0]))
        fixed = placement * (1 << _SHIFT)
        self._linear, self._offset = np.ascontiguousarray(fixed[:, :2].T), fixed[:, 2] + 0.5
        self.code: int | None = None
        self.kind = 0

    @classmethod
    def blank(cls, placement: np.ndarray) -> Canvas:
        """A black canvas."""
        side = SIZE * SUPERSAMPLING
        return cls(np.zeros((side, side, 4), np.uint8), placement)

    def at(self, placement: np.ndarray, code: int | None = None, kind: int = 0) -> Canvas:
        """The same pixels seen through another placement."""
        other = Canvas(self.pixels, placement)
        other.code, other.kind = code, kind
        return other

    def vertices(self, points: np.ndarray) -> np.ndarray:
        """Canvas coordinates of `points` as fixed-point integers."""
        return np.floor(points @ self._linear + self._offset).astype(np.int32)

    def scalar(self, colour: np.ndarray, label: int) -> tuple[float, float, float, float]:
        """The four channels of a shape."""
        code = (label if self.code is None else self.code) + 32 * self.kind
        return (*colour.tolist(), float(code))

    def draw(
        self, polygons: list[np.ndarray], colour: np.ndarray, label: int, width: float
    ) -> None:
        """Draw vertices: filled polygons when `width` is 0, else open lines."""
        scalar = self.scalar(colour, label)
        if width:
            thickness = max(1, round(width * self.unit))
            cv2.polylines(self.pixels, polygons, False, scalar, thickness, cv2.LINE_8, _SHIFT)
        else:
            cv2.fillPoly(self.pixels, polygons, scalar, cv2.LINE_8, _SHIFT)

    def fill(self, points: np.ndarray, colour: np.ndarray, label: int) -> None:
        """Fill a polygon (points, 2), or several that do not overlap (n, points, 2)."""
        v = self.vertices(points)
        self.draw([v] if v.ndim == 2 else list(v), colour, label, 0.0)

    def line(self, points: np.ndarray, colour: np.ndarray, label: int, width: float) -> None:
        """Draw an open line (points, 2) or several of them (n, points, 2)."""
        v = self.vertices(points)
        self.draw([v] if v.ndim == 2 else list(v), colour, label, width)

    def paste(
        self, points: np.ndarray, source: np.ndarray, table: np.ndarray | None = None
    ) -> None:
        """Copy `source`, a picture of the canvas's size, inside a polygon.

        With `table` (256, 4) the source is grey and each grey stands for a colour and code.
        """
        v = self.vertices(points)
        side = len(self.pixels)
        (x0, y0), (x1, y1) = v.min(0) >> _SHIFT, (v.max(0) >> _SHIFT) + 2
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, side), min(y1, side)
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        corner = np.array([x0, y0], np.int32) << _SHIFT
        cv2.fillPoly(mask, [v - corner], 1, cv2.LINE_8, _SHIFT)
        piece = source[y0:y1, x0:x1]
        if table is not None:
            piece = table[piece]
        area = self.pixels[y0:y1, x0:x1]
        area[...] = cv2.copyTo(np.ascontiguousarray(piece), mask, np.ascontiguousarray(area))


class Sketch:
    """Shapes to be moved by one transform and then drawn in their order.

    Moving all points of a face at once is several times faster than moving shape by shape.
    """

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._depths: list[np.ndarray] = []
        self._shapes: list[tuple[int, int, np.ndarray, int, float]] = []
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    def fill(
        self, points: np.ndarray, colour: np.ndarray, label: int, depth: float | np.ndarray = 0.0
    ) -> None:
        """Add a polygon (points, 2), or several of one colour (n, points, 2)."""
        self._add(points, colour, label, 0.0, depth)

    def line(
        self, points: np.ndarray, colour: np.ndarray, label: int, width: float, depth: float = 0.0
    ) -> None:
        """Add an open line (points, 2), or several of one colour (n, points, 2)."""
        self._add(points, colour, label, width, depth)

    def _add(
        self,
        points: np.ndarray,
        colour: np.ndarray,
        label: int,
        width: float,
        depth: float | np.ndarray,
    ) -> None:
        parts = 1 if points.ndim == 2 else len(points)
        flat = points.reshape(-1, 2)
        self._points.append(flat)
        self._depths.append(np.full(len(flat), depth))
        self._shapes.append((len(flat), parts, colour, label, width))
        self._arrays = None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All points (n, 2) and how far each sticks out of the face (n,)."""
        if self._arrays is None:
            self._arrays = np.concatenate(self._points), np.concatenate(self._depths)
        return self._arrays

    def draw(self, canvas: Canvas, vertices: np.ndarray) -> None:
        """Draw all shapes at the canvas vertices (n, 2) of their points."""
        start = 0
        for count, parts, colour, label, width in self._shapes:
            shape = vertices[start : start + count]
            start += count
            polygons = [shape] if parts == 1 else list(shape.reshape(parts, -1, 2))
            canvas.draw(polygons, colour, label, width)
