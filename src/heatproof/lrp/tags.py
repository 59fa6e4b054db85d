"""What a tensor is, kept on the tensor itself while a forward is watched: a gate, the image, the output of a layer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_GATE, _PIXELS, _ORIGIN = "_lrp_gate", "_lrp_pixels", "_lrp_origin"


@dataclass
class Origin:
    """The weighted layer that a tensor came out of.

    Args:
        row: of the layer in the ledger.
        input: of the layer.
        version: of the tensor; with another one it has been written into.
        conditions: what lets relevance through only in part, also once a batch norm has made the layer another.
    """

    row: Any
    input: Tensor
    version: int
    conditions: list[Callable[[Tensor], None]] = field(default_factory=list)


@dataclass
class Pixels:
    """What a tensor that still is the image carries along: relevance of pixels, their bounds, and 0 where there is padding."""

    carrier: Tensor
    low: Tensor
    high: Tensor
    inside: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pixels":
        """After the values have changed places."""
        return Pixels(change(self.carrier), change(self.low), change(self.high), change(self.inside))

    def scaled(self, change: Callable[[Tensor], Tensor]) -> "Pixels":
        """After an affine map of each value: the bounds follow, relevance stays with the pixel."""
        ends = change(self.low), change(self.high)
        return Pixels(self.carrier, torch.minimum(*ends), torch.maximum(*ends), self.inside)


def is_gate(x: Any) -> bool:
    """Whether a value came out of a sigmoid, a softmax or the like."""
    return getattr(x, _GATE, False)


def mark_gate(x: Tensor) -> None:
    """Note that a value is what a signal is multiplied with when it is gated."""
    setattr(x, _GATE, True)


def drop_gate(x: Tensor) -> Tensor:
    """Note that a value is a signal, whatever it came out of."""
    if is_gate(x):
        delattr(x, _GATE)
    return x


def carry_gate(source: Any, y: Tensor) -> None:
    """A changed gate is a gate."""
    if is_gate(source):
        mark_gate(y)


def pixels_of(x: Any) -> Pixels | None:
    """The pixels of a tensor that still is the image."""
    return getattr(x, _PIXELS, None)


def set_pixels(x: Tensor, pixels: Pixels) -> None:
    """Note that a tensor still is the image."""
    setattr(x, _PIXELS, pixels)


def carry_pixels(source: Any, y: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """An image whose values changed places is an image."""
    pixels = pixels_of(source)
    if pixels is not None:
        set_pixels(y, pixels.map(change))


def scale_pixels(source: Any, y: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """An image whose values were shifted or multiplied one by one is an image."""
    pixels = pixels_of(source)
    if pixels is not None and y.shape == source.shape:
        set_pixels(y, pixels.scaled(change))


def origin_of(x: Any) -> Origin | None:
    """The weighted layer that a tensor came out of, if nothing has been written into it since."""
    origin: Origin | None = getattr(x, _ORIGIN, None)
    return origin if origin is not None and origin.version == x._version else None


def set_origin(x: Tensor, origin: Origin) -> None:
    """Note the weighted layer that a tensor came out of."""
    setattr(x, _ORIGIN, origin)


def drop_tags(x: Any) -> Any:
    """After a write: what was known of the tensor, and of the one that it is a view of, no longer holds."""
    for written in (x, x._base) if isinstance(x, Tensor) and x._is_view() else (x,):
        for tag in (_GATE, _PIXELS, _ORIGIN):
            if hasattr(written, tag):
                delattr(written, tag)
    return x
