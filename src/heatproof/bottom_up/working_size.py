"""Methods that visit every pixel work on at most a megapixel; larger photos are made smaller first."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

WORKING_PIXELS = 1 << 20
"""Images with more pixels are worked on at this many, and the map is drawn back at their own size."""


def within(x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 h w"]:
    """Images of at most `WORKING_PIXELS`: larger ones are made smaller, averaged so that nothing aliases."""
    height, width = x.shape[-2:]
    if height * width <= WORKING_PIXELS:
        return x
    scale = (WORKING_PIXELS / (height * width)) ** 0.5
    size = (max(1, min(int(height * scale), WORKING_PIXELS)), max(1, min(int(width * scale), WORKING_PIXELS)))
    return interpolate(x, size, mode="area")


def back(maps: Float[Tensor, "batch h w"], size: tuple[int, int]) -> Float[Tensor, "batch height width"]:
    """Maps at the image's own size."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
