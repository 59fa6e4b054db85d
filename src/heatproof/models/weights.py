"""Weights from files, without ever running code that a file brings along."""

import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.errors import ModelError
from heatproof.models.tape import is_linear

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "model_ema", "net")


def read_state(path: Any) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`.

    Raises:
        ModelError: the file is missing or damaged, holds code, or holds no state dict.
    """
    if not isinstance(path, str | os.PathLike):
        raise ModelError(f"weights= is {type(path).__name__}; expected the path of a safetensors file or a saved state dict.")
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {str(path)!r}; check the path.")
    try:
        is_safe = path.suffix == ".safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the file ends in the sentence, if it matters
            state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{str(path)!r} is a pickle with more than tensors in it, or not a weights file; it was not run. Save the "
            "model's state_dict(), best as safetensors, and pass that."
        ) from error
    except Exception as error:  # damaged files make the readers raise nearly anything
        came = f"{type(error).__name__}: {said(error)}"
        raise ModelError(f"{str(path)!r} cannot be read as weights ({came}); the file is damaged or of another kind.") from error
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = OrderedDict(
        (str(name).removeprefix("module.").removeprefix("_orig_mod."), value)
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, Tensor)
    )
    if not tensors:
        raise ModelError(f"{str(path)!r} holds no state dict; expected names mapped to tensors.")
    if hasattr(state, "_metadata"):  # versions of the modules, which tell some of them how to read older weights
        vars(tensors)["_metadata"] = state._metadata
    return tensors


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Any) -> None:
    """Load a state dict into a module, strictly.

    Raises:
        ModelError: names or shapes do not match.
    """
    own = module.state_dict()
    # counters of batch norms that nothing reads in eval mode: files from before there were any lack them
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    metadata = getattr(state, "_metadata", getattr(own, "_metadata", None))
    state = OrderedDict(counters | dict(state))
    vars(state)["_metadata"] = metadata
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [n for n, t in own.items() if n in state and state[n].shape != t.shape]
    if missing or extra or shapes:
        parts = [f"{len(names)} {what} (such as {names[0]!r})" for names, what in
                 ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape")) if names]  # fmt: skip
        raise ModelError(f"the weights in {str(path)!r} do not fit this model: {', '.join(parts)}; is it the right model?")
    module.load_state_dict(state)


def class_count(state: Mapping[str, Tensor], heads: Iterable[str]) -> int | None:
    """Number of classes that a state dict was trained for, or None where it has no head.

    Args:
        state: in any order: a safetensors file does not keep that of the modules.
        heads: names of the last linear layer, the first that the state dict has counts.
    """
    return next((int(state[f"{name}.weight"].shape[0]) for name in heads if f"{name}.weight" in state), None)


def last_linear(module: nn.Module) -> str:
    """Name of the last linear layer or 1×1 convolution in a module, which in a classifier is its head."""
    return [name for name, layer in module.named_modules() if is_linear(layer)][-1]


def said(error: BaseException) -> str:
    """What a library raised, on one line that fits into a sentence."""
    return " ".join(str(error).split())[:300]
