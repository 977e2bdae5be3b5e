"""Drawing the head: ears, outline, skin with its marks, eyes, brows, nose and mouth."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recognizer.data.faceworld.canvas import (
    CIRCLE,
    L_BROW,
    L_EAR,
    L_EYE,
    L_LIP,
    MOUTH,
    NOSE,
    R_BROW,
    R_EAR,
    R_EYE,
    SKIN,
    U_LIP,
    Canvas,
    Sketch,
    ellipse,
    mix,
    spline,
)
from recognizer.data.faceworld.people import Identity, Pose

_SIDES = np.array([[[1.0, 1.0]], [[-1.0, 1.0]]])  # the person's left, drawn as it is, then right
_WHITE, _BLACK = np.array([222.0, 228.0, 232.0]), np.full(3, 16.0)


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
    canvas.fill(head_outline(who, pose), who.skin, SKIN)
    sketches = (_marks(who), _eyes(who, pose), _nose(who), _mouth(who, pose))
    arrays = [sketch.arrays() for sketch in sketches]
    points = np.concatenate([a[0] for a in arrays])
    depths = np.concatenate([a[1] for a in arrays])
    vertices = canvas.vertices(pose.turned(points, who.half_width, depths))
    start = 0
    for sketch, (part, _) in zip(sketches, arrays, strict=True):
        sketch.draw(canvas, vertices[start : start + len(part)])
        start += len(part)


@lru_cache(maxsize=1024)
def _marks(who: Identity) -> Sketch:
    """What stays on the skin from picture to picture."""
    sketch = Sketch()
    if len(who.birthmark):
        sketch.fill(who.birthmark, who.birthmark_colour, SKIN)
    for marks, darkness in ((who.freckles, 0.8), (who.moles, 0.45)):
        near = marks[np.hypot(marks[:, 0] / who.half_width, marks[:, 1] / 36) < 0.9]
        if len(near):
            shapes = near[:, None, :2] + CIRCLE[::2] * near[:, 2, None, None]
            sketch.fill(shapes, who.skin * (darkness, darkness, darkness + 0.08), SKIN)
    if len(who.scar):
        sketch.line(who.scar, mix(who.skin, (170, 175, 225), 0.55), SKIN, 1.1)
    fold = [(who.nose_width + 1.5, who.nose_tip - 1), (who.nose_width + 5, who.nose_tip + 5)]
    fold.append((who.mouth_width + 3.0, who.mouth_y + 1))
    depth = 0.16 * max(0.0, who.folds - 0.3) / 0.7
    sketch.line(spline(fold, 5, False) * _SIDES, who.skin * (1 - depth), SKIN, 0.6)
    return sketch


_LID = np.linspace(-1, 1, 11)
_UPPER = -1.12 * (1 - np.abs(_LID) ** 2.2)
_LOWER = 0.72 * (1 - np.abs(_LID) ** 2.6)
# x and y of lid-shaped things in units of eye width and opening; positions in the array by name
_LIDS = np.concatenate(
    [np.stack([_LID, _UPPER], 1), np.stack([_LID, _LOWER], 1)[::-1], np.stack([_LID, _UPPER], 1)]
)


def _eyes(who: Identity, pose: Pose) -> Sketch:
    sketch = Sketch()
    opening = max(0.35, who.eye_open * pose.eye_open)
    lids = _LIDS * (who.eye_width, opening)
    lids[22:] = lids[22:] * (1.02, 1.0) - (0.0, 1.7)  # the crease above the lid
    gaze = np.array([1.0, -1.0]) * (pose.gaze * 0.35 * who.eye_width)  # both eyes look one way
    discs = CIRCLE * np.array([who.iris, 0.5 * who.iris])[:, None, None]
    height = np.full(2, -0.15 * opening)
    discs = discs + np.stack([gaze, height], 1)[:, None, None]
    # the lids cover what of iris and pupil reaches beyond them
    off = np.minimum(np.abs(discs[..., 0] / who.eye_width), 1)
    roof, floor = -1.12 * opening * (1 - off**2.2), 0.72 * opening * (1 - off**2.6)
    discs[..., 1] = np.clip(discs[..., 1], roof, floor)
    glint = CIRCLE[::3] * 0.55 + np.stack([gaze + (0.8, -0.8), 2.7 * height], 1)[:, None]
    frame = np.concatenate([np.stack([lids, lids]), discs.reshape(2, -1, 2), glint], 1)
    # from the eye's own frame, x towards the temple, to the face
    c, s = np.cos(who.eye_tilt), np.sin(who.eye_tilt)
    eyes = (frame @ np.array([[c, -s], [s, c]]) + (who.eye_x, who.eye_y)) * _SIDES
    brows = (_brow(who) - (0.0, 2.2 * pose.brow_raise)) * _SIDES
    labels = ((L_EYE, L_BROW), (R_EYE, R_BROW))
    for eye, brow, (label, brow_label) in zip(eyes, brows, labels, strict=True):
        sketch.line(eye[22:33], who.skin * 0.68, SKIN, 0.55)
        sketch.fill(eye[:22], _WHITE, label)
        sketch.fill(eye[33:53], who.iris_colour, label)
        sketch.fill(eye[53:73], _BLACK, label)
        if opening > 1.2:
            sketch.fill(eye[73:], _WHITE * 1.07, label)
        sketch.line(eye[:11], who.skin * 0.22, label, 0.9)
        sketch.line(eye[11:22], who.skin * 0.66, label, 0.4)
        sketch.fill(brow[:22], who.brow_colour, brow_label)
        hairs = brow[22:].reshape(7, 2, 2)
        sketch.line(hairs, mix(who.brow_colour, who.skin, 0.25), brow_label, 0.3)
    return sketch


@lru_cache(maxsize=1024)
def _brow(who: Identity) -> np.ndarray:
    """The left brow at rest: 22 points of its outline, then both ends of 7 hairs."""
    t = _LID
    x = who.eye_x + who.brow_length * t
    arch = who.eye_y - who.brow_lift - who.brow_arch * (1 - t**2)
    arch = arch - who.brow_length * who.brow_tilt * t
    taper = who.brow_thickness * np.sqrt(np.clip(1.05 - np.clip(t, -0.4, 1) ** 2, 0.08, 1))
    top, bottom = np.stack([x, arch - taper], 1), np.stack([x, arch + 0.6 * taper], 1)
    hairs = np.stack([bottom[1:8], top[3:10]], 1)
    return np.concatenate([top, bottom[::-1], hairs.reshape(-1, 2)])


@lru_cache(maxsize=1024)
def _nose(who: Identity) -> Sketch:
    sketch = Sketch()
    b, w, tip = who.nose_bridge, who.nose_width, who.nose_tip
    right = [(b, who.eye_y - 1), (b * 0.95, who.eye_y + 5), (0.55 * w, tip - 6), (w, tip - 1.5)]
    right += [(0.86 * w, tip + 2.0), (0.4 * w, tip + 2.2)]
    half = np.array(right)
    outline = spline(np.concatenate([half, [(0, tip + 3.4)], half[::-1] * (-1, 1)]), 4)
    depth = np.interp(outline[:, 1], [who.eye_y, tip], [0.5, 7.0])
    sketch.fill(outline, who.skin * (0.985, 0.985, 1.0), NOSE, depth)
    wing = np.array([(w, tip - 2.5), (w, tip), (0.8 * w, tip + 1.8)])
    sketch.line(wing * _SIDES, who.skin * 0.66, NOSE, 0.55, 6.0)
    nostril = ellipse(0.42 * w, tip + 1.7, 0.24 * w, 0.95, 0.25)
    sketch.fill(nostril * _SIDES, who.skin * 0.36, NOSE, 6.5)
    return sketch


_LIP = np.linspace(-1, 1, 13)
_FULL = 1 - np.abs(_LIP) ** 2.2
_BOW = np.exp(-((_LIP / 0.16) ** 2)) - 0.5 * np.exp(-(((np.abs(_LIP) - 0.3) / 0.2) ** 2))
_BOW[[0, -1]] = 0.0


def _mouth(who: Identity, pose: Pose) -> Sketch:
    sketch = Sketch()
    line = who.mouth_y - 2.6 * pose.smile * (_LIP**2 - 0.35)
    gap = 4.5 * max(0.0, pose.mouth_open) * (1 - _LIP**2)
    above, below = line - 0.35 * gap, line + 0.65 * gap
    upper = above - who.upper_lip * (1 - 0.15 * pose.smile) * _FULL + who.bow * _BOW
    thick = who.lower_lip * (1 - 0.1 * pose.smile) * _FULL
    rows = np.empty((7, 13, 2))
    rows[..., 0] = who.mouth_width * (1 + 0.16 * pose.smile) * _LIP
    shine, teeth = below + 0.45 * thick, above + 0.48 * gap
    rows[..., 1] = upper, above, below, below + thick, shine, teeth, line

    def band(a: int, b: int) -> np.ndarray:
        return np.concatenate([rows[a], rows[b, ::-1]])

    sketch.fill(band(0, 1), who.lip_colour * 0.86, U_LIP, 2.0)
    sketch.fill(band(2, 3), who.lip_colour, L_LIP, 2.0)
    sketch.line(rows[4, 4:9], mix(who.lip_colour, (235, 235, 245), 0.3), L_LIP, 0.5, 2.0)
    if pose.mouth_open > 0.12:
        sketch.fill(band(1, 2), np.array([38.0, 30, 70]), MOUTH, 2.0)
        sketch.fill(band(1, 5), np.array([216.0, 226, 232]), MOUTH, 2.0)
    else:
        sketch.line(rows[6], who.lip_colour * 0.42, U_LIP, 0.5, 2.0)
    return sketch
