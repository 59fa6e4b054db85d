"""Itti, Koch and Niebur's model: centre-surround contrast of intensity, colour and orientation, and where it competes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.competition import competed, promoted
from heatproof.bottom_up.filters import enlarged, gaussian, pyramid, resized, working
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.orientation import ANGLES, oriented
from heatproof.bottom_up.scanpath import scanpath as race
from heatproof.errors import MethodError
from heatproof.methods import Maps

LEVELS = 9
PAIRS = tuple((centre, centre + delta) for centre in (2, 3, 4) for delta in (3, 4))
CHANNELS = ("intensity", "red-green", "blue-yellow", *(f"{angle}°" for angle in ANGLES))
LONGEST, BORDER, SMOOTH = 704, 0.05, 0.03
"""Pixels of the longer side that the pyramid starts from (the paper's images were 640 × 480), and two shares of it: over which
contrasts fade out at the border, and σ of the last smoothing, about one degree of visual angle. docs/bottom-up.md says what
they were chosen on."""

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
        saliency: `(B, h, w)` at level 4, smoothed.
    """

    pyramids: dict[str, list[Float[Tensor, "batch _ _"] | None]]
    features: dict[tuple[str, int, int], Float[Tensor, "batch _ _"]]
    normalised: dict[tuple[str, int, int], Float[Tensor, "batch _ _"]]
    conspicuity: dict[str, Float[Tensor, "batch _ _"]]
    saliency: Map


def itti(x: Float[Tensor, "batch 3 height width"], **options: Any) -> Float[Tensor, "batch height width"]:
    """Saliency by competing centre-surround contrasts; `pipeline` returns every step of it.

    `S = G_σ ∗ (N(Ī) + N(C̄) + N(Ō)) / 3`

    Args:
        x: RGB in [0, 1].
        options: of `pipeline`.

    Returns:
        float32 ≥ 0 at the images' size; in [0, 1] under the global normalisation.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.

    Paper: Itti, Koch, Niebur 1998, "A Model of Saliency-Based Visual Attention for Rapid Scene Analysis".
    """
    found = pipeline(x, **options).saliency
    return resized(found[:, None], (x.shape[-2], x.shape[-1]))[:, 0]


def pipeline(
    x: Float[Tensor, "batch 3 height width"],
    normalisation: str = "global",
    opponency: str = "contrast",
    border: float = BORDER,
    smooth: float = SMOOTH,
    longest: int = LONGEST,
) -> Pipeline:
    """The whole model: pyramids, 42 feature maps, their normalised forms, conspicuity maps and saliency.

    `I(c, s) = |I(c) ⊖ I(s)|`, `RG(c, s) = |(R − G)(c) + (G − R)(s)|`, `BY(c, s) = |(B − Y)(c) + (Y − B)(s)|`,
    `O(c, s, θ) = |O(c, θ) ⊖ O(s, θ)|` with `c ∈ {2, 3, 4}`, `s = c + {3, 4}`; conspicuities are
    `Ī = ⊕ N(I(c, s))`, `C̄ = ⊕ N(RG(c, s)) + N(BY(c, s))`, `Ō = Σ_θ N(⊕ N(O(c, s, θ)))`

    `⊖` enlarges the surround to the centre's level and subtracts; `⊕` averages to level 4 and adds.

    Opponency is double: the surround's colours are swapped against the centre's, and a cell's response is the sum of both
    ("contrast"). Equations 2 and 3 of the paper print `⊖` between the swapped terms ("printed"), which adds the surround's
    own colour up: a green dot on red is then less salient than the red.

    Args:
        x: RGB in [0, 1].
        normalisation: "global" or "iterative", see `promoted` and `competed`.
        opponency: "contrast" or "printed".
        border: share of the longer side over which contrasts fade out towards the border, from 0 (off) to 0.5: filters that
            look beyond an image see what is not there.
        smooth: σ of the last smoothing as a share of the longer side, from 0 (off, as in the paper) to 0.5.
        longest: pixels of the longer side that is worked on; level 4, where the map is made, is a sixteenth of it.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.
    """
    if normalisation not in _NORMALISATIONS:
        raise MethodError(f"normalisation={normalisation!r}; expected 'global' or 'iterative'.")
    if opponency not in ("contrast", "printed"):
        raise MethodError(f"opponency={opponency!r}; expected 'contrast' or 'printed'.")
    for name, value in {"border": border, "smooth": smooth}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
            raise MethodError(f"{name}={value!r}; expected a share of the longer side from 0 to 0.5.")
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
    saliency = normalise(conspicuity).mean(1)
    return Pipeline(
        pyramids={name: [level[:, k] if k < level.shape[1] else None for level in levels] for k, name in enumerate(CHANNELS)},
        features=features,
        normalised=normalised,
        conspicuity=dict(zip(("intensity", "colour", "orientation"), conspicuity.unbind(1), strict=True)),
        saliency=gaussian(saliency, smooth * max(at_4)) if smooth else saliency,
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
    dark = intensity <= intensity.amax((2, 3), keepdim=True) / 10
    hues = (x / intensity).masked_fill_(dark, 0)
    # (r + g)/2 − |r − g|/2 is the smaller of both
    yellow = torch.minimum(hues[:, 0], hues[:, 1]).sub_(hues[:, 2]).clamp_min_(0)
    # divided by their mean, the three sum to 3: r − (g + b)/2 is 1.5 (r − 1)
    red, green, blue = hues.sub_(1).clamp_min_(0).mul_(1.5).unbind(1)
    return torch.stack([intensity[:, 0], red - green, blue - yellow], 1)


_NORMALISATIONS = {"global": promoted, "iterative": competed}


@dataclass(frozen=True, kw_only=True)
class Itti(BottomUp):
    """Centre-surround contrast of intensity, colour and orientation over scales, competing for attention.

    `S = G_σ ∗ (N(Ī) + N(C̄) + N(Ō)) / 3` from 42 maps `|centre(c) ⊖ surround(c + δ)|`, `c ∈ {2, 3, 4}`, `δ ∈ {3, 4}`

    Args:
        normalisation: "global", which multiplies a map by (its maximum − the mean of its other peaks)², or "iterative",
            ten rounds of a difference of Gaussians.
        opponency: "contrast", or "printed" for the paper's equations to the letter, which mark large coloured areas.
        border: share of the longer side over which contrasts fade out towards the border.
        smooth: σ of the last smoothing as a share of the longer side, 0 for none.
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
    smooth: float = SMOOTH
    longest: int = LONGEST
    scanpath: bool = False

    def __call__(self, tape: Any) -> Maps:
        result = super().__call__(tape)
        if not self.scanpath:
            return result
        positions, times = race(result.raw[:, 0])
        return replace(result, scanpath=torch.cat([positions, times[..., None]], -1))

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return itti(
            pixels,
            normalisation=self.normalisation,
            opponency=self.opponency,
            border=self.border,
            smooth=self.smooth,
            longest=self.longest,
        )
