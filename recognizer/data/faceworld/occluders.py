"""What covers a face of the synthetic world: pieces of other faces, objects, scarves."""

from __future__ import annotations

import numpy as np

from recognizer.data.faceworld.canvas import (
    BACKGROUND,
    CLOTH,
    GLASSES,
    L_BROW,
    L_EYE,
    L_LIP,
    MOUTH,
    NOSE,
    R_BROW,
    R_EYE,
    SKIN,
    U_LIP,
    Canvas,
    ellipse,
    mix,
    spline,
)
from recognizer.data.faceworld.head import draw_head
from recognizer.data.faceworld.people import Identity, Pose
from recognizer.data.faceworld.scene import any_colour, print_texture

_INNER = np.zeros(32, bool)
_INNER[[NOSE, GLASSES, L_EYE, R_EYE, L_BROW, R_BROW, MOUTH, U_LIP, L_LIP]] = True
PATCH, OBJECT, SCARF = 1, 2, 3  # kinds of occluder, as stored in the occluder mask

# centres of the skin quadrants that a patch or an object may cover, for a half width of 30
QUADRANTS = np.array([(-15.0, -27.0), (15.0, -27.0), (-17.0, 15.0), (17.0, 15.0)])
_NEIGHBOURS = ((1, 2), (0, 3), (0, 3), (1, 2))


def _spot(who: Identity, quadrant: int, rng: np.random.Generator) -> np.ndarray:
    centre = QUADRANTS[quadrant] * (who.half_width / 30, 1)
    return centre + rng.normal(0, (1.8, 2.2))


def draw_patches(
    canvas: Canvas,
    who: Identity,
    other: Identity,
    pose: Pose,
    rng: np.random.Generator,
    severity: float,
    two: bool,
) -> None:
    """One or two pieces cut out of `other`'s face, laid over the same part of this one.

    They show skin and are labelled skin, whatever else of the other face they carry. They are cut
    out around eyes, brows, nose and mouth: a patch misleads, and hides only what it lies on.
    """
    piece = Pose(
        roll=pose.roll + rng.normal(0, 0.2),
        scale=pose.scale * rng.uniform(0.9, 1.1),
        x=pose.x + rng.normal(0, 2.0),
        y=pose.y + rng.normal(0, 2.0),
        smile=rng.random(),
        yaw=pose.yaw,
    )
    source = Canvas.blank(piece.placement())
    source.code, source.kind = SKIN, PATCH
    source.fill(ellipse(0, 0, 70, 70), other.skin, SKIN)
    draw_head(source, other, piece)
    first = int(rng.integers(4))
    quadrants = [first, _NEIGHBOURS[first][rng.integers(2)]] if two else [first]
    before = canvas.pixels.copy()
    inner = _INNER[before[..., 3] & 31]
    for quadrant in quadrants:
        x, y = _spot(who, quadrant, rng)
        size = rng.uniform(0.85, 1.15, 2) * (0.65 + 0.35 * severity)
        rx, ry = (14.5, 10.5) * size if quadrant < 2 else (12.5, 14.5) * size
        outline = ellipse(x, y, rx, ry, rng.normal(0, 0.35))
        if rng.random() < 0.65:
            corners = np.array([(-rx, -ry), (rx, -ry), (rx, ry), (-rx, ry)]) * 0.92
            t = rng.normal(0, 0.3)
            c, s = np.cos(t), np.sin(t)
            outline = corners @ np.array([[c, s], [-s, c]]) + (x, y)
        canvas.paste(outline, source.pixels)
    canvas.pixels[inner] = before[inner]


