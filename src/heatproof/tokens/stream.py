"""A forward seen block by block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof.models.operations import operation
from heatproof.models.tape import Tape, as_tensor, recording, replace_tensor, run
from heatproof.tokens.attention import Attention
from heatproof.tokens.layout import Layout, layout
from heatproof.tokens.slopes import Bent, Linear
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
    """A tap whose costly layers do in the backward what all tokens or all targets share only once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation(func)
        if name == "linear" and torch.is_grad_enabled():
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            if given["input"].requires_grad and given["input"].ndim == 3:
                weight, bias = (None if given.get(key) is None else given[key].detach() for key in ("weight", "bias"))
                return Linear.apply(given["input"], weight, bias)
        if name == "gelu" and torch.is_grad_enabled() and args and args[0].requires_grad:
            return Bent.apply(args[0], lambda a: func(a, *args[1:], **(kwargs or {})))
        return super().__torch_function__(func, types, args, kwargs)
