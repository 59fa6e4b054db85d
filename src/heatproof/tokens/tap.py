"""The attention tap: watches one forward and notes every attention in it, fused or written by hand.

It works on operations, not on kinds of modules: `scaled_dot_product_attention` wherever it is called, and a softmax
whose result is multiplied with values. In a forward that records gradients, each attention's output is cut off and
made a leaf, so that a backward ends there: nothing that came before is ever in the graph.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.models.operations import is_composed, opened, operation
from heatproof.tokens.attention import Attention

Visit = Callable[[str, int, tuple, dict, Any], Any]
"""Called when a module is done, with its name, which run of it this was, its arguments and what it returns; what it
returns itself, unless None, goes on instead."""

_WEIGHTS = "_heatproof_weights"
_SOFTMAX = frozenset({"softmax", "_softmax"})
_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "einsum"})
_SAME = frozenset({"dropout", "to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach",
                   "view", "reshape", "unflatten", "flatten", "unsqueeze", "squeeze"})  # fmt: skip
"""What may happen to weights before they meet the values, as long as queries and keys stay the last two axes."""


class Tap(TorchFunctionMode):
    """One forward whose attention is noted.

    Args:
        module: the shadow that runs; its submodules name the places.
        images: how many there are in the batch.
        hand_on: called with each attention and its output `(B, H, N, d)`; what it returns is what the model goes on
            with. None cuts the output off and, if gradients are recorded, makes it a leaf.
        visit: called whenever a module is done.
    """

    def __init__(
        self,
        module: nn.Module,
        images: int,
        hand_on: Callable[[Attention, Tensor], Tensor] | None = None,
        visit: Visit | None = None,
    ) -> None:
        super().__init__()
        self.module, self.images, self.visit = module, images, visit
        self.hand_on = hand_on or _cut
        self.attentions: list[Attention] = []
        self._made_so_far = 0
        self._pending: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._grouped: list[tuple[str, str]] = []
        self._calls: list[tuple[str, int]] = []
        self._runs: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Tap":
        for name, module in self.module.named_modules():
            for handle in (
                module.register_forward_pre_hook(lambda _m, _i, name=name: self._enter(name)),
                module.register_forward_hook(self._leave, with_kwargs=True),
            ):
                self._stack.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    @property
    def place(self) -> str:
        """Name of the innermost module that is running."""
        return self._calls[-1][0] if self._calls else ""

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """Places with something like attention that is none as we know it, each with what was seen there."""
        left = [(place, f"softmax weights {shape} that never met values") for place, shape in self._pending.values()]
        return self._grouped + left

    def _enter(self, name: str) -> None:
        self._runs[name] = self._runs.get(name, 0) + 1
        self._calls.append((name, self._runs[name]))

    def _leave(self, _module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        name, run = self._calls.pop()
        if self.visit is None:
            return None
        with torch._C.DisableTorchFunction():  # whoever looks on computes nothing that belongs to the model
            return self.visit(name, run, args, kwargs, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operation(func), kwargs or {}
        if name == "scaled_dot_product_attention":
            return self._fused(func, args, kwargs)
        if name == "multi_head_attention_forward" and is_composed(func):
            with _Again(self):
                return _by_parts(func, args, kwargs)
        if name in _PRODUCTS:
            return self._product(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if name in _SOFTMAX:
            self._made(result, args, kwargs)
        elif name in _SAME and args and isinstance(result, Tensor):
            self._carried(args[0], result)
        return result

    # --- fused --------------------------------------------------------------------------------------------------

    def _fused(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (given[name].detach() for name in names[:3])
        with torch.no_grad():
            output = func(*args, **kwargs)
        folded = self._folded(query.expand(*output.shape[:-2], *query.shape[-2:]), key, value, output)
        if folded is None:
            self._note(query.shape, key.shape)
            return output
        query, key, value, inside = folded
        heads = inside.shape[1]
        if key.shape[1] != heads:  # grouped queries share keys and values
            key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
        scale = given.get("scale")
        attention = Attention(
            self.place, value, inside, query, key, query.shape[-1] ** -0.5 if scale is None else scale,
            self._bias(given, query, key, output.shape[:-2]), calls=tuple(self._calls),
        )  # fmt: skip
        return self._handed_on(attention, inside, lambda new: new.reshape(output.shape))

    def _bias(self, given: dict, query: Tensor, key: Tensor, leading: torch.Size) -> Tensor | None:
        mask = given.get("attn_mask")
        if given.get("is_causal"):
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        if mask is None:
            return None
        mask = mask.detach()
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
        # heads may lie beside the images in one axis: then so do the mask's
        return (
            mask.reshape(query.shape[0], -1, *mask.shape[-2:]) if mask.ndim == len(leading) + 2 == 3 and len(mask) > 1 else mask
        )

    def _folded(self, *parts: Tensor) -> list[Tensor] | None:
        """Each as `(B, H, N, d)`, however many axes there are in front; None where the first is not that of the images."""
        if any(t.shape[0] != self.images and (t.ndim != 3 or t.shape[0] % self.images) for t in parts):
            return None
        return [t.reshape(self.images, -1, *t.shape[-2:]) for t in parts]

    # --- by hand ------------------------------------------------------------------------------------------------

    def _made(self, result: Any, args: tuple, kwargs: dict) -> None:
        """A softmax over keys: what comes out may be weights."""
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(result, Tensor) and result.ndim >= 3 and axis in (-1, result.ndim - 1):
            self._made_so_far += 1
            self._pending[self._made_so_far] = (self.place, tuple(result.shape))
            setattr(result, _WEIGHTS, self._made_so_far)

    def _carried(self, source: Any, result: Tensor) -> None:
        tag = getattr(source, _WEIGHTS, None)
        if tag is not None and result.shape[-2:] == source.shape[-2:] and result.ndim >= 3:
            setattr(result, _WEIGHTS, tag)

    def _product(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        equation: str | None = None
        factors: Any = args
        if name == "einsum" and isinstance(args[0], str):
            equation, factors = args[0].replace(" ", ""), args[1] if isinstance(args[1], list | tuple) else args[1:]
        weights, value = (*factors, kwargs.get("other", kwargs.get("mat2")))[:2]
        tag = getattr(weights, _WEIGHTS, None)
        if tag is None or not isinstance(value, Tensor):
            return func(*args, **kwargs)
        with torch.no_grad():
            output = func(*args, **kwargs)
        orders = ([*range(value.ndim)], [*range(output.ndim)]) if equation is None else _orders(equation, len(factors))
        self._pending.pop(tag, None)
        if orders is None:
            self._note(weights.shape, value.shape)
            return output
        ordered = output.permute(orders[1])
        folded = self._folded(weights.detach(), value.detach().permute(orders[0]), ordered)
        if folded is None or folded[0].shape[2:] != (folded[2].shape[2], folded[1].shape[2]):
            self._note(weights.shape, value.shape)
            return output
        given, value, inside = folded
        attention = Attention(self.place, value, inside, given=given, calls=tuple(self._calls))
        inverse = sorted(range(output.ndim), key=orders[1].__getitem__)
        return self._handed_on(attention, inside, lambda new: new.reshape(ordered.shape).permute(inverse))

    # --- both ---------------------------------------------------------------------------------------------------

    def _handed_on(self, attention: Attention, inside: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        self.attentions.append(attention)
        return back(self.hand_on(attention, inside))

    def _note(self, one: torch.Size, other: torch.Size) -> None:
        seen = f"products of {tuple(one)} and {tuple(other)} for {self.images} image(s)"
        self._grouped.append((self.place, f"{seen}: tokens attend within groups or along another axis, or heads are mixed"))


class _Again:
    """Watch again inside a handler, without entering the modules' hooks twice."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __enter__(self) -> None:
        TorchFunctionMode.__enter__(self.tap)

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self.tap, *error)


