"""Smoothing, shrinking and stretching of batches of maps; nothing here shifts a map, and borders count only what is inside."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from heatproof.images import check_tensor

_DENSE = 1024


def resized(maps: Float[Tensor, "batch channels height width"], size: tuple[int, int]) -> Float[Tensor, "batch channels h w"]:
    """Bilinear with pixel areas aligned; averaged where it shrinks, so that nothing aliases."""
    if size[0] >= maps.shape[-2] and size[1] >= maps.shape[-1]:
        return enlarged(maps, size)
    return interpolate(maps, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def enlarged(maps: Float[Tensor, "batch channels height width"], size: tuple[int, int]) -> Float[Tensor, "batch channels h w"]:
    """Bilinear with pixel areas aligned, for sizes that are not smaller."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.device.type == "cpu" and maps.dtype == torch.float32:
        from heatproof.bottom_up.resample import stretched  # numba takes a while to import

        return stretched(maps.flatten(0, 1), size).unflatten(0, maps.shape[:2])
    return interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is `longest` pixels, no side below 1."""
    scale = longest / max(size)
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def working(
    x: Float[Tensor, "*batch 3 height width"], longest: int, mix: Sequence[Sequence[float]] | None = None
) -> Float[Tensor, "batch planes h w"]:
    """Images with values in [0, 1] and a longer side of `longest` pixels, enlarged or averaged.

    Args:
        x: RGB.
        longest: pixels of the longer side.
        mix: rows of three weights that sum to 1, for one plane each; None keeps red, green and blue.

    Raises:
        InputError: NaN or infinite values, or another shape.
    """
    if x.ndim == 4 and x.shape[1] == 3 and x.is_floating_point() and 0 not in x.shape:
        small = _shrunk(x.detach().float(), fitted((x.shape[-2], x.shape[-1]), longest), mix)
        # every pixel is part of an average when it shrinks: looking at the small image is enough, and cheap
        low, high = small.aminmax()
        if torch.isfinite(low + high):
            return small if low >= 0 and high <= 1 else small.clamp(0, 1)
    x = check_tensor(x).detach().float()
    return _shrunk(x, fitted((x.shape[-2], x.shape[-1]), longest), mix).clamp(0, 1)


def _shrunk(
    x: Float[Tensor, "batch 3 height width"], size: tuple[int, int], mix: Sequence[Sequence[float]] | None
) -> Float[Tensor, "batch planes h w"]:
    """`resized` and mixed, by plain averages where four pixels or more become one: as good there, and faster."""
    if x.shape[-2] < 4 * size[0] or x.shape[-1] < 4 * size[1]:
        small = resized(x, size)
    elif x.device.type == "cpu":
        from heatproof.bottom_up.resample import averaged  # numba takes a while to import

        return averaged(x, size, mix)
    else:
        small = interpolate(x, size, mode="area")
    return small if mix is None else torch.einsum("kc,bchw->bkhw", small.new_tensor(mix), small)


def pyramid(
    maps: Float[Tensor, "batch channels height width"], levels: int
) -> list[Float[Tensor, "batch channels height_ width_"]]:
    """A dyadic Gaussian pyramid: smoothed with the binomial (1 3 3 1)/8 and halved, level by level.

    Args:
        maps: level 0.
        levels: how many, the given one counted. Odd sides are rounded up, and a side of 1 stays 1.

    Returns:
        The levels, finest first.
    """
    result = [maps]
    for _ in range(levels - 1):
        height, width = result[-1].shape[-2:]
        # halving with averages over pixel areas is exactly this binomial, and keeps every level centred
        result.append(resized(result[-1], ((height + 1) // 2, (width + 1) // 2)))
    return result


def gaussian(maps: Float[Tensor, "*batch height width"], sigma: float) -> Float[Tensor, "*batch height width"]:
    """Mean under a Gaussian window of σ pixels that is cut at 4σ and, at the border, renormalised to what is inside."""
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, 1, height, width)
    flat = _along_rows(_along_rows(flat, sigma).mT, sigma).mT
    return flat.reshape(maps.shape)


def _along_rows(flat: Float[Tensor, "batch 1 height width"], sigma: float) -> Float[Tensor, "batch 1 height width"]:
    width = flat.shape[-1]
    if width <= _DENSE:  # one matrix product beats a long convolution of a single channel
        return flat @ window(width, sigma).to(flat).mT
    radius = min(int(4 * sigma + 0.5), width - 1)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=flat.device, dtype=flat.dtype) ** 2) / (2 * sigma**2))
    kernel = kernel.view(1, 1, 1, -1)
    inside = conv2d(flat.new_ones(1, 1, 1, width), kernel, padding=(0, radius))
    return conv2d(flat, kernel, padding=(0, radius)) / inside


@lru_cache(maxsize=64)
def window(count: int, sigma: float) -> Float[Tensor, "count count"]:
    """`W_ij ∝ exp(−(i − j)² / 2σ²)` within 4σ, rows summing to 1: the Gaussian mean along one axis as a matrix."""
    distance = torch.arange(count)[:, None] - torch.arange(count)
    weights = torch.exp(-(distance.double() ** 2) / (2 * sigma**2)) * (distance.abs() <= int(4 * sigma + 0.5))
    return (weights / weights.sum(1, keepdim=True)).float()


def levelled(maps: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """Maps whose values differ by no more than rounding made constant: a filter must not draw a picture of nothing."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high - low <= 1e-5 * high.abs(), high, maps)
