"""torchvision's classification networks, with their own transforms and labels."""

import contextlib
import importlib.metadata
import io
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from heatproof.errors import ModelError, nearest
from heatproof.models.model import Model
from heatproof.models.preprocess import understand
from heatproof.models.weights import class_count, last_linear, load_state, read_state, said


def names() -> list[str]:
    """Every classification network that torchvision has weights for."""
    return torchvision.models.list_models(module=torchvision.models)


def load(name: str, weights: Any = None) -> Model:
    """A torchvision network with its default weights, or with weights from a file.

    Args:
        name: as torchvision calls it, such as `resnet50`.
        weights: a safetensors file or state dict of this network; the number of classes is read from it.

    Returns:
        A `Model` that preprocesses as the default weights want it, with their categories as labels; without labels
        where a file has another number of classes.

    Raises:
        ModelError: no such network, or weights that cannot be had or do not fit.
    """
    if name not in names():
        raise ModelError(
            f"torchvision has no classification network {name!r}.{nearest(name, names())} `heatproof models` lists them."
        )
    known = torchvision.models.get_model_weights(name).DEFAULT
    labels = tuple(known.meta["categories"])
    state = _renamed(_fetched(known, name) if weights is None else read_state(weights))
    module = _built(name, state, known.meta, len(labels))
    if weights is None:
        module.load_state_dict(state)
    else:
        load_state(module, state, weights)
    with torch.no_grad():
        classes = class_count(module.state_dict(), [last_linear(module)])
    transform = known.transforms()
    return Model(
        module.eval(),
        f"torchvision/{name}",
        preprocess=replace(understand(transform), text=f"resize {transform.resize_size[0]}, crop {transform.crop_size[0]}"),
        labels=labels if classes == len(labels) else None,
        versions={"torchvision": importlib.metadata.version("torchvision")},
    )


def _fetched(known: Any, name: str) -> Mapping[str, Tensor]:
    """The default weights: from torchvision's cache, else downloaded and checked against their hash."""
    try:
        # torch announces the download on stdout, where the caller's own output goes; its bar on stderr will do
        with contextlib.redirect_stdout(io.StringIO()):
            return known.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # network, disk, hash: what it is stands in the message
        raise ModelError(
            f"the weights of torchvision/{name} cannot be fetched ({said(error)}); connect once, or download {known.url} "
            "elsewhere and pass weights=FILE."
        ) from error


def _renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Layer names of DenseNets as they are now: the published files have dots inside them."""
    new = OrderedDict((re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key), value) for key, value in state.items())
    if hasattr(state, "_metadata"):
        vars(new)["_metadata"] = state._metadata
    return new


def _built(name: str, state: Mapping[str, Tensor], meta: Mapping[str, Any], classes: int) -> nn.Module:
    """The network in the shape that the weights have: its head, its input size, its auxiliary heads."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # as torchvision builds them around its own weights, which expect another normalisation than the transforms give
        options = {
            "transform_input": True,
            "init_weights": False,
            "aux_logits": any(key.lower().startswith("aux") for key in state),
        }
    elif "encoder.pos_embedding" in state and "conv_proj.weight" in state:
        tokens = state["encoder.pos_embedding"].shape[1] - 1
        options = {"image_size": math.isqrt(tokens) * state["conv_proj.weight"].shape[-1]}
    elif name == "maxvit_t":
        options = {"input_size": tuple(meta["min_size"])}
    module = torchvision.models.get_model(name, weights=None, **options)
    found = class_count(state, [last_linear(module)])
    if found is None or found == classes:
        return module
    return torchvision.models.get_model(name, weights=None, num_classes=found, **options)
