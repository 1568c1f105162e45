"""Time of a matrix product: tiles over cores, and the memory they wait for.

A library cuts the result into tiles and works on one tile a core at a time; where tiles are fewer
than cores it also cuts the contracted dimension, and adds the parts up. Time follows from how many
rounds of tiles there are, what a core does in one, and how fast memory brings the factors. Of the
shapes that a library has, the fastest is taken. The coefficients are fitted to measured products
by `benchmarks/fit_kernels.py`, which calls the functions of this module.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exajax.machine.chip import TILE_SIZES, Tiles

SHAPES = (
    *((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 128)),
    *((128, 32), (32, 64), (64, 32), (16, 64), (64, 16), (16, 32)),
)
"""Rows and columns of the tiles that a library may choose."""

SPLITS = (1, 2, 4, 8, 16)
"""Parts that the contracted dimension may be cut into."""

K_STEP = 32
"""Elements of the contracted dimension that a core multiplies at once; a part is rounded up."""

_ROWS, _COLUMNS, _SPLIT, _SIZE = (
    np.array(values, float)
    for values in zip(
        *((r, c, s, TILE_SIZES.index(r * c)) for r, c in SHAPES for s in SPLITS), strict=True
    )
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Products:
    """Matrix products [m, k] x [k, n] of any number of sizes, `batch` of each.

    Attributes:
        batch: how many of each size; shape [R], as all others.
        m: rows of the results.
        n: columns of the results.
        k: contracted length.
        bytes: bytes read and written.
    """

    batch: Floats
    m: Floats
    n: Floats
    k: Floats
    bytes: Floats

    @classmethod
    def of(
        cls, batch: ArrayLike, m: ArrayLike, n: ArrayLike, k: ArrayLike, bytes_: ArrayLike
    ) -> "Products":
        """Returns products from numbers or lists."""
        values = (np.atleast_1d(np.asarray(value, float)) for value in (batch, m, n, k, bytes_))
        return cls(*np.broadcast_arrays(*values))

    @property
    def flops(self) -> Floats:
        """Multiplications and additions, each counted."""
        return 2 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class MatmulTimes:
    """Where the time of products goes, in seconds, each of shape [R].

    Attributes:
        total: all of it, the launch included.
        compute: what the cores need.
        memory: what memory needs.
    """

    total: Floats
    compute: Floats
    memory: Floats


def times(what: Products, tiles: Tiles, flops_per_s: float, bytes_per_s: float) -> MatmulTimes:
    """Returns the time of products on one device.

    Args:
        what: the products.
        tiles: the coefficients of the device.
        flops_per_s: its peak at the type of the factors.
        bytes_per_s: its peak memory bandwidth.
    """
    # A row for each product, a column for each way to tile it.
    batch, m, n, k = (size[:, None] for size in (what.batch, what.m, what.n, what.k))
    rounds = batch * np.ceil(m / _ROWS) * np.ceil(n / _COLUMNS) * _SPLIT / tiles.cores
    whole = tiles.rounding * np.ceil(rounds) + (1 - tiles.rounding) * np.maximum(1, rounds)
    depth = np.ceil(k / _SPLIT / K_STEP) * K_STEP + tiles.prologue
    fraction = np.array(tiles.fractions)[_SIZE.astype(int)]
    compute_s = whole * 2 * _ROWS * _COLUMNS * depth * tiles.cores / (flops_per_s * fraction)

    # The parts of a result are written in fp32 and read again to be added up.
    moved = what.bytes[:, None] + (_SPLIT > 1) * 8 * batch * m * n * _SPLIT
    busy = np.sqrt(np.minimum(1, rounds * tiles.spread))
    memory_s = moved / (bytes_per_s * tiles.memory * busy)

    added_s = (_SPLIT > 1) * tiles.split_s
    total_s = _overlapped(compute_s, memory_s, tiles.overlap) + added_s
    row, best = np.arange(len(total_s)), total_s.argmin(axis=1)
    sustained = what.flops / (what.flops + tiles.slowdown_flops)
    slower = 1 + tiles.slowdown * sustained
    return MatmulTimes(
        tiles.launch_s + total_s[row, best] * slower,
        compute_s[row, best] * slower,
        memory_s[row, best] * slower,
    )


def _overlapped(compute_s: Floats, memory_s: Floats, power: float) -> Floats:
    """Returns the time of two things that overlap: nearly the longer where they differ much."""
    longer, shorter = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    overlapped: Floats = longer * (1 + (shorter / longer) ** power) ** (1 / power)
    return overlapped
