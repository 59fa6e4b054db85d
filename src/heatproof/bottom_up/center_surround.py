"""How much each place differs from the mean of its surround."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.colour import lab
from heatproof.bottom_up.filters import gaussian
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.working_size import back, within
from heatproof.errors import MethodError
from heatproof.images import check_tensor


def center_surround(
    x: Float[Tensor, "batch 3 height width"],
    size: int | Sequence[int] | None = None,
    surround: str = "box",
    channels: str = "lab",
) -> Float[Tensor, "batch height width"]:
    """Distance between a pixel and the mean of its surround.

    `S = mean_n ‖I − mean_{N_n} I‖`

    Args:
        x: RGB in [0, 1].
        size: odd side of the surround in pixels, or several, over which the map is averaged; None for a half, a quarter
            and an eighth of the image's shorter side.
        surround: "box", or "gaussian" with σ a quarter of the size.
        channels: "lab" for the Euclidean distance in L*a*b*, "intensity" for `|I − mean I|` of the mean of R, G and B.

    Returns:
        float32 ≥ 0, in units of the channels (L*a*b*: 0 to about 100; intensity: 0 to 1). At the border the mean is that of
        the part inside. Images over `working_size.WORKING_PIXELS` are worked on at that size, surrounds in proportion.

    Raises:
        InputError: NaN or infinite values.
        MethodError: a size that is not odd and above 0, or another surround or channels.

    Paper: Achanta, Estrada, Wils, Süsstrunk 2008, "Salient Region Detection and Segmentation".
    """
    if surround not in ("box", "gaussian"):
        raise MethodError(f"surround={surround!r}; expected 'box' or 'gaussian'.")
    if channels not in ("lab", "intensity"):
        raise MethodError(f"channels={channels!r}; expected 'lab' or 'intensity'.")
    x = check_tensor(x).detach().float().clamp(0, 1)
    height, width = x.shape[-2:]
    small = within(x)
    scale = (small.shape[-2] * small.shape[-1] / (height * width)) ** 0.5
    planes = lab(small) if channels == "lab" else small.mean(1, keepdim=True)
    # differences do not change when a constant goes, and sums stay small and exact for constant images
    planes = planes - planes[:, :, :1, :1]
    maps = []
    for side in _sides(size, min(height, width)):
        own = scaled(side, scale)
        mean = box_mean(planes, own) if surround == "box" else gaussian(planes, own / 4)
        maps.append((planes - mean).square().sum(1).sqrt())
    return back(torch.stack(maps).mean(0), (height, width))


def _sides(size: Any, shorter: int) -> list[int]:
    """The surrounds' sides, all odd."""
    if size is None:
        return [max(3, shorter // part | 1) for part in (2, 4, 8)]
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if not sides or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 or n % 2 == 0 for n in sides):
        raise MethodError(f"size={size!r}; expected an odd number of pixels above 0, or a list of such numbers.")
    return sides


def scaled(size: int, scale: float) -> int:
    """The odd size that is nearest to `scale` times an odd size."""
    return size if scale == 1 else max(1, 2 * round((size * scale - 1) / 2) + 1)


def box_mean(planes: Float[Tensor, "*batch height width"], size: int) -> Float[Tensor, "*batch height width"]:
    """Mean over a square window, of the part of it that is inside; the cost does not depend on the size."""
    return _box_mean_of_rows(_box_mean_of_rows(planes, size).mT, size).mT


def _box_mean_of_rows(planes: Tensor, size: int) -> Tensor:
    width = planes.shape[-1]
    sums = torch.nn.functional.pad(planes.cumsum(-1), (1, 0))
    places = torch.arange(width, device=planes.device)
    first, last = (places - size // 2).clamp_min(0), (places + size // 2 + 1).clamp_max(width)
    return (sums.index_select(-1, last) - sums.index_select(-1, first)) / (last - first)


@dataclass(frozen=True, kw_only=True)
class CenterSurround(BottomUp):
    """How much each place differs from the mean of its surround.

    `S = mean_n ‖I − mean_{N_n} I‖`

    Args:
        size: odd side of the surround in pixels, or several; None for a half, a quarter and an eighth of the shorter side.
        surround: "box", or "gaussian" with σ a quarter of the size.
        channels: "lab" for the distance in L*a*b*, or "intensity".
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0, the same for all targets.

    Misleads where the background varies: it knows one mean, not how much its surround scatters.

    Paper: Achanta, Estrada, Wils, Süsstrunk 2008, "Salient Region Detection and Segmentation".
    """

    size: int | Sequence[int] | None = None
    surround: Literal["box", "gaussian"] = "box"
    channels: Literal["lab", "intensity"] = "lab"

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return center_surround(pixels, self.size, self.surround, self.channels)
