"""Images for tests of maps that need no model."""

import torch

from heatproof.bottom_up.filters import gaussian


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height, width, seed=0):
    """A colour image with structure at several scales, and no symmetry."""
    return gaussian(noise(1, 3, height, width, seed=seed), 2.0).sub(0.4).mul(4).clamp(0, 1)
