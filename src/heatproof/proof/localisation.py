"""Does a map point at the object? Scores of maps against masks, one number per image.

Maps are `(B, H, W)` of any range, masks `(B, H, W)` with True on the object; `box_masks` makes them from boxes. Pixels
where `void` is True are left out. Compare every number with that of the `center` baseline: objects are in the middle.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu
from torch import Tensor

from heatproof.errors import InputError


def pointing_game(maps: Any, masks: Any, tolerance: float = 0.0, void: Any = None) -> Float[Tensor, " batch"]:
    """Whether the map's maximum lies on the object.

    `1[min_{p ∈ mask} ‖p − argmax map‖ ≤ tolerance]`

    Args:
        maps: `(B, H, W)`, any range.
        masks: `(B, H, W)`.
        tolerance: pixels around the object that still count. The paper takes 15.
        void: `(B, H, W)`, pixels that can be neither the maximum nor the object.

    Returns:
        `(B,)` 1 for a hit and 0 for a miss; where several pixels are the maximum, the share of them that hit, which is
        what a draw among them gives on average.

    Raises:
        InputError: shapes that differ, values that are not finite, an empty mask, or a negative tolerance.

    Paper: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.1.
    """
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"tolerance={tolerance!r}; expected pixels, 0 or more.")
    heat, inside, counted = _checked(maps, masks, void)
    heat = heat.masked_fill(~counted, -torch.inf)
    highest = heat == heat.amax((1, 2), keepdim=True)
    near = inside if tolerance == 0 else torch.stack([_widened(one, tolerance) for one in inside])
    return (highest & near).sum((1, 2)) / highest.sum((1, 2))


def energy_pointing(maps: Any, masks: Any, void: Any = None) -> Float[Tensor, " batch"]:
    """Share of the map's positive mass that lies on the object.

    `Σ_mask map⁺ / Σ map⁺`

    Args:
        maps: `(B, H, W)`; what is negative counts nothing.
        masks: `(B, H, W)`.
        void: `(B, H, W)`, pixels left out of both sums.

    Returns:
        `(B,)` from 0 to 1; a map without positive values points nowhere and gets 0.

    Raises:
        InputError: shapes that differ, values that are not finite, or an empty mask.

    Paper: Wang et al. 2020, "Score-CAM", section 4.3.
    """
    heat, inside, counted = _checked(maps, masks, void)
    return _share(heat.clamp_min(0), inside, counted)


def relevance_mass(maps: Any, masks: Any, void: Any = None) -> Float[Tensor, " batch"]:
    """Relevance mass accuracy: share of all relevance, for and against, that lies on the object.

    `Σ_mask |map| / Σ |map|`; the same as `energy_pointing` for maps without negative values

    Args:
        maps: `(B, H, W)`, any range.
        masks: `(B, H, W)`.
        void: `(B, H, W)`, pixels left out of both sums.

    Returns:
        `(B,)` from 0 to 1; a map that is zero everywhere gets 0.

    Raises:
        InputError: shapes that differ, values that are not finite, or an empty mask.

    Paper: Arras, Osman, Samek 2022, "CLEVR-XAI", equation 1.
    """
    heat, inside, counted = _checked(maps, masks, void)
    return _share(heat.abs(), inside, counted)


def relevance_rank(maps: Any, masks: Any, void: Any = None) -> Float[Tensor, " batch"]:
    """Relevance rank accuracy: of the K highest pixels, how many lie on the object, which has K pixels.

    `|top_K(map) ∩ mask| / K`, `K = |mask|`

    Args:
        maps: `(B, H, W)`, any range.
        masks: `(B, H, W)`.
        void: `(B, H, W)`, pixels left out.

    Returns:
        `(B,)` from 0 to 1. Pixels that tie for the last places enter by the share of them that lie on the object, so a
        constant map gets the object's share of the image.

    Raises:
        InputError: shapes that differ, values that are not finite, or an empty mask.

    Paper: Arras, Osman, Samek 2022, "CLEVR-XAI", equation 2.
    """
    scores = []
    for values, on in _rows(*_checked(maps, masks, void)):
        size = int(on.sum())
        last = values.topk(size).values[-1]
        above, tied = values > last, values == last
        free = size - above.sum()
        scores.append(((above & on).sum() + free * (tied & on).sum() / tied.sum()) / size)
    return torch.stack(scores)


def iou(maps: Any, masks: Any, threshold: float | str = 0.5, void: Any = None) -> Float[Tensor, " batch"]:
    """Intersection over union of the object and of where the map is high.

    `|M ∩ mask| / |M ∪ mask|`, `M = {stretched map > threshold}`, the map stretched to [0, 1]

    Args:
        maps: `(B, H, W)`, any range.
        masks: `(B, H, W)`.
        threshold: a share of the map's range from 0 to 1 (CAM's paper takes 0.2, Grad-CAM's 0.15); `"mean"` the map's
            mean; `"otsu"` what separates its histogram best; `"best"` the one with the highest IoU, which looks at the
            answer: an upper bound, not a method.
        void: `(B, H, W)`, pixels left out.

    Returns:
        `(B,)` from 0 to 1. A constant map marks nothing and gets 0, but `"best"` may mark everything.

    Raises:
        InputError: shapes that differ, values that are not finite, an empty mask, or no such threshold.
    """
    known = isinstance(threshold, int | float) and not isinstance(threshold, bool) and 0 <= threshold <= 1
    if not known and threshold not in ("mean", "otsu", "best"):
        raise InputError(f"threshold={threshold!r}; expected a number from 0 to 1, 'mean', 'otsu' or 'best'.")
    scores = []
    for values, on in _rows(*_checked(maps, masks, void)):
        if threshold == "best":
            scores.append(_best_iou(values, on))
        else:
            marked = values > _level(values, threshold)
            scores.append((marked & on).sum() / (marked | on).sum())
    return torch.stack(scores)


def average_precision(maps: Any, masks: Any, void: Any = None) -> Float[Tensor, " batch"]:
    """Area under the precision–recall curve of the map as a detector of the object's pixels.

    `Σ_n (R_n − R_{n−1}) P_n` over the map's values as thresholds, from the highest down

    Args:
        maps: `(B, H, W)`, any range; only the order counts.
        masks: `(B, H, W)`.
        void: `(B, H, W)`, pixels left out.

    Returns:
        `(B,)` from 0 to 1; a constant map gets the object's share of the image. The mean over images is the mAP.

    Raises:
        InputError: shapes that differ, values that are not finite, or an empty mask.
    """
    return torch.stack([precision_area(values, on) for values, on in _rows(*_checked(maps, masks, void))])


def precision_area(values: Float[Tensor, " pixels"], positive: Bool[Tensor, " pixels"]) -> Float[Tensor, ""]:
    """`average_precision` of one list of values; tied values are one threshold."""
    hits, marked = _curve(values, positive)
    return (hits.diff(prepend=hits.new_zeros(1)) / hits[-1] * hits / marked).sum().float()


def box_masks(boxes: Sequence[Any], size: tuple[int, int]) -> Bool[Tensor, "batch height width"]:
    """Masks from boxes.

    Args:
        boxes: per image one box `(left, top, right, bottom)` in pixels, right and bottom excluded, or a list of them.
        size: `(H, W)` of the masks.

    Returns:
        `(B, H, W)`, True inside any of an image's boxes; half-covered pixels are rounded.

    Raises:
        InputError: no four finite numbers, or a box without a pixel in the image.
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, own in zip(masks, boxes, strict=True):
        try:
            several = np.asarray(own, dtype=np.float64)
            several = several[None] if several.ndim == 1 else several
            if several.ndim != 2 or several.shape[1] != 4 or not np.isfinite(several).all():
                raise ValueError
        except ValueError:
            raise InputError(f"boxes {own!r} came; expected (left, top, right, bottom) in pixels, or a list of such.") from None
        for box in several:
            left, top, right, bottom = (max(0, round(side)) for side in box.tolist())
            if not mask[top:bottom, left:right].numel():
                raise InputError(f"box {box.tolist()} has no pixel in an image of {size[0]}×{size[1]}; check its order and unit.")
            mask[top:bottom, left:right] = True
    return masks


