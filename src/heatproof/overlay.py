"""A map laid over its image, honestly: one scale, one colour map per kind of map, nothing drawn where nothing is."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

_QUANTILE = 0.995
"""Share of pixels below full colour; single hot pixels would otherwise blacken a pixel-level map."""


def scale(heat: Float[np.ndarray, "height width"], signed: bool) -> Float[np.ndarray, "height width"] | None:
    """A map on the scale that overlays use.

    Returns:
        Values in [0, 1] for a one-signed map, in [−1, 1] with zero kept at zero for a signed one, or None for a map
        that says nothing: constant, or not finite.
    """
    if not np.isfinite(heat).all() or heat.max() == heat.min():
        return None
    heat = heat.astype(np.float64)
    magnitude = np.abs(heat) if signed else heat - heat.min()
    full = np.quantile(magnitude, _QUANTILE) or magnitude.max()
    return np.clip((heat if signed else magnitude) / full, -1, 1)


def overlay(image: UInt8[np.ndarray, "height width 3"], heat: Float[np.ndarray, "height width"], signed: bool) -> Image.Image:
    """Draw a map over an image.

    Args:
        image: `(H, W, 3)` uint8.
        heat: `(H, W)`, any range.
        signed: True draws a diverging map with zero uncoloured (red for, blue against); False a perceptually
            uniform one from the map's minimum to its maximum.

    Returns:
        An RGB image of the same size. A constant or non-finite map leaves the grey image with a note on it.
    """
    import matplotlib  # costs 0.1 s, and only pictures need it

    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    base = np.repeat(grey[..., None], 3, axis=2)
    values = scale(heat, signed)
    if values is None:
        picture = Image.fromarray(base.round().astype(np.uint8))
        note = "constant map" if np.isfinite(heat).all() else "no map"
        ImageDraw.Draw(picture).text((4, 4), note, fill="white", stroke_width=1, stroke_fill="black")
        return picture
    if signed:
        colour = matplotlib.colormaps["RdBu_r"](0.5 + values / 2)[..., :3]
        alpha = 0.9 * np.abs(values)[..., None] ** 0.7
    else:
        colour = matplotlib.colormaps["inferno"](values)[..., :3]
        alpha = 0.35 + 0.4 * values[..., None]
    return Image.fromarray((base * (1 - alpha) + 255 * colour * alpha).round().clip(0, 255).astype(np.uint8))
