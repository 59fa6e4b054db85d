"""Recurrent layers, step by step: fused they are one operation, written out they are layers, gates and sums with rules."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from heatproof.lrp.tags import drop_gate

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
"""From what input and state contribute, and the state before, to the state after, output first."""


def _gated(gate: Tensor, value: Tensor) -> Tensor:
    """A value behind a gate; a constant stays one, such as the state that a sequence begins with."""
    return (gate if value.requires_grad else gate.detach()).sigmoid() * drop_gate(value)


def _lstm(from_x: Tensor, from_h: Tensor, state: State) -> State:
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = _gated(f, state[1]) + _gated(i, g.tanh())
    return _gated(o, c.tanh()), c


def _gru(from_x: Tensor, from_h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    n = (xn + _gated(xr + hr, hn)).tanh()
    return (_gated(-(xz + hz), n) + _gated(xz + hz, state[0]),)


def _tanh(from_x: Tensor, from_h: Tensor, _state: State) -> State:
    return ((from_x + from_h).tanh(),)


def _relu(from_x: Tensor, from_h: Tensor, _state: State) -> State:
    return ((from_x + from_h).relu(),)


CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}
NAMES = frozenset(CELLS) | {f"{name}_cell" for name in CELLS}


def written_out(name: str, args: tuple) -> Any:
    """What the fused operation returns, computed by operations that each have a rule; None for packed sequences."""
    if name.endswith("_cell"):
        x, state, w_x, w_h, *biases = args
        state = (state,) if isinstance(state, Tensor) else tuple(state)
        b_x, b_h = biases or (None, None)
        after = CELLS[name.removesuffix("_cell")](linear(x, w_x, b_x), linear(state[0], w_h, b_h), state)
        return after if len(after) > 1 else after[0]
    if not isinstance(args[3], bool):
        return None
    x, state, weights, biased, depth, _dropout, _training, both, batch_first = args
    states = (state,) if isinstance(state, Tensor) else tuple(state)
    x = x if batch_first else x.transpose(0, 1)
    each = len(weights) // (depth * (1 + both))
    last: list[State] = []
    for _ in range(depth):
        ways = []
        for backwards in (False, True)[: 1 + both]:
            own = weights[each * len(last) : each * (len(last) + 1)]
            steps, end = _run(CELLS[name], x, tuple(s[len(last)] for s in states), own, biased, backwards)
            ways.append(torch.stack(steps, 1))
            last.append(end)
        x = torch.cat(ways, -1) if both else ways[0]
    return (x if batch_first else x.transpose(0, 1), *(torch.stack(ends) for ends in zip(*last, strict=True)))


def _run(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], biased: bool, backwards: bool
) -> tuple[list[Tensor], State]:
    w_x, w_h = weights[:2]
    b_x, b_h = weights[2:4] if biased else (None, None)
    projection = weights[-1] if len(weights) in (3, 5) else None
    steps = list(linear(x, w_x, b_x).unbind(1))
    outputs = []
    for step in reversed(steps) if backwards else steps:
        state = cell(step, linear(state[0], w_h, b_h), state)
        if projection is not None:
            state = (linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    return outputs[::-1] if backwards else outputs, state
