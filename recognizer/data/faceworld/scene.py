"""What surrounds a face of the synthetic world: background, body, hair, hats, glasses, jewellery.

Nothing here depends on the identity beyond where its head ends; all of it changes from image to
image. The functions draw on a `Canvas` in face coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from recognizer.data.faceworld.canvas import (
    BACKGROUND,
    CLOTH,
    EARRING,
    GLASSES,
    HAIR,
    HAT,
    NECK,
    NECKLACE,
    SIZE,
    SUPERSAMPLING,
    Canvas,
    ellipse,
    mix,
    spline,
)
from recognizer.data.faceworld.head import draw_ears, draw_head
from recognizer.data.faceworld.people import Identity, Pose

_SIDE = SIZE * SUPERSAMPLING
_RAMP = np.linspace(0, 1, 256)[:, None]
HAIR_COLOURS = np.array(
    [
        (20, 20, 24),
        (32, 42, 60),
        (40, 60, 92),
        (84, 130, 170),
        (120, 176, 208),
        (38, 70, 140),
        (150, 152, 156),
        (190, 194, 198),
        (30, 30, 84),
        (130, 70, 60),
    ],
    float,
)
_HAIR_ODDS = np.cumsum([0.2, 0.2, 0.15, 0.12, 0.09, 0.07, 0.06, 0.05, 0.03, 0.03])
_CUTS, _CUT_ODDS = ("buzz", "short", "long", "curly"), np.cumsum([0.2, 0.35, 0.3, 0.15])


def any_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour for cloth, hats and backgrounds: mostly muted, sometimes vivid."""
    base = rng.uniform(25, 235, 3)
    return base + (base.sum() / 3 - base) * rng.uniform(0.1, 0.95)


