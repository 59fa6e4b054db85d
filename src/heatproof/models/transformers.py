"""Hugging Face models: image classifiers, CLIP and SigLIP, from the hub, its cache or a folder."""

import contextlib
import importlib.metadata
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from heatproof.errors import ModelError
from heatproof.models.model import Model
from heatproof.models.preprocess import Preprocess
from heatproof.models.readout import Similarity
from heatproof.models.weights import class_count, last_linear, read_state, said

_IMAGE_TEXT = {"clip": "CLIPModel", "siglip": "SiglipModel"}


def names() -> list[str]:
    """The hub has no list to print; any repository or folder goes."""
    return ["REPO_OR_FOLDER"]


def load(name: str, weights: Any = None) -> Model:
    """A Hugging Face image classifier, CLIP or SigLIP, as its configuration says.

    Args:
        name: a repository on the hub (from the cache if offline), or a folder.
        weights: a safetensors file or state dict to use with the repository's configuration; the number of classes
            is read from it.

    Returns:
        A `Model` with the repository's image processor, labels and tokenizer.

    Raises:
        ModelError: no such repository, one without an image processor, or weights that cannot be had, do not fit, or
            have no trained head.
    """
    config = _from("configuration", transformers.AutoConfig, name)
    kind = _kind(config)
    module = _module(name, kind, config, read_state(weights) if weights is not None else None, weights)
    told = describe(module, name)
    if "preprocess" not in told:
        told["preprocess"] = _preprocess(_from("image processor", transformers.AutoImageProcessor, name))
    if kind not in _IMAGE_TEXT.values():
        return Model(module, f"hf/{name}", **told)
    readout = Similarity("get_image_features")
    return Model(module, f"hf/{name}", readout=readout, text_encoder="get_text_features", **told)


def describe(module: nn.Module, name: str | None = None) -> dict[str, Any]:
    """Preprocessing, labels and tokenizer that lie on this machine beside the weights a module came from.

    Args:
        module: of transformers.
        name: where it came from; None asks the module.
    """
    told: dict[str, Any] = {"versions": {"transformers": importlib.metadata.version("transformers")}}
    config = getattr(module, "config", None)
    labels = getattr(config, "id2label", None)
    # a configuration that was never given names makes some up
    if labels and any(label != f"LABEL_{i}" for i, label in labels.items()):
        told["labels"] = tuple(str(labels[i]) for i in sorted(labels))
    name = name or getattr(config, "_name_or_path", None)
    is_image_text = _kind(config) in _IMAGE_TEXT.values()
    told |= {"labels": None} if is_image_text else {}
    if not name:
        return told
    # where there is none, as for a module made from a configuration, nothing is known
    with contextlib.suppress(OSError, ValueError, ImportError):
        told["preprocess"] = _preprocess(transformers.AutoImageProcessor.from_pretrained(name, local_files_only=True))
    if is_image_text:
        told["tokenizer"] = _tokenizer(name, config)
    return told


def _kind(config: Any) -> str:
    """Name of the class to load. CLIP's own classifier has CLIP's configuration, so the architecture has the last word."""
    stated = (getattr(config, "architectures", None) or [""])[0]
    if stated.endswith("ForImageClassification"):
        return "AutoModelForImageClassification"
    return _IMAGE_TEXT.get(getattr(config, "model_type", ""), "AutoModelForImageClassification")


def _from(what: str, source: Any, name: str) -> Any:
    try:
        return source.from_pretrained(name)
    except Exception as error:  # network, disk, damaged files: what it is stands in the message
        raise ModelError(
            f"the {what} of hf/{name} cannot be had ({said(error)}); check the name, connect once, or pass a folder that "
            "holds it."
        ) from error


def _module(name: str, kind: str, config: Any, state: dict[str, Tensor] | None, path: Any) -> nn.Module:
    source = getattr(transformers, kind)
    try:
        if state is None:
            module, report = source.from_pretrained(name, config=config, output_loading_info=True)
        else:
            _resize_head(source, kind, config, state)
            cls: Any = type(_on_meta(source, config))
            module, report = cls.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights of hf/{name} are a pickle with more than tensors in it; it was not run. Save them with "
            "save_pretrained(), which writes safetensors, and pass that folder."
        ) from error
    except Exception as error:  # network, disk, a configuration that is none: what it is stands in the message
        raise ModelError(
            f"the weights of hf/{name} cannot be had or used ({said(error)}); connect once, or pass a folder or weights=FILE."
        ) from error
    missing = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if missing:
        where = repr(str(path)) if state is not None else f"hf/{name}"
        raise ModelError(
            f"the weights in {where} lack {len(missing)} of this model's (such as {missing[0]!r}), so part of it would be "
            "random; pass weights of a trained classifier or image–text model."
        )
    return module.float().eval()


def _on_meta(source: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        return source.from_config(config) if hasattr(source, "from_config") else source(config)


def _resize_head(source: Any, kind: str, config: Any, state: dict[str, Tensor]) -> None:
    if kind in _IMAGE_TEXT.values():
        return
    classes = class_count(state, [last_linear(_on_meta(source, config))])
    if classes and classes != config.num_labels:
        config.num_labels = classes


def _preprocess(processor: Any) -> Preprocess:
    """The image processor as a transform; its normalisation is measured, since each kind writes it down in its own way."""

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    black, grey, white = (_centre(transform(Image.new("RGB", (64, 64), (level,) * 3))) for level in (0, 51, 255))
    text = type(processor).__name__
    if (
        black is None
        or grey is None
        or white is None
        or not (np.allclose(grey, 0.8 * black + 0.2 * white, atol=1e-4) and (white > black).all())
    ):
        return Preprocess(transform, text=text)
    span = white - black
    return Preprocess(transform, tuple((-black / span).tolist()), tuple((1 / span).tolist()), text)


def _centre(x: Tensor) -> np.ndarray | None:
    """The middle pixel, where no padding comes."""
    return x[:, x.shape[1] // 2, x.shape[2] // 2].double().numpy() if x.ndim == 3 else None


def _tokenizer(name: str, config: Any) -> Callable[[list[str]], Any]:
    """The tokenizer that lies with the model, made when the first text comes."""
    # SigLIP reads the last place of a text of full length, without a mask
    full = config.model_type == "siglip"
    found: list[Any] = []

    def tokenize(texts: list[str]) -> Any:
        if not found:
            found.append(_from("tokenizer", transformers.AutoTokenizer, name))
        length = config.text_config.max_position_embeddings
        tokens = found[0](texts, padding="max_length" if full else True, max_length=length, truncation=True, return_tensors="pt")
        wanted = ("input_ids",) if full else ("input_ids", "attention_mask")
        return transformers.BatchEncoding({key: tokens[key] for key in wanted if key in tokens})

    return tokenize
