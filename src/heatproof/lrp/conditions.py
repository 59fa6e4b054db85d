"""Conditional relevance: only what passes chosen channels of a layer, or chosen heads of an attention, goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import MethodError, nearest
from heatproof.lrp.propagation import Propagation
from heatproof.lrp.tags import carry_gate, origin_of
from heatproof.models.sites import read_shape
from heatproof.models.tape import as_tensor, replace_tensor

_EXPECTED = "expected {layer: [channels]} or {attention: {'heads': [heads]}}"


@dataclass(frozen=True)
class Condition:
    """Where relevance is let through, and what of it.

    Args:
        place: name of the module.
        chosen: indices of channels of its output, or of heads of the attention inside it.
        heads: which of the two.
    """

    place: str
    chosen: tuple[int, ...]
    heads: bool


def conditions(through: Any, module: nn.Module) -> list[Condition]:
    """What `through=` asks of a module.

    Raises:
        MethodError: it is no mapping from layers to indices, or the module has no such layer.
    """
    if through is None:
        return []
    if not isinstance(through, Mapping):
        raise MethodError(f"through={through!r}; {_EXPECTED}.")
    names = dict(module.named_modules())
    found = []
    for key, wanted in through.items():
        name: Any = next((n for n, m in names.items() if m is key), None) if isinstance(key, nn.Module) else key
        if name not in names:
            raise MethodError(f"through= names the layer {key!r}, which the model does not have.{nearest(str(key), names)}")
        heads = isinstance(wanted, Mapping) and set(wanted) == {"heads"}
        found.append(Condition(name, _indices(wanted["heads"] if heads else wanted, key), heads))
    return found


def _indices(wanted: Any, key: Any) -> tuple[int, ...]:
    try:
        indices = torch.as_tensor(wanted)
        if not indices.numel() or not (indices.is_floating_point() or indices.dtype == torch.bool):
            return tuple(indices.flatten().tolist())
    except (TypeError, ValueError, RuntimeError):
        pass
    raise MethodError(f"through= has {wanted!r} for {key!r}; {_EXPECTED}, each a list of indices from 0.")


def at_channels(prop: Propagation, condition: Condition, size: tuple[int, int]) -> Callable[..., None]:
    """A forward hook that lets relevance pass only through some channels of what a module returns."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        value = as_tensor(output)
        site = read_shape(condition.place, value.shape, len(value), size, ())
        axis = 1 if value.ndim == 4 and (site is None or site.kind == "bkhw") else value.ndim - 1
        mask = _mask(condition, value, value.shape[axis], axis, "channels")
        origin = origin_of(value)
        if origin is None:
            return replace_tensor(output, _only(prop, value, mask, condition))
        # the output of a layer stays what it is, or a batch norm above would no longer be part of it
        _mask_gradient(prop, value, mask, condition)
        origin.conditions.append(lambda y: _mask_gradient(prop, y, mask, condition))
        return output

    return hook


def at_heads(prop: Propagation, y: Tensor) -> Tensor:
    """Values that attention weights have put together: let relevance pass only through the heads that were chosen here.

    Args:
        prop: what watches the forward, and knows the conditions.
        y: `(…, heads, tokens, width)`, or `(batch · heads, tokens, width)`.

    Returns:
        The same values, to go on with.
    """
    for condition in prop.heads:
        if prop.place == condition.place or prop.place.startswith(f"{condition.place}."):
            prop.check_batch(y.shape)
            y = _only(prop, y, _mask(condition, y, y.shape[-3], y.ndim - 3, "heads"), condition)
            prop.met.add(condition.place)
    return y


def check_met(prop: Propagation) -> None:
    """Raise a `MethodError` if there was no attention where heads were chosen."""
    for condition in prop.heads:
        if condition.place not in prop.met:
            raise MethodError(
                f"through= chooses heads of {condition.place!r}, where no attention with heads ran; choose channels, or the "
                "module that attends."
            )


def _mask(condition: Condition, like: Tensor, count: int, axis: int, kind: str) -> Tensor:
    wrong = [c for c in condition.chosen if not 0 <= c < count]
    if wrong:
        raise MethodError(f"through= names {kind} {wrong} of layer {condition.place!r}, which has {count}.")
    mask = torch.zeros(count, device=like.device, dtype=like.dtype)
    mask[list(condition.chosen)] = 1
    return mask.view([-1 if n == axis else 1 for n in range(like.ndim)])


def _only(prop: Propagation, value: Tensor, mask: Tensor, condition: Condition) -> Tensor:
    if not value.requires_grad:
        return value
    y = value.view_as(value)  # a node of its own: accounts of what made the value are of what passes
    carry_gate(value, y)
    _mask_gradient(prop, y, mask, condition)
    return y


def _mask_gradient(prop: Propagation, value: Tensor, mask: Tensor, condition: Condition) -> None:
    row = prop.row("condition", f"only {'heads' if condition.heads else 'channels'} {list(condition.chosen)}")
    kept = prop.keeper.keep(value)

    def let_through(gradient: Tensor) -> Tensor:
        prop.absorb(row, "condition", prop.relevance(kept.take(prop.final) * (1 - mask), gradient))
        return gradient * mask

    value.register_hook(let_through)
