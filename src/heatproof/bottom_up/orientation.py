"""Oriented energy: how strongly an image is striped in each of four directions."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

ANGLES = (0, 45, 90, 135)
"""Of the stripes, in degrees, counter-clockwise from horizontal as one sees the image."""

_PERIOD, _SIGMA, _RADIUS = 4.0, 2.0, 4


def oriented(grey: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 4 height width"]:
    """Magnitude of four complex Gabor filters, one for each of `ANGLES`.

    `|G_θ ∗ I|`, `G_θ(x, y) = exp(−(x² + y²) / 2σ²) · exp(2πi d_θ / 4)`, with `d_θ` the distance across the stripes,
    `σ = 2` pixels, windows of 9 × 9, the constant part taken out, borders replicated
    """
    even, odd = conv2d(pad(grey, (_RADIUS,) * 4, mode="replicate"), gabors().to(grey)).chunk(2, 1)
    return torch.hypot(even, odd)


@lru_cache(maxsize=1)
def gabors() -> Float[Tensor, "8 1 9 9"]:
    """The even (cosine) filters of the four angles, then the odd (sine) ones; absolute values sum to 1 under the window."""
    angles = torch.deg2rad(torch.tensor(ANGLES, dtype=torch.float64)).view(4, 1, 1)
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    y, x = offsets.view(1, -1, 1), offsets.view(1, 1, -1)
    across = x * angles.sin() + y * angles.cos()  # rows go down: an edge along 45° runs to the upper right
    bump = torch.exp(-(x**2 + y**2) / (2 * _SIGMA**2))
    bump = bump / bump.sum()
    even, odd = (bump * wave(2 * torch.pi * across / _PERIOD) for wave in (torch.cos, torch.sin))
    even = even - bump * even.sum((1, 2), keepdim=True)  # light alone is no stripe
    return torch.cat([even, odd])[:, None].float()
