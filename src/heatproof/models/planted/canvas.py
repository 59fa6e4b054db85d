"""What objects and contexts are drawn with: places in the unit square, smooth noise, and a few outlines."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

Colour = tuple[float, float, float]


@lru_cache(maxsize=64)
def places(size: int) -> tuple[Float[ndarray, "1 size"], Float[ndarray, "size 1"]]:
    """`x` and `y` of each pixel's centre in [0, 1], from the left and from the top."""
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return line[None, :], line[:, None]


@lru_cache(maxsize=256)
def _between(cells: int, size: int) -> Float[ndarray, "size knots"]:
    """Weights that interpolate from `cells + 1` knots to `size` pixels, smooth at the knots."""
    at = places(size)[0][0] * cells
    knot = np.minimum(at.astype(int), cells - 1)
    part = at - knot
    part = part * part * (3 - 2 * part)
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), knot] = 1 - part
    weights[np.arange(size), knot + 1] = part
    return weights


def smooth(rng: np.random.Generator, rows: int, columns: int, size: int) -> Float[ndarray, "size size"]:
    """Value noise in [0, 1] with so many cells, the same at every size."""
    knots = rng.random((rows + 1, columns + 1), dtype=np.float32)
    return _between(rows, size) @ knots @ _between(columns, size).T


def mix(share: Float[ndarray, "size size"], low: Colour, high: Colour) -> Float[ndarray, "size size 3"]:
    """From one colour to another."""
    start, end = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return start + share[..., None] * (end - start)


def ellipse(x: ndarray, y: ndarray, cx: float, cy: float, rx: float, ry: float | None = None) -> Bool[ndarray, "h w"]:
    """Inside an ellipse with its axes along x and y."""
    return ((x - cx) / rx) ** 2 + ((y - cy) / (ry or rx)) ** 2 <= 1


def polygon(x: ndarray, y: ndarray, *corners: Sequence[float]) -> Bool[ndarray, "h w"]:
    """Inside a convex polygon whose corners come clockwise (y points down)."""
    inside = np.ones(np.broadcast_shapes(x.shape, y.shape), bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    return inside
