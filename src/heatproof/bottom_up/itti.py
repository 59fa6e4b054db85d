"""Itti, Koch and Niebur's model: centre-surround contrast of intensity, colour and orientation, and where it competes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from heatproof.bottom_up.filters import enlarged, pyramid, resized, window, working
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.orientation import ANGLES, oriented
from heatproof.bottom_up.scanpath import scanpath as race
from heatproof.errors import MethodError
from heatproof.methods import Maps

LEVELS = 9
PAIRS = tuple((centre, centre + delta) for centre in (2, 3, 4) for delta in (3, 4))
CHANNELS = ("intensity", "red-green", "blue-yellow", *(f"{angle}°" for angle in ANGLES))
LONGEST, BORDER = 640, 0.05
"""Pixels of the longer side that the pyramid starts from (the paper's images were 640 × 480), and the share of it over which
contrasts fade out at the border."""

_FLAT = 1e-5
"""A map whose values differ by less than this has no structure but rounding."""

Level = Float[Tensor, "batch channels height width"]
Map = Float[Tensor, "batch height width"]


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """Every map on the way from images to saliency, each with the batch in front.

    Args:
        pyramids: by name of the channel, its nine levels, finest first; the orientations, which are read from level 2
            on, have None at levels 0 and 1.
        features: the 42 centre-surround maps by (channel, centre, surround), at the centre's level.
        normalised: the same after `N`.
        conspicuity: "intensity", "colour" and "orientation", at level 4, before their last `N`.
        saliency: `(B, h, w)` at level 4.
    """

    pyramids: dict[str, list[Float[Tensor, "batch _ _"] | None]]
    features: dict[tuple[str, int, int], Float[Tensor, "batch _ _"]]
    normalised: dict[tuple[str, int, int], Float[Tensor, "batch _ _"]]
    conspicuity: dict[str, Float[Tensor, "batch _ _"]]
    saliency: Map


def itti(
    x: Float[Tensor, "batch 3 height width"],
    normalisation: str = "global",
    opponency: str = "contrast",
    border: float = BORDER,
    longest: int = LONGEST,
) -> Float[Tensor, "batch height width"]:
    """Saliency by competing centre-surround contrasts; `pipeline` returns every step of it.

    `S = (N(Ī) + N(C̄) + N(Ō)) / 3`

    Args:
        x: RGB in [0, 1].
        normalisation: "global" or "iterative", see `promoted` and `competed`.
        opponency: "contrast" or "printed", see `pipeline`.
        border: share of the longer side over which contrasts fade out towards the border, from 0 (off) to 0.5: filters that
            look beyond an image see what is not there.
        longest: pixels of the longer side that is worked on; level 4, where the map is made, is a sixteenth of it.

    Returns:
        float32 in [0, 1] at the images' size.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.

    Paper: Itti, Koch, Niebur 1998, "A Model of Saliency-Based Visual Attention for Rapid Scene Analysis".
    """
    found = pipeline(x, normalisation, opponency, border, longest).saliency
    return resized(found[:, None], (x.shape[-2], x.shape[-1]))[:, 0]


def pipeline(
    x: Float[Tensor, "batch 3 height width"],
    normalisation: str = "global",
    opponency: str = "contrast",
    border: float = BORDER,
    longest: int = LONGEST,
) -> Pipeline:
    """The whole model: pyramids, 42 feature maps, their normalised forms, conspicuity maps and saliency.

    `I(c, s) = |I(c) ⊖ I(s)|`, `RG(c, s) = |(R − G)(c) + (G − R)(s)|`, `BY(c, s) = |(B − Y)(c) + (Y − B)(s)|`,
    `O(c, s, θ) = |O(c, θ) ⊖ O(s, θ)|` with `c ∈ {2, 3, 4}`, `s = c + {3, 4}`; conspicuities are
    `Ī = ⊕ N(I(c, s))`, `C̄ = ⊕ N(RG(c, s)) + N(BY(c, s))`, `Ō = Σ_θ N(⊕ N(O(c, s, θ)))`

    `⊖` enlarges the surround to the centre's level and subtracts; `⊕` averages to level 4 and adds.

    Opponency is double: the surround's colours are swapped against the centre's, and a cell's response is the sum of both
    ("contrast"). Equations 2 and 3 of the paper print `⊖` between the swapped terms ("printed"), which adds the surround's
    own colour up: a green dot on red is then less salient than the red. Arguments and errors are those of `itti`.
    """
    if normalisation not in _NORMALISATIONS:
        raise MethodError(f"normalisation={normalisation!r}; expected 'global' or 'iterative'.")
    if opponency not in ("contrast", "printed"):
        raise MethodError(f"opponency={opponency!r}; expected 'contrast' or 'printed'.")
    if isinstance(border, bool) or not isinstance(border, int | float) or not 0 <= border <= 0.5:
        raise MethodError(f"border={border!r}; expected a share of the longer side from 0 to 0.5.")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise MethodError(f"longest={longest!r}; expected a whole number of pixels, 1 or more.")
    normalise = _NORMALISATIONS[normalisation]
    levels = pyramid(_early(working(x, longest)), LEVELS)
    swap = 1.0 if opponency == "printed" else -1.0
    sign = levels[0].new_tensor([-1, swap, swap, -1, -1, -1, -1]).view(1, -1, 1, 1)
    levels = levels[:2] + [torch.cat([level, oriented(level[:, :1])], 1) for level in levels[2:]]
    at_4 = (levels[4].shape[-2], levels[4].shape[-1])
    features, normalised, sums = {}, {}, []
    for centre, surround in PAIRS:
        size = (levels[centre].shape[-2], levels[centre].shape[-1])
        contrast = (levels[centre] + sign * enlarged(levels[surround], size)).abs() * _fading(size, border).to(x.device)
        promoted_contrast = normalise(contrast)
        sums.append(resized(promoted_contrast, at_4))
        for k, name in enumerate(CHANNELS):
            features[name, centre, surround] = contrast[:, k]
            normalised[name, centre, surround] = promoted_contrast[:, k]
    total = torch.stack(sums).sum(0)
    conspicuity = torch.stack([total[:, 0], total[:, 1] + total[:, 2], normalise(total[:, 3:]).sum(1)], 1)
    return Pipeline(
        pyramids={name: [level[:, k] if k < level.shape[1] else None for level in levels] for k, name in enumerate(CHANNELS)},
        features=features,
        normalised=normalised,
        conspicuity=dict(zip(("intensity", "colour", "orientation"), conspicuity.unbind(1), strict=True)),
        saliency=normalise(conspicuity).mean(1),
    )


def _fading(size: tuple[int, int], border: float) -> Float[Tensor, "height width"]:
    """1 inside, falling linearly towards the border within `border` of the longer side."""
    reach = max(size) * border
    rows, columns = (((torch.arange(n) + 0.5).minimum(n - torch.arange(n) - 0.5) / max(reach, 0.5)).clamp_max(1) for n in size)
    return rows[:, None] * columns


def _early(x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Intensity, red minus green and blue minus yellow.

    `I = (r + g + b) / 3`; r, g, b are divided by `I` where it is over a tenth of the image's maximum and 0 elsewhere, for
    hues cannot be seen in the dark; then `R = r − (g + b)/2`, `G = g − (r + b)/2`, `B = b − (r + g)/2`,
    `Y = (r + g)/2 − |r − g|/2 − b`, negative values set to 0.
    """
    intensity = x.mean(1, keepdim=True)
    light = intensity > intensity.amax((2, 3), keepdim=True) / 10
    red, green, blue = (x * torch.where(light, 1 / intensity, 0)).split(1, 1)
    broad = (
        red - (green + blue) / 2,
        green - (red + blue) / 2,
        blue - (red + green) / 2,
        torch.minimum(red, green) - blue,  # (r + g)/2 − |r − g|/2 is the smaller of both
    )
    r, g, b, y = (colour.clamp_min(0) for colour in broad)
    return torch.cat([intensity, r - g, b - y], 1)


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
    places = torch.arange(maps.shape[-2] * maps.shape[-1], device=maps.device).view(maps.shape[-2:])
    best = max_pool2d(maps, 3, 1, 1, return_indices=True)[1]
    peaks = (best == places) & (maps > 0)
    count = peaks.sum((2, 3), keepdim=True)
    others = (maps * peaks).sum((2, 3), keepdim=True) - 1  # stretched, the global one is 1
    mean = others.clamp_min(0) / (count - 1).clamp_min(1)
    return maps * (1 - mean) ** 2


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


_NORMALISATIONS = {"global": promoted, "iterative": competed}


@dataclass(frozen=True, kw_only=True)
class Itti(BottomUp):
    """Centre-surround contrast of intensity, colour and orientation over scales, competing for attention.

    `S = (N(Ī) + N(C̄) + N(Ō)) / 3` from 42 maps `|centre(c) ⊖ surround(c + δ)|`, `c ∈ {2, 3, 4}`, `δ ∈ {3, 4}`

    Args:
        normalisation: "global", which multiplies a map by (its maximum − the mean of its other peaks)², or "iterative",
            ten rounds of a difference of Gaussians.
        opponency: "contrast", or "printed" for the paper's equations to the letter, which mark large coloured areas.
        border: share of the longer side over which contrasts fade out towards the border.
        longest: pixels of the longer side that is worked on; the map's own grid is a sixteenth of it.
        scanpath: whether to predict ten fixations as well, by winner-take-all with inhibition of return.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0, the same for all targets; `scanpath` `(B, 10, 3)` row, column and seconds, if asked.

    Misleads where things matter by their meaning (faces, text), and in textures without an odd one out.

    Paper: Itti, Koch, Niebur 1998, "A Model of Saliency-Based Visual Attention for Rapid Scene Analysis".
    """

    normalisation: Literal["global", "iterative"] = "global"
    opponency: Literal["contrast", "printed"] = "contrast"
    border: float = BORDER
    longest: int = LONGEST
    scanpath: bool = False

    def __call__(self, tape: Any) -> Maps:
        result = super().__call__(tape)
        if not self.scanpath:
            return result
        positions, times = race(result.raw[:, 0])
        return replace(result, scanpath=torch.cat([positions, times[..., None]], -1))

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return itti(pixels, self.normalisation, self.opponency, self.border, self.longest)
