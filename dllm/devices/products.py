"""Time of a matrix product on a GPU: tiles in waves over its processors, or its bytes, whichever is longer."""

import math
from dataclasses import dataclass

TILES = ((128, 128, 1.0), (128, 256, 1.0), (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.8))
"""Rows and columns of the tiles that a library chooses from, and the share of its best rate that each reaches."""
SPLITS = (1, 2, 4)
"""Parts into which a library may cut the contraction, so that more processors have work."""
SHORTEST_PART = 256
START_DEPTH = 200
"""Contraction in whose time a tile is started and written."""
SPLIT_SECONDS = 2.0e-6
"""To add the parts. Tile shares, START_DEPTH and the call's time are those of a grid that fit the calibration figures of
tripath/validation/data/calibration.json best; the rest follows."""
DEEP = 8192
"""Contraction at which a device's achievable share is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """`groups` products of rows x contraction by contraction x columns, with elements of `element_bytes` and results in BF16."""

    groups: int = 1
    rows: int
    columns: int
    contraction: int
    element_bytes: int = 2

    @property
    def flops(self) -> float:
        """A multiply-add counts as two."""
        return 2.0 * self.groups * self.rows * self.columns * self.contraction

    @property
    def moved_bytes(self) -> float:
        """Both operands and the result, once."""
        inputs = self.element_bytes * self.contraction * (self.rows + self.columns)
        return float(self.groups * (inputs + 2 * self.rows * self.columns))


def compute_seconds(product: Product, *, flops: float, processors: int) -> float:
    """Time in the processors, at `flops` of all of them in a deep product: that of the fastest choice of tiles and parts."""
    rate = flops * (1 + START_DEPTH / DEEP) / processors
    return min(
        math.ceil(parts * product.groups * math.ceil(product.rows / rows) * math.ceil(product.columns / columns) / processors)
        * 2 * rows * columns * (product.contraction / parts + START_DEPTH) / (rate * share)
        + (SPLIT_SECONDS if parts > 1 else 0.0)
        for rows, columns, share in TILES
        for parts in SPLITS
        if parts == 1 or product.contraction >= parts * SHORTEST_PART
    )  # fmt: skip