@dataclass(frozen=True)
class HairStyle:
    """How one picture's hair is worn; the same person wears another in the next."""

    colour: np.ndarray
    cut: str
    volume: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> HairStyle:
        """Draw a style."""
        # `rng.choice` with probabilities takes longer than the drawing of a whole mouth
        colour = HAIR_COLOURS[np.searchsorted(_HAIR_ODDS, rng.random(), "right")]
        colour = np.minimum(colour * rng.uniform(0.8, 1.2), 235)
        cut = _CUTS[int(np.searchsorted(_CUT_ODDS, rng.random(), "right"))]
        return cls(colour, cut, float(rng.random()))


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """A bank of grey patterns (n, 224, 224) that objects and cloth are printed with."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    bank = []
    for angle, period in ((0.0, 14), (0.8, 18), (1.57, 11), (2.3, 24)):
        bank.append(np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period) > 0)
    bank.append((x // 12 + y // 12) % 2)
    bank.append((x // 20 + y // 20) % 2)
    bank.append(np.hypot(x % 18 - 9, y % 18 - 9) < 5)
    bank.append(np.hypot((x + (y // 22 % 2) * 11) % 22 - 11, y % 22 - 11) < 6)
    bank.append(0.5 + 0.5 * np.sin(x / 9 + 2 * np.sin(y / 13)))
    for cells in (9, 18, 40):
        noise = rng.random((cells, cells), np.float32)
        bank.append(np.clip(cv2.resize(noise, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC), 0, 1))
    return (np.stack([np.asarray(b, np.float32) for b in bank]) * 255).astype(np.uint8)


def print_texture(
    canvas: Canvas, points: np.ndarray, colours: np.ndarray, label: int, rng: np.random.Generator
) -> None:
    """Fill a polygon with a random pattern between two colours (2, 3)."""
    bank = _textures()
    pattern = bank[rng.integers(len(bank))]
    table = np.empty((256, 4), np.uint8)
    table[:, :3] = np.clip(colours[0] + _RAMP * (colours[1] - colours[0]), 0, 255)
    table[:, 3] = int(canvas.scalar(colours[0], label)[3])
    canvas.paste(points, pattern, table)


# ---------------------------------------------------------------- backgrounds


def draw_background(canvas: Canvas, rng: np.random.Generator, clutter: float) -> None:
    """Out-of-focus blobs of colour and, with `clutter` in [0, 1], sharper shapes before them."""
    cells = int(rng.integers(2, 7))
    base = any_colour(rng)
    spread = 10 + 30 * clutter
    grid = base + rng.normal(0, spread, (cells, cells, 1))
    grid = grid + rng.normal(0, 0.45 * spread, (cells, cells, 3))
    small = np.full((cells, cells, 4), BACKGROUND, np.uint8)
    small[..., :3] = np.clip(grid, 0, 255)
    cv2.resize(small, (_SIDE, _SIDE), dst=canvas.pixels)
    for _ in range(rng.poisson(5 * clutter)):
        x, y = rng.uniform(-62, 62), rng.uniform(-62, 62)
        rx, ry, angle = rng.uniform(4, 22), rng.uniform(4, 22), rng.uniform(0, np.pi)
        outline = ellipse(x, y, rx, ry, angle)
        if rng.random() < 0.6:
            outline = outline[::5]
        if rng.random() < 0.3:
            colours = np.stack([any_colour(rng), any_colour(rng)])
            print_texture(canvas, outline, colours, BACKGROUND, rng)
        else:
            canvas.fill(outline, any_colour(rng), BACKGROUND)


def draw_background_face(
    canvas: Canvas, who: Identity, rng: np.random.Generator, severity: float
) -> None:
    """Somebody else's face, or a poster of it, in a corner behind the head."""
    scale = rng.uniform(0.45, 0.7) * min(1.25, 0.6 + 0.4 * severity)
    side, low = rng.choice([-1.0, 1.0]), rng.choice([-1.0, 1.0])
    x = side * rng.uniform(38, 48)
    y = rng.uniform(-42, -20) if low < 0 else rng.uniform(14, 34)
    pose = Pose(
        roll=rng.normal(0, 0.15), scale=scale, x=x, y=y, yaw=rng.normal(0, 0.2), smile=rng.random()
    )
    other = canvas.at(pose.placement(), code=BACKGROUND)
    if rng.random() < 0.4:
        frame = np.array([(-42, -56), (42, -56), (42, 52), (-42, 52)], float)
        other.fill(frame * 1.06, any_colour(rng), BACKGROUND)
        other.fill(frame, any_colour(rng), BACKGROUND)
    colour = HAIR_COLOURS[np.searchsorted(_HAIR_ODDS, rng.random(), "right")]
    other.fill(ellipse(0, -12, who.half_width + 6, 40), colour, BACKGROUND)
    draw_ears(other, who, pose)
    draw_head(other, who, pose)
    if rng.random() < 0.7:
        other.fill(ellipse(rng.uniform(-5, 5), -38, who.half_width * 0.9, 10), colour, BACKGROUND)


# ---------------------------------------------------------------- body


def draw_body(canvas: Canvas, who: Identity, rng: np.random.Generator) -> None:
    """Neck and clothes."""
    w, chin = who.half_width, who.chin
    width = w * rng.uniform(0.6, 0.74)
    colour, second = any_colour(rng), any_colour(rng)
    neck = [(-width, 10), (-width, chin + 6), (-width - 7, chin + 16), (-width - 7, chin + 60)]
    neck += [(width + 7, chin + 60), (width + 7, chin + 16), (width, chin + 6), (width, 10)]
    canvas.fill(np.array(neck), who.skin * 0.9, NECK)
    collar = rng.uniform(2.0, 14.0)
    depth = rng.uniform(2, 16)
    shoulder = [
        (width + 1, chin + collar),
        (width + 22, chin + collar + 7),
        (70, chin + collar + 16),
    ]
    half = np.array(shoulder)
    middle = [(0.0, chin + collar + depth)]
    if rng.random() < 0.5:  # round neckline, otherwise V
        middle = [
            (-0.6 * width, chin + collar + 0.85 * depth),
            (0.0, chin + collar + depth),
            (0.6 * width, chin + collar + 0.85 * depth),
        ]
    bottom = [(90, chin + 70), (-90, chin + 70)]
    outline = np.concatenate([half[::-1] * (-1, 1), middle, half, bottom])
    if rng.random() < 0.35:
        print_texture(canvas, outline, np.stack([colour, second]), CLOTH, rng)
    else:
        canvas.fill(outline, colour, CLOTH)
    edge = np.concatenate([half[:2][::-1] * (-1, 1), middle, half[:2]])
    canvas.line(edge, mix(colour, second, 0.5), CLOTH, 1.5)


