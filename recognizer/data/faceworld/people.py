"""People of the synthetic face world, and how one holds the head in one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recognizer.data.faceworld.canvas import SUPERSAMPLING, mix, spline

CENTRE = (56.0, 57.0)  # where the origin of face coordinates lies in the picture


@dataclass(frozen=True, eq=False)  # hashed as an object: what is drawn alike is cached
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

    def turned(
        self, points: np.ndarray, half_width: float, depth: float | np.ndarray = 0.0
    ) -> np.ndarray:
        """Turn points of the inner face by yaw and pitch about a cylinder; `depth` sticks out."""
        radius = 1.1 * half_width
        sine = np.minimum(np.maximum(points[..., 0] / radius, -0.97), 0.97)
        result = np.empty_like(points)
        result[..., 0] = radius * np.sin(np.arcsin(sine) + self.yaw) + depth * np.sin(self.yaw)
        result[..., 1] = points[..., 1] + self.pitch * (1 + 0.08 * depth)
        return result
