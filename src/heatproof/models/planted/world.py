"""Planted worlds: scenes of objects on contexts whose true evidence is known, because it was put there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from heatproof.errors import InputError, nearest
from heatproof.models.planted.canvas import places, smooth
from heatproof.models.planted.contexts import CONTEXTS
from heatproof.models.planted.objects import DISTRACTORS, OBJECTS, Drawing

_OWN = MappingProxyType(dict(zip(OBJECTS, CONTEXTS, strict=True)))
_USUAL = {context: name for name, context in _OWN.items()}

# what is drawn from which stream, so that changing one thing in a scene leaves all the others as they are
_CONTEXT, _OBJECT, _DISTRACTORS, _LIGHT = range(4)


@dataclass(frozen=True)
class World:
    """Where scenes come from: which object stands where, how often, and among what.

    `P(context | object) = ρ · 1[context = own(object)] + (1 − ρ) / 8`

    Args:
        correlation: ρ in [0, 1]. With this probability an object stands on its own context (a penguin on snow), else
            on any of the eight, each as often: at 0 the context says nothing of the object, at 1 everything.
        distractors: how many small shapes that mean nothing lie in each scene.
        size: height and width in pixels, at least 32. The same seed gives the same scene at every size.

    Raises:
        InputError: a correlation, number or size outside its range.
    """

    correlation: float = 0.5
    distractors: int = 1
    size: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.correlation, bool) or not isinstance(self.correlation, int | float) or not 0 <= self.correlation <= 1:
            raise InputError(f"correlation={self.correlation!r}; expected a probability from 0 to 1.")
        if isinstance(self.distractors, bool) or not isinstance(self.distractors, int) or self.distractors < 0:
            raise InputError(f"distractors={self.distractors!r}; expected a whole number, 0 or more.")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 32:
            raise InputError(f"size={self.size!r}; expected a whole number of pixels, at least 32.")

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects."""
        return tuple(OBJECTS)

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of the contexts."""
        return tuple(CONTEXTS)

    @property
    def own(self) -> Mapping[str, str]:
        """The usual context of each object."""
        return _OWN

    def scene(self, seed: Any, object: str | None = None, context: str | None = None) -> "Scene":
        """One scene.

        Args:
            seed: a whole number from 0, or a generator, from which one number is drawn.
            object: a name; None draws one.
            context: a name; None draws one, as the correlation says.

        Returns:
            A `Scene`; it is drawn when its pixels are asked for.

        Raises:
            InputError: a name that this world does not know, or a seed that is no seed.
        """
        if not isinstance(seed, np.random.Generator):
            seed = _stream(seed)
        key = int(seed.integers(2**63))
        chance = _stream(key, 4)
        tied, first, second = chance.random() < self.correlation, *chance.integers(len(OBJECTS), size=2)
        if object is None:
            object = _USUAL[_known(context, CONTEXTS)] if context and tied else self.objects[first]
        if context is None:
            context = _OWN[_known(object, OBJECTS)] if tied else self.contexts[second]
        return Scene(self, key, _known(object, OBJECTS), _known(context, CONTEXTS))

    def scenes(self, count: int, seed: Any = 0) -> Iterator["Scene"]:
        """So many scenes, one after the other, the first ones the same for any count.

        Args:
            count: how many.
            seed: a whole number from 0, or a generator.

        Raises:
            InputError: a seed that is no seed.
        """
        rng = _stream(seed)
        return (self.scene(rng) for _ in range(count))


@dataclass(frozen=True)
class Scene:
    """One image whose every pixel is known to be object, distractor or context.

    Everything but the names follows from `key`, each thing from a stream of its own: a twin with another object, none, or
    another context has the same place, light, noise and distractors, and every other pixel is equal. Outlines are hard for
    that reason: no pixel is half one, half the other.

    Args:
        world: size and number of distractors.
        key: what the scene is drawn from.
        object: what stands there; None for nothing.
        context: what it stands on.
    """

    world: World
    key: int
    object: str | None
    context: str

    def without_object(self) -> "Scene":
        """The same scene with the context where the object stood."""
        return replace(self, object=None)

    def with_object(self, name: str) -> "Scene":
        """The same scene with this object, at the same place."""
        return replace(self, object=_known(name, OBJECTS))

    def on(self, context: str) -> "Scene":
        """The same scene on another context."""
        return replace(self, context=_known(context, CONTEXTS))

    @property
    def caption(self) -> str:
        """What is to be seen: `a photo of a fox on snow`, or `a photo of snow`."""
        return f"a photo of {self.context}" if self.object is None else f"a photo of a {self.object} on {self.context}"

    @property
    def image(self) -> UInt8[ndarray, "size size 3"]:
        """RGB."""
        return self._drawn[0]

    @property
    def object_mask(self) -> Bool[ndarray, "size size"]:
        """Where the object is; nowhere if there is none."""
        return self._drawn[1]

    @property
    def distractor_masks(self) -> tuple[Bool[ndarray, "size size"], ...]:
        """Where each distractor is; the object may hide some of one, and a later one of an earlier one."""
        return self._drawn[2]

    @property
    def context_mask(self) -> Bool[ndarray, "size size"]:
        """Where neither the object nor a distractor is."""
        return ~np.logical_or.reduce([self.object_mask, *self.distractor_masks])

    @cached_property
    def _drawn(self) -> tuple[ndarray, ndarray, tuple[ndarray, ...]]:
        size = self.world.size
        rng = _stream(self.key, _CONTEXT)
        canvas = CONTEXTS[self.context](rng, size) * rng.uniform(0.92, 1.08, 3).astype(np.float32)

        rng = _stream(self.key, _OBJECT)
        radius, (cx, cy) = rng.uniform(0.2, 0.3), rng.random(2)
        place = _Place(radius + cx * (1 - 2 * radius), radius + cy * (1 - 2 * radius), radius, rng.uniform(-0.4, 0.4))
        tint, flip = _tint(rng), 1 if rng.random() < 0.5 else -1

        others = [
            other.paint(canvas, drawing, colours)
            for other, drawing, colours in _distractors(_stream(self.key, _DISTRACTORS), self.world.distractors, place)
        ]
        mask = np.zeros((size, size), bool)
        if self.object is not None:
            mask = place.paint(canvas, OBJECTS[self.object], tint, flip)
        hidden = mask.copy()
        for other in reversed(others):
            other &= ~hidden
            hidden |= other

        rng = _stream(self.key, _LIGHT)
        x, y = places(size)
        tilt = rng.uniform(-0.15, 0.15, 2)
        light = (rng.uniform(0.85, 1.1) + tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5)).astype(np.float32)
        canvas *= light[..., None]
        canvas += (0.1 * (smooth(rng, 40, 40, size) - 0.5))[..., None]
        canvas += rng.normal(0, 0.015, 3).astype(np.float32)
        return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8), mask, tuple(others)


@dataclass(frozen=True)
class _Place:
    """A circle in the unit square and by how much what is in it is turned, in radians."""

    x: float
    y: float
    radius: float
    turn: float

    def paint(self, canvas: Float[ndarray, "size size 3"], drawing: Drawing, tint: ndarray, flip: int = 1) -> ndarray:
        """Draw onto the canvas; return the pixels that were hit.

        The outline is hard. Colours inside it are those of 2×2 points averaged, which keeps small parts in the picture.
        """
        size = len(canvas)
        top, left = (max(int((at - self.radius) * size), 0) for at in (self.y, self.x))
        bottom, right = (min(int((at + self.radius) * size) + 1, size) for at in (self.y, self.x))
        fine_x, fine_y = places(2 * size)
        x = (fine_x[:, 2 * left : 2 * right] - np.float32(self.x)) / np.float32(self.radius)
        y = (fine_y[2 * top : 2 * bottom] - np.float32(self.y)) / np.float32(self.radius)
        cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        x, y = np.float32(flip) * (cos * x + sin * y), cos * y - sin * x
        index = np.zeros(x.shape, np.uint8)
        colours = [(0.0, 0.0, 0.0)]
        for part, colour in drawing(x, y):
            index[part] = len(colours)
            colours.append(colour)
        index[x * x + y * y > 1] = 0
        # colours times weight, and the weight itself: points outside the object have none
        table = np.concatenate([np.asarray(colours, np.float32) @ tint, np.ones((len(colours), 1), np.float32)], 1)
        table[0] = 0
        quads = table[index]
        quads = (quads[::2] + quads[1::2])[:, ::2] + (quads[::2] + quads[1::2])[:, 1::2]
        hit = quads[..., 3] >= 2
        canvas[top:bottom, left:right][hit] = quads[hit][:, :3] / quads[hit][:, 3:]
        mask = np.zeros((size, size), bool)
        mask[top:bottom, left:right] = hit
        return mask


def _distractors(rng: np.random.Generator, count: int, object: _Place) -> Iterator[tuple[_Place, Drawing, ndarray]]:
    """Where each distractor lies: of eight places drawn, the one that is farthest from all others."""
    taken = [object]
    for _ in range(count):
        radius = rng.uniform(0.05, 0.08)
        at = rng.uniform(radius, 1 - radius, (8, 2))
        room = [min(np.hypot(x - o.x, y - o.y) - o.radius for o in taken) for x, y in at]
        x, y = at[int(np.argmax(room))]
        taken.append(_Place(x, y, radius, rng.uniform(-np.pi, np.pi)))
        colour = np.eye(3, dtype=np.float32) * rng.uniform(0.1, 1, 3).astype(np.float32)
        yield taken[-1], DISTRACTORS[rng.integers(len(DISTRACTORS))], colour


def _tint(rng: np.random.Generator) -> Float[ndarray, "3 3"]:
    """A turn of the hue by up to 14° about the grey axis, and a little more or less of each channel."""
    angle = rng.uniform(-0.25, 0.25)
    third, cos, sin = (1 - np.cos(angle)) / 3, np.cos(angle), np.sin(angle) / np.sqrt(3)
    turn = np.full((3, 3), third) + cos * np.eye(3) + sin * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    return (turn * rng.uniform(0.88, 1.06, 3)).astype(np.float32)


def _stream(*key: Any) -> np.random.Generator:
    if any(isinstance(part, bool) or not isinstance(part, int | np.integer) or part < 0 for part in key):
        raise InputError(f"seed={key[0]!r}; expected a whole number, 0 or more, or a numpy.random.Generator.")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _known(name: str | None, names: Mapping[str, object]) -> str:
    if name is None or name not in names:
        raise InputError(f"there is no {name!r} in a planted world.{nearest(str(name), names)} Known: {', '.join(names)}.")
    return name
