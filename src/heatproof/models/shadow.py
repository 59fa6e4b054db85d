"""A structural copy of a module that shares its weights, so that explaining never touches the user's model."""

import copy
import types
from typing import Any

import torch
from torch import Tensor, nn

_SHARED = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size,
           types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # fmt: skip


def shadow(module: nn.Module) -> nn.Module:
    """Copy `module` in eval mode with frozen views of its weights: no memory for weights, nothing to restore.

    Parameters of the copy share storage with the original and do not require gradients; buffers (running
    statistics, counters) are copied, so that even a forward that writes to them leaves the original as it is.
    Hooks of the user's come along and run, since they may be part of what the model computes.

    Returns:
        A module that gives the outputs the original would give in eval mode. A compiled module is explained
        through the module it was compiled from.
    """
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for parameter in module.parameters():
            # weights made under inference_mode can never enter a graph, so only they are copied
            plain = parameter.detach().clone() if parameter.is_inference() else parameter.detach()
            memo[id(parameter)] = nn.Parameter(plain, requires_grad=False)
        twin = _copy_module(module, memo)
    for child in twin.modules():
        child.training = False  # not .eval(): a class may override it with side effects
    return twin


def _copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # copy.deepcopy does the same at four times the cost, which would be felt beside one forward of a small network
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    own_way = hasattr(kind, "__deepcopy__") or kind.__getstate__ is not object.__getstate__
    if own_way or kind.__reduce_ex__ is not object.__reduce_ex__:
        return copy.deepcopy(module, memo)
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    twin.__dict__.update({name: _copy(value, memo) for name, value in vars(module).items()})
    return twin


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _SHARED):
        return value
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if isinstance(value, nn.Module):
        return _copy_module(value, memo)
    if isinstance(value, Tensor):
        memo[id(value)] = value.detach().clone()  # also what weight_norm left as a non-leaf, which deepcopy refuses
    elif kind is tuple:
        return tuple(_copy(item, memo) for item in value)
    elif kind is set:
        memo[id(value)] = {_copy(item, memo) for item in value}
    elif kind is list:
        twin: list = []
        memo[id(value)] = twin
        twin.extend(_copy(item, memo) for item in value)
    elif kind is dict or kind.__name__ == "OrderedDict":
        memo[id(value)] = mapping = kind()
        for name, item in value.items():
            mapping[name] = _copy(item, memo)
    elif kind is types.MethodType:
        return types.MethodType(value.__func__, _copy(value.__self__, memo))
    else:
        try:
            return copy.deepcopy(value, memo)
        except Exception:  # locks, handles, tokenizers: what cannot be copied holds no weights and is shared
            return value
    return memo[id(value)]
