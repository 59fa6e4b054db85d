"""What is unexpected in an image's spectrum."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from heatproof.bottom_up.colour import grey, lab
from heatproof.bottom_up.filters import enlarged, gaussian, resized, working
from heatproof.bottom_up.method import BottomUp
from heatproof.errors import MethodError

LONGEST = 64
"""Pixels of the longer side that is worked on; the paper's own choice, and the result depends on it."""

_FLAT, _FLOOR = 1e-5, 1e-9


class Spectrum(NamedTuple):
    """The steps from images to saliency; frequency 0 is at index (0, 0), nothing is shifted.

    Args:
        log_amplitude: `(B, C, h, w)` `ln(|F| + 1e-9)`.
        phase: `(B, C, h, w)` in radians.
        residual: `(B, C, h, w)` log amplitude minus its local mean.
        saliency: `(B, h, w)` smoothed, the mean over the channels.
    """

    log_amplitude: Float[Tensor, "batch channels height width"]
    phase: Float[Tensor, "batch channels height width"]
    residual: Float[Tensor, "batch channels height width"]
    saliency: Float[Tensor, "batch height width"]


def spectral_residual(
    x: Float[Tensor, "batch 3 height width"], channels: str = "grey", sigma: float = 2.5, longest: int = LONGEST
) -> Float[Tensor, "batch height width"]:
    """Saliency from the part of the log spectrum that its own neighbourhood does not predict.

    `S = G_σ ∗ |IFFT(exp(R + i φ))|²`, `R = L − h₃ ∗ L`, `L = ln |FFT(I)|`, `φ` the phase, `h₃` the 3 × 3 mean

    Args:
        x: RGB in [0, 1].
        channels: "grey", or "lab" for the mean over L*, a* and b*.
        sigma: of the smoothing, in pixels of the small image; 0 for none.
        longest: pixels of the longer side that is worked on.

    Returns:
        float32 ≥ 0 at the images' size; 0 everywhere for a constant image.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.

    Paper: Hou, Zhang 2007, "Saliency Detection: A Spectral Residual Approach"; the paper names σ = 8, its authors' code
    uses 2.5 at 64 pixels.
    """
    found = spectrum(x, channels, sigma, longest).saliency[:, None]
    size = (x.shape[-2], x.shape[-1])
    return (enlarged if max(size) >= longest else resized)(found, size)[:, 0]


def spectrum(
    x: Float[Tensor, "batch 3 height width"], channels: str = "grey", sigma: float = 2.5, longest: int = LONGEST
) -> Spectrum:
    """Log amplitude, phase, residual and saliency of the small image; arguments and errors as in `spectral_residual`.

    The local mean goes around the border, for so does a spectrum.
    """
    if channels not in ("grey", "lab"):
        raise MethodError(f"channels={channels!r}; expected 'grey' or 'lab'.")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise MethodError(f"longest={longest!r}; expected a whole number of pixels, 1 or more.")
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < float("inf"):
        raise MethodError(f"sigma={sigma!r}; expected a finite number of pixels, 0 or more.")
    small = working(x, longest)
    planes = grey(small) if channels == "grey" else lab(small) / 100
    flat = planes.amax((2, 3), keepdim=True) - planes.amin((2, 3), keepdim=True) < _FLAT
    transform = torch.fft.fft2(planes)
    log_amplitude, phase = torch.log(transform.abs() + _FLOOR), transform.angle()
    residual = log_amplitude - avg_pool2d(pad(log_amplitude, (1, 1, 1, 1), mode="circular"), 3, 1)
    power = torch.fft.ifft2(torch.polar(residual.exp(), phase)).abs().square()
    power = torch.where(flat, 0, power)  # the spectrum of a constant is rounding
    saliency = power.mean(1)
    return Spectrum(log_amplitude, phase, residual, gaussian(saliency, float(sigma)) if sigma else saliency)


@dataclass(frozen=True, kw_only=True)
class SpectralResidual(BottomUp):
    """What is unexpected in the image's log amplitude spectrum, transformed back with the phase as it was.

    `S = G_σ ∗ |IFFT(exp(R + i φ))|²`, `R = L − h₃ ∗ L`, `L = ln |FFT(I)|`

    Args:
        channels: "grey", or "lab" for the mean over L*, a* and b*.
        sigma: of the smoothing, in pixels of the small image.
        longest: pixels of the longer side that is worked on.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0, the same for all targets.

    Misleads on large objects: at 64 pixels it marks their edges and whatever is small.

    Paper: Hou, Zhang 2007, "Saliency Detection: A Spectral Residual Approach".
    """

    channels: Literal["grey", "lab"] = "grey"
    sigma: float = 2.5
    longest: int = LONGEST

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return spectral_residual(pixels, self.channels, self.sigma, self.longest)
