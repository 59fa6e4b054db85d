"""What is unexpected in an image's spectrum."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from heatproof.bottom_up.colour import LUMA, lab
from heatproof.bottom_up.filters import gaussian, resized, working
from heatproof.bottom_up.method import BottomUp
from heatproof.errors import MethodError

LONGEST, SIGMA = 64, 4.0
"""Pixels of the longer side that is worked on, the paper's own choice, on which the result depends; and σ of the smoothing,
between the paper's and its authors' code's. docs/bottom-up.md says what it was chosen on."""

_FLAT, _FLOOR = 1e-5, 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The steps from images to saliency; frequency 0 is at index (0, 0), nothing is shifted.

    Args:
        planes: `(B, C, h, w)` the small images.
        saliency: `(B, h, w)` smoothed, the mean over the channels.
    """

    planes: Float[Tensor, "batch channels height width"]
    saliency: Float[Tensor, "batch height width"]

    @property
    def log_amplitude(self) -> Float[Tensor, "batch channels height width"]:
        """`L = ln(|F| + 1e-9)`."""
        return torch.log(torch.fft.fft2(self.planes).abs() + _FLOOR)

    @property
    def phase(self) -> Float[Tensor, "batch channels height width"]:
        """`φ`, in radians."""
        return torch.fft.fft2(self.planes).angle()

    @property
    def residual(self) -> Float[Tensor, "batch channels height width"]:
        """`R`, the log amplitude minus its local mean, which goes around the border, for so does a spectrum."""
        log_amplitude = self.log_amplitude
        return log_amplitude - avg_pool2d(pad(log_amplitude, (1, 1, 1, 1), mode="circular"), 3, 1)


def spectral_residual(
    x: Float[Tensor, "batch 3 height width"], channels: str = "grey", sigma: float = SIGMA, longest: int = LONGEST
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
    return resized(found, (x.shape[-2], x.shape[-1]))[:, 0]


def spectrum(
    x: Float[Tensor, "batch 3 height width"], channels: str = "grey", sigma: float = SIGMA, longest: int = LONGEST
) -> Spectrum:
    """Log amplitude, phase, residual and saliency of the small image; arguments and errors as in `spectral_residual`."""
    if channels not in ("grey", "lab"):
        raise MethodError(f"channels={channels!r}; expected 'grey' or 'lab'.")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise MethodError(f"longest={longest!r}; expected a whole number of pixels, 1 or more.")
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < float("inf"):
        raise MethodError(f"sigma={sigma!r}; expected a finite number of pixels, 0 or more.")
    planes = working(x, longest, (LUMA,)) if channels == "grey" else lab(working(x, longest)) / 100
    saliency = _unexpected(planes).mean(1)
    return Spectrum(planes, gaussian(saliency, float(sigma)) if sigma else saliency)


def _unexpected(planes: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """`|IFFT(exp(R + i φ))|²`, where `exp(R + i φ) = F exp(−h₃ ∗ L)`: amplitude and phase need not be taken apart.

    A real image's spectrum is even in amplitude, so that half of its columns are enough. 0 for a constant image.
    """
    half, width = torch.fft.rfft2(planes), planes.shape[-1]
    log_amplitude = torch.log(half.abs() + _FLOOR)
    # beyond the half, column −k has the values of column k, rows in the opposite order
    before, after = (log_amplitude[..., k : k + 1].flip(-2).roll(1, -2) for k in (min(1, width - 1), width - half.shape[-1]))
    around = torch.cat([before, log_amplitude, after], -1)
    along_rows = around[..., :-2] + around[..., 1:-1] + around[..., 2:]
    mean = (along_rows.roll(1, -2) + along_rows + along_rows.roll(-1, -2)) / 9
    power = torch.fft.irfft2(half * torch.exp(-mean), s=planes.shape[-2:]).square()
    flat = planes.amax((2, 3), keepdim=True) - planes.amin((2, 3), keepdim=True) < _FLAT
    return torch.where(flat, 0, power)  # the spectrum of a constant is rounding


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
    sigma: float = SIGMA
    longest: int = LONGEST

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return spectral_residual(pixels, self.channels, self.sigma, self.longest)
