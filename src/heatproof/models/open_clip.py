"""open_clip's image–text models: CLIP, CoCa, SigLIP."""

import functools
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from heatproof.errors import ModelError, nearest
from heatproof.models.model import Model
from heatproof.models.preprocess import Preprocess
from heatproof.models.readout import Similarity
from heatproof.models.weights import read_state, said

_CLIP_WORDS = 49408
"""Size of the vocabulary of the original CLIP, whose tokenizer comes with open_clip."""


def names() -> list[str]:
    """Every architecture with every tag that open_clip has weights for."""
    return [f"{name}:{tag}" for name, tag in open_clip.list_pretrained()]


def load(name: str, weights: Any = None) -> Model:
    """An image–text model with the weights of a tag, or with weights from a file.

    Args:
        name: `NAME:TAG`, such as `ViT-B-32:openai`; with weights from a file the tag only says how to preprocess.
        weights: a safetensors file or state dict of this architecture.

    Returns:
        A `Model` without prompts yet: `with_prompts()`, or a text as target, gives it classes.

    Raises:
        ModelError: no such architecture or tag, or weights that cannot be had or do not fit.
    """
    base, _, tag = name.partition(":")
    if base not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no model {base!r}.{nearest(base, open_clip.list_models())} `heatproof models` lists them."
        )
    tags = open_clip.list_pretrained_tags_by_model(base)
    if tag and tag not in tags:
        raise ModelError(f"open_clip has no weights {tag!r} for {base}.{nearest(tag, tags)} {_known(tags)}")
    if not tag and weights is None:
        raise ModelError(f"open_clip/{base} needs to know which weights: {base}:TAG, or weights=FILE. {_known(tags)}")
    known = open_clip.get_pretrained_cfg(base, tag) if tag else {}
    module = _loaded(base, tag, known, weights)
    return Model(
        module.eval(),
        f"open_clip/{name}",
        readout=Similarity("encode_image"),
        text_encoder="encode_text",
        **describe(module) | {"tokenizer": _tokenizer(base)},
    )


def describe(module: nn.Module) -> dict[str, Any]:
    """Preprocessing that open_clip left on a model of its own, and the tokenizer if it is the original CLIP's."""
    told: dict[str, Any] = {"versions": {"open_clip_torch": importlib.metadata.version("open_clip_torch")}}
    visual: Any = getattr(module, "visual", None)
    config = getattr(visual, "preprocess_cfg", None)
    if config is None and hasattr(visual, "image_size"):
        config = {"size": visual.image_size}
    if config is not None:
        known = PreprocessCfg(**config)
        height, width = known.size if isinstance(known.size, tuple | list) else (known.size, known.size)
        text = f"{height}×{width}, {known.interpolation}, {known.resize_mode}"
        told["preprocess"] = Preprocess(image_transform_v2(known, is_train=False), tuple(known.mean), tuple(known.std), text)
    if getattr(getattr(module, "text", module), "vocab_size", None) == _CLIP_WORDS:
        told["tokenizer"] = open_clip.SimpleTokenizer(context_length=module.context_length)
    return told


def _known(tags: list[str]) -> str:
    return f"Known tags: {', '.join(tags)}." if tags else "It has no published weights."


def _loaded(base: str, tag: str, known: dict[str, Any], weights: Any) -> nn.Module:
    path = _fetched(base, tag, known) if weights is None else weights
    if Path(path).suffix not in (".safetensors", ".npz", ".npy"):
        read_state(path)  # open_clip falls back to an unsafe load where a safe one fails in an unusual way, so fail first
    settings = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in known}
    try:
        # OpenAI's weights were trained with another GELU than the architecture of that name has now
        return open_clip.create_model(
            base, str(path), force_quick_gelu=bool(known.get("quick_gelu")), force_preprocess_cfg=settings, weights_only=True
        )
    except Exception as error:  # each architecture's own conversion may stumble in its own way
        raise ModelError(
            f"the weights in {str(path)!r} do not fit open_clip/{base} ({said(error)}); is it the right model?"
        ) from error


def _fetched(base: str, tag: str, known: dict[str, Any]) -> str:
    try:
        return open_clip.download_pretrained(known)
    except Exception as error:  # network, disk, hash: what it is stands in the message
        raise ModelError(
            f"the weights of open_clip/{base}:{tag} cannot be fetched ({said(error)}); connect once, or download them elsewhere "
            "and pass weights=FILE."
        ) from error


def _tokenizer(base: str) -> Callable[[list[str]], torch.Tensor]:
    """open_clip's tokenizer of an architecture, made when the first text comes: some are downloads of their own."""

    @functools.cache
    def made() -> Any:
        try:
            return open_clip.get_tokenizer(base)
        except Exception as error:  # network, disk, a missing package: what it is stands in the message
            raise ModelError(
                f"the tokenizer of open_clip/{base} cannot be fetched ({said(error)}); connect once, or pass a "
                "tokenizer to wrap()."
            ) from error

    return lambda texts: made()(texts)
