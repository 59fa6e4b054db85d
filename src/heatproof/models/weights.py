"""Weights from files, without ever running code that a file brings along."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "model_ema", "net")


def read_state(path: Any) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`.

    Raises:
        ModelError: the file is missing or damaged, holds code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {str(path)!r}; check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{str(path)!r} is a pickle with more than tensors in it, or not a weights file; it was not run. Save the "
            "model's state_dict(), best as safetensors, and pass that."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as weights ({error}); the file is damaged or of another kind.") from error
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise ModelError(f"{str(path)!r} holds no state dict; expected names mapped to tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Any) -> None:
    """Load a state dict into a module, strictly.

    Raises:
        ModelError: names or shapes do not match.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [n for n, t in own.items() if n in state and state[n].shape != t.shape]
    if missing or extra or shapes:
        parts = [f"{len(names)} {what} (such as {names[0]!r})" for names, what in
                 ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape")) if names]  # fmt: skip
        raise ModelError(f"the weights in {str(path)!r} do not fit this model: {', '.join(parts)}; is it the right model?")
    module.load_state_dict(state)


def class_count(state: Mapping[str, Tensor]) -> int | None:
    """Number of classes that a state dict was trained for: the rows of its last weight."""
    rows = [tensor.shape[0] for name, tensor in state.items() if name.endswith(("weight", "bias")) and tensor.ndim >= 1]
    return int(rows[-1]) if rows else None
