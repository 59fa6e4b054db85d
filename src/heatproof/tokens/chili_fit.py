"""How CHILI's head weights are measured: on images whose objects are known, one small batch after the other."""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import HeatproofError, InputError
from heatproof.images import check_tensor, read_image
from heatproof.masks import OBJECT, mask_values, read_mask, read_masked
from heatproof.models.loading import as_model
from heatproof.models.model import Model
from heatproof.models.shadow import shadow
from heatproof.models.tape import check_finite, placement, recording
from heatproof.models.targets import find_label, resolve_targets
from heatproof.tokens.chili_weights import ChiliWeights, binarised, head_weight, overlap
from heatproof.tokens.decomposition import decompose
from heatproof.tokens.registers import without_registers
from heatproof.tokens.select import plain

_BATCH = 8


@dataclass(frozen=True)
class _Item:
    """One pair as the model takes it; the mask has the image's size and went through the same crop."""

    number: int
    x: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "height width"]
    prompt: Any


def fit(model: Model | nn.Module, probing_set: Any, alpha: float = 10.0, binarise: str = "positive") -> ChiliWeights:
    """Measure how much each attention head looks at objects.

    `w_{l,h} = E[1 − exp(−α · IoU(h_m(f_m(A_{l,h})), G))]` over images with the mask G of what the prompt names

    Args:
        model: a vision transformer: an image–text model, or a classifier whose labels are the prompts.
        probing_set: an iterable of `(image, mask, prompt)`, read once and never held: images as `explain()` takes them,
            masks `(H, W)` as arrays, tensors, PIL images or paths (0 is background) of the image's size, prompts as
            texts, labels or class indices. Or a folder with `images/`, `masks/` and `targets.json`.
        alpha: how fast the weight grows with the overlap, > 0.
        binarise: `h_m`, which patches a head marks: `"positive"`, above its `"mean"`, its `"median"`, or its
            `"half-max"`.

    Returns:
        `ChiliWeights` `(L, H)` in [0, 1) with their provenance. Keep images that you test on out of the probing set.

    Raises:
        InputError: not one pair that can be used. Some that cannot are left out, with one warning.
        ModelError: a model without prompts. MethodError: a model that textspan cannot decompose.

    Paper: Kazmierczak et al. 2025, "CHILI"; α = 10 is the released code's, `h_m` is inferred from its released weights.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise InputError(f"alpha={alpha!r}; expected a number above 0.")
    binarised(torch.zeros(1, 1), binarise)  # says at once if there is no such way
    model = as_model(model)
    total: Tensor | None = None
    count, left = 0, list[str]()
    for batch in _batches(model, probing_set, left):
        for row in _rows(model, batch, float(alpha), binarise, left):
            total = row if total is None else total + row
            count += 1
    if total is None:
        raise InputError(f"the probing set has no pair that can be used.{' ' + left[0] if left else ' It is empty.'}")
    if left:
        warnings.warn(f"{len(left)} of {count + len(left)} pairs were left out of the probing set. {left[0]}", stacklevel=2)
    provenance = {"model": model.name, "pairs": count, "left_out": len(left), "alpha": float(alpha), "binarise": binarise}
    return ChiliWeights((total / count).float(), provenance | {"torch": str(torch.__version__)})


def _batches(model: Model, probing_set: Any, left: list[str]) -> Iterator[list[_Item]]:
    """Pairs in groups of one size; a sentence into `left` for each that cannot be used."""
    group: list[_Item] = []
    for n, pair in enumerate(_pairs(probing_set, left)):
        try:
            item = _read(model, n, pair)
        except HeatproofError as error:
            left.append(f"Pair {n}: {error}")
            continue
        if group and (len(group) == _BATCH or group[0].x.shape != item.x.shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _pairs(probing_set: Any, left: list[str]) -> Iterable[Any]:
    if isinstance(probing_set, str | os.PathLike):
        found, failed = read_masked(Path(probing_set))
        left += failed.values()
        return ((one.path, one.mask, one.target) for one in found)
    try:
        return iter(probing_set)
    except TypeError:
        raise InputError(
            f"the probing set is {type(probing_set).__name__}; expected a folder, or an iterable of (image, mask, prompt)."
        ) from None


def _read(model: Model, number: int, pair: Any) -> _Item:
    if not isinstance(pair, list | tuple) or len(pair) != 3:
        raise InputError(f"{type(pair).__name__} came; expected (image, mask, prompt).")
    image, mask = pair[:2]
    prompt = plain(pair[2])
    if isinstance(prompt, bool) or not isinstance(prompt, str | int) or (isinstance(prompt, str) and not prompt.strip()):
        raise InputError(f"the prompt is {prompt!r}; expected a text, a label or a class index.")
    if isinstance(prompt, str) and not model.takes_prompts:
        find_label(prompt, model.labels)  # says if there is none
    if isinstance(image, Tensor):
        images = check_tensor(image)
        if len(images) != 1:
            raise InputError(f"{len(images)} images came in one pair; expected one, with one mask.")
        x = images[0]
        marked = torch.from_numpy(_mask(mask, (x.shape[1], x.shape[2]))).float()
    else:
        photo = read_image(image)
        x = check_tensor(model.preprocess(photo))[0]
        marked = _seen(model, _mask(mask, (photo.height, photo.width)))
    if not bool((marked > 0.5).any()):
        raise InputError("the mask is empty (where the model sees the image); expected pixels of the object.")
    return _Item(number, x, marked, prompt)


def _seen(model: Model, mask: Bool[np.ndarray, "height width"]) -> Float[Tensor, "h w"]:
    """The mask the way of its image, through whatever crop that is: from 0 to 1, as it lies between black and white there."""
    black, white, between = (
        model.preprocess(Image.fromarray(np.uint8(255) * one).convert("RGB"))
        for one in (np.zeros_like(mask), np.ones_like(mask), mask)
    )
    return ((between - black) / (white - black)).nan_to_num(0, 0, 0).mean(0)


def _mask(mask: Any, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """True on the object."""
    if isinstance(mask, str | os.PathLike):
        with_size = read_mask(Path(mask), size, exact=True)
        return with_size == OBJECT
    if isinstance(mask, Image.Image):
        values = mask_values(mask)
    else:
        values = np.asarray(mask.detach().float().cpu() if isinstance(mask, Tensor) else mask)
    if values.ndim == 3 and values.shape[2] in (1, 3, 4):
        values = values[..., :3].max(2)  # of colours the highest channel; transparency does not count
    if values.shape != size or not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        came = " × ".join(map(str, values.shape)) or type(mask).__name__
        raise InputError(f"the mask is {came} and the image {size[0]} × {size[1]}; expected one size.")
    return values > 0


def _rows(
    model: Model, batch: list[_Item], alpha: float, binarise: str, left: list[str]
) -> Iterator[Float[Tensor, "layers heads"]]:
    """A row per pair; a sentence into `left` for each whose prompt the model turns out not to know."""
    try:
        rows = _weights(model, batch, alpha, binarise)
    except InputError as error:
        if len(batch) == 1:
            left.append(f"Pair {batch[0].number}: {error}")
            return
        for item in batch:
            yield from _rows(model, [item], alpha, binarise, left)
    else:
        yield from rows


def _weights(model: Model, batch: list[_Item], alpha: float, binarise: str) -> Float[Tensor, "pairs layers heads"]:
    """`1 − exp(−α · IoU)` of every head on every pair."""
    prompts = [item.prompt for item in batch]
    model = model.knowing(prompt for prompt in prompts if isinstance(prompt, str))

    def aim(scores: Tensor, which: slice) -> Tensor:
        rows = list(range(len(batch)))[which]
        return resolve_targets([[prompt] for prompt in prompts], scores, model.labels, rows)

    device, dtype = placement(model.module)
    x = torch.stack([item.x for item in batch]).to(device, dtype)
    with recording(False):
        found = decompose(shadow(model.module), model.readout, x, aim)
        check_finite(found.scores, [item.number for item in batch])
        patches = found.contributions[:, 0, ..., found.prefix :].unflatten(-1, found.grid)
        share = F.adaptive_avg_pool2d(torch.stack([item.mask for item in batch])[:, None].to(device), found.grid)
        # an object smaller than half a patch lies where most of it lies
        truth = share >= share.amax((2, 3), keepdim=True).clamp_max(0.5)
        iou = overlap(binarised(without_registers(patches), binarise), truth[:, None])
        return head_weight(iou, alpha).double().cpu()
