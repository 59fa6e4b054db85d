"""The one place where `Sal[i,j] = Σ_{k,l} w_{k,l} Ã^{k,l}_{ij}` is computed."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def saliency(layers: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, "batch targets height width"]:
    """Weighted sum of feature maps over channels and layers.

    `Sal[i,j] = Σ_{k,l} w_{k,l} Ã^{k,l}_{ij}`, where `Ã` are the maps resized to the finest grid among the layers.
    The sum over channels comes first: resizing is linear, so the order does not change the result.

    Args:
        layers: for each layer its weights `(B, T, K, 1, 1)`, or `(B, T, K, h, w)` where they vary in space, and its
            feature maps `(B, 1, K, h, w)`, or `(B, T, K, h, w)` where they depend on the target.

    Returns:
        `(B, T, h, w)` at the finest grid.
    """
    maps = [_weighted(weights, features) for weights, features in layers]
    finest = max((m.shape[-2:] for m in maps), key=lambda size: size[0] * size[1])
    return torch.stack([resize(m, finest) for m in maps]).sum(0)


def _weighted(weights: Tensor, features: Tensor) -> Tensor:
    if weights.shape[-2:] == (1, 1) and features.shape[1] == 1:
        # in the features' own precision: under the caller's autocast an einsum would round the map to half of it
        with (
            torch.autocast(features.device.type, enabled=False)
            if torch.is_autocast_enabled(features.device.type)
            else nullcontext()
        ):
            return torch.einsum("btk,bkhw->bthw", weights[..., 0, 0], features[:, 0])
    return (weights * features).sum(2)


def resize(maps: Float[Tensor, "batch targets height width"], size: Sequence[int]) -> Float[Tensor, "batch targets h w"]:
    """Bilinear, with pixel areas (not corners) aligned; nothing where the size is right already."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return interpolate(maps, list(size), mode="bilinear", align_corners=False)
