"""How unpredictable the values in a window are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from heatproof.bottom_up.center_surround import scaled
from heatproof.bottom_up.colour import grey
from heatproof.bottom_up.compiled import compiled, each
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.working_size import back, within
from heatproof.errors import MethodError
from heatproof.images import check_tensor

_FIXED = 1 << 32
"""`c log₂ c` is summed in whole multiples of 2⁻³², so that what enters and leaves a window cancels exactly."""

_MOST = 1 << 15


def entropy(
    x: Float[Tensor, "batch 3 height width"],
    size: int = 15,
    window: str = "disk",
    channels: str = "intensity",
    bins: int | None = None,
) -> Float[Tensor, "batch height width"]:
    """Shannon entropy of the histogram in a window around each pixel.

    `S = −Σ_k p_k log₂ p_k`

    Args:
        x: RGB in [0, 1].
        size: odd side, or diameter, of the window in pixels.
        window: "disk" or "square"; at the border the part inside counts.
        channels: "intensity" for the luma, "colour" for joint values of R, G and B.
        bins: of the histogram, per channel; None for 256 of intensity, 8 of each colour.

    Returns:
        float32 in bits, from 0 to the logarithm of the number of bins or of the window's pixels. Images over
        `working_size.WORKING_PIXELS` are worked on at that size, the window in proportion.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise MethodError(f"size={size!r}; expected an odd number of pixels above 0.")
    if window not in ("disk", "square"):
        raise MethodError(f"window={window!r}; expected 'disk' or 'square'.")
    if channels not in ("intensity", "colour"):
        raise MethodError(f"channels={channels!r}; expected 'intensity' or 'colour'.")
    depth = 1 if channels == "intensity" else 3
    bins = (256 if depth == 1 else 8) if bins is None else bins
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2 or bins**depth > _MOST:
        raise MethodError(f"bins={bins!r}; expected a whole number from 2 to {int(_MOST ** (1 / depth) + 1e-9)}.")
    x = check_tensor(x).detach().float().clamp(0, 1)
    small = within(x)
    height, width = small.shape[-2:]
    own = scaled(size, (height * width / (x.shape[-2] * x.shape[-1])) ** 0.5)
    own = min(own, 2 * (height + width) + 1)  # larger ones see everything too
    codes = _codes(grey(small) if depth == 1 else small, bins)
    radius = own // 2
    reach = np.arange(-radius, radius + 1)
    half = np.full(own, radius) if window == "square" else np.sqrt(radius**2 - reach**2 + 1e-9).astype(np.int64)
    half = half.astype(np.int64)
    counts = np.arange(min(own**2, height * width) + 1, dtype=np.float64)
    table = np.round(counts * np.log2(np.maximum(counts, 1)) * _FIXED).astype(np.int64)
    maps = np.empty(codes.shape, np.float32)

    calls = [(code, half, bins**depth, table, one) for code, one in zip(codes, maps, strict=True)]
    each(_slide, "entropy's window", calls)
    return back(torch.from_numpy(maps).to(x.device), (x.shape[-2], x.shape[-1]))


def _codes(planes: Float[Tensor, "batch channels height width"], bins: int) -> Int[np.ndarray, "batch height width"]:
    """One whole number for the bins that a pixel's channels fall into."""
    code = torch.zeros_like(planes[:, 0], dtype=torch.int32)
    for plane in planes.unbind(1):
        code = code * bins + (plane * bins).int().clamp_max(bins - 1)
    return code.cpu().numpy()


@compiled
def _slide(codes: np.ndarray, half: np.ndarray, bins: int, table: np.ndarray, out: np.ndarray) -> None:
    """Slide the window along each row; what enters and leaves changes one count, and with it one term of the sum.

    `S = (n log₂ n − Σ_k c_k log₂ c_k) / n` with `c_k` counts and `n` their sum
    """
    height, width = codes.shape
    radius = len(half) // 2
    counts = np.zeros(bins, np.int64)
    for row in range(height):
        counts[:] = 0
        total, inside = 0, 0
        top, bottom = max(0, row - radius), min(height - 1, row + radius)
        for other in range(top, bottom + 1):
            for column in range(0, min(width, half[other - row + radius])):
                code = codes[other, column]
                total += table[counts[code] + 1] - table[counts[code]]
                counts[code] += 1
                inside += 1
        for column in range(width):
            for other in range(top, bottom + 1):
                reach = half[other - row + radius]
                if column + reach < width:
                    code = codes[other, column + reach]
                    total += table[counts[code] + 1] - table[counts[code]]
                    counts[code] += 1
                    inside += 1
                if column - reach - 1 >= 0:
                    code = codes[other, column - reach - 1]
                    counts[code] -= 1
                    total -= table[counts[code] + 1] - table[counts[code]]
                    inside -= 1
            out[row, column] = (table[inside] - total) / (inside * float(_FIXED))


@dataclass(frozen=True, kw_only=True)
class Entropy(BottomUp):
    """How unpredictable the values around each place are: the entropy of their histogram.

    `S = −Σ_k p_k log₂ p_k`

    Args:
        size: odd side, or diameter, of the window in pixels.
        window: "disk" or "square".
        channels: "intensity" for the luma, "colour" for joint values of R, G and B.
        bins: of the histogram, per channel; None for 256 of intensity, 8 of each colour.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0 in bits, the same for all targets.

    Misleads on textures and noise, which it ranks above everything: grass has more bits than a face.

    Paper: Kadir, Brady 2001, "Saliency, Scale and Image Description", at one scale.
    """

    size: int = 15
    window: Literal["disk", "square"] = "disk"
    channels: Literal["intensity", "colour"] = "intensity"
    bins: int | None = None

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return entropy(pixels, self.size, self.window, self.channels, self.bins)
