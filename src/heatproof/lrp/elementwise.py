"""Operations value by value, and those that put values together: activations, sums, mixtures, writing into a tensor."""

import math
from typing import Any

import torch
from torch import Tensor

from heatproof.lrp.arguments import replaced, signal, tensors
from heatproof.lrp.functions import Through
from heatproof.lrp.ledger import Row
from heatproof.lrp.propagation import Propagation
from heatproof.lrp.tags import Pixels, carry_gate, drop_tags, mark_gate, pixels_of, scale_pixels, set_pixels

GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh"})
"""What a signal is multiplied with when it is gated."""


def activation(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """An activation: all relevance goes through, `g · (f(x) − f(0)) / x`; what it gives at zero is a constant."""
    x, *rest = args
    if any(signal(value) for value in tensors(rest, kwargs)) or not signal(x):
        raise prop.no_rule(name)
    with torch.no_grad():
        y = func(x, *rest, **kwargs)
        zero = func(torch.zeros((), dtype=x.dtype, device=x.device), *rest, **kwargs)
    if not bool(zero.isfinite().all()):
        prop.row(name, "held constant")
        return y
    row = prop.row(name, "R_in = R_out")
    kept, moved = prop.keeper.keep(x), bool((zero != 0).any())

    def back(gradient: Tensor) -> tuple[Tensor, None]:
        # made anew: kept since the forward it would take as much memory as all else that a transformer keeps
        value = kept.take(prop.final)
        ratio = func(value, *rest, **kwargs)
        ratio = (ratio.sub_(zero) if moved else ratio).div_(value)
        return ratio.nan_to_num_(0.0, math.inf, -math.inf).mul_(gradient), None  # 0 / 0 where nothing came in

    z = Through.apply(x, None, [y], back)
    prop.constant(z, zero, "bias", row)
    if name in GATES:
        mark_gate(z)
    prop.watch(z, row)
    return z


def add(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """A sum: relevance follows the summands by itself, a constant one absorbs its share."""
    y = func(*args, **kwargs)
    first, second = args[0], args[1] if len(args) > 1 else kwargs["other"]
    row = prop.row(name.strip("_"))
    if not (signal(first) and signal(second)):
        before = first if signal(first) else second
        added = _constant_part(func, args, kwargs, y, before)
        prop.constant(y, added, "bias", row)
        scale_pixels(before, y, lambda t: func(*(t if value is before else value for value in args), **kwargs))
        carry_gate(before, y)
    prop.watch(y, row)
    return y


def add_to(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Tensor:
    """A signal added to another in its own memory, as in a residual sum: autograd needs neither of them."""
    prop.before_writing(args[0])
    row = prop.row(name.strip("_"))
    y: Tensor = drop_tags(func(*args, **kwargs))
    prop.watch(y, row)
    return y


def _constant_part(func: Any, args: tuple, kwargs: dict, y: Tensor, before: Tensor) -> Tensor:
    """What an addition gives when its signal is zero."""
    with torch.no_grad():
        zero = torch.zeros((), dtype=y.dtype, device=y.device)
        return torch.as_tensor(func(*(zero if value is before else value for value in args), **kwargs)).detach().to(y)


def mix(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """Joining, padding, choosing: constants that are mixed in absorb what is theirs, which is measured."""
    flat = [t for t in tensors(args, kwargs) if t.requires_grad]
    row = prop.row(name)
    joins = name in ("cat", "concat", "concatenate", "stack")
    zeros = name == "pad" and not (kwargs.get("value") or (len(args) > 3 and args[3]))
    if zeros or (joins and len(flat) == len(tensors(args, kwargs))):
        y = func(*args, **kwargs)  # nothing is mixed in
        sources = [pixels_of(t) for t in flat]
        if all(sources):
            parts = ([getattr(source, key) for source in sources] for key in ("carrier", "low", "high", "inside"))
            set_pixels(y, Pixels(*(func(*replaced(args, flat, part), **replaced(kwargs, flat, part)) for part in parts)))
    else:
        y = prop.measured(lambda *taps: func(*replaced(args, flat, taps), **replaced(kwargs, flat, taps)), flat, "bias", row)
    prop.watch(y, row)
    return y


def set_item(prop: Propagation, func: Any, args: tuple) -> None:
    """Writing into a tensor: what was there and what is written share what arrives."""
    target, index, value = args
    prop.before_writing(target)
    row = prop.row("setitem")
    around, within = signal(target), signal(value)
    if around and not within and target._is_view():
        # the tensor that it is a view of is what goes on, so the constants themselves are put on the graph
        value = _on_graph(prop, target[index], value, row)
        within = True
    # what is no signal now lies among what is: constants at the index, or all around it
    if within and not around:
        whole, added = _outside(prop, target, index)
    func(target, index, value)
    if around and not within:
        whole, added = target, torch.zeros_like(target)
        added[index] = target.detach()[index]
    if not (around and within):
        prop.constant(whole, added, "bias", row)
    drop_tags(target)


def overwrite(prop: Propagation, target: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """Every value of a tensor replaced: by a signal, which takes all relevance, or by constants, which absorb it."""
    values: Any = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("value"))
    if not signal(values):
        values = _on_graph(prop, target, values, prop.row("copy"))
    return put(prop, target, values)


def put(prop: Propagation, target: Tensor, values: Tensor) -> Tensor:
    """Write a signal over a tensor; if that is a view of constants, the others of them become part of a signal."""
    prop.before_writing(target)
    if signal(target) or not target._is_view():
        drop_tags(target.copy_(values))
        pixels = pixels_of(values)
        if pixels is not None and not target._is_view() and target.shape == values.shape:
            set_pixels(target, pixels)  # an image that was normalised in place still is the image
        return target
    whole, added = _outside(prop, target, ...)
    target.copy_(values)
    prop.constant(whole, added, "bias", prop.row("copy"))
    return drop_tags(target)


def _outside(prop: Propagation, target: Tensor, index: Any) -> tuple[Tensor, Tensor]:
    """The tensor that a part of is about to be written, and its constants outside of that part."""
    base = target._base
    whole = target if base is None else base
    left = whole.detach().clone()
    if left.stride() != whole.stride():
        raise prop.no_rule("writing into a part of a tensor with gaps", "A clone of that tensor has none. ")
    part = left.as_strided(target.shape, target.stride(), target.storage_offset() - whole.storage_offset())
    part[index] = 0
    return whole, left


def _on_graph(prop: Propagation, old: Tensor, values: Any, row: Row) -> Tensor:
    """Constants that take the place of a signal, as values that the backward reaches, which books them."""
    added = torch.as_tensor(values, dtype=old.dtype, device=old.device).expand_as(old)
    placed = torch.where(torch.zeros_like(old, dtype=torch.bool), old, added)
    prop.constant(placed, added, "bias", row)
    return placed