def draw_necklace(canvas: Canvas, who: Identity, rng: np.random.Generator) -> None:
    """A chain or beads around the neck."""
    y, w = who.chin + rng.uniform(6, 11), who.half_width * 0.6
    t = np.linspace(-1, 1, 13)
    points = np.stack([w * t, y + 3.5 * (1 - t**2)], 1)
    colour = np.array([(90, 190, 225), (220, 220, 225), (60, 60, 180)][rng.integers(3)], float)
    if rng.random() < 0.5:
        canvas.line(points, colour, NECKLACE, 1.3)
    else:
        beads = points[:, None] + ellipse(0, 0, 1.3, 1.3)[::3]
        canvas.fill(beads, colour, NECKLACE)


def draw_earrings(canvas: Canvas, who: Identity, pose: Pose, rng: np.random.Generator) -> None:
    """A stud, a drop or a ring below both ears."""
    colour = np.array(
        [(80, 190, 230), (225, 225, 230), (150, 60, 60), (60, 60, 190)][rng.integers(4)]
    )
    kind, size = rng.integers(3), rng.uniform(1.2, 2.2)
    for side in (1, -1):
        x = side * (who.half_width + 1.6 - max(0.0, 9 * side * pose.yaw))
        y = -1 + 8 * who.ear
        if kind == 2:
            canvas.line(ellipse(x, y + 2.2 * size, 1.8 * size, 2.4 * size), colour, EARRING, 0.9)
        else:
            canvas.fill(ellipse(x, y + size * kind, size, size * (1 + kind)), colour, EARRING)


# ---------------------------------------------------------------- hair and hats


def draw_back_hair(canvas: Canvas, who: Identity, hair: HairStyle) -> None:
    """The hair that hangs behind neck and ears."""
    colour, style, volume = hair.colour, hair.cut, hair.volume
    w = who.half_width + 3 + 6 * volume
    if style in ("long", "curly"):
        low = who.chin + (22 if style == "long" else 4)
        side = [(0.6 * w, who.top - 3), (w, -22), (w + 2, 5), (w + 3, 25), (w * 0.9, low)]
        half = np.array(side)
        outline = np.concatenate([[(0, who.top - 5)], half, [(0, low + 2)], half[::-1] * (-1, 1)])
        canvas.fill(spline(outline, 4), colour * 0.72, HAIR)
        t = np.linspace(0, 1, 6)[:, None]
        starts = np.stack([np.linspace(-w * 0.95, w * 0.95, 13), np.full(13, -20.0)], 1)
        ends = np.stack([np.linspace(-w * 1.02, w * 1.02, 13), np.full(13, low - 2.0)], 1)
        strands = starts[:, None] * (1 - t) + ends[:, None] * t
        canvas.line(strands, colour * 0.6, HAIR, 0.6)


