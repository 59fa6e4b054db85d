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


def heat(values: Float[np.ndarray, "height width"], signed: bool) -> Image.Image | None:
    """A map in colour, more opaque where it is stronger, to be laid over an image.

    Args:
        values: `(H, W)`, any range.
        signed: True draws a diverging map with zero transparent (red for, blue against); False a perceptually
            uniform one from the map's minimum to its maximum.

    Returns:
        An image of 256 colours with transparency, or None for a map that says nothing: constant, or not finite.
    """
    import matplotlib  # costs 0.1 s, and only pictures need it

    scaled = scale(values, signed)
    if scaled is None:
        return None
    level = np.arange(256) / 255
    strength = np.abs(2 * level - 1) if signed else level
    table = matplotlib.colormaps["RdBu_r" if signed else "inferno"](level)
    table[:, 3] = 0.9 * strength**0.7 if signed else 0.35 + 0.4 * strength
    picture = Image.fromarray((255 * (0.5 + scaled / 2 if signed else scaled)).round().astype(np.uint8), "P")
    picture.putpalette((255 * table).round().astype(np.uint8).tobytes(), "RGBA")
    return picture


def overlay(image: UInt8[np.ndarray, "height width 3"], values: Float[np.ndarray, "height width"], signed: bool) -> Image.Image:
    """Draw a map over an image in grey.

    Args:
        image: `(H, W, 3)` uint8.
        values: `(H, W)`, any range.
        signed: as `heat` takes it.

    Returns:
        An RGB image of the same size. A constant or non-finite map leaves the grey image with a note on it.
    """
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    picture = Image.fromarray(np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2))
    layer = heat(values, signed)
    if layer is None:
        note = "constant map" if np.isfinite(values).all() else "no map"
        ImageDraw.Draw(picture).text((4, 4), note, fill="white", stroke_width=1, stroke_fill="black")
        return picture
    return Image.alpha_composite(picture.convert("RGBA"), layer.convert("RGBA")).convert("RGB")
