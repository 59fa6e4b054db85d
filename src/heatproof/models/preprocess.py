"""How an image enters a model: a transform, and the normalisation inside it that overlays and LRP's box rule need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from heatproof.errors import HeatproofError, InputError
from heatproof.images import to_tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """A callable from a PIL image to the tensor `(3, H, W)` that a model takes.

    Args:
        transform: the callable itself.
        mean, std: per-channel normalisation on pixels in [0, 1], or None where it is not known.
        text: one line for the provenance.
    """

    transform: Callable[[Image.Image], Any]
    mean: Triple | None = None
    std: Triple | None = None
    text: str = "custom"

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        try:
            x = self.transform(image)
        except HeatproofError:
            raise
        except Exception as error:  # the user's code, or a library's, on an image it was not made for
            raise InputError(
                f"preprocess= raised {type(error).__name__} on an image of {image.width}×{image.height}: {error}."
            ) from error
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] != 3 or not x.is_floating_point():
            came = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"preprocess= returned {came}; expected a float tensor (3, H, W) from a PIL image.")
        return x

    def pixels(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Undo the normalisation: pixels in [0, 1], per image stretched to its own range where it is not known."""
        x = x.detach().float()
        if self.mean is not None and self.std is not None:
            mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
            return (x * std + mean).clamp(0, 1)
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        inside = (low >= 0) & (high <= 1)
        return torch.where(inside, x, (x - low) / (high - low).clamp_min(1e-12))

    def bounds(self) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]] | None:
        """Lowest and highest value that a pixel can take after normalisation, or None where it is not known."""
        if self.mean is None or self.std is None:
            return None
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std


RAW = Preprocess(to_tensor, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "pixels / 255 at their own size")
"""Pixels in [0, 1], neither resized nor normalised: for methods without a model, and models wrapped without one."""


def resize_crop(resize: int, crop: int, mean: Triple, std: Triple) -> Preprocess:
    """Shorter side to `resize` (bicubic), centre crop of `crop` pixels, then `(pixel / 255 − mean) / std`."""

    def transform(image: Image.Image) -> Tensor:
        # of a strip only the middle is seen; 60,000 × 1 pixels would grow to gigabytes on the way there
        image = _middle(image, *(min(side, 16 * min(image.size)) for side in image.size))
        scale = resize / min(image.size)
        image = image.resize([max(round(side * scale), crop) for side in image.size], Image.Resampling.BICUBIC)
        values = np.asarray(_middle(image, crop, crop), dtype=np.float32) / 255
        normed = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normed.transpose(2, 0, 1), dtype=np.float32))

    return Preprocess(transform, mean, std, f"resize {resize}, centre crop {crop}")


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def understand(preprocess: Any) -> Preprocess:
    """Wrap the user's transform; find its normalisation if it is a torchvision-like one.

    Raises:
        InputError: it is not callable.
    """
    if preprocess is None:
        return RAW
    if isinstance(preprocess, Preprocess):
        return preprocess
    if not callable(preprocess):
        raise InputError(f"preprocess= is {type(preprocess).__name__}; expected a callable from a PIL image to a tensor.")
    for step in (*getattr(preprocess, "transforms", ()), preprocess):
        mean, std = (_triple(getattr(step, name, None)) for name in ("mean", "std"))
        if mean and std:
            return Preprocess(preprocess, mean, std, repr(preprocess).replace("\n", " "))
    return Preprocess(preprocess, text=repr(preprocess).replace("\n", " "))


def _triple(values: Any) -> Triple | None:
    try:
        first, second, third = (float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return first, second, third