def _level(values: Tensor, threshold: float | str) -> float:
    """The threshold in the map's own unit; a constant map has its only value, above which there is nothing."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    if threshold == "otsu":
        return float(threshold_otsu(values.numpy()))
    return float(values.mean()) if threshold == "mean" else low + float(threshold) * (high - low)


def _best_iou(values: Tensor, on: Tensor) -> Tensor:
    hits, marked = _curve(values, on)
    return (hits / (marked + on.sum() - hits)).max().float()


def _curve(values: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """Object's pixels, and pixels, at or above each distinct value, from the highest down; float64."""
    ordered, order = values.sort(descending=True)
    last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    hits, marked = on[order].double().cumsum(0)[last], torch.arange(1, len(ordered) + 1, dtype=torch.float64)[last]
    return hits, marked


def _share(mass: Tensor, inside: Tensor, counted: Tensor) -> Tensor:
    mass = (mass * counted).double()
    return ((mass * inside).sum((1, 2)) / mass.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)).float()


def _widened(mask: Tensor, distance: float) -> Tensor:
    return torch.from_numpy(distance_transform_edt(~mask.numpy()) <= distance)


def _rows(heat: Tensor, inside: Tensor, counted: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The counted pixels of each image, as lists."""
    return [(values[count], on[count]) for values, on, count in zip(heat, inside, counted, strict=True)]


def _checked(maps: Any, masks: Any, void: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, object and counted pixels as tensors `(B, H, W)` on the CPU."""
    heat, inside = as_tensor(maps), as_tensor(masks) > 0
    counted = torch.ones_like(inside) if void is None else as_tensor(void) <= 0
    if heat.ndim != 3 or not heat.numel() or heat.shape != inside.shape or heat.shape != counted.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (heat, inside, counted))
        raise InputError(f"maps, masks and counted pixels of shapes {shapes} came; expected (B, H, W), all the same.")
    if not torch.isfinite(heat).all():
        raise InputError("a map with NaN or infinite values came; leave that image out.")
    inside &= counted
    empty = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"the mask of image(s) {empty} is empty; there is no object to find. Leave them out.")
    return heat, inside, counted


def as_tensor(values: Any) -> Tensor:
    """float32 on the CPU; arrays, which may be read-only, are copied."""
    return values.detach().cpu().float() if isinstance(values, Tensor) else torch.tensor(np.asarray(values)).float()
