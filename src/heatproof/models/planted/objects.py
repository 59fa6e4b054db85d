"""The objects of a planted world: simple shapes in colours of their own, one function each.

A drawing takes `x` and `y` in [−1, 1] (y points down) and yields its parts from back to front, each where it is and its
colour. What lies outside the unit circle is cut off, so that a turned object needs no more room than an upright one.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from heatproof.models.planted.canvas import Colour, ellipse, polygon

Parts = Iterator[tuple[Bool[ndarray, "h w"], Colour]]
Drawing = Callable[[ndarray, ndarray], Parts]

_BLACK, _WHITE = (0.06, 0.06, 0.08), (0.97, 0.97, 0.97)


def penguin(x: ndarray, y: ndarray) -> Parts:
    """Upright, black with a white belly."""
    for side in (-1, 1):
        yield ellipse(x, y, 0.3 * side, 0.85, 0.25, 0.15), (0.98, 0.6, 0.1)
        yield ellipse(x, y, 0.58 * side, 0.15, 0.16, 0.45), _BLACK
    yield ellipse(x, y, 0, 0.05, 0.6, 0.92), (0.1, 0.1, 0.16)
    yield ellipse(x, y, 0, 0.25, 0.42, 0.62), _WHITE
    for side in (-1, 1):
        yield ellipse(x, y, 0.2 * side, -0.5, 0.13), _WHITE
        yield ellipse(x, y, 0.2 * side, -0.5, 0.06), _BLACK
    yield polygon(x, y, (-0.16, -0.36), (0.16, -0.36), (0, -0.12)), (0.98, 0.6, 0.1)


def duck(x: ndarray, y: ndarray) -> Parts:
    """From the side, yellow with an orange beak."""
    yield polygon(x, y, (0.55, -0.5), (1, -0.32), (0.55, -0.16)), (0.97, 0.45, 0.05)
    yield polygon(x, y, (-0.95, -0.1), (-0.4, 0.1), (-0.6, 0.5)), (0.97, 0.82, 0.1)
    yield ellipse(x, y, -0.05, 0.32, 0.8, 0.48), (0.97, 0.82, 0.1)
    yield ellipse(x, y, 0.35, -0.36, 0.38), (0.97, 0.82, 0.1)
    yield ellipse(x, y, -0.15, 0.3, 0.42, 0.22), (0.82, 0.6, 0.05)
    yield ellipse(x, y, 0.45, -0.45, 0.09), _BLACK


def car(x: ndarray, y: ndarray) -> Parts:
    """From the side, red with blue windows and black wheels."""
    yield polygon(x, y, (-0.35, -0.55), (0.3, -0.55), (0.6, 0), (-0.65, 0)), (0.85, 0.06, 0.14)
    yield polygon(x, y, (-0.95, -0.05), (0.95, -0.05), (0.95, 0.42), (-0.95, 0.42)), (0.85, 0.06, 0.14)
    yield polygon(x, y, (-0.3, -0.43), (-0.05, -0.43), (-0.05, -0.05), (-0.48, -0.05)), (0.6, 0.85, 0.97)
    yield polygon(x, y, (0.06, -0.43), (0.25, -0.43), (0.45, -0.05), (0.06, -0.05)), (0.6, 0.85, 0.97)
    for side in (-1, 1):
        yield ellipse(x, y, 0.5 * side, 0.42, 0.28), _BLACK
        yield ellipse(x, y, 0.5 * side, 0.42, 0.12), (0.75, 0.75, 0.75)


def cow(x: ndarray, y: ndarray) -> Parts:
    """From the side, white with black patches and a pink muzzle."""
    for leg in (-0.6, -0.25, 0.2, 0.5):
        yield polygon(x, y, (leg - 0.09, 0.2), (leg + 0.09, 0.2), (leg + 0.09, 0.8), (leg - 0.09, 0.8)), (0.8, 0.78, 0.76)
    body = ellipse(x, y, -0.05, 0.0, 0.78, 0.46)
    yield body, _WHITE
    for cx, cy, rx, ry in ((-0.5, -0.15, 0.22, 0.24), (0.05, 0.1, 0.24, 0.2), (0.3, -0.3, 0.2, 0.15), (-0.3, 0.35, 0.18, 0.12)):
        yield ellipse(x, y, cx, cy, rx, ry) & body, _BLACK
    yield ellipse(x, y, 0.6, -0.4, 0.3), _WHITE
    yield ellipse(x, y, 0.45, -0.62, 0.14), _BLACK
    yield ellipse(x, y, 0.75, -0.25, 0.2, 0.16), (0.96, 0.6, 0.66)
    yield ellipse(x, y, 0.66, -0.48, 0.07), _BLACK


def starfish(x: ndarray, y: ndarray) -> Parts:
    """Five arms in magenta, with pale dots."""
    angle = np.arctan2(x, -y)
    yield np.hypot(x, y) <= 0.62 + 0.36 * np.cos(5 * angle), (0.85, 0.15, 0.5)
    yield ellipse(x, y, 0, 0, 0.14), (1.0, 0.75, 0.85)
    for arm in range(5):
        turn = 2 * np.pi * arm / 5
        for away, radius in ((0.4, 0.09), (0.68, 0.07)):
            yield ellipse(x, y, away * np.sin(turn), -away * np.cos(turn), radius), (1.0, 0.75, 0.85)


def moon(x: ndarray, y: ndarray) -> Parts:
    """A crescent in pale yellow, with craters."""
    crescent = ellipse(x, y, 0, 0, 0.97) & ~ellipse(x, y, 0.5, -0.12, 0.72)
    yield crescent, (0.99, 0.96, 0.7)
    for cx, cy, radius in ((-0.6, -0.2, 0.13), (-0.45, 0.45, 0.16), (0.15, 0.78, 0.1), (-0.35, -0.72, 0.09)):
        yield ellipse(x, y, cx, cy, radius) & crescent, (0.8, 0.74, 0.45)


def cat(x: ndarray, y: ndarray) -> Parts:
    """A round face with pointed ears, violet-grey with dark stripes and green eyes."""
    for side in (-1, 1):
        corners = [(0.72 * side, -0.68), (0.72 * side, 0), (0.05 * side, -0.4)]
        yield polygon(x, y, *corners[::side]), (0.5, 0.42, 0.62)
    face = ellipse(x, y, 0, 0.15, 0.85, 0.75)
    yield face, (0.62, 0.54, 0.74)
    for stripe in (-0.3, 0, 0.3):
        yield ellipse(x, y, stripe, -0.42, 0.08, 0.28) & face, (0.25, 0.2, 0.34)
    for side in (-1, 1):
        yield ellipse(x, y, 0.36 * side, 0.08, 0.2, 0.16), (0.55, 0.92, 0.3)
        yield ellipse(x, y, 0.36 * side, 0.08, 0.06, 0.15), _BLACK
    yield polygon(x, y, (-0.12, 0.36), (0.12, 0.36), (0, 0.52)), (0.98, 0.55, 0.65)


def fox(x: ndarray, y: ndarray) -> Parts:
    """A pointed face in orange with white cheeks and black-tipped ears."""
    for side in (-1, 1):
        corners = [(0.68 * side, -0.72), (0.85 * side, 0.05), (0.1 * side, -0.35)]
        yield polygon(x, y, *corners[::side]), (0.95, 0.42, 0.05)
        yield ellipse(x, y, 0.66 * side, -0.58, 0.16), _BLACK
    yield polygon(x, y, (-0.85, 0.05), (-0.4, -0.42), (0.4, -0.42), (0.85, 0.05), (0, 0.95)), (0.95, 0.42, 0.05)
    for side in (-1, 1):
        corners = [(0.85 * side, 0.05), (0, 0.95), (0.12 * side, 0.3)]
        yield polygon(x, y, *corners[::side]), _WHITE
        yield ellipse(x, y, 0.3 * side, -0.02, 0.1), _BLACK
    yield ellipse(x, y, 0, 0.8, 0.14), _BLACK


OBJECTS: dict[str, Drawing] = {f.__name__: f for f in (penguin, duck, car, cow, starfish, moon, cat, fox)}
"""Every object by name."""


def disk(x: ndarray, y: ndarray) -> Parts:
    """Round."""
    yield ellipse(x, y, 0, 0, 0.9), _WHITE


def square(x: ndarray, y: ndarray) -> Parts:
    """Four corners."""
    yield polygon(x, y, (-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)), _WHITE


def triangle(x: ndarray, y: ndarray) -> Parts:
    """Three corners."""
    yield polygon(x, y, (0, -0.95), (0.85, 0.5), (-0.85, 0.5)), _WHITE


def bar(x: ndarray, y: ndarray) -> Parts:
    """Long and thin."""
    yield polygon(x, y, (-0.9, -0.3), (0.9, -0.3), (0.9, 0.3), (-0.9, 0.3)), _WHITE


DISTRACTORS: tuple[Drawing, ...] = (disk, square, triangle, bar)
"""Plain shapes that get a colour by chance and mean nothing."""
