"""What a map points at: the smallest part of the image that holds a given part of the map's mass."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heatproof.proof.maps import says_nothing

PARTS = (0.25, 0.8)
"""Parts of the mass that the two marked regions hold: the core, and what is around it too."""

WIDEST = 0.5
"""Share of the image that a marked region may take; who marks more than half of an image points nowhere."""


def mass(maps: Float[Tensor, "*maps height width"]) -> Float[Tensor, "*maps height width"]:
    """What a map says in favour: its values above zero, and above its own lowest value where all are positive.

    `m − max(0, min m)`, negative values 0

    Evidence against (negative values) is left out, and a constant that was added to a positive map changes nothing.
    """
    floor = maps.amin((-2, -1), keepdim=True).clamp_min(0)
    return (maps - floor).clamp_min(0)


def marked(maps: Float[Tensor, "*maps height width"], part: float) -> Bool[Tensor, "*maps height width"]:
    """The smallest region that holds `part` of a map's mass, taken from the highest value down.

    Pixels of equal value come together or not at all, so that a copy of the map that is moved or mirrored marks the
    same region, moved or mirrored. A region that would take more than `WIDEST` of the image ends at the last value
    that keeps it within; if the highest value alone takes more, it is the region.

    Args:
        maps: any number of maps; the order of their pixels matters, and how the mass is spread.
        part: of the mass, above 0 and at most 1.

    Returns:
        True where the map points. Nothing for a map that is constant, or nowhere positive.
    """
    values = mass(maps)
    ordered = values.flatten(-2).double().sort(-1, descending=True).values
    total = ordered.sum(-1, keepdim=True)
    enough = (ordered.cumsum(-1) < part * total * (1 - 1e-9)).sum(-1, keepdim=True).clamp_max(ordered.shape[-1] - 1)
    lowest = ordered.gather(-1, enough)
    # the first value that would take the region over the limit; what is above it stays
    over = ordered[..., int(WIDEST * ordered.shape[-1]), None]
    within = torch.where(over < ordered[..., :1], torch.nextafter(over, torch.full_like(over, torch.inf)), ordered[..., :1])
    threshold = torch.maximum(lowest, within)[..., None]
    silent = (says_nothing(maps) | (total[..., 0] <= 0))[..., None, None]
    return (values.double() >= threshold) & ~silent
