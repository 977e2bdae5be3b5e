"""Drawing one face of the synthetic face world: identity, pose, and the parts of the inner face.

Every shape is filled once into a canvas of four channels, colour in the first three and a *code*
in the last, so the label map cannot disagree with the picture. A code is the CelebAMask-HQ class
(0 to 18) plus 32 times the kind of occluder (0 none). Left and right are the person's own, as in
CelebAMask-HQ: `l_eye` lies on the right-hand side of the image.

Coordinates are pixels of the 112 x 112 picture with the origin between nose and eyes, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

SIZE = 112
SUPERSAMPLING = 2
CENTRE = (56.0, 57.0)

(BACKGROUND, SKIN, NOSE, GLASSES, L_EYE, R_EYE, L_BROW, R_BROW, L_EAR, R_EAR) = range(10)
(MOUTH, U_LIP, L_LIP, HAIR, HAT, EARRING, NECKLACE, NECK, CLOTH) = range(10, 19)

_SHIFT = 4  # fractional bits of polygon vertices
_ANGLES = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


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
    p = _CIRCLE * (rx, ry)
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
        p = points @ self.placement[:, :2].T + self.placement[:, 2]
        return np.rint(p * (1 << _SHIFT)).astype(np.int32)

    def scalar(self, colour: np.ndarray, label: int) -> tuple[float, float, float, float]:
        """The four channels of a shape."""
        code = (label if self.code is None else self.code) + 32 * self.kind
        return float(colour[0]), float(colour[1]), float(colour[2]), float(code)

    def fill(self, points: np.ndarray, colour: np.ndarray, label: int) -> None:
        """Fill a polygon (points, 2)."""
        cv2.fillPoly(
            self.pixels, [self.vertices(points)], self.scalar(colour, label), cv2.LINE_8, _SHIFT
        )

    def fill_many(self, shapes: np.ndarray, colour: np.ndarray, label: int) -> None:
        """Fill shapes (n, points, 2) that do not overlap in one call."""
        cv2.fillPoly(
            self.pixels, list(self.vertices(shapes)), self.scalar(colour, label), cv2.LINE_8, _SHIFT
        )

    def line(self, points: np.ndarray, colour: np.ndarray, label: int, width: float) -> None:
        """Draw an open line (points, 2) or several of them (n, points, 2)."""
        lines = [self.vertices(points)] if points.ndim == 2 else list(self.vertices(points))
        thickness = max(1, round(width * self.unit))
        cv2.polylines(
            self.pixels, lines, False, self.scalar(colour, label), thickness, cv2.LINE_8, _SHIFT
        )

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


@dataclass(frozen=True)
class Identity:
    """What makes a person: lengths in pixels of the 112 x 112 picture, colours in BGR."""

    # outline
    half_width: float
    top: float
    chin: float
    cheek: float
    jaw: float
    chin_width: float
    ear: float
    # eyes and brows
    eye_x: float
    eye_y: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    iris: float
    brow_lift: float
    brow_length: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    # nose and mouth
    nose_bridge: float
    nose_width: float
    nose_tip: float
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    bow: float
    # colours
    skin: np.ndarray
    iris_colour: np.ndarray
    brow_colour: np.ndarray
    lip_colour: np.ndarray
    blush: float
    stubble: float
    socket: float
    folds: float
    # persistent marks of the skin: x, y, radius, darkness
    moles: np.ndarray
    freckles: np.ndarray
    birthmark: np.ndarray  # outline, possibly empty
    birthmark_colour: np.ndarray
    scar: np.ndarray  # a line, possibly empty

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Identity:
        """Draw a person."""
        u = rng.uniform
        skin = _skin_tone(rng)
        half_width, chin = u(26.5, 33.5), u(34.0, 42.0)
        irises = np.array(
            [(34, 50, 74), (28, 66, 100), (58, 104, 116), (150, 116, 72), (96, 128, 84)]
        )
        iris_colour = irises[rng.choice(5, p=[0.3, 0.2, 0.15, 0.2, 0.15])] * u(0.75, 1.25)
        brows = np.array(
            [(22, 22, 28), (34, 46, 66), (60, 94, 130), (40, 62, 118), (120, 126, 132)]
        )
        lip = mix(skin * (0.62, 0.60, 0.84), (82, 70, 176), u(0.0, 0.55))
        freckles = np.zeros((0, 4))
        if rng.random() < 0.4:
            n = int(rng.integers(25, 60))
            side = rng.choice([-1.0, 1.0], n)
            freckles = np.stack(
                [
                    side * rng.normal(13, 6, n),
                    rng.normal(6, 6, n),
                    u(0.35, 0.7, n),
                    u(0.72, 0.86, n),
                ],
                1,
            )
        n = int(rng.integers(2, 7))
        around, radius = u(0, 2 * np.pi, n), np.sqrt(u(0.2, 0.85, n))
        moles = np.stack(
            [
                half_width * radius * np.cos(around),
                32 * radius * np.sin(around),
                u(0.7, 1.5, n),
                u(0.32, 0.62, n),
            ],
            1,
        )
        birthmark = np.zeros((0, 2))
        if rng.random() < 0.3:
            x, y = rng.choice([-1, 1]) * u(12, 22), rng.choice([u(-30, -18), u(5, 28)])
            radii = u(2.5, 6.5) * u(0.6, 1.25, 7)
            t = np.linspace(0, 2 * np.pi, 7, endpoint=False)
            birthmark = spline(np.stack([x + radii * np.cos(t), y + radii * np.sin(t)], 1), 4)
        scar = np.zeros((0, 2))
        if rng.random() < 0.2:
            x, y = rng.choice([-1, 1]) * u(10, 22), rng.choice([u(-30, -20), u(6, 24)])
            angle, length = u(0, np.pi), u(4, 8)
            step = np.array([np.cos(angle), np.sin(angle)]) * length
            middle = np.array([x, y])
            scar = spline(
                np.stack([middle - step, middle + u(-1, 1, 2), middle + step]), 4, closed=False
            )
        return cls(
            half_width=half_width,
            top=u(-45, -41),
            chin=chin,
            cheek=u(0.94, 1.03),
            jaw=u(0.68, 0.93),
            chin_width=u(6.5, 15.0),
            ear=u(0.8, 1.3),
            eye_x=u(11.0, 15.2),
            eye_y=u(-8.0, -4.0),
            eye_width=u(4.6, 7.2),
            eye_open=u(1.8, 3.6),
            eye_tilt=u(-0.16, 0.2),
            iris=u(2.2, 3.0),
            brow_lift=u(5.6, 10.2),
            brow_length=u(6.2, 9.6),
            brow_thickness=u(0.9, 2.9),
            brow_arch=u(0.0, 3.2),
            brow_tilt=u(-0.18, 0.22),
            nose_bridge=u(1.6, 3.2),
            nose_width=u(4.2, 7.8),
            nose_tip=u(7.5, 13.5),
            mouth_y=u(18.5, 23.5) + 0.25 * (chin - 38),
            mouth_width=u(7.5, 13.0),
            upper_lip=u(1.0, 3.2),
            lower_lip=u(1.6, 4.4),
            bow=u(0.0, 1.4),
            skin=skin,
            iris_colour=iris_colour,
            brow_colour=np.minimum(brows[rng.integers(5)] * u(0.8, 1.2), skin * 0.75),
            lip_colour=lip,
            blush=u(0.0, 0.22),
            stubble=max(0.0, u(-0.35, 0.38)),
            socket=u(0.05, 0.22),
            folds=u(0.0, 1.0),
            moles=moles,
            freckles=freckles,
            birthmark=birthmark,
            birthmark_colour=skin
            * ((0.62, 0.6, 0.82) if rng.random() < 0.7 else (1.2, 1.12, 1.06)),
            scar=scar,
        )


def _skin_tone(rng: np.random.Generator) -> np.ndarray:
    """A skin colour: position on a light-to-dark line plus an undertone."""
    line = np.array(
        [(196, 218, 246), (150, 184, 226), (108, 150, 202), (70, 102, 152), (46, 66, 102)]
    )
    t = rng.uniform(0, len(line) - 1.001)
    tone = mix(line[int(t)].astype(float), line[int(t) + 1], t % 1)
    return np.clip(tone + rng.normal(0, (9, 5, 5)), 20, 250)


@dataclass(frozen=True)
class Pose:
    """How a face is held and what it does; everything here is nuisance.

    Angles in radians, lengths in pixels, `scale` 1 for a face of neutral size.
    """

    roll: float = 0.0
    scale: float = 1.0
    x: float = 0.0
    y: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    smile: float = 0.0
    mouth_open: float = 0.0
    brow_raise: float = 0.0
    eye_open: float = 1.0
    gaze: float = 0.0

    def placement(self) -> np.ndarray:
        """The 2 x 3 matrix from face coordinates to canvas pixels."""
        c, s = self.scale * np.cos(self.roll), self.scale * np.sin(self.roll)
        x, y = CENTRE[0] + self.x, CENTRE[1] + self.y
        # pixel i of the picture covers canvas pixels 2i and 2i + 1, hence the half
        return np.array([[c, -s, x + 0.25], [s, c, y + 0.25]]) * SUPERSAMPLING

    def turned(self, points: np.ndarray, half_width: float, depth: float = 0.0) -> np.ndarray:
        """Turn points of the inner face by yaw and pitch about a cylinder; `depth` sticks out."""
        radius = 1.1 * half_width
        angle = np.arcsin(np.clip(points[..., 0] / radius, -0.97, 0.97)) + self.yaw
        x = radius * np.sin(angle) + depth * np.sin(self.yaw)
        return np.stack([x, points[..., 1] + self.pitch * (1 + 0.08 * depth)], -1)


def head_outline(who: Identity, pose: Pose) -> np.ndarray:
    """The outline of the head, skull included."""
    w, jaw, low = who.half_width, who.half_width * who.jaw, who.chin + 0.8 * pose.mouth_open
    right = np.array(
        [
            (0.55 * w, who.top + 3.5),
            (0.9 * w, who.top + 15),
            (w, -10),
            (w * who.cheek * 0.985, 6),
            (jaw + 0.05 * w, 19),
            (0.5 * (jaw + who.chin_width), low - 8),
            (who.chin_width * 0.7, low - 1.2),
        ]
    )
    left = right[::-1] * (-1, 1)
    points = np.concatenate([[(0, who.top)], right, [(0, low)], left])
    points[:, 0] += 2.5 * np.sin(pose.yaw) * np.clip((points[:, 1] + 20) / 40, 0, 1.5)
    return spline(points, 5)


def draw_ears(canvas: Canvas, who: Identity, pose: Pose) -> None:
    """Both ears; the head covers their inner half."""
    for side, label in ((1, L_EAR), (-1, R_EAR)):
        # the ear on the side the head turns to disappears behind the cheek
        x = side * (who.half_width + 1.2 - max(0.0, 9 * side * pose.yaw))
        canvas.fill(
            ellipse(x, -1, 4.0 * who.ear, 8.0 * who.ear, 0.14 * side), who.skin * 0.93, label
        )
        canvas.fill(
            ellipse(x + side, -1.5, 2.0 * who.ear, 5.0 * who.ear, 0.14 * side),
            who.skin * 0.76,
            label,
        )


def draw_head(canvas: Canvas, who: Identity, pose: Pose) -> None:
    """The head: skin with its persistent marks, then eyes, brows, nose and mouth."""
    outline = head_outline(who, pose)
    canvas.fill(outline, who.skin, SKIN)
    if len(who.birthmark):
        canvas.fill(pose.turned(who.birthmark, who.half_width), who.birthmark_colour, SKIN)
    for marks, darkness in ((who.freckles, 0.8), (who.moles, 0.45)):
        if len(marks):
            near = marks[np.hypot(marks[:, 0] / who.half_width, marks[:, 1] / 36) < 0.9]
            centres = pose.turned(near[:, :2], who.half_width)
            shapes = centres[:, None] + _CIRCLE[::2] * near[:, 2, None, None]
            if len(shapes):
                canvas.fill_many(shapes, who.skin * (darkness, darkness, darkness + 0.08), SKIN)
    if len(who.scar):
        scar = pose.turned(who.scar, who.half_width)
        canvas.line(scar, mix(who.skin, (170, 175, 225), 0.55), SKIN, 1.1)
    if who.folds > 0.3:
        fold = [(who.nose_width + 1.5, who.nose_tip - 1), (who.nose_width + 5, who.nose_tip + 5)]
        fold.append((who.mouth_width + 3.0, who.mouth_y + 1))
        curve = spline(fold, 5, closed=False)
        both = pose.turned(np.stack([curve, curve * (-1, 1)]), who.half_width)
        canvas.line(both, who.skin * (1 - 0.16 * who.folds), SKIN, 0.6)
    _draw_eyes(canvas, who, pose)
    _draw_nose(canvas, who, pose)
    _draw_mouth(canvas, who, pose)


def _draw_eyes(canvas: Canvas, who: Identity, pose: Pose) -> None:
    t = np.linspace(-1, 1, 11)
    opening = max(0.35, who.eye_open * pose.eye_open)
    upper = -opening * (1 - np.abs(t) ** 2.2) * 1.12
    lower = 0.72 * opening * (1 - np.abs(t) ** 2.6)
    for side, eye, brow in ((1, L_EYE, L_BROW), (-1, R_EYE, R_BROW)):
        c, s = np.cos(who.eye_tilt), np.sin(who.eye_tilt)

        def place(x: np.ndarray, y: np.ndarray, side=side, c=c, s=s) -> np.ndarray:
            """From the eye's own frame (x towards the temple) to the canvas."""
            p = np.stack([side * (who.eye_x + x * c + y * s), who.eye_y - x * s + y * c], -1)
            return pose.turned(p, who.half_width)

        x = who.eye_width * t
        lid = place(x, upper)
        canvas.line(place(x * 1.02, upper - 1.7), who.skin * 0.68, SKIN, 0.55)
        canvas.fill(
            np.concatenate([lid, place(x[::-1], lower[::-1])]), np.array([222.0, 228, 232]), eye
        )
        gaze = side * pose.gaze * 0.35 * who.eye_width
        for radius, colour in ((who.iris, who.iris_colour), (who.iris * 0.5, np.full(3, 16.0))):
            p = _CIRCLE * radius + (gaze, -0.15 * opening)
            roof = np.interp(p[:, 0], x, upper)
            floor = np.interp(p[:, 0], x, lower)
            canvas.fill(place(p[:, 0], np.clip(p[:, 1], roof, floor)), colour, eye)
        if opening > 1.2:
            glint = _CIRCLE[::3] * 0.55 + (gaze + 0.8 * side, -0.4 * opening)
            canvas.fill(place(glint[:, 0], glint[:, 1]), np.array([250.0, 250, 250]), eye)
        canvas.line(lid, who.skin * 0.22, eye, 0.9)
        canvas.line(place(x, lower), who.skin * 0.66, eye, 0.4)

        lift = who.brow_lift + 2.2 * pose.brow_raise
        bx = who.eye_x + who.brow_length * t
        arch = -lift - who.brow_arch * (1 - t**2) - who.brow_length * who.brow_tilt * t
        taper = who.brow_thickness * np.sqrt(np.clip(1.05 - np.clip(t, -0.4, 1) ** 2, 0.08, 1))
        top = np.stack([side * bx, who.eye_y + arch - taper], 1)
        bottom = np.stack([side * bx, who.eye_y + arch + 0.6 * taper], 1)
        shape = pose.turned(np.concatenate([top, bottom[::-1]]), who.half_width)
        canvas.fill(shape, who.brow_colour, brow)
        hairs = pose.turned(np.stack([bottom[1:8], top[3:10]], 1), who.half_width)
        canvas.line(hairs, mix(who.brow_colour, who.skin, 0.25), brow, 0.3)


