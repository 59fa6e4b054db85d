"""A forward seen block by block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from heatproof.models.operations import operation
from heatproof.models.tape import Tape, as_tensor, recording, replace_tensor, run
from heatproof.tokens.attention import Attention
from heatproof.tokens.layout import Layout, layout
from heatproof.tokens.tap import Tap


@dataclass(eq=False)
class Stream:
    """What a watched forward left, block by block.

    Args:
        layout: of the network.
        scores: `(B, C)`.
        attentions: one per block.
        tokens: what each block returned, `(B, N, K)`. With a graph, it was computed from that block's own attention
            output and nothing else.
        pooler: the attention that reads the last block, None if there is none.
        graph: whether there is a graph.
    """

    layout: Layout
    scores: Tensor
    attentions: list[Attention]
    tokens: list[Tensor]
    pooler: Attention | None
    graph: bool


def stream(tape: Tape, graph: bool) -> Stream:
    """The forward of the tape's batch under watch, run at most once for all methods.

    Raises:
        MethodError: the network has no blocks of tokens.
    """
    if tape.attention is None or (graph and not tape.attention.graph):
        tape.attention = _watched(tape, graph)
    return tape.attention


def _watched(tape: Tape, graph: bool) -> Stream:
    built = layout(tape)
    kept: dict[tuple[str, int], Tensor] = {}

    def visit(name: str, number: int, args: tuple, kwargs: dict, output: Any) -> Any:
        if (name, number) not in built.blocks:
            return None
        tokens = as_tensor(output)
        kept[name, number] = built.batch_first(tokens)
        # the next block starts anew, and on a copy: it may write into what it gets
        return replace_tensor(output, tokens.detach().clone())

    x = tape.x.detach().clone()
    tap = _BlockTap(tape.module, len(x), visit=visit)
    with recording(graph), tap:
        scores = run(tape.readout, tape.module, x)
    of_call = {call: attention for attention in tap.attentions for call in attention.calls}  # a block has but one
    return Stream(
        built,
        scores.detach(),
        [of_call[call] for call in built.blocks],
        [kept[call] for call in built.blocks],
        None if built.pooler is None else of_call[built.pooler],
        graph,
    )


class _BlockTap(Tap):
    """A tap whose linear layers notice in the backward when all tokens send the same gradient, as those of a mean do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation(func) == "linear" and torch.is_grad_enabled():
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            if given["input"].requires_grad and given["input"].ndim == 3:
                weight, bias = (None if given.get(key) is None else given[key].detach() for key in ("weight", "bias"))
                return _Linear.apply(given["input"], weight, bias)
        return super().__torch_function__(func, types, args, kwargs)


class _Linear(Function):
    """A linear layer whose backward computes equal rows once."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.nn.functional.linear(a, weight, bias)
        ctx.weight = weight.to(y.dtype)  # under autocast the product has another type than the weight
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        for axis in (0, 1):
            first = gradient.narrow(axis, 0, 1)
            if gradient.shape[axis] > 1 and torch.equal(first, gradient.narrow(axis, 1, 1)) and bool((gradient == first).all()):
                return (first @ ctx.weight).expand(*gradient.shape[:-1], -1), None, None
        return gradient @ ctx.weight, None, None
