"""Products of two signals: attention, gates, quotients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heatproof.lrp.arguments import detached, signal
from heatproof.lrp.conditions import at_heads
from heatproof.lrp.functions import Scale
from heatproof.lrp.propagation import Propagation
from heatproof.lrp.tags import carry_gate, is_gate, scale_pixels


def share(prop: Propagation, first: Any, second: Any, elementwise: bool) -> tuple[Any, Any, str]:
    """The two factors as they enter a product, and what was decided.

    Under `products="signal"` the one that is a gate (a sigmoid, a softmax, or the smaller of two that broadcast) is
    constant. Otherwise each factor's backward is halved: both would else claim the whole relevance.
    """
    if not (signal(first) and signal(second)):
        return first, second, "linear in the signal"
    if prop.composite.products == "signal":
        gates = [is_gate(first), is_gate(second)]
        if gates[0] == gates[1] and elementwise and first.numel() != second.numel():
            gates = [first.numel() < second.numel(), second.numel() < first.numel()]
        if gates[0] != gates[1]:
            pair = (first.detach(), second) if gates[0] else (first, second.detach())
            return *pair, "gate constant"
    return Scale.apply(first, 0.5), Scale.apply(second, 0.5), "half to each factor"


def _product(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    first: Any = args[0]
    rest = dict(kwargs)
    second: Any = args[1] if len(args) > 1 else rest.pop(next(key for key in ("other", "mat2", "vec", "vec2") if key in rest))
    elementwise = name.strip("_") in ("mul", "multiply", "rmul")
    one, two, rule = share(prop, first, second, elementwise)
    row = prop.row(name.strip("_"), rule)
    y = func(one, two, *args[2:], **rest)
    if rule == "linear in the signal":
        source = first if signal(first) else second
        if elementwise:
            _carry(source, y, lambda t: func(*(t if value is source else value for value in (first, second))))
    prop.watch(y, row)
    return at_heads(prop, y) if is_gate(first) and not elementwise and y.ndim > 2 else y


def _quotient(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    above, below = (args[1], args[0]) if name.startswith("__r") else (args[0], args[1] if len(args) > 1 else kwargs["other"])
    if kwargs.get("rounding_mode"):
        prop.row("div", "held constant")
        return func(*detached(args), **detached(kwargs))
    fixed = below.detach() if isinstance(below, Tensor) else below
    if not signal(above):
        prop.row("div", "held constant")
        return torch.as_tensor(above / fixed)
    row = prop.row("div", "denominator constant" if signal(below) else "linear in the signal")
    y = above / fixed
    if not signal(below):
        _carry(above, y, lambda t: t / fixed)
    prop.watch(y, row)
    return y


def _carry(source: Tensor, y: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Tags that survive a multiplication with a constant."""
    carry_gate(source, y)
    scale_pixels(source, y, change)


def _einsum(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    equation, factors = args[0], list(args[1] if isinstance(args[1], list | tuple) else args[1:])
    moving = [n for n, factor in enumerate(factors) if signal(factor)]
    rule = "linear in the signal"
    if len(moving) > 2:
        raise prop.no_rule("einsum of three signals")
    if len(moving) == 2:
        first, second = moving
        factors[first], factors[second], rule = share(prop, factors[first], factors[second], False)
    row = prop.row("einsum", rule)
    y = func(equation, *factors)
    prop.watch(y, row)
    return y


def _attention(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    query, key, value = (given.pop(part) for part in ("query", "key", "value"))
    mask: Any = given.get("attn_mask")
    if prop.composite.products == "signal":
        row = prop.row("attention", "attention weights constant")
        y = func(query.detach(), key.detach(), value, **detached(given))
        prop.watch(y, row)
        return at_heads(prop, y)
    # half of the product goes to the weights; of what the softmax hands down, half each to query and key, a bias takes its own
    row = prop.row("attention", "AttnLRP")

    def shared(*taps: Tensor) -> Tensor:
        one, two, three, *bias = (
            Scale.apply(t, factor) if signal(t) else t for t, factor in zip(taps, (0.25, 0.25, 0.5, 0.5), strict=False)
        )
        return func(one, two, three, **(given | {"attn_mask": bias[0]} if bias else given))

    y = prop.measured(shared, [query, key, value, *([mask] if signal(mask) else [])], "softmax", row)
    prop.watch(y, row)
    return at_heads(prop, y)


def _glu(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    value, gate = args[0].chunk(2, dim)
    row = prop.row("glu", "gate constant")
    y = value * gate.detach().sigmoid()
    prop.watch(y, row)
    return y


def _bilinear(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    given = dict(zip(("input1", "input2", "weight", "bias"), args, strict=False)) | kwargs
    one, two, rule = share(prop, given["input1"], given["input2"], False)
    row = prop.row(name, rule)
    y = func(one, two, given["weight"].detach())
    if given.get("bias") is not None:
        y = y + given["bias"].detach()
        prop.constant(y, given["bias"].detach(), "bias", row)
    prop.watch(y, row)
    return y


def _cosine(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    given = dict(zip(("x1", "x2", "dim", "eps"), args, strict=False)) | kwargs
    axis, eps = given.get("dim", 1), given.get("eps", 1e-8)
    one, two, rule = share(prop, given["x1"], given["x2"], False)
    row = prop.row(name, f"lengths constant, {rule}")
    lengths = [given[key].detach().norm(dim=axis, keepdim=True).clamp_min(eps) for key in ("x1", "x2")]
    y = (one / lengths[0] * (two / lengths[1])).sum(axis)
    prop.watch(y, row)
    return y


_PRODUCTS = (
    *("mul", "multiply", "__mul__", "__rmul__", "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "dot"),
    *("tensordot", "inner", "vdot", "vecdot", "outer", "ger", "kron", "cross"),
)
_QUOTIENTS = ("div", "divide", "true_divide", "__truediv__", "__rtruediv__", "__div__")
NAMES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_QUOTIENTS, _quotient),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "glu": _glu,
    "bilinear": _bilinear,
    "cosine_similarity": _cosine,
}
"""Handlers by the operation's name."""
