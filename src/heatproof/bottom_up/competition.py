"""How maps compete: the normalisations `N` of Itti and Koch, which promote a map with one strong peak over one with many."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from heatproof.bottom_up.filters import window

_FLAT = 1e-5
"""A map whose values differ by less than this has no structure but rounding."""

Level = Float[Tensor, "batch channels height width"]


def promoted(maps: Level) -> Level:
    """`N` of the paper: promote maps with one strong peak, suppress those with many alike.

    `N(M) = M · (max M − m̄)²` after `M` is stretched to [0, 1], with `m̄` the mean of all local maxima but the global one

    A local maximum is above 0 and the first of the largest values among its eight neighbours and itself, so that a
    plateau counts once.

    Args:
        maps: each `(h, w)` by itself.

    Returns:
        In [0, 1]; 0 everywhere for a map without structure.
    """
    maps = _stretched(maps)
    peaks = _peaks(maps)
    count = peaks.sum((2, 3), keepdim=True)
    others = (maps * peaks).sum((2, 3), keepdim=True) - 1  # stretched, the global one is 1
    mean = others.clamp_min(0) / (count - 1).clamp_min(1)
    return maps * (1 - mean) ** 2


def _peaks(maps: Level) -> Bool[Tensor, "batch channels height width"]:
    """Above 0, above the four neighbours that come before in reading order and not below the four after."""
    around = pad(maps, (1, 1, 1, 1), value=-1)
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    rows = torch.maximum(torch.maximum(around[..., :-2], around[..., 2:]), around[..., 1:-1])
    return (maps > rows[..., :-2, :].maximum(left).clamp_min_(0)) & (maps >= rows[..., 2:, :].maximum(right))


def competed(maps: Level, rounds: int = 10) -> Level:
    """`N` as iterated competition: each place excites its near surround and inhibits its far one.

    `M ← max(0, M + M ∗ DoG − 0.02)`, ten times after `M` is stretched to [0, 1], with
    `DoG = 0.5² G(2 % of the width) − 1.5² G(25 % of the width)`

    Args:
        maps: each `(h, w)` by itself.
        rounds: of the competition.

    Returns:
        ≥ 0; 0 everywhere for a map without structure.

    Paper: Itti, Koch 2000, "A saliency-based search mechanism for overt and covert shifts of visual attention".
    """
    height, width = maps.shape[-2:]
    near, far = 0.02 * max(height, width), 0.25 * max(height, width)
    # one matrix per axis and Gaussian; beyond the border there is nothing that could inhibit
    excite, inhibit = (
        (window(height, max(sigma, 1e-3)).to(maps), window(width, max(sigma, 1e-3)).to(maps).mT) for sigma in (near, far)
    )
    maps = _stretched(maps)
    for _ in range(rounds):
        excited, inhibited = excite[0] @ maps @ excite[1], inhibit[0] @ maps @ inhibit[1]
        maps = (maps + 0.25 * excited - 2.25 * inhibited - 0.02).clamp_min(0)
    return maps


def _stretched(maps: Level) -> Level:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return torch.where(high - low > _FLAT, (maps - low) / (high - low).clamp_min(_FLAT), 0)
