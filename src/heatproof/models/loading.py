"""The two ways to a `Model`: `load()` by name, `wrap()` for a module at hand."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from heatproof.errors import InputError, ModelError, nearest
from heatproof.models.model import Model
from heatproof.models.preprocess import RAW, understand
from heatproof.models.readout import Logits, Similarity

_LIBRARIES = {
    "torchvision": ("heatproof.models.torchvision", "torchvision"),
    "timm": ("heatproof.models.timm", "timm"),
    "open_clip": ("heatproof.models.open_clip", "open_clip_torch"),
    "hf": ("heatproof.models.transformers", "transformers"),
}
"""Prefix of a name, the file that knows the library, and the package to install."""

_EMBEDDED = {
    "efficientnet-lite0": "heatproof.models.efficientnet_lite",
    "planted-clip": "heatproof.models.planted.clip",
    "planted-cnn": "heatproof.models.planted.cnn",
}
"""Models whose weights come with the install."""

_TEXT_ENCODERS = {"encode_image": "encode_text", "get_image_features": "get_text_features"}
"""How image–text models call their two encoders: open_clip and CLIP, Hugging Face."""


def load(name: str, weights: Any = None) -> Model:
    """Load a model by name, with its own preprocessing and labels.

    Args:
        name: `efficientnet-lite0`, `planted-clip` or `planted-cnn` (weights come with the install),
            `torchvision/NAME`, `timm/NAME`, `open_clip/NAME[:TAG]`, or `hf/REPO_OR_FOLDER`.
        weights: a file to use instead of the library's own weights: safetensors, or a state dict that torch can read
            with `weights_only=True`. No code in a file is ever run.

    Returns:
        A `Model`.

    Raises:
        ModelError: no such model, a library that is not installed, or weights that cannot be had or do not fit.
    """
    # networks are built with random weights before they get their own; the caller's generator must not notice
    with torch.random.fork_rng(devices=[]):
        if isinstance(name, str) and name in _EMBEDDED:
            return importlib.import_module(_EMBEDDED[name]).load(weights)
        prefix, slash, rest = str(name).partition("/")
        if not slash or prefix not in _LIBRARIES or not rest:
            known = [*_EMBEDDED, *(f"{library}/NAME" for library in _LIBRARIES)]
            raise ModelError(f"there is no model {name!r}.{nearest(str(name), _EMBEDDED)} Known: {', '.join(known)}.")
        return _library(prefix).load(rest, weights)


def wrap(
    module: nn.Module,
    preprocess: Callable[..., Any] | None = None,
    labels: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    tokenizer: Callable[[list[str]], Any] | None = None,
) -> Model:
    """Explain a module at hand. It is never changed: not its mode, gradients, hooks or weights.

    Args:
        module: any module that maps `(B, 3, H, W)` to `(B, C)` scores (a tuple, mapping or Hugging Face output with
            `logits` will do), or an image–text model with `encode_image` and `encode_text` (open_clip), or with
            `get_image_features` and `get_text_features` (Hugging Face).
        preprocess: from a PIL image to the module's input `(3, H, W)`. None takes what the module's library says of
            it, else pixels / 255 at their own size.
        labels: names of the classes, in order.
        prompts: texts that are the classes of an image–text model.
        tokenizer: from a list of texts to the text encoder's input.

    Returns:
        A `Model`.

    Raises:
        ModelError: not a module, or prompts for a module without a text encoder.
        InputError: a preprocess that is not callable.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"wrap() got {type(module).__name__}; expected a torch.nn.Module (load() takes names).")
    module = getattr(module, "_orig_mod", module)
    encoder = next((image for image, text in _TEXT_ENCODERS.items() if hasattr(module, image) and hasattr(module, text)), None)
    model = Model(
        module,
        name=type(module).__name__,
        readout=Similarity(encoder) if encoder else Logits(),
        text_encoder=_TEXT_ENCODERS.get(encoder) if encoder else None,
        **_described(module) | ({} if tokenizer is None else {"tokenizer": tokenizer}),
    )
    if preprocess is not None:
        model = replace(model, preprocess=understand(preprocess))
    elif model.preprocess is RAW:
        # nobody said how images enter, so nothing is known of the values that tensors may have
        unknown = replace(RAW, transform=_warn_once(RAW.transform), mean=None, std=None)
        model = replace(model, preprocess=unknown)
    if labels is not None:
        if isinstance(labels, str) or not isinstance(labels, Iterable) or not all(isinstance(label, str) for label in labels):
            raise InputError("labels= is not a list of texts; pass the class names in order.")
        model = replace(model, labels=tuple(labels))
    return model.with_prompts(prompts) if prompts is not None else model


def as_model(given: Any) -> Model:
    """What `load()` or `wrap()` returned as it is, and a module wrapped.

    Args:
        given: what came in the place of a model.

    Returns:
        A `Model`.

    Raises:
        ModelError: something else.
    """
    model = wrap(given) if isinstance(given, nn.Module) else given
    if not isinstance(model, Model):
        raise ModelError(f"model is {type(given).__name__}; expected what hp.load(…) or hp.wrap(…) returns, or a module.")
    return model


def available() -> list[dict[str, str]]:
    """Every name that `load()` takes, from the lists that the installed libraries bring along: nothing is downloaded.

    Returns:
        Rows with `name`, `library`, and `weights`: where they come from.
    """
    rows = [{"name": name, "library": "heatproof", "weights": "come with the install"} for name in _EMBEDDED]
    for prefix, (file, package) in _LIBRARIES.items():
        try:
            names = importlib.import_module(file).names()
        except ImportError:
            rows.append({"name": f"{prefix}/…", "library": package, "weights": "pip install 'heatproof[zoo]' first"})
        else:
            rows += [
                {"name": f"{prefix}/{name}", "library": package, "weights": "fetched once, or weights=FILE"} for name in names
            ]
    return rows


def _described(module: nn.Module) -> dict[str, Any]:
    """What the module's own library says of it: preprocessing, labels, version."""
    root = type(module).__module__.partition(".")[0]
    file = {"timm": "timm", "open_clip": "open_clip", "transformers": "hf"}.get(root)
    return _library(file).describe(module) if file else {}


def _warn_once(transform: Callable[..., Any]) -> Callable[..., Any]:
    warned = False

    def warning(image: Any) -> Any:
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(
                "this model was wrapped without preprocess=, so images enter as pixels / 255 at their own size; if it was "
                "trained on resized or normalised images, pass that transform to wrap().",
                stacklevel=2,
            )
        return transform(image)

    return warning


def _library(prefix: str) -> Any:
    file, package = _LIBRARIES[prefix]
    try:
        return importlib.import_module(file)
    except ImportError as error:
        raise ModelError(
            f"{prefix}/… needs the package {package}, which cannot be imported ({error}); install it with "
            "pip install 'heatproof[zoo]'."
        ) from error
