"""The world itself: a population, its configuration, and one picture from back to front."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from recognizer.data.faceworld import occluders, scene
from recognizer.data.faceworld.canvas import Canvas
from recognizer.data.faceworld.head import draw_ears, draw_head
from recognizer.data.faceworld.light import majority, photograph
from recognizer.data.faceworld.people import Identity, Pose

VERSION = 4  # raise whenever the same arguments give other pixels: caches depend on it

NUISANCES = (
    "hair",
    "hat",
    "glasses",
    "earrings",
    "necklace",
    "locks",
    "scarf",
    "background_face",
    "patch",
    "object",
)


@dataclass(frozen=True)
class FaceWorldConfig:
    """How often and how strongly each nuisance appears.

    Fields ending in `_p` are probabilities per image; the others scale a spread and 0 turns it off.
    """

    pose: float = 0.6
    """Spread of head position, size, rotation and turn."""
    expression: float = 0.8
    """Spread of smiles, open mouths, raised brows and half-closed eyes."""
    lighting: float = 0.5
    """Spread of brightness, colour cast and the gradient across the picture."""
    noise: float = 0.4
    """Sensor noise and blur."""
    clutter: float = 0.5
    """Structure in the background."""
    severity: float = 1.5
    """Size of occluders and of background faces."""
    hair_p: float = 0.8
    hat_p: float = 0.12
    glasses_p: float = 0.1
    earrings_p: float = 0.2
    necklace_p: float = 0.12
    locks_p: float = 0.1
    """Hair that falls over one side of the face."""
    scarf_p: float = 0.1
    """Scarf over the chin, printed with patterns, skin tones or small faces."""
    background_face_p: float = 0.3
    """Somebody else's face in a corner behind the head."""
    patch_p: float = 0.85
    """Pieces of another person's face over one skin quadrant."""
    double_patch: float = 0.7
    """Share of patched faces whose patch covers two adjacent quadrants."""
    object_p: float = 0.12
    """Hand, cup, phone, leaf or patterned shape over cheek, forehead or hair."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            high = 1.0 if field.name.endswith("_p") or field.name == "double_patch" else 10.0
            if not 0.0 <= value <= high:
                raise ValueError(
                    f"FaceWorldConfig.{field.name} must be in [0, {high:g}], got {value}"
                )

    def clean(self) -> FaceWorldConfig:
        """The same world with nothing over or behind the face that misleads."""
        return replace(
            self, locks_p=0.0, scarf_p=0.0, background_face_p=0.0, patch_p=0.0, object_p=0.0
        )


@dataclass(frozen=True)
class Sample:
    """One rendered face.

    Attributes:
        image: uint8 BGR `(112, 112, 3)`.
        labels: uint8 `(112, 112)`, CelebAMask-HQ classes.
        occluder: uint8 `(112, 112)`: 0 none, 1 patch of another face, 2 object, 3 scarf.
        present: bool `(len(NUISANCES),)`.
    """

    image: np.ndarray
    labels: np.ndarray
    occluder: np.ndarray
    present: np.ndarray


class FaceWorld:
    """A population of `identities` people and unlimited pictures of each.

    People depend on `seed` alone, never on `config`, so one recognizer serves every configuration.
    """

    def __init__(
        self, seed: int = 0, identities: int = 200, config: FaceWorldConfig | None = None
    ) -> None:
        if seed < 0 or identities < 2:
            raise ValueError(
                f"seed must be >= 0 and identities >= 2, got seed {seed}, identities {identities}"
            )
        self.seed = seed
        self.identities = identities
        self.config = config or FaceWorldConfig()
        self._people: dict[int, Identity] = {}

    def identity(self, identity: int) -> Identity:
        """The parameters of a person."""
        if not 0 <= identity < self.identities:
            raise IndexError(f"identity must be in [0, {self.identities}), got {identity}")
        if identity not in self._people:
            self._people[identity] = Identity.sample(np.random.default_rng([self.seed, identity]))
        return self._people[identity]

    def render(self, identity: int, index: int) -> Sample:
        """Draw picture number `index` of a person.

        Raises:
            IndexError: there is no such identity, or `index` is negative.
        """
        if index < 0:
            raise IndexError(f"index must be >= 0, got {index}")
        who, config = self.identity(identity), self.config

        def stream(part: int) -> np.random.Generator:
            """The generator moved to where a part's numbers are.

            Switching a part off so leaves all others as they were, without a generator for each.
            """
            bits.state = state
            bits.advance(part << 64)
            return rng

        bits = np.random.PCG64([self.seed, identity, index])
        state = bits.state
        rng = np.random.Generator(bits)
        odds = [getattr(config, f"{name}_p") for name in NUISANCES]
        present = rng.random(len(NUISANCES)) < odds
        has = dict(zip(NUISANCES, present.tolist(), strict=True))
        pose = _sample_pose(rng, config)
        others = [self.identity(self._another(identity, rng)) for _ in range(4)]
        hair = scene.HairStyle.sample(rng)

        canvas = Canvas.blank(pose.placement())
        still = canvas.at(Pose().placement())
        scene.draw_background(still, stream(1), config.clutter)
        if has["background_face"]:
            scene.draw_background_face(canvas, others[0], stream(2), config.severity)
        if has["hair"]:
            scene.draw_back_hair(canvas, who, hair)
        scene.draw_body(canvas, who, stream(3))
        if has["necklace"]:
            scene.draw_necklace(canvas, who, stream(4))
        draw_ears(canvas, who, pose)
        if has["earrings"]:
            scene.draw_earrings(canvas, who, pose, stream(5))
        draw_head(canvas, who, pose)
        if has["glasses"]:
            scene.draw_glasses(canvas, who, pose, stream(6))
        if has["hair"]:
            scene.draw_front_hair(canvas, who, hair, stream(7))
        if has["locks"]:
            scene.draw_locks(canvas, who, hair, config.severity, stream(8))
        if has["hat"]:
            scene.draw_hat(canvas, who, stream(9))
        if has["patch"]:
            parts = stream(10)
            two = bool(parts.random() < config.double_patch)
            occluders.draw_patches(canvas, who, others[1], pose, parts, config.severity, two)
        if has["scarf"]:
            occluders.draw_scarf(canvas, who, others[2], stream(11), config.severity)
        if has["object"]:
            occluders.draw_object(canvas, who, others[3].skin, stream(12), config.severity)

        codes = majority(canvas.pixels[..., 3])
        image = photograph(canvas.pixels, codes, who, pose, stream(13), config)
        return Sample(image, codes & 31, codes >> 5, present)

    def render_batch(self, identities: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Draw many pictures.

        Args:
            identities: people, `(N,)`.
            indices: picture numbers, `(N,)`.

        Returns:
            `images` uint8 BGR `(N, 3, 112, 112)`, `parsing` and `occluders` uint8 `(N, 112, 112)`,
            `present` bool `(N, len(NUISANCES))`.
        """
        if not len(identities) or identities.shape != indices.shape or identities.ndim != 1:
            raise ValueError(
                "identities and indices must be two non-empty vectors of one length, "
                f"got shapes {identities.shape} and {indices.shape}"
            )
        samples = [self.render(int(i), int(k)) for i, k in zip(identities, indices, strict=True)]
        return {
            "images": np.stack([s.image.transpose(2, 0, 1) for s in samples]),
            "parsing": np.stack([s.labels for s in samples]),
            "occluders": np.stack([s.occluder for s in samples]),
            "present": np.stack([s.present for s in samples]),
        }

    def _another(self, identity: int, rng: np.random.Generator) -> int:
        other = int(rng.integers(self.identities - 1))
        return other + (other >= identity)


def _sample_pose(rng: np.random.Generator, config: FaceWorldConfig) -> Pose:
    p, e = config.pose, config.expression
    n = rng.standard_normal(10)
    u = rng.random(3)
    return Pose(
        roll=0.07 * p * n[0],
        scale=float(np.clip(1 + p * (0.09 * n[1] + 0.15), 0.85, 1.4)),
        x=2.0 * p * n[2],
        y=p * (2.4 * n[3] + 1.5),
        yaw=float(np.clip(0.15 * p * n[4], -0.42, 0.42)),
        pitch=1.0 * p * n[5],
        smile=float(np.clip(e * (0.25 + 0.5 * n[6]), -0.6, 1.2)),
        mouth_open=float(min(e * max(0.0, u[0] - 0.55) * 2.4, 1.2)),
        brow_raise=0.5 * e * n[7],
        eye_open=float(1 + e * (0.12 * n[8] - 0.55 * (u[1] < 0.06))),
        gaze=float(np.clip(0.5 * e * n[9], -1, 1)),
    )