def _draw_nose(canvas: Canvas, who: Identity, pose: Pose) -> None:
    b, w, tip = who.nose_bridge, who.nose_width, who.nose_tip
    right = [(b, who.eye_y - 1), (b * 0.95, who.eye_y + 5), (0.55 * w, tip - 6), (w, tip - 1.5)]
    right += [(0.86 * w, tip + 2.0), (0.4 * w, tip + 2.2)]
    half = np.array(right)
    outline = np.concatenate([half, [(0, tip + 3.4)], half[::-1] * (-1, 1)])
    depth = np.interp(outline[:, 1], [who.eye_y, tip], [0.5, 7.0])
    shape = pose.turned(outline, who.half_width, depth)
    canvas.fill(spline(shape, 4), who.skin * (0.985, 0.985, 1.0), NOSE)
    wings = np.array([[(w, tip - 2.5), (w * 1.0, tip), (0.8 * w, tip + 1.8)]])
    wings = np.concatenate([wings, wings * (-1, 1)])
    canvas.line(pose.turned(wings, who.half_width, 6.0), who.skin * 0.66, NOSE, 0.55)
    for side in (1, -1):
        nostril = ellipse(side * 0.42 * w, tip + 1.7, 0.24 * w, 0.95, 0.25 * side)
        canvas.fill(pose.turned(nostril, who.half_width, 6.5), who.skin * 0.36, NOSE)


