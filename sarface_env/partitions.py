"""Partitions: how a face-parsing map is cut into named regions, and which of them may be dropped.

Regions tile the image: every pixel belongs to exactly one. A partition is a small picklable object
with `names`, `selectable` and a batched `__call__(labels) -> regions`, free of loops over faces.
"""

import functools
import re
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

CELEBA19 = (
    "background skin nose glasses l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip "
    "hair hat earring necklace neck cloth"
).split()
BACKGROUND, SKIN, HAIR = 0, 1, 13
_QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")


class Partition(ABC):
    """A rule that assigns every pixel of a parsed face to one region.

    Attributes:
        name: what `make_partition` takes to build it again.
        names: one name a region, by region number.
        selectable: the regions an agent may drop, in the order of the action's bits; all others
            are always kept.
        needs_parsing: False when the label maps do not matter, so that faces need not be parsed.
    """

    needs_parsing = True

    name: str
    names: tuple[str, ...]
    selectable: tuple[int, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """What every selectable region is a piece of, such as `skin`; by default itself."""
        return tuple(self.names[region] for region in self.selectable)

    def __call__(self, labels: Tensor) -> Tensor:
        """Region maps `(N, H, W)` uint8 of face-parsing maps `(N, H, W)` uint8.

        Raises:
            ValueError: wrong type or shape, or labels outside the 19 classes.
        """
        if labels.dtype != torch.uint8 or labels.ndim != 3:
            raise ValueError(
                f"label maps must be uint8 (N, H, W), got {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.numel() and (top := int(labels.max())) >= len(CELEBA19):
            raise ValueError(f"label maps hold CelebAMask-HQ classes 0 to 18, found {top}")
        return self._regions(labels)

    @abstractmethod
    def _regions(self, labels: Tensor) -> Tensor: ...

    def presence(self, regions: Tensor) -> Tensor:
        """Pixels of every region: `(N, R)` int64 of region maps `(N, H, W)`."""
        n, r = len(regions), len(self.names)
        rows = torch.arange(n, device=regions.device)[:, None] * r
        flat = (regions.flatten(1).long() + rows).flatten()
        return torch.bincount(flat, minlength=n * r).view(n, r)

    def region_bits(self, masks: Tensor) -> Tensor:
        """Keep bits of all regions `(N, R)` bool from keep bits of the selectable ones `(N, K)`."""
        bits = masks.new_ones((len(masks), len(self.names)), dtype=torch.bool)
        bits[:, list(self.selectable)] = masks.bool()
        return bits

    def keep_pixels(self, regions: Tensor, masks: Tensor) -> Tensor:
        """Pixels kept `(N, H, W)` bool of region maps `(N, H, W)` under keep bits `(N, K)` bool."""
        return self.keep_bytes(regions, masks.bool().cpu().numpy()).bool()

    def keep_bytes(self, regions: Tensor, masks: np.ndarray) -> Tensor:
        """`keep_pixels` as uint8 `(N, H, W)`: 255 where a pixel is kept, else 0."""
        if self._packing is None:
            bits = (
                self.region_bits(torch.from_numpy(masks))
                .to(regions.device)
                .view(torch.uint8)
                .neg_()
            )
            return bits.gather(1, regions.flatten(1).long()).view(regions.shape)
        # What a face loses in one number. Shifted by the region of the pixel, its bit is the sign,
        # which fills all others on the way back: no look-up in memory. Shifted by more bits than
        # there are, as by regions that are always kept, it is zero.
        first, weights = self._packing
        packed = torch.from_numpy(~masks @ weights).to(regions.device)
        keep = regions - first  # wraps around
        shifted = keep.to(packed.dtype)
        torch.bitwise_left_shift(packed[:, None, None], shifted, out=shifted)
        return keep.copy_(shifted.bitwise_right_shift_(31)).bitwise_not_()

    @functools.cached_property
    def _packing(self) -> tuple[int, np.ndarray] | None:
        """The first selectable region, and a bit for each, `(K,)`; None if they are too many."""
        first, last = min(self.selectable), max(self.selectable)
        places = np.array(self.selectable) - first
        # Of 16 bits if they suffice: half the memory.
        for dtype, bits in ((np.int16, 16), (np.int32, 32)):
            if last - first < bits:
                return first, np.left_shift(1, bits - 1 - places).astype(dtype)
        return None

    def bits_by_name(self, names: list[str]) -> list[int]:
        """Action bits of the selectable regions with these names.

        Raises:
            ValueError: a name is not a selectable region of this partition.
        """
        order = [self.names[region] for region in self.selectable]
        unknown = sorted(set(names) - set(order))
        if unknown:
            raise ValueError(
                f"{self.name} has no selectable region {', '.join(unknown)}; "
                f"there are {', '.join(order)}"
            )
        return [order.index(name) for name in names]


class SARFace24(Partition):
    """The 24 regions of SARFace; 12 of them selectable.

    Face parts are always kept. Background and skin are cut into quadrants and hair into halves at
    the centroid of the skin pixels, or at the image centre when there is no skin. A pixel on the
    cut belongs to the bottom or right side (`y >= cy`, `x >= cx`), so that none falls between.
    """

    name = "sarface24"
    names = (
        *"nose glasses l_eye r_eye l_brow r_brow l_ear r_ear mouth hat earring necklace".split(),
        *("neck", "cloth"),
        *(f"background_{q}" for q in _QUADRANTS),
        *(f"skin_{q}" for q in _QUADRANTS),
        *("hair_left", "hair_right"),
    )
    selectable = tuple(range(12, 24))

    @property
    def families(self) -> tuple[str, ...]:
        """`neck`, `cloth`, `background`, `skin` and `hair`."""
        return tuple(name.partition("_")[0] for name in super().families)

    # Region of every class; background, skin and hair are the first region of their group.
    _REGION_OF_CLASS = (14, 18, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 22, 9, 10, 11, 12, 13)

    def _regions(self, labels: Tensor) -> Tensor:
        device = labels.device
        _, h, w = labels.shape
        y = torch.arange(h, device=device)
        x = torch.arange(w, device=device)
        skin = labels == SKIN
        rows, columns = skin.sum(2), skin.sum(1)
        count, sum_y, sum_x = rows.sum(1), (rows * y).sum(1), (columns * x).sum(1)
        empty = count == 0
        # The centre of the image, (H - 1) / 2, as a fraction like the centroids.
        count = torch.where(empty, 2, count)
        sum_y, sum_x = torch.where(empty, h - 1, sum_y), torch.where(empty, w - 1, sum_x)
        # Integers on both sides: no rounding decides on which side of the cut a pixel lies.
        below = (y * count[:, None] >= sum_y[:, None]).to(torch.uint8)[:, :, None]
        right = (x * count[:, None] >= sum_x[:, None]).to(torch.uint8)[:, None, :]

        base = torch.tensor(self._REGION_OF_CLASS, dtype=torch.uint8, device=device)
        by_side = torch.zeros(len(CELEBA19), dtype=torch.uint8, device=device)
        by_side[[BACKGROUND, SKIN, HAIR]] = 1
        by_height = torch.zeros_like(by_side)
        by_height[[BACKGROUND, SKIN]] = 2
        index = labels.int()
        return base[index] + by_side[index] * right + by_height[index] * below


class CelebA19(Partition):
    """The 19 parsing classes as they are, every one selectable."""

    name = "celeba19"
    names = tuple(CELEBA19)
    selectable = tuple(range(19))

    def _regions(self, labels: Tensor) -> Tensor:
        return labels.clone()


class Grid(Partition):
    """Rows x columns of rectangles, every one selectable; the parsing is ignored.

    Args:
        rows: number of rows, at least 1.
        columns: number of columns; at most 256 cells in all.
    """

    needs_parsing = False

    def __init__(self, rows: int, columns: int):
        if rows < 1 or columns < 1 or rows * columns > 256:
            raise ValueError(f"a grid needs 1 to 256 cells, got {rows} x {columns}")
        self.rows, self.columns = rows, columns
        self.name = f"grid{rows}x{columns}"
        self.names = tuple(f"cell_{r}_{c}" for r in range(rows) for c in range(columns))
        self.selectable = tuple(range(rows * columns))

    @property
    def families(self) -> tuple[str, ...]:
        """All cells are pieces of the image."""
        return ("image",) * len(self.names)

    def _regions(self, labels: Tensor) -> Tensor:
        n, h, w = labels.shape
        row = torch.arange(h, device=labels.device) * self.rows // h
        column = torch.arange(w, device=labels.device) * self.columns // w
        cells = (row[:, None] * self.columns + column).to(torch.uint8)
        return cells.expand(n, h, w).clone()


class Crossed(Partition):
    """A partition by parsing, its selectable regions cut further by the cells of a grid.

    Regions that are always kept stay whole, so that they take no numbers from the others.

    Args:
        parts: what is cut.
        grid: the cells; kept regions and cells x selectable regions are at most 256 together.
    """

    def __init__(self, parts: Partition, grid: Grid):
        kept = [r for r in range(len(parts.names)) if r not in parts.selectable]
        cells = len(grid.names)
        total = len(kept) + len(parts.selectable) * cells
        if total > 256:
            raise ValueError(
                f"{parts.name} x {grid.name} has {total} regions, 256 are possible: a grid of at "
                f"most {(256 - len(kept)) // len(parts.selectable)} cells"
            )
        self.parts, self.grid = parts, grid
        self.name = f"{parts.name}x{grid.name}"
        self.names = (
            *(parts.names[r] for r in kept),
            *(f"{parts.names[r]}_{cell}" for r in parts.selectable for cell in grid.names),
        )
        self.selectable = tuple(range(len(kept), total))
        # Region numbers by (number in `parts`, cell): kept ones first, then each region's cells.
        table = torch.empty((len(parts.names), cells), dtype=torch.uint8)
        table[kept] = torch.arange(len(kept), dtype=torch.uint8)[:, None]
        numbers = torch.arange(len(kept), total, dtype=torch.uint8)
        table[list(parts.selectable)] = numbers.view(-1, cells)
        self._table = table.flatten()

    @property
    def families(self) -> tuple[str, ...]:
        """Those of the regions that are cut."""
        return tuple(family for family in self.parts.families for _ in self.grid.names)

    def _regions(self, labels: Tensor) -> Tensor:
        cell = self.grid(labels[:1]).int()
        index = self.parts(labels).int() * len(self.grid.names) + cell
        return self._table.to(labels.device)[index]


_BY_NAME: dict[str, type[Partition]] = {c.name: c for c in (SARFace24, CelebA19)}


def make_partition(name: str | Partition) -> Partition:
    """Partition by name: `sarface24`, `celeba19`, `gridROWSxCOLUMNS` such as `grid7x7`, or both.

    `sarface24xgrid4x4` cuts every selectable region of `sarface24` by a 4 x 4 grid.

    Raises:
        ValueError: the name is none of these; the message lists what exists.
    """
    if isinstance(name, Partition):
        return name
    if name in _BY_NAME:
        return _BY_NAME[name]()
    match = re.fullmatch(rf"(?:({'|'.join(_BY_NAME)})x)?grid(\d+)x(\d+)", name)
    if match is None:
        raise ValueError(
            f"unknown partition {name!r}; there are {', '.join(_BY_NAME)}, gridROWSxCOLUMNS such "
            "as grid7x7, and a parsing cut by a grid such as sarface24xgrid4x4"
        )
    grid = Grid(int(match[2]), int(match[3]))
    return Crossed(_BY_NAME[match[1]](), grid) if match[1] else grid
