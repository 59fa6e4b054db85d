"""What every score against fixations starts from: a finite map, and the pixels in it that were looked at."""

from typing import Any

import numpy as np

from heatproof.errors import InputError


def finite(heat: Any) -> np.ndarray:
    """As float64 `(H, W)`.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    if hasattr(heat, "detach"):
        heat = heat.detach().cpu()
    heat = np.asarray(heat, dtype=np.float64)
    if heat.ndim != 2 or not heat.size or not np.isfinite(heat).all():
        raise InputError(f"a map of shape {heat.shape} came; expected (H, W) with finite values.")
    return heat


def both_finite(heat: Any, density: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of one size.

    Raises:
        InputError: of two sizes, or one that `finite` does not take.
    """
    p, q = finite(heat), finite(density)
    if p.shape != q.shape:
        raise InputError(f"maps of shapes {p.shape} and {q.shape} came; expected one size. Resize the first.")
    return p, q


def fixated(heat: np.ndarray, points: Any, repeated: bool = False) -> np.ndarray:
    """Rows and columns of the pixels that the points are in, each once unless `repeated`.

    Raises:
        InputError: no point inside the map.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2:
        raise InputError(f"points of shape {points.shape} came; expected (N, 2), row and column.")
    pixels = np.floor(points[np.isfinite(points[:, :2]).all(1), :2]).astype(np.int64)
    inside = pixels[((pixels >= 0) & (pixels < heat.shape)).all(1)]
    if not len(inside):
        raise InputError(f"none of the {len(points)} points is inside the map of {heat.shape[0]}×{heat.shape[1]}.")
    return inside if repeated else np.unique(inside, axis=0)


def stretched(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; a constant map is 0."""
    values = values - values.min()
    return values / (values.max() or 1)
