"""Pseudo-registers: single tokens that a transformer uses as scratch space, and the median that removes them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def without_registers(maps: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Each value replaced by the median of its 3×3 neighbourhood; the border is repeated outwards.

    `f_m(A)_{ij} = median{ A_{i+a, j+b} : a, b ∈ {−1, 0, 1} }`

    A token that stands out from all its neighbours goes, whatever its size; plateaus and straight edges stay.

    Args:
        maps: `(…, h, w)`, any range.

    Returns:
        `(…, h, w)`, every value one of the neighbourhood's.

    Paper: Kazmierczak et al. 2025 (CHILI), the register removal; Darcet et al. 2024 describe such tokens.
    """
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, 1, height, width)
    padded = F.pad(flat, (1, 1, 1, 1), mode="replicate")
    shifted = [padded[..., a : a + height, b : b + width] for a in range(3) for b in range(3)]
    return torch.cat(shifted, 1).median(1).values.reshape(maps.shape)
