"""Arguments of operations, however nested."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def tensors(*values: Any) -> list[Tensor]:
    """All tensors in arguments, however nested in lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors(*value)
        elif isinstance(value, dict) and value:
            found += tensors(*value.values())
    return found


def signal(value: Any) -> bool:
    """Whether a value carries relevance."""
    return isinstance(value, Tensor) and value.requires_grad


def replaced(value: Any, old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
    """Arguments with some tensors replaced, however nested."""
    if isinstance(value, Tensor):
        return next((n for o, n in zip(old, new, strict=True) if o is value), value)
    if isinstance(value, list | tuple):
        return type(value)([replaced(item, old, new) for item in value]) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {key: replaced(item, old, new) for key, item in value.items()}
    return value


def detached(value: Any) -> Any:
    """Arguments with every tensor cut from the graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    return tuple(detached(item) for item in value) if isinstance(value, tuple) else value
