"""The few pieces of a direct path's graph, and the three states that a tensor can be in beside it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_STATE = "_heatproof_image"


class Leaf(Function):
    """Where the graph begins: hands on a value, and its gradient to whoever asked."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, value: list[Tensor], arrived: Callable[[Tensor], None]) -> Tensor:
        ctx.arrived = arrived
        return value.pop().clone()  # what follows may write into it, and the value is still needed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.arrived(gradient)
        return None, None, None


class Linear(Function):
    """A linear layer whose backward leaves out the rows that no score comes from."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, arrived: Callable[[Tensor], None] | None) -> Tensor:
        ctx.weight, ctx.arrived = weight, arrived
        # tokens before the batch would become a product per token
        return torch.nn.functional.linear(a.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.arrived is not None:
            ctx.arrived(gradient)
        rows = live_rows(gradient)
        weight = ctx.weight.to(gradient)
        if rows is None:
            return gradient @ weight, None, None, None
        back = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        back.flatten(0, -2)[rows] = gradient.flatten(0, -2)[rows] @ weight
        return back, None, None, None


class LayerNorm(Function):
    """A layer norm whose standard deviation is a constant; centring is linear."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float,
        arrived: Callable[[Tensor], None],
    ) -> Tensor:  # fmt: skip
        y, _, ctx.deviation = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.weight, ctx.axes, ctx.arrived, ctx.dtype = weight, tuple(range(-len(shape), 0)), arrived, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.arrived(gradient)
        gradient = gradient if ctx.weight is None else gradient * ctx.weight
        centred = (gradient - gradient.mean(ctx.axes, keepdim=True)) * ctx.deviation
        return centred.to(ctx.dtype), None, None, None, None, None


def live_rows(gradient: Tensor) -> Tensor | None:
    """Indices of the rows of a gradient that are not all zero; None if most are live, or there is but one row."""
    if gradient.ndim < 2:
        return None
    rows = gradient.flatten(0, -2).abs().sum(1).nonzero()[:, 0]
    return None if 2 * len(rows) > gradient.shape[:-1].numel() else rows


def state(value: Any) -> str | None:
    """`"direct"`, `"image"` (linear in the image), `"nonlinear"`, or None for a constant."""
    if not isinstance(value, Tensor):
        return None
    return "direct" if value.grad_fn is not None else getattr(value, _STATE, None)


def mark(value: Tensor, kind: str) -> None:
    """Note that a value that is cut from the graph depends on the image."""
    setattr(value, _STATE, kind)
