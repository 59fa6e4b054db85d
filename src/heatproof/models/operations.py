"""Operations of torch as a `TorchFunctionMode` meets them: by name, whichever way they are called."""

import functools
import types
from typing import Any

import torch
from torch.overrides import resolve_name


@functools.cache
def operation(func: Any) -> str:
    """The bare name of an operation: `torch.Tensor.add_` is `add_`, the getter of `T` is `T.__get__`."""
    if isinstance(func, torch._ops.OpOverload):  # `torch.ops.aten.relu.default`
        return func._schema.name.split("::")[-1]
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "__get__" else parts[-1]


def is_composed(func: Any) -> bool:
    """Whether a function of torch is written in Python, so that there are operations inside it."""
    return isinstance(func, types.FunctionType) and any(key.startswith("has_torch_function") for key in func.__code__.co_names)


@functools.cache
def opened(func: types.FunctionType) -> types.FunctionType:
    """A Python function of torch without its own dispatch, so that what it calls is seen one by one."""
    closed = {key: (lambda *_: False) for key in func.__globals__ if key.startswith("has_torch_function")}
    twin = types.FunctionType(func.__code__, {**func.__globals__, **closed}, func.__name__, func.__defaults__, func.__closure__)
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin
