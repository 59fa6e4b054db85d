"""What the proof needs to know of a map, wherever it was made: its values at the image's size, and the order of its pixels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from heatproof import seeds
from heatproof.errors import InputError

_FLAT = 1e-6


class Intake(NamedTuple):
    """Maps as the tests take them, and what had to be done to get there."""

    maps: Float[Tensor, "batch targets height width"]
    remarks: tuple[str, ...]


def take_maps(maps: Any, batch: int, targets: int, size: tuple[int, int]) -> Intake:
    """Any array of maps at the size of the model's input.

    Args:
        maps: `(B, T, H, W)`, `(B, H, W)` for one target, `(T, H, W)` for one image, or `(H, W)`; a tensor, an array,
            nested lists, or something that has them as `.maps`. Another `H × W` is resized (bilinear), which a remark says.
        batch, targets: B and T.
        size: `(H, W)` of the model's input.

    Returns:
        float32 `(B, T, H, W)` on the CPU, and remarks in plain words.

    Raises:
        InputError: no numbers, another number of maps than images × targets, or values that are NaN or infinite.
    """
    values = as_numbers(maps)
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 3:
        values = values[None] if batch == 1 and targets > 1 else values[:, None]
    if values.ndim != 4 or values.shape[:2] != (batch, targets) or 0 in values.shape:
        raise InputError(
            f"maps of shape {tuple(values.shape)} came for {batch} image(s) and {targets} target(s); expected "
            f"({batch}, {targets}, H, W){f' or ({batch}, H, W)' if targets == 1 else ''}. Sum a map with channels over them."
        )
    bad = (~torch.isfinite(values)).flatten(2).any(2).nonzero().tolist()
    if bad:
        raise InputError(
            f"the map of image {bad[0][0]}, target {bad[0][1]} has values that are NaN or infinite"
            f"{f', and {len(bad) - 1} more have' if len(bad) > 1 else ''}; a map that is undefined proves nothing."
        )
    remarks = []
    if values.shape[-2:] != tuple(size):
        remarks.append(
            f"maps of {values.shape[-2]}×{values.shape[-1]} were resized to the model's {size[0]}×{size[1]} (bilinear)."
        )
        values = interpolate(values, list(size), mode="bilinear", align_corners=False)
    return Intake(values, tuple(remarks))


def as_numbers(maps: Any) -> Float[Tensor, "..."]:
    """Any array as a float32 tensor on the CPU, whoever made it and however it lies in memory.

    Args:
        maps: a tensor, an array, nested lists of them or of numbers, or something that has them as `.maps`.

    Returns:
        The same shape and values, in memory of its own unless it was such a tensor already.

    Raises:
        InputError: no numbers, or rows of different lengths.
    """
    maps = getattr(maps, "maps", maps)
    if isinstance(maps, Mapping) and all(hasattr(one, "maps") for one in maps.values()):
        raise InputError(f"maps of several methods came ({', '.join(map(str, maps))}); expected those of one. Take them in turn.")
    try:
        if isinstance(maps, list | tuple) and maps and all(isinstance(one, Tensor) for one in maps):
            maps = torch.stack([one.detach().cpu() for one in maps])
        if isinstance(maps, Tensor):
            if maps.is_complex():
                raise TypeError(f"its values are of type {maps.dtype}")
            return maps.detach().to_dense().cpu().to(torch.float32)
        array = np.array(maps)  # a copy: torch takes no view that is flipped, read-only or in another byte order
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its values are of type {array.dtype}")
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"maps came as {type(maps).__name__}, which is no array of numbers ({error}).") from error


def says_nothing(maps: Float[Tensor, "*maps height width"]) -> Bool[Tensor, "*maps"]:
    """Whether a map is constant, but for rounding: it prefers no pixel, and nothing can be asked of it."""
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    return high - low <= _FLAT * torch.maximum(low.abs(), high.abs())


def tied(maps: Float[Tensor, "*maps height width"]) -> Float[Tensor, "*maps"]:
    """Share of the pixels whose value another pixel has too: their order is not the map's, but the tie-breaker's."""
    values = maps.flatten(-2).sort(-1).values
    same = values[..., 1:] == values[..., :-1]
    none = torch.zeros_like(same[..., :1])
    return (torch.cat([same, none], -1) | torch.cat([none, same], -1)).float().mean(-1)


def ranks(maps: Float[Tensor, "*maps height width"], seed: int = 0) -> Int[Tensor, "*maps height width"]:
    """Each pixel's place in the order of importance, 0 the most important.

    Ties are broken by one seeded shuffle of the pixels, the same for every map of a size. Broken by position they
    would be removed row by row from the top, and a map with large flat parts would be scored by what is up there.

    Args:
        maps: any number of maps.
        seed: of the shuffle.

    Returns:
        int32, a permutation of `0 … HW − 1` in each map.
    """
    height, width = maps.shape[-2:]
    shuffle = torch.randperm(height * width, generator=seeds.generator(seed)).to(maps.device)
    places = torch.arange(height * width, dtype=torch.int32, device=maps.device)
    found = torch.empty(maps.shape, dtype=torch.int32, device=maps.device).view(-1, height * width)
    for row, values in zip(found, maps.reshape(-1, height * width), strict=True):  # one by one: sorting all needs much memory
        row[shuffle[values[shuffle].argsort(descending=True, stable=True)]] = places
    return found.view(maps.shape)


def cells(maps: Float[Tensor, "*maps height width"], side: int) -> Float[Tensor, "*maps rows columns"]:
    """Mean of a map in square cells of `side` pixels; those at the lower and right border are cut off by it."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    means = avg_pool2d(flat, side, ceil_mode=True, count_include_pad=False)
    return means.view(*maps.shape[:-2], *means.shape[-2:])


def cell_sums(maps: Float[Tensor, "*maps height width"], side: int) -> Float[Tensor, "*maps cells"]:
    """What a map says in each of the same cells altogether, row by row."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return avg_pool2d(flat, side, ceil_mode=True, divisor_override=1).reshape(*maps.shape[:-2], -1)


def spread(
    values: Shaped[Tensor, "*maps rows columns"], side: int, size: tuple[int, int]
) -> Shaped[Tensor, "*maps height width"]:
    """One value per cell to one per pixel: the way back from `cells`."""
    wide = values.repeat_interleave(side, -2).repeat_interleave(side, -1)
    return wide[..., : size[0], : size[1]]
