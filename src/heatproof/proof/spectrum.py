"""Random maps with a given map's texture: the same spectrum, the same values, and no relation to anything."""

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof import seeds


def matched_spectrum(map: Float[Tensor, "height width"], count: int, seed: int = 0) -> Float[Tensor, "count height width"]:
    """Maps with the phases of noise and the map's own amplitudes and values.

    `rank-match(Re IFFT(|FFT(m)| · exp(i φ)), m)`, `φ` the phases of white noise

    The amplitudes make a copy as smooth as the map; then its pixels take the map's values in their order, so that it
    marks exactly as many pixels. A compact spot becomes several: the copies share the texture, not the shape.

    Args:
        map: any map.
        count: how many.
        seed: of the noise.

    Returns:
        Permutations of the map's values.

    Paper: Theiler et al. 1992, "Testing for nonlinearity in time series: the method of surrogate data", section 2.4.
    """
    # on the CPU in double precision, so that every device draws the same maps
    values = map.detach().cpu().double()
    noise = torch.randn(count, *map.shape, generator=seeds.generator(seed), dtype=torch.float64)
    phases = torch.fft.rfft2(noise)
    phases = phases / phases.abs().clamp_min(1e-30)
    fields = torch.fft.irfft2(torch.fft.rfft2(values).abs() * phases, s=values.shape)
    places = fields.flatten(1).argsort(dim=1, stable=True)
    ordered = map.flatten().sort().values.to(map.device)
    copies = torch.empty(count, values.numel(), dtype=map.dtype, device=map.device)
    return copies.scatter_(1, places.to(map.device), ordered.expand(count, -1)).view(count, *map.shape)
