"""What every bottom-up method shares: no model, no target, and two optional steps at the end, blur and centre bias."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.filters import gaussian, levelled
from heatproof.errors import MethodError
from heatproof.methods import Maps


@dataclass(frozen=True, kw_only=True)
class BottomUp(ABC):
    """A saliency model of images alone; each one adds its own options and `saliency`.

    Args:
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.
    """

    signed: ClassVar[bool] = False
    center_bias: float | None = None
    blur: float | None = None

    @abstractmethod
    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        """The map itself."""

    def __call__(self, tape: Any) -> Maps:
        maps = finish(levelled(self.saliency(tape.pixels)), self.center_bias, self.blur)
        return Maps(maps[:, None].expand(-1, tape.targets.shape[1], -1, -1))


def finish(
    maps: Float[Tensor, "batch height width"], center_bias: float | None = None, blur: float | None = None
) -> Float[Tensor, "batch height width"]:
    """Smooth a map and weigh it with a Gaussian around the centre, as the evaluation on fixations does.

    `(G_blur ∗ map) · exp(−(u² + v²) / 2σ²)`, with `u, v` from −1 to 1 across the image

    Args:
        maps: ≥ 0.
        center_bias: `σ`, None or 0 for no prior; 0.5 is the prior of the baseline `center`.
        blur: σ of the smoothing in pixels of the map, None or 0 for none.

    Returns:
        The same shape; the maps themselves where both are off.

    Raises:
        MethodError: an option that is neither None nor a finite number, 0 or more.

    Paper: Judd et al. 2009, "Learning to predict where humans look", section 3.
    """
    for name, value in {"center_bias": center_bias, "blur": blur}.items():
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not (value is None or (real and 0 <= value < float("inf"))):
            raise MethodError(f"{name}={value!r}; expected a finite number, 0 or more, or None to leave it out.")
    if blur:
        maps = gaussian(maps, float(blur))
    if center_bias:
        v, u = ((torch.arange(n, device=maps.device) + 0.5) / n * 2 - 1 for n in maps.shape[-2:])
        bump = torch.exp(-(v[:, None] ** 2 + u[None, :] ** 2) / (2 * float(center_bias) ** 2))
        maps = maps * bump
    return maps