def _draw_mouth(canvas: Canvas, who: Identity, pose: Pose) -> None:
    t = np.linspace(-1, 1, 13)
    width = who.mouth_width * (1 + 0.16 * pose.smile)
    x = width * t
    line = who.mouth_y - 2.6 * pose.smile * (t**2 - 0.35)
    gap = max(0.0, pose.mouth_open) * 4.5 * (1 - t**2)
    full = 1 - np.abs(t) ** 2.2
    bow = who.bow * np.exp(-((t / 0.16) ** 2)) - 0.5 * who.bow * np.exp(
        -(((np.abs(t) - 0.3) / 0.2) ** 2)
    )
    upper = line - 0.35 * gap - who.upper_lip * full * (1 - 0.15 * pose.smile) + bow * (full > 0)
    lower = line + 0.65 * gap + who.lower_lip * full * (1 - 0.1 * pose.smile)
    above, below = line - 0.35 * gap, line + 0.65 * gap

    def band(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p = np.concatenate([np.stack([x, a], 1), np.stack([x, b], 1)[::-1]])
        return pose.turned(p, who.half_width, 2.0)

    canvas.fill(band(upper, above), who.lip_colour * 0.86, U_LIP)
    canvas.fill(band(below, lower), who.lip_colour, L_LIP)
    middle = lower - 0.55 * who.lower_lip * full
    shine = np.stack([x, middle], 1)[4:9]
    canvas.line(
        pose.turned(shine, who.half_width, 2.0),
        mix(who.lip_colour, (235, 235, 245), 0.3),
        L_LIP,
        0.5,
    )
    if pose.mouth_open > 0.12:
        canvas.fill(band(above, below), np.array([38.0, 30, 70]), MOUTH)
        teeth = band(above, above + 0.48 * gap)
        canvas.fill(teeth, np.array([216.0, 226, 232]), MOUTH)
    else:
        seam = pose.turned(np.stack([x, line], 1), who.half_width, 2.0)
        canvas.line(seam, who.lip_colour * 0.42, U_LIP, 0.5)
