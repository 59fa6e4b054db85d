"""Which values came out of operations that were watched, so that nothing else can pass unnoticed.

A scripted function, a custom `autograd.Function` or a kernel called past torch's dispatch is never announced. But
its output has a gradient function that no watched operation made, and that shows where the output is used next.
"""

import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from heatproof.lrp.tags import origin_of


class Seen:
    """The gradient functions of all values that watched operations returned."""

    def __init__(self) -> None:
        self._nodes: dict[int, Any] = {}  # the values keep the keys from being used again
        self._leaves: dict[int, Tensor] = {}

    def add(self, *values: Tensor) -> None:
        """Values that a watched operation returned or wrote into."""
        for value in values:
            if origin_of(value) is not None:
                continue  # its tag says enough, and the node would keep a layer that is done with
            base = value._base
            for node in (value.grad_fn, None if base is None else base.grad_fn):
                if node is not None:
                    self._nodes[id(node)] = node

    def add_leaf(self, value: Tensor) -> None:
        """A value where relevance is to end."""
        self._leaves[id(value)] = value

    def clear(self) -> None:
        """Forget all: the nodes hold the graph, whose hooks hold whoever holds this."""
        self._nodes.clear()
        self._leaves.clear()

    def is_weight(self, value: Tensor) -> bool:
        """Whether a value requires a gradient without having been computed: a weight that the shadow could not freeze."""
        return value.requires_grad and value.is_leaf and id(value) not in self._leaves

    def unseen(self, value: Tensor) -> str | None:
        """What made a value, if no watched operation did."""
        node = value.grad_fn
        if node is None or id(node) in self._nodes or origin_of(value) is not None:
            return None
        base = value._base
        # a write into the base gives its views new gradient functions
        known = base is not None and (base.grad_fn is None or id(base.grad_fn) in self._nodes)
        if known and not isinstance(node, BackwardCFunction):
            return None
        return re.sub(r"Backward\d*$", "", node.name().split("::")[-1])


def transformed(value: Tensor) -> bool:
    """Whether a value only exists inside `torch.vmap` or `torch.func.grad`."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)
