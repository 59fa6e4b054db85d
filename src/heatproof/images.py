"""Image files, PIL images and arrays to RGB images and tensors, safely.

Nothing here knows a model. Every source that cannot be read ends in an `InputError` that names it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from heatproof.errors import InputError

MAX_PIXELS = 89_478_485
"""Images with more pixels than this are refused before decoding (Pillow's own limit)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
"""File endings that count as an image when a folder is listed."""


def read_image(source: Any) -> Image.Image:
    """Read one image as 8-bit RGB, upright.

    Args:
        source: a path, a PIL image of any mode, or a uint8 array `H×W×3` (also `H×W`, `H×W×1`, `H×W×4`).

    Returns:
        A PIL image of mode RGB: EXIF rotation applied, 16 bits scaled to 8, transparency laid on white,
        the first frame of an animation.

    Raises:
        InputError: the file is missing, unreadable, truncated or over `MAX_PIXELS`, or the array is not uint8.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the PIL image")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the array")
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source))
    raise InputError(
        f"an image came as {type(source).__name__}; expected a path, a PIL image, an H×W×3 uint8 array, "
        "or a preprocessed float tensor (3,H,W) or (B,3,H,W)."
    )


def _read_file(path: Path) -> Image.Image:
    try:
        size = None if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}; check the path.") from None
    except (OSError, ValueError) as error:  # no permission, a name that is too long or has a NUL in it
        raise InputError(f"{str(path)[:200]!r} cannot be looked at ({error}); check the path.") from None
    if size is None:
        raise InputError(f"{str(path)!r} is a folder; pass the image files in it, as a list.")
    if size == 0:
        raise InputError(f"{str(path)!r} is empty (0 bytes); fetch the image again.")
    try:
        with Image.open(path) as image:
            return _to_rgb(image, repr(str(path)))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{str(path)!r} is not an image that can be read; expected JPEG, PNG, WebP or the like.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
        raise InputError(_too_large(repr(str(path)))) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise InputError(f"{str(path)!r} cannot be decoded ({error}); the file is damaged or truncated.") from error


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS:,} pixels, the limit; make it smaller first."


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        raise InputError(
            f"an array of shape {shape} and type {array.dtype} came; expected H×W×3 uint8. Scale floats in [0, 1] by 255 "
            "and convert them, or pass preprocessed values as a float tensor (3,H,W) or (B,3,H,W)."
        )
    return Image.fromarray(array[..., 0] if array.ndim == 3 and shape[2] == 1 else array)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_too_large(name))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image, name)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit and float grey values to 8 bits; Pillow's own convert() would clip them to white."""
    values = np.asarray(image, dtype=np.float64)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if not (np.isfinite(values).all() and low >= 0 and high <= 65535):
        raise InputError(f"{name} has grey values from {low:g} to {high:g}; expected 8 or 16 bits, or floats in [0, 1].")
    full = (1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0) if image.mode == "F" else 65535.0
    return Image.fromarray((values * (255.0 / full)).round().astype(np.uint8))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB image to a float tensor `(3, H, W)` in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def to_uint8(pixels: Float[Tensor, "batch 3 height width"]) -> UInt8[np.ndarray, "batch height width 3"]:
    """Pixels in [0, 1] to a uint8 array `(B, H, W, 3)`, for display and storage."""
    return (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def check_tensor(x: Tensor) -> Tensor:
    """Return `x` as `(B, 3, H, W)`, or say what is wrong with it.

    Raises:
        InputError: not a finite float tensor of shape `(3, H, W)` or `(B, 3, H, W)`.
    """
    batch = x.unsqueeze(0) if x.ndim == 3 else x
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise InputError(f"a tensor of shape {tuple(x.shape)} came; expected (3,H,W) or (B,3,H,W) with at least one pixel.")
    if not batch.is_floating_point():
        raise InputError(
            f"a tensor of type {x.dtype} came; expected preprocessed floats. For raw 8-bit pixels pass an H×W×3 uint8 "
            "numpy array or a PIL image, and the model preprocesses it."
        )
    finite = torch.isfinite(batch).flatten(1).all(1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise InputError(f"the tensor has NaN or infinite values in image(s) {rows}; remove or mend them first.")
    return batch


def _one(x: Tensor) -> Tensor:
    batch = check_tensor(x)
    if len(batch) > 1:
        raise InputError(
            f"a tensor of shape {tuple(x.shape)}, a batch, came as one image of a list; expected (3,H,W). Pass the batch itself, "
            "or torch.cat several into one."
        )
    return batch[0]


@dataclass(frozen=True)
class Sources:
    """What the user passed as images, in order, read only when asked for: a million paths cost nothing yet."""

    items: Sequence[Any]
    names: tuple[str | None, ...]

    @classmethod
    def of(cls, images: Any) -> "Sources":
        """Understand a single image, a list of images, or a tensor or array that holds a batch."""
        if isinstance(images, Tensor):
            images = list(check_tensor(images))
        elif isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]
        if not len(images):
            raise InputError("no images came (an empty list); pass at least one.")
        return cls(images, tuple(str(item) if isinstance(item, str | os.PathLike) else None for item in images))

    def __len__(self) -> int:
        return len(self.items)

    def read(
        self, start: int, stop: int, preprocess: Callable[[Image.Image], Tensor]
    ) -> tuple[list[Tensor], list[int], dict[int, str]]:
        """Read images `start` to `stop`: tensors, the index of each, and a sentence for each that failed."""
        tensors, indices, errors = [], [], {}
        for index in range(start, min(stop, len(self.items))):
            item = self.items[index]
            try:
                tensor = _one(item if isinstance(item, Tensor) else preprocess(read_image(item)))
            except InputError as error:
                errors[index] = str(error)
            else:
                tensors.append(tensor)
                indices.append(index)
        return tensors, indices, errors