def draw_front_hair(
    canvas: Canvas, who: Identity, hair: HairStyle, rng: np.random.Generator
) -> None:
    """The cap of hair and its fringe."""
    colour, style, volume = hair.colour, hair.cut, hair.volume
    w, top = who.half_width, who.top
    lift = {"buzz": 0.8, "short": 2.5}.get(style, 3.0) + 4.5 * volume * (style != "buzz")
    ends = {"buzz": -14.0, "short": -8.0, "curly": 6.0, "long": 8.0}[style] + rng.uniform(-4, 4)
    spread = 1.0 if style in ("buzz", "short") else 3.0 + 3 * volume
    outer = np.array(
        [
            (w + spread, ends),
            (w + spread + 0.5, -16),
            (0.93 * w + spread, top + 13),
            (0.6 * w + 0.5 * spread, top + 1 - 0.6 * lift),
        ]
    )
    outer = np.concatenate([outer, [(0, top - lift)], outer[::-1] * (-1, 1)])
    if style == "curly":
        outer += rng.normal(0, 1.3, outer.shape)
    line = rng.uniform(-31, -25)
    part = rng.uniform(-0.6, 0.6) * w
    fringe = rng.random() < (0.4 if style != "buzz" else 0.0)
    if fringe:
        line = rng.uniform(-23, -15)
    t = np.linspace(-0.92, 0.92, 9)
    dip = rng.normal(0, 1.6 if fringe else 0.7, 9)
    slope = 0.0 if fringe else rng.uniform(0, 7)
    inner_y = line + dip + slope * np.abs(t - part / w) + 9 * np.abs(t) ** 4
    inner = np.stack([t * w, inner_y], 1)
    temple = np.array([(-0.985 * w, ends - 1)])
    inner = np.concatenate([temple, inner, temple * (-1, 1)])
    outer_s = spline(outer, 6, closed=False)
    inner_s = spline(inner, 5, closed=False)[::-1]  # right to left, as the outer line
    canvas.fill(np.concatenate([outer_s, inner_s[::-1]]), colour, HAIR)

    n = 34 if style != "buzz" else 0
    if n:
        u = rng.random(n)
        drift = 0.16 * np.sign(u - 0.5 - part / (2 * w)) if not fringe else rng.normal(0, 0.02, n)
        a = np.linspace(0.04, 0.96, 6)
        path = np.clip(
            u[:, None] + drift[:, None] * (a - 1) * 0.6
            if fringe
            else u[:, None] * (1 - 0.35 * (1 - a)) + 0.35 * (1 - a) * (0.5 + part / (2 * w)),
            0,
            1,
        )
        strands = _along(outer_s, path) * (1 - a[:, None]) + _along(inner_s, path) * a[:, None]
        if style == "curly":
            strands += rng.normal(0, 0.9, strands.shape)
        half = n // 2
        canvas.line(strands[:half], colour * 0.78, HAIR, 0.7)
        canvas.line(strands[half:], np.minimum(colour * 1.2 + 10, 255), HAIR, 0.5)


def draw_locks(
    canvas: Canvas, who: Identity, hair: HairStyle, severity: float, rng: np.random.Generator
) -> None:
    """A curtain of hair that falls over one side of the face."""
    colour = hair.colour
    side, w = rng.choice([-1.0, 1.0]), who.half_width
    reach = np.clip(rng.uniform(6, 14) * (0.6 + 0.4 * severity), 4, 20)
    low = rng.uniform(8, who.chin + 6)
    inner = np.array(
        [(w - reach - 7, -30), (w - reach - 1, -14), (w - reach, 4), (w - 0.7 * reach, low)]
    )
    outer = np.array([(w + 4, low + 3), (w + 5, 0), (w + 3, -20), (0.6 * w, -40)])
    inner_s, outer_s = spline(inner, 5, closed=False), spline(outer, 5, closed=False)
    canvas.fill(np.concatenate([inner_s, outer_s]) * (side, 1), colour * 0.95, HAIR)
    a = np.linspace(0.05, 0.9, 7)[:, None, None]
    strands = (inner_s * (1 - a) + outer_s[::-1] * a) * (side, 1)
    canvas.line(strands[::2], colour * 0.74, HAIR, 0.6)
    canvas.line(strands[1::2], np.minimum(colour * 1.2 + 10, 255), HAIR, 0.5)