def draw_object(
    canvas: Canvas, who: Identity, skin: np.ndarray, rng: np.random.Generator, severity: float
) -> None:
    """A hand, cup, phone, leaf or patterned shape over a cheek, the forehead or the hair."""
    x, y = _spot(who, int(rng.integers(4)), rng) * rng.uniform(1.15, 1.45)
    side = float(np.sign(x))
    frame = canvas.placement.copy()
    scale = rng.uniform(0.85, 1.15) * (0.65 + 0.35 * severity)
    angle = rng.normal(0, 0.35)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    frame[:, 2] += frame[:, :2] @ (x, y)
    frame[:, :2] = frame[:, :2] @ np.array([[c, -s], [s, c]])
    local = canvas.at(frame, code=BACKGROUND, kind=OBJECT)
    kind = rng.integers(5)
    colour = any_colour(rng)
    if kind == 0:
        _draw_hand(local, skin, side)
    elif kind == 1:
        body = np.array([(-11, -12), (11, -12), (9, 14), (-9, 14)], float)
        local.line(ellipse(side * 12, 0, 6, 7), colour * 0.8, BACKGROUND, 2.2)
        local.fill(body, colour, BACKGROUND)
        local.fill(body * (1, 0.28) + (0, 3), any_colour(rng), BACKGROUND)
        local.fill(ellipse(0, -12, 11, 3), mix(colour, (255, 255, 255), 0.5), BACKGROUND)
    elif kind == 2:
        body = np.array(
            [(-9, -17), (9, -17), (10, -16), (10, 16), (9, 17), (-9, 17), (-10, 16), (-10, -16)]
        )
        local.fill(body, np.full(3, rng.uniform(18, 60)), BACKGROUND)
        local.fill(body * (0.86, 0.84), mix(colour, (30, 26, 22), 0.5), BACKGROUND)
        local.fill(ellipse(-5, -12, 2.2, 2.2), np.full(3, 120.0), BACKGROUND)
    elif kind == 3:
        green = np.array([rng.uniform(30, 90), rng.uniform(90, 170), rng.uniform(40, 130)])
        blade = np.array(
            [(0, -18), (8, -8), (9.5, 2), (5, 12), (0, 18), (-5, 12), (-9.5, 2), (-8, -8)]
        )
        local.fill(spline(blade, 4), green, BACKGROUND)
        ribs = [[(0, -16), (0, 21)]]
        ribs += [[(0, b + 4), (d * 7, b - 2)] for b in (-8, 0, 8) for d in (-1, 1)]
        local.line(np.array(ribs, float), green * 0.7, BACKGROUND, 0.8)
    else:
        n = int(rng.integers(4, 8))
        t = np.linspace(0, 2 * np.pi, n, endpoint=False) + rng.uniform(0, 6)
        radii = rng.uniform(9, 17, n)
        outline = np.stack([radii * np.cos(t), radii * np.sin(t)], 1)
        outline = spline(outline, 5) if rng.random() < 0.5 else outline
        print_texture(local, outline, np.stack([colour, any_colour(rng)]), BACKGROUND, rng)


def _draw_hand(canvas: Canvas, skin: np.ndarray, side: float) -> None:
    """A palm with four fingers reaching up and an arm leaving the picture."""
    flip = (side, 1.0)
    arm = np.array([(-8, 4), (10, 4), (34, 70), (10, 70)]) * flip
    palm = ellipse(1, 7, 11, 9) * flip
    for part in (arm, palm):
        canvas.fill(part, skin * 0.97, BACKGROUND)
    edge = skin * 0.68
    for k, (x, length, tilt) in enumerate(
        ((-8.5, 15, -0.3), (-3, 19, -0.1), (2.5, 18, 0.1), (8, 14, 0.3))
    ):
        base = np.array(
            [(-2.5, 4), (-2.4, -length), (-1, -length - 2), (1, -length - 2), (2.4, -length)]
        )
        finger = np.concatenate([base, [(2.5, 4)]])
        c, s = np.cos(tilt), np.sin(tilt)
        finger = (finger @ np.array([[c, s], [-s, c]]) + (x, 2)) * flip
        canvas.fill(finger, skin * (1.03 - 0.03 * (k % 2)), BACKGROUND)
        canvas.line(finger, edge, BACKGROUND, 0.6)
    thumb = ellipse(-11, 6, 3, 8, -0.5) * flip
    canvas.fill(thumb, skin, BACKGROUND)
    canvas.line(thumb, edge, BACKGROUND, 0.5)


def draw_scarf(
    canvas: Canvas,
    who: Identity,
    other: Identity,
    rng: np.random.Generator,
    severity: float,
) -> None:
    """Cloth wound around neck and chin, printed with a pattern, skin tones or small faces."""
    w, cloth = who.half_width + 4, canvas.at(canvas.placement, kind=SCARF)
    top = who.chin - rng.uniform(3, 11) * (0.5 + 0.5 * severity)
    edge = spline(
        np.array(
            [(-w, top - 9), (-0.5 * w, top - 1), (0, top + 1.5), (0.5 * w, top - 1), (w, top - 9)]
        ),
        5,
        False,
    )
    bottom = np.array([(w + 6, who.chin + 30), (0, who.chin + 36), (-w - 6, who.chin + 30)])
    outline = np.concatenate([edge, bottom])
    kind = rng.random()
    colour = other.skin if kind < 0.6 else any_colour(rng)
    if kind < 0.6:
        colours = np.stack([other.skin, other.skin * rng.uniform(0.6, 0.85)])
    else:
        colours = np.stack([colour, any_colour(rng)])
    print_texture(cloth, outline, colours, CLOTH, rng)
    if kind < 0.35:
        for x in (-0.62 * w, 0.0, 0.62 * w):
            base = canvas.placement
            tile = base.copy()
            tile[:, 2] += base[:, :2] @ (x, who.chin + 9 + rng.uniform(-2, 2))
            tile[:, :2] = base[:, :2] * 0.26
            small = canvas.at(tile, code=CLOTH, kind=SCARF)
            draw_head(small, other, Pose(smile=0.5))
    for k in (7, 14, 21):
        fold = edge[4:-4] * (1.02, 1) + (0, k + rng.uniform(-2, 2))
        cloth.line(fold, colour * 0.62, CLOTH, 0.8)
