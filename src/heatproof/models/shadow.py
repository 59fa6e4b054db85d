"""A structural copy of a module that shares its weights, so that explaining never touches the user's model."""

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heatproof.errors import ModelError

_SHARED = frozenset({str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size,
                     torch.layout, torch.memory_format, types.BuiltinFunctionType, types.ModuleType})  # fmt: skip

_OWN_COPY = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__")
"""A class that defines one of these knows better than we do how it is copied."""

_BOUND = (nn.Module, types.MethodType, types.FunctionType, functools.partial)
"""What, kept in a function's closure, can lead to the user's module."""


def shadow(module: nn.Module) -> nn.Module:
    """Copy `module` in eval mode with frozen views of its weights: no memory for weights, nothing to restore.

    Parameters of the copy share storage with the original and do not require gradients; buffers (running
    statistics, counters) are copied, so that even a forward that writes to them leaves the original as it is.
    Hooks of the user's come along and run, since they may be part of what the model computes.

    Returns:
        A module that gives the outputs the original would give in eval mode, without gradient checkpointing. A compiled
        module is explained through the module it was compiled from.
    """
    module = getattr(module, "_orig_mod", module)
    with torch.inference_mode(False), torch.no_grad():
        twin = _copy_module(module, {})
    for child in twin.modules():
        child.training = False  # not .eval(): a class may override it with side effects
        if "grad_checkpointing" in vars(child):
            vars(child)["grad_checkpointing"] = False  # timm and open_clip would run blocks again in a backward, unwatched
    return twin


def _copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # copy.deepcopy does the same at four times the cost, which would be felt beside one forward of a small network
    kind = type(module)
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _OWN_COPY):
        for parameter in module.parameters():
            _copy(parameter, memo)
        return copy.deepcopy(module, memo)
    twin = _copy_object(module, memo)
    vars(twin).pop("_compiled_call_impl", None)  # module.compile() leaves a call that is bound to the original
    return twin


def _copy_object(value: Any, memo: dict[int, Any]) -> Any:
    twin = object.__new__(type(value))
    memo[id(value)] = twin
    twin.__dict__.update({n: item if type(item) in _SHARED else _copy(item, memo) for n, item in vars(value).items()})
    return twin


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _copy_module(value, memo)
    if isinstance(value, Tensor):
        memo[id(value)] = _copy_tensor(value)
    elif kind is tuple:
        return tuple(_copy(item, memo) for item in value)
    elif kind is set:
        memo[id(value)] = {_copy(item, memo) for item in value}
    elif kind is list:
        twin: list = []
        memo[id(value)] = twin
        twin.extend(_copy(item, memo) for item in value)
    elif kind is dict or kind is OrderedDict:  # half of all values: a module has a dozen empty ones for hooks
        memo[id(value)] = mapping = kind()
        for name, item in value.items() if value else ():
            mapping[name] = _copy(item, memo)
    elif kind is types.MethodType:
        return types.MethodType(value.__func__, _copy(value.__self__, memo))
    elif kind is types.FunctionType:
        return _copy_function(value, memo)
    elif kind is functools.partial:
        return functools.partial(
            _copy(value.func, memo),
            *(_copy(item, memo) for item in value.args),
            **{name: _copy(item, memo) for name, item in value.keywords.items()},
        )
    elif kind is torch.Generator:
        memo[id(value)] = value.clone_state()
    else:
        return _copy_other(value, memo)
    return memo[id(value)]


def _copy_tensor(value: Tensor) -> Tensor:
    if is_lazy(value):
        raise ModelError("the model has a lazy layer whose weights have no shape yet; run the model on one image first.")
    if not isinstance(value, nn.Parameter):
        return value.detach().clone()  # also what weight_norm left as a non-leaf, which deepcopy refuses
    # weights made under inference_mode can never enter a graph, so only they are copied
    plain = value.detach().clone() if value.is_inference() else value.detach()
    return nn.Parameter(plain, requires_grad=False)


def _copy_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """The function itself, or one that remembers the shadow where this one remembers the user's module."""
    memo[id(function)] = function  # a function may remember itself
    own = function.__closure__ or ()
    cells = [_copy_cell(cell, memo) for cell in own]
    defaults = tuple(_copy_if_bound(item, memo) for item in function.__defaults__ or ())
    if all(a is b for a, b in zip(own, cells, strict=True)) and all(
        a is b for a, b in zip(function.__defaults__ or (), defaults, strict=True)
    ):
        return function
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, tuple(cells))
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(vars(function))
    memo[id(function)] = twin
    return twin


def _copy_cell(cell: types.CellType, memo: dict[int, Any]) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    twin = _copy_if_bound(content, memo)
    return cell if twin is content else types.CellType(twin)


def _copy_if_bound(value: Any, memo: dict[int, Any]) -> Any:
    """Only what leads to a module is copied: anything else that a function remembers is its own business."""
    return _copy(value, memo) if isinstance(value, _BOUND) else value


def _copy_other(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        # locks, handles, tokenizers: what cannot be copied is shared, but not the modules that it may hold
        if type(value).__reduce_ex__ is object.__reduce_ex__ and isinstance(getattr(value, "__dict__", None), dict):
            return _copy_object(value, memo)
        return value
