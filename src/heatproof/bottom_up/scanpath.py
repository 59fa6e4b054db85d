"""Where the eyes would go next: a race to the most salient place, and its inhibition once it was seen."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.errors import MethodError
from heatproof.images import check_tensor

BACKGROUND, THRESHOLD, LEAK = 0.2, 0.19, 0.174
"""Input that every place gets besides its saliency, the firing threshold, and the leak's time constant in seconds: the most
salient place of all fires after 30 ms, one of half its strength after 54 ms, an empty one after half a second."""

RECOVERY, PROXIMITY = 0.3, 0.1
"""Seconds in which inhibition falls to 1/e (a fifth is left after 500 ms), and how much more the last place's surround gets."""


class Scanpath(NamedTuple):
    """Predicted fixations in their order.

    Args:
        positions: `(B, n, 2)` row and column in pixels of the map, at pixel centres.
        times: `(B, n)` seconds from the image's onset until attention arrives.
    """

    positions: Float[Tensor, "batch fixations 2"]
    times: Float[Tensor, "batch fixations"]


def scanpath(saliency: Float[Tensor, "batch height width"], fixations: int = 10) -> Scanpath:
    """Winner-take-all with inhibition of return.

    Every place is a leaky integrate-and-fire neuron with the input `I = S/max S · (1 − inhibition) · proximity + 0.2`; it
    would fire `−τ ln(1 − θ/I)` after the last shift, so the place of the largest input wins and all others start anew. The
    winner inhibits a disk of radius `min(H, W)/6`, which recovers as `exp(−t/0.3 s)`, and favours what is near by
    `1 + 0.1 exp(−d² / 2(2 radius)²)`.

    Args:
        saliency: finite, ≥ 0.
        fixations: how many to predict.

    Returns:
        Positions and times. Among equal places the first in reading order wins.

    Raises:
        InputError: the saliency is not finite.
        MethodError: `fixations` is no whole number above 0.

    Paper: Itti, Koch, Niebur 1998, "A Model of Saliency-Based Visual Attention for Rapid Scene Analysis", section 2.3.
    """
    if isinstance(fixations, bool) or not isinstance(fixations, int) or fixations < 1:
        raise MethodError(f"fixations={fixations!r}; expected a whole number, 1 or more.")
    maps = check_tensor(saliency[:, None].expand(-1, 3, -1, -1))[:, 0].float().clamp_min(0)
    batch, height, width = maps.shape
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    radius = min(height, width) / 6
    rows = torch.arange(height, device=maps.device, dtype=torch.float32)[:, None]
    columns = torch.arange(width, device=maps.device, dtype=torch.float32)
    inhibition, nearness = torch.zeros_like(maps), torch.ones_like(maps)
    clock = maps.new_zeros(batch)
    positions, times = [], []
    for _ in range(fixations):
        strongest, place = (maps * (1 - inhibition) * nearness).flatten(1).max(1)
        latency = -LEAK * torch.log1p(-THRESHOLD / (strongest + BACKGROUND))
        clock = clock + latency
        row, column = (place // width).float(), (place % width).float()
        positions.append(torch.stack([row, column], 1))
        times.append(clock)
        distance2 = (rows - row.view(-1, 1, 1)) ** 2 + (columns - column.view(-1, 1, 1)) ** 2
        recovered = inhibition * torch.exp(-latency / RECOVERY).view(-1, 1, 1)
        inhibition = torch.maximum(recovered, (distance2 <= radius**2).float())
        nearness = 1 + PROXIMITY * torch.exp(-distance2 / (2 * (2 * radius) ** 2))
    return Scanpath(torch.stack(positions, 1), torch.stack(times, 1))