def _along(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points of a sampled curve (m, 2) at parameters t in [0, 1]."""
    s = t * (len(curve) - 1)
    grid = np.arange(len(curve))
    return np.stack([np.interp(s, grid, curve[:, 0]), np.interp(s, grid, curve[:, 1])], -1)


def draw_hat(canvas: Canvas, who: Identity, rng: np.random.Generator) -> None:
    """A beanie, a cap or a wide-brimmed hat."""
    kind = rng.integers(3)
    w, line = who.half_width + 4, rng.uniform(-26, -18)
    colour, second = any_colour(rng), any_colour(rng)
    crown = {0: who.top - 8, 1: who.top - 5, 2: who.top - 12}[int(kind)]
    dome = [(-w, line), (-w - 0.5, line - 9), (-0.72 * w, crown + 6), (0, crown)]
    dome += [(0.72 * w, crown + 6), (w + 0.5, line - 9), (w, line), (0, line - 3)]
    outline = spline(np.array(dome), 5)
    if rng.random() < 0.35:
        print_texture(canvas, outline, np.stack([colour, second]), HAT, rng)
    else:
        canvas.fill(outline, colour, HAT)
    if kind == 0:
        band = np.array([(-w - 1.5, line - 7), (0, line - 10), (w + 1.5, line - 7)])
        band = np.concatenate(
            [spline(band, 6, False), spline(band + np.array((0, 8)), 6, False)[::-1]]
        )
        canvas.fill(band, mix(colour, second, 0.35), HAT)
        ribs = np.linspace(-0.9, 0.9, 15)
        x, y = ribs * w, line - 9 + 2.6 * ribs**2
        canvas.line(
            np.stack([np.stack([x, y], 1), np.stack([x, y + 6.5], 1)], 1), colour * 0.6, HAT, 0.6
        )
    elif kind == 1:
        seams = np.array([[(0, crown), (0, line - 3)], [(-0.1 * w, crown), (-0.6 * w, line - 3)]])
        canvas.line(np.concatenate([seams, seams[1:] * (-1, 1)]), colour * 0.75, HAT, 0.6)
        brim = [(-0.95 * w, line - 3), (0, line - 7), (0.95 * w, line - 3)]
        brim += [(0.85 * w, line + 3.5), (0, line + 5), (-0.85 * w, line + 3.5)]
        canvas.fill(spline(np.array(brim), 5), mix(colour, second, 0.5) * 0.85, HAT)
    else:
        canvas.fill(ellipse(0, line - 2, w + 15, 5.5), mix(colour, second, 0.3) * 0.9, HAT)
        band = np.array(
            [(-w, line - 9), (0, line - 6.5), (w, line - 9), (w, line - 4), (0, line - 2)]
        )
        canvas.fill(np.concatenate([band, [(-w, line - 4)]]), second, HAT)


def draw_glasses(canvas: Canvas, who: Identity, pose: Pose, rng: np.random.Generator) -> None:
    """Frames around both eyes; one pair in five has dark lenses."""
    rx, ry = who.eye_width + rng.uniform(1.6, 3.4), rng.uniform(4.6, 7.2)
    power = 1.0 if rng.random() < 0.5 else 0.5  # round or squarish
    colour = np.array(
        [(25, 25, 28), (40, 60, 110), (150, 155, 160), (60, 40, 120)][rng.integers(4)]
    )
    dark, width = rng.random() < 0.2, rng.uniform(0.7, 1.6)
    ring = ellipse(0, 0, 1, 1)
    ring = np.sign(ring) * np.abs(ring) ** power * (rx, ry)
    ring = np.concatenate([ring, ring[:1]])
    lenses = np.stack([ring + np.array((side * who.eye_x, who.eye_y + 0.6)) for side in (1, -1)])
    lenses = pose.turned(lenses, who.half_width, 1.0)
    if dark:
        canvas.fill(lenses, np.array([38.0, 34, 32]), GLASSES)
    canvas.line(lenses, colour, GLASSES, width)
    bridge = np.array(
        [(who.eye_x - rx, who.eye_y), (0, who.eye_y - 1.6), (rx - who.eye_x, who.eye_y)]
    )
    arm = np.array([(who.eye_x + rx, who.eye_y - 1), (who.half_width * 1.02, who.eye_y - 2.5)])
    canvas.line(pose.turned(spline(bridge, 5, False), who.half_width, 1.0), colour, GLASSES, width)
    for side in (1, -1):
        canvas.line(pose.turned(arm * (side, 1), who.half_width), colour, GLASSES, width)
