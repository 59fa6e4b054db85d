"""The contexts of a planted world: textures that fill the image, one function each."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from heatproof.models.planted.canvas import mix, places, smooth

Texture = Callable[[np.random.Generator, int], Float[ndarray, "size size 3"]]


def snow(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """White drifts with bluish hollows."""
    drifts = 0.65 * smooth(rng, 3, 3, size) + 0.35 * smooth(rng, 9, 9, size)
    return mix(drifts, (0.76, 0.84, 0.95), (1.0, 1.0, 1.0))


def water(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Blue, with waves across."""
    _, y = places(size)
    phase = rng.uniform(5, 8) * y + 1.6 * smooth(rng, 3, 2, size) + rng.random()
    waves = 0.5 + 0.35 * np.sin(2 * np.pi * phase.astype(np.float32)) + 0.3 * (smooth(rng, 24, 8, size) - 0.5)
    return mix(waves, (0.03, 0.22, 0.48), (0.35, 0.66, 0.86))


def road(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Grey asphalt with a dashed line, upright or nearly so."""
    x, y = places(size)
    texture = mix(0.7 * smooth(rng, 40, 40, size) + 0.3 * smooth(rng, 3, 3, size), (0.2, 0.2, 0.22), (0.46, 0.46, 0.48))
    across = x - rng.uniform(0.15, 0.85) + rng.uniform(-0.3, 0.3) * (y - 0.5)
    line = (np.abs(across) < 0.025) & ((y * 3.5 + rng.random()) % 1 < 0.6)
    texture[line] = (0.92, 0.9, 0.82)
    return texture


def grass(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Green upright blades."""
    blades = 0.65 * smooth(rng, 8, 40, size) + 0.35 * smooth(rng, 4, 4, size)
    return mix(blades, (0.05, 0.26, 0.04), (0.42, 0.74, 0.2))


def sand(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Tan, with slanting ripples and grain."""
    x, y = places(size)
    angle = rng.uniform(-0.5, 0.5)
    phase = rng.uniform(6, 9) * (np.sin(angle) * x + np.cos(angle) * y) + 1.5 * smooth(rng, 2, 2, size)
    ripples = 0.5 + 0.25 * np.sin(2 * np.pi * phase.astype(np.float32)) + 0.4 * (smooth(rng, 40, 40, size) - 0.5)
    return mix(ripples, (0.7, 0.55, 0.33), (0.95, 0.85, 0.62))


def sky(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Night, with stars."""
    texture = mix(smooth(rng, 2, 2, size), (0.01, 0.02, 0.1), (0.1, 0.08, 0.32))
    stars = np.clip(smooth(rng, 30, 30, size) - 0.85, 0, 0.1) * 9
    return texture + stars[..., None]


def bricks(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Rows of red bricks, each of its own shade, and mortar."""
    x, y = places(size)
    rows, columns = rng.uniform(6, 8), rng.uniform(3, 4)
    y = y * rows + rng.random()
    row = y.astype(int)
    x = x * columns + 0.5 * (row % 2) + rng.random()
    column = x.astype(int)
    shade = rng.random((10, 10), dtype=np.float32)[row, column] * 0.8 + 0.2 * smooth(rng, 30, 30, size)
    texture = mix(shade, (0.45, 0.13, 0.09), (0.76, 0.36, 0.25))
    texture[(y - row < 0.16) | (x - column < 0.08)] = (0.78, 0.74, 0.68)
    return texture


def leaves(rng: np.random.Generator, size: int) -> Float[ndarray, "size size 3"]:
    """Fallen leaves: cells in brown, ochre and olive, dark where they meet."""
    x, y = places(size)
    shades = np.array([(0.36, 0.22, 0.1), (0.5, 0.36, 0.12), (0.3, 0.3, 0.1), (0.24, 0.15, 0.08)], np.float32)
    middle = rng.random((24, 2), dtype=np.float32)
    away = (x[..., None] - middle[:, 0]) ** 2 + (y[..., None] - middle[:, 1]) ** 2
    nearest = away.argmin(-1)
    vein = np.sqrt(np.take_along_axis(away, nearest[..., None], -1)) * 4
    leaf = shades[rng.integers(len(shades), size=24)][nearest] * (1.25 - vein)
    return leaf + 0.1 * (smooth(rng, 30, 30, size) - 0.5)[..., None]


CONTEXTS: dict[str, Texture] = {f.__name__: f for f in (snow, water, road, grass, sand, sky, bricks, leaves)}
"""Every context by name; a texture takes a generator and a size and returns RGB around [0, 1]."""
