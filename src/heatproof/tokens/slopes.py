"""Backward through a block for many targets at once, without doing twice what tokens or targets share."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function


def backward(
    output: Float[Tensor, "batch tokens width"],
    leaf: Float[Tensor, "batch heads queries d"],
    arriving: Float[Tensor, "targets batch tokens width"],
) -> Float[Tensor, "targets batch heads queries d"]:
    """The gradient at `leaf`, where the graph begins, of each of some gradients that arrive at `output`, all at once."""

    def alone(one: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, one, retain_graph=True)[0]

    if len(arriving) > 1:
        with contextlib.suppress(RuntimeError):  # a backward of the user's own that looks at values takes one at a time
            return torch.func.vmap(alone)(arriving)
    return torch.stack([alone(one) for one in arriving])


class Bent(Function):
    """A nonlinearity of single values, whose slope is computed once for all targets."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            y = bend(a)
        (ctx.slope,) = torch.autograd.grad(y, a, torch.ones_like(y))
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.slope, None


class Linear(Function):
    """A linear layer whose backward computes the gradient that all tokens share once, and of zeros nothing."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.nn.functional.linear(a, weight, bias)
        ctx.weight = weight.to(y.dtype)  # under autocast the product has another type than the weight
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Back.apply(gradient, ctx.weight), None, None


class _Back(Function):
    """`gradient · weight`; a function, so that it sees the values of all targets when they come at once."""

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor) -> Tensor:
        return _times(gradient, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        return _times(gradient.movedim(in_dims[0] or 0, 0), weight), 0


def _times(gradient: Float[Tensor, "*more b n k"], weight: Float[Tensor, "k j"]) -> Float[Tensor, "*more b n j"]:
    """Along whichever axis the tokens lie: those of a mean send the same, those beside a class token nothing."""
    for axis in (-3, -2):
        first, others = gradient.narrow(axis, 0, 1), gradient.narrow(axis, 1, gradient.shape[axis] - 1)
        if others.shape[axis] == 0:
            continue
        second = others.narrow(axis, 0, 1)
        if torch.equal(first, second) and bool((others == first).all()):
            return (first @ weight).expand(*gradient.shape[:-1], -1)
        if not second.any() and not others.any():
            back = first @ weight
            return torch.cat([back, back.new_zeros(()).expand(*others.shape[:-1], back.shape[-1])], axis)
    return gradient @ weight
