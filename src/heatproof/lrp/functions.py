"""The few backward passes that differ from autograd's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Account = Callable[[Tensor, Tensor], None]
"""Called in the backward with a value and the `R / a` that belongs to it."""


class Through(Function):
    """A weighted layer: `z` forward, its rule backward. The carrier takes relevance that a rule gives to pixels."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, carrier: Tensor | None, z: list[Tensor], back: Callable[[Tensor], Any]) -> Tensor:
        ctx.back = back
        return z.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        passed = ctx.back(gradient)
        return passed.gradient, passed.relevance, None, None


class Ratio(Function):
    """An activation: all of the relevance goes through, `g · (f(x) − f(0)) / x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: list[Tensor], at_zero: float) -> Tensor:
        # autograd lets go of it once the last backward has passed
        ctx.save_for_backward(torch.div(y[0] - at_zero if at_zero else y[0], x).masked_fill_(x == 0, 0))
        return y.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0], None, None


class LayerNorm(Function):
    """A layer norm whose standard deviation is a constant: what is left is linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, _, ctx.rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.weight, ctx.axes = weight, tuple(range(-len(shape), 0))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient = gradient if ctx.weight is None else gradient * ctx.weight
        return (gradient - gradient.mean(ctx.axes, keepdim=True)) * ctx.rstd, None, None, None, None


class Scale(Function):
    """The identity, whose backward multiplies: a factor's share of a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


class Tap(Function):
    """The identity, whose backward tells what relevance passes here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, account: Account) -> Tensor:
        ctx.save_for_backward(x)  # a write into it before the backward is an error, not another value
        ctx.account = account
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.account(ctx.saved_tensors[0].detach(), gradient)
        return gradient, None
