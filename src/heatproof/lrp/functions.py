"""The few backward passes that differ from autograd's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Account = Callable[[Tensor, Tensor], None]
"""Called in the backward with a value and the `R / a` that belongs to it."""

Back = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
"""From `R / z` at the output to `R / a` at the input, and to relevance of pixels."""


class Through(Function):
    """Any result `z`, with a backward of its own. The carrier takes relevance that a rule gives to pixels."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, carrier: Tensor | None, z: list[Tensor], back: Back) -> Tensor:
        ctx.back = back
        return z.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return *ctx.back(gradient), None, None


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
