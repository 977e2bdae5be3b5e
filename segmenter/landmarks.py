"""Five facial points from label maps: alignment without a landmark model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segmenter.labels import CLASSES

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Names of the five points; left and right are those of the picture."""

# The 112x112 alignment template of ArcFace, as the shape of a mean face.
_MEAN_FACE = torch.tensor(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]]
)
# Where the mean face lies on the skin: offset of its middle from the skin's centroid and distance
# of its eyes, in units of the square root of the skin's area (medians over CelebAMask-HQ masks).
_SKIN_OFFSET, _SKIN_EYES = (0.0, 0.11), 0.48
_LEAST_SHARE = 2e-4  # of the picture's pixels: a smaller part is noise


@dataclass(frozen=True)
class Calibration:
    """How landmarks lie to the parts of a label map.

    `python -m benchmarks.point_calibration` fits the values to photographs with known points; the
    defaults are of people of folds 1-5 of LFW.

    Attributes:
        tip_eyes: The nose's tip stands out of the plane of eyes and mouth, and so moves with a
            turned head: it lies this much further on the way from the eyes' middle to the nose's,
        tip_mouth: and this much on the way from the nose's middle to the mouth's.
        tip_down: Standard deviations of the nose below its middle, where eyes or mouth are not
            seen.
        mouth: How many times as far from their middle as the ends of the region the corners are.
    """

    tip_eyes: float = 1.04
    tip_mouth: float = -0.34
    tip_down: float = 0.78
    mouth: float = 1.14


DEFAULT = Calibration()


@dataclass(frozen=True)
class FacePoints:
    """Five points a face and how they were found.

    Attributes:
        points: float32 `(N, 5, 2)`, x and y in pixels (pixel centres are whole numbers), in the
            order of `POINTS`.
        found: bool `(N, 5)`, True where the part itself was seen; otherwise the point comes from
            the glasses, or from a mean face fitted to the parts that were, or to the skin.
    """

    points: Tensor
    found: Tensor

    @property
    def fell_back(self) -> Tensor:
        """True `(N,)` for faces with a point that was not seen."""
        return ~self.found.all(1)


def face_points(labels: Tensor, calibration: Calibration = DEFAULT) -> FacePoints:
    """Find eyes, nose tip and mouth corners in label maps uint8 `(N, H, W)`.

    Eyes are the middles of their regions, the mouth corners the ends of mouth and lips along the
    line of the eyes, and the nose tip follows from all three: see `Calibration`. Missing eyes are
    taken from glasses, and whatever is then missing from a mean face fitted by similarity to the
    points seen (two at least), else to the skin, else to the whole picture. Raises `ValueError`
    for other inputs.
    """
    if labels.ndim != 3 or labels.dtype != torch.uint8 or 0 in labels.shape[1:]:
        raise ValueError(
            f"labels must be uint8 (N, H, W), got {labels.dtype} {tuple(labels.shape)}"
        )
    height, width = labels.shape[1:]
    least = max(2.0, _LEAST_SHARE * height * width)
    grid = _Grid(height, width, labels.device)

    # Strays, and the same parts of a second face, would move middles and ends.
    parts = {
        name: grid.without_strays(_region(labels, name))
        for name in ("l_eye", "r_eye", "nose", "eye_g", "skin")
    }
    mouth = grid.without_strays(_region(labels, "mouth", "u_lip", "l_lip"))
    # The classes name the sides of the person: r_eye lies on the left of the picture.
    left, has_left = grid.middle(parts["r_eye"], least)
    right, has_right = grid.middle(parts["l_eye"], least)
    nose, has_nose = grid.middle(parts["nose"], least)
    middle, has_mouth = grid.middle(mouth, least)
    skin, has_skin = grid.middle(parts["skin"], least)

    # Glasses hide eyes: each half of them stands for one.
    cut = torch.where(has_nose[:, None], nose, torch.where(has_skin[:, None], skin, grid.centre))
    on_left = grid.x < cut[:, 0, None, None]
    glass_left, has_glass_left = grid.middle(parts["eye_g"] & on_left, least)
    glass_right, has_glass_right = grid.middle(parts["eye_g"] & ~on_left, least)
    seen_left, seen_right = has_left, has_right
    left = torch.where(has_left[:, None], left, glass_left)
    right = torch.where(has_right[:, None], right, glass_right)
    has_left, has_right = has_left | has_glass_left, has_right | has_glass_right

    across = torch.where((has_left & has_right)[:, None], right - left, grid.across)
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-6)
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    first, last = grid.ends(mouth, across, middle)
    between = (first + last) / 2
    first = between + calibration.mouth * (first - between)
    last = between + calibration.mouth * (last - between)
    low = calibration.tip_down * grid.deviation(parts["nose"], nose, down)[:, None] * down
    turned = calibration.tip_eyes * (nose - (left + right) / 2)
    turned = turned + calibration.tip_mouth * (between - nose)
    tip = nose + torch.where((has_left & has_right & has_mouth)[:, None], turned, low)

    points = torch.stack([left, right, tip, first, last], 1)
    known = torch.stack([has_left, has_right, has_nose, has_mouth, has_mouth], 1)
    seen = torch.stack([seen_left, seen_right, has_nose, has_mouth, has_mouth], 1)
    area = parts["skin"].sum((1, 2)).float().sqrt()
    fallback = _fit_mean_face(points, known, skin, torch.where(has_skin, area, 0), grid)
    return FacePoints(torch.where(known[..., None], points, fallback), seen)


