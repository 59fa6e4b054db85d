"""Colour spaces of batches of images, as tensors on any device."""

import torch
from jaxtyping import Float
from torch import Tensor

_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
# Smith and Pokorny's cone fundamentals, scaled so that L + M is the luminance Y
_TO_LMS = ((0.15514, 0.54312, -0.03286), (-0.15514, 0.45684, 0.03286), (0.0, 0.0, 0.00801))

LUMA = (0.299, 0.587, 0.114)
"""Red's, green's and blue's share of luma."""

Images = Float[Tensor, "batch 3 height width"]


def grey(x: Images) -> Float[Tensor, "batch 1 height width"]:
    """Luma: `0.299 R + 0.587 G + 0.114 B`."""
    red, green, blue = x.split(1, 1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def linear(x: Images) -> Images:
    """Undo the sRGB curve: light, not code values, in [0, 1]."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def lab(x: Images) -> Images:
    """CIE L*a*b* under D65: L from 0 to 100, a and b about −110 to 110; equal distances look about equally different.

    Paper: CIE 15:2004, "Colorimetry", section 8.2.1.
    """
    ratio = _mixed(linear(x), _TO_XYZ) / x.new_tensor(_WHITE).view(1, 3, 1, 1)
    f = torch.where(ratio > (6 / 29) ** 3, ratio.clamp_min(1e-8) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def dkl(x: Images) -> Images:
    """Cone-opponent contrasts against mid grey: luminance, `L − M`, and `S − (L + M)`.

    Paper: Derrington, Krauskopf, Lennie 1984, "Chromatic mechanisms in lateral geniculate nucleus of macaque".
    """
    to_lms = torch.tensor(_TO_LMS, dtype=torch.float64) @ torch.tensor(_TO_XYZ, dtype=torch.float64)
    cones = to_lms / to_lms.sum(1, keepdim=True)  # each cone's response to white is 1
    luminance = (to_lms[0] + to_lms[1]) / (to_lms[0] + to_lms[1]).sum()
    axes = torch.stack([luminance, cones[0] - cones[1], cones[2] - luminance])
    return _mixed(linear(x), axes.tolist())


def _mixed(x: Images, matrix: object) -> Images:
    weights = torch.as_tensor(matrix, dtype=x.dtype, device=x.device)
    return torch.einsum("kc,bchw->bkhw", weights, x)
