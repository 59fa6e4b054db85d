"""Maps that know nothing of the model: what any explanation has to beat."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from heatproof import seeds
from heatproof.methods import Maps


@dataclass(frozen=True)
class Random:
    """Independent uniform noise: what an explanation that knows nothing is worth.

    `map_ij ~ U(0, 1)`

    Args:
        seed: of the noise; images get the same noise, targets different noise.

    Returns:
        `maps` `(B, T, H, W)` in [0, 1).
    """

    signed: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, tape: Any) -> Maps:
        generator = seeds.generator(self.seed)
        noise = torch.rand(tape.targets.shape[1], *tape.size, generator=generator)
        return Maps(noise.expand(len(tape.pixels), -1, -1, -1).to(tape.pixels.device))


@dataclass(frozen=True)
class Center:
    """A Gaussian around the image's centre: photographers put things there.

    `map_ij = exp(−(u² + v²) / 2σ²)`, with `u, v` from −1 to 1 across the image and `σ = 0.5`

    Returns:
        `maps` `(B, T, H, W)` in (0, 1].

    Paper: Judd et al. 2009, "Learning to predict where humans look", section 3.
    """

    signed: ClassVar[bool] = False

    def __call__(self, tape: Any) -> Maps:
        height, width = tape.size
        # pixel centres, so that the map is symmetric at even and odd sizes
        v, u = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        bump = torch.exp(-(v[:, None] ** 2 + u[None, :] ** 2) / (2 * 0.5**2))
        return Maps(bump.expand(*tape.targets.shape, -1, -1).to(tape.pixels.device))


@dataclass(frozen=True)
class Edges:
    """Strength of the image's edges: what a method that ignores the model would draw.

    `map = √((K_x ∗ I)² + (K_y ∗ I)²)` with Sobel kernels on the luminance, borders replicated

    Returns:
        `maps` `(B, T, H, W)` ≥ 0.

    Paper: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 5.
    """

    signed: ClassVar[bool] = False

    def __call__(self, tape: Any) -> Maps:
        grey = (tape.pixels.float() * tape.pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        kernel = grey.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
        slopes = torch.nn.functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None] / 8)
        strength = slopes.square().sum(1, keepdim=True).sqrt()
        return Maps(strength.expand(-1, tape.targets.shape[1], -1, -1))