def _by_parts(func: Any, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None]:
    """The attention of `nn.MultiheadAttention`, its last bias added where images and tokens have axes of their own."""
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    bias = given.pop("out_proj_bias")
    output, weights = opened(func)(**given, out_proj_bias=None)
    return output if bias is None else output + bias, weights


def _cut(attention: Attention, output: Tensor) -> Tensor:
    attention.output = output.detach().requires_grad_(torch.is_grad_enabled())
    return attention.output


def _orders(equation: str, factors: int) -> tuple[list[int], list[int]] | None:
    """How to permute values to `(…, keys, d)` and the result to `(…, queries, d)`; None if the equation is another one."""
    sides = equation.replace("...", "").split("->")
    inputs = sides[0].split(",")
    if len(sides) != 2 or len(inputs) != 2 or factors != 2:
        return None
    (weights, value), result = inputs, sides[1]
    leading, query, key = weights[:-2], weights[-2:-1], weights[-1:]
    width = set(value) & set(result) - set(weights)
    if key in result or query in value or len(width) != 1:
        return None
    wanted = leading + key + min(width), leading + query + min(width)
    if sorted(wanted[0]) != sorted(value) or sorted(wanted[1]) != sorted(result):
        return None
    return [value.index(c) for c in wanted[0]], [result.index(c) for c in wanted[1]]
