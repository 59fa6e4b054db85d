"""A data set of object masks: a folder of images, a folder of masks, and perhaps what is to be looked for in each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from heatproof.errors import InputError
from heatproof.images import MAX_PIXELS, SUFFIXES

NAME = "targets.json"

OBJECT, LEFT_OUT = 1, 2
"""Values of a mask as it is read here; background is 0."""


@dataclass(frozen=True)
class Masked:
    """An image, its object's mask, and its target: a label, prompt or class index, None for the predicted class."""

    name: str
    path: Path
    mask: Path
    target: str | int | None = None


def read_masked(folder: Path) -> tuple[list[Masked], dict[str, str]]:
    """Read a data set.

    The folder holds `images/`, `masks/` with a PNG of the same name for each, and optionally `targets.json`, an object
    from image names to labels, prompts or class indices.

    Args:
        folder: the data set's.

    Returns:
        The images by name, and a sentence for each that cannot be used.

    Raises:
        InputError: no such folder, no JSON where it should be, or no image that can be used.
    """
    folder = Path(folder)
    images, masks = (_files(folder / part) for part in ("images", "masks"))
    targets = _targets(folder / NAME)
    found, failed = [], {}
    for name in sorted(images):
        if name not in masks:
            failed[name] = f"{name!r} has no mask; expected masks/{name}.png."
            continue
        target = targets.pop(name, targets.pop(images[name].name, None))
        if isinstance(target, bool) or not isinstance(target, str | int | None):
            failed[name] = f"the target of {name!r} is {target!r}; expected a label, a prompt or a class index."
            continue
        found.append(Masked(name, images[name], masks[name], target))
    failed |= {name: f"{NAME} names {name!r}, and there is no such image." for name in targets}
    if not found:
        first = next(iter(failed.values()), f"Expected {folder}/images/NAME.jpg with {folder}/masks/NAME.png.")
        raise InputError(f"{str(folder)!r} has no image with a mask. {first}")
    return found, failed


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}; expected images in images/ and their masks in masks/.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return {path.stem: path for path in paths}


def _targets(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        targets = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON ({error}).") from error
    if not isinstance(targets, dict):
        raise InputError(f"{str(file)!r} holds {type(targets).__name__}; expected an object from image names to targets.")
    return targets


def read_mask(
    path: Path, size: tuple[int, int], void: int | None = None, exact: bool = False
) -> UInt8[np.ndarray, "height width"]:
    """Read a mask and bring it to a size, each pixel taking the nearest one's value.

    Args:
        path: of an image whose pixels are 0 on the background and anything else on the object: grey, black and white,
            or a palette, whose indices count. Of colours, the highest channel counts.
        size: `(H, W)` wanted.
        void: a value of pixels that are neither, None if there is none.
        exact: whether another size is an error.

    Returns:
        `(H, W)` with 0 for background, `OBJECT` and `LEFT_OUT`.

    Raises:
        InputError: it cannot be read, or has another size.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{str(path)!r} has more than {MAX_PIXELS:,} pixels, the limit; make it smaller first.")
            values = mask_values(image)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise InputError(f"the mask {str(path)!r} cannot be read ({error}); expected a PNG.") from error
    if exact and values.shape != size:
        came = " × ".join(map(str, values.shape))
        raise InputError(f"the mask {str(path)!r} is {came} and its image {size[0]} × {size[1]}; expected one size.")
    classes = np.where(values == 0, 0, OBJECT).astype(np.uint8)
    if void is not None:
        classes[values == void] = LEFT_OUT
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, classes.shape, strict=True))
    return classes[rows[:, None], columns]


def mask_values(image: Image.Image) -> Shaped[np.ndarray, "height width"]:
    """A mask's pixels: grey, or the indices of a palette; of colours the highest channel, and transparency does not count.

    Args:
        image: of any mode.

    Returns:
        `(H, W)` in the image's own numbers, 0 for what is not marked.
    """
    values = np.array(image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("RGB"))
    return values.max(2) if values.ndim == 3 else values