def _region(labels: Tensor, *names: str) -> Tensor:
    region = labels == CLASSES.index(names[0])
    for name in names[1:]:
        region |= labels == CLASSES.index(name)
    return region


def _fit_mean_face(
    points: Tensor, known: Tensor, skin: Tensor, skin_side: Tensor, grid: "_Grid"
) -> Tensor:
    """Return the mean face `(N, 5, 2)` where the known points, or else the skin, say it is."""
    face = _MEAN_FACE.to(points.device)
    face = face - face.mean(0)
    eyes = (face[1] - face[0]).norm()
    # Without two points: upright on the skin, or in the middle of the picture.
    side = torch.where(skin_side > 0, skin_side, grid.side * 0.6)
    centre = torch.where((skin_side > 0)[:, None], skin, grid.centre)
    upright = centre + side[:, None] * torch.tensor(_SKIN_OFFSET, device=points.device)
    plain = upright[:, None] + face * (_SKIN_EYES * side / eyes)[:, None, None]

    # Least-squares similarity from complex numbers: q = a p + b.
    weight = known.float()
    count = weight.sum(1, keepdim=True).clamp_min(1)
    p = torch.view_as_complex(face.contiguous()).expand(len(points), -1)
    q = torch.view_as_complex(torch.where(known[..., None], points, 0.0).contiguous())
    p_mean = (weight * p).sum(1, keepdim=True) / count
    q_mean = (weight * q).sum(1, keepdim=True) / count
    spread = (weight * (p - p_mean).abs() ** 2).sum(1, keepdim=True)
    scale = (weight * (p - p_mean).conj() * (q - q_mean)).sum(1, keepdim=True)
    fitted = torch.view_as_real(q_mean + scale / spread.clamp_min(1e-6) * (p - p_mean))
    return torch.where((known.sum(1) >= 2)[:, None, None], fitted, plain)


class _Grid:
    """Statistics of boolean regions `(N, H, W)` on the pixel grid."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.x = torch.arange(width, dtype=torch.float32, device=device)
        self.y = torch.arange(height, dtype=torch.float32, device=device)[:, None]
        self.centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=device)
        self.across = torch.tensor([1.0, 0.0], device=device)
        self.side = float(min(height, width))

    def without_strays(self, region: Tensor) -> Tensor:
        """Return the region without pixels further from its median than its own extent."""
        columns, rows = region.sum(1), region.sum(2)
        area = columns.sum(1)
        half = (area[:, None] + 1) // 2
        median_x = (columns.cumsum(1) >= half).float().argmax(1)[:, None, None]
        median_y = (rows.cumsum(1) >= half).float().argmax(1)[:, None, None]
        reach = 4 * area[:, None, None]
        return region & ((self.x - median_x) ** 2 + (self.y - median_y) ** 2 <= reach)

    def middle(self, region: Tensor, least: float) -> tuple[Tensor, Tensor]:
        """Return the mean position `(N, 2)`, and whether there is a region of `least` pixels."""
        columns, rows = region.sum(1), region.sum(2)
        area = columns.sum(1)
        x = (columns * self.x).sum(1) / area.clamp_min(1)
        y = (rows * self.y[:, 0]).sum(1) / area.clamp_min(1)
        return torch.stack([x, y], 1), area >= least

    def along(self, middle: Tensor, direction: Tensor) -> Tensor:
        """Return how far `(N, H, W)` each pixel lies from `middle` along unit `direction`."""
        dx = (self.x - middle[:, 0, None, None]) * direction[:, 0, None, None]
        return dx + (self.y - middle[:, 1, None, None]) * direction[:, 1, None, None]

    def deviation(self, region: Tensor, middle: Tensor, direction: Tensor) -> Tensor:
        """Return the standard deviation `(N,)` of a region along a direction."""
        squares = torch.where(region, self.along(middle, direction) ** 2, 0.0)
        return (squares.sum((1, 2)) / region.sum((1, 2)).clamp_min(1)).sqrt()

    def ends(self, region: Tensor, direction: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two ends `(N, 2)` of a region along a direction.

        An end is the mean of the outermost pixels, three standard deviations being the furthest.
        """
        along = self.along(middle, direction)
        limit = 3 * self.deviation(region, middle, direction)[:, None, None].clamp_min(1)
        region = region & (along.abs() <= limit)
        span = limit / 20
        found = []
        for sign in (-1.0, 1.0):
            outward = torch.where(region, sign * along, -torch.inf)
            furthest = outward.amax((1, 2), keepdim=True)
            weight = (region & (outward >= furthest - span)).float()
            total = weight.sum((1, 2)).clamp_min(1)
            x = (weight.sum(1) * self.x).sum(1) / total
            y = (weight.sum(2) * self.y[:, 0]).sum(1) / total
            found.append(torch.stack([x, y], 1))
        return found[0], found[1]
