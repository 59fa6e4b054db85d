"""timm's networks, with their own data configuration."""

import importlib.metadata
from typing import Any

import timm
import timm.data
from torch import nn

from heatproof.errors import ModelError, nearest
from heatproof.models.efficientnet_lite import imagenet_labels
from heatproof.models.model import Model
from heatproof.models.preprocess import Preprocess
from heatproof.models.weights import class_count, read_state, said


def names() -> list[str]:
    """Every network that timm has weights for, with the tag of the weights."""
    return timm.list_models(pretrained=True)


def load(name: str, weights: Any = None) -> Model:
    """A timm network with pretrained weights, or with weights from a file.

    Args:
        name: as timm calls it, with or without a tag: `resnet50`, `resnet50.a1_in1k`.
        weights: a safetensors file or state dict of this network; the number of classes is read from it.

    Returns:
        A `Model` that preprocesses as timm's data configuration of these weights says.

    Raises:
        ModelError: no such network, or weights that cannot be had or do not fit.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ModelError(f"timm has no network {base!r}.{nearest(base, timm.list_models())} `heatproof models` lists them.")
    tagged = timm.list_models(f"{base}.*", pretrained=True)
    if tag and name not in tagged:
        raise ModelError(f"timm has no weights {tag!r} for {base}. Known: {', '.join(tagged) or 'none'}.")
    module = _pretrained(name) if weights is None else _from_file(name, weights)
    return Model(module.eval(), f"timm/{name}", **describe(module))


def describe(module: nn.Module) -> dict[str, Any]:
    """Preprocessing and labels that timm knows of a network of its own."""
    told: dict[str, Any] = {"versions": {"timm": importlib.metadata.version("timm")}}
    if not getattr(module, "pretrained_cfg", None):
        return told
    return told | {"preprocess": _preprocess(module), "labels": _labels(module)}


def _pretrained(name: str) -> nn.Module:
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise ModelError(f"timm has no pretrained weights for {name!r}; pass weights=FILE.")
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # network, disk, a file that is not what it should be: what it is stands in the message
        raise ModelError(
            f"the weights of timm/{name} cannot be fetched ({said(error)}); connect once, or download them elsewhere and pass "
            "weights=FILE."
        ) from error


def _from_file(name: str, weights: Any) -> nn.Module:
    state = read_state(weights)
    known = timm.get_pretrained_cfg(name)
    heads = getattr(known, "classifier", None) or ()
    classes = class_count(state, [heads] if isinstance(heads, str) else heads) or 0
    # given a state dict, timm renames and resizes what older files have otherwise, and then loads it strictly
    given = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0, "custom_load": False}
    try:
        return timm.create_model(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=given)
    except Exception as error:  # each network's own conversion may stumble in its own way
        raise ModelError(
            f"the weights in {str(weights)!r} do not fit timm/{name} ({said(error)}); is it the right model?"
        ) from error


def _preprocess(module: nn.Module) -> Preprocess:
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    args = {"input_size": (3, *size)} if size else {}  # the network may be built for another size than its weights were
    config = timm.data.resolve_data_config(args, model=module)
    transform = timm.data.create_transform(**config, is_training=False)
    height, width = config["input_size"][-2:]
    text = f"{height}×{width}, {config['interpolation']}, crop {config['crop_pct']:g}"
    return Preprocess(transform, tuple(config["mean"]), tuple(config["std"]), text)


def _labels(module: nn.Module) -> tuple[str, ...] | None:
    """ImageNet's names, where the network has as many classes as the ImageNet weights that it is known for."""
    classes = getattr(module, "num_classes", 0)
    subset = timm.data.infer_imagenet_subset({"num_classes": classes})
    if subset is None or vars(module).get("pretrained_cfg", {}).get("num_classes") != classes:
        return None
    if subset == "imagenet-1k":
        return imagenet_labels()
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())
