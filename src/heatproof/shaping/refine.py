"""From a coarse map to one that follows edges: filtered stage by stage, guided by what shallower layers see there."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from heatproof.models.sites import Site
from heatproof.shaping.guided import guided_filter, principal_components

COMPONENTS = 3
RADIUS = 4
EPSILON = 1e-2
"""Of the guided filter at each stage: cells, and in units of the first component's variance."""

PIXEL_RADIUS = 8
PIXEL_EPSILON = 1e-3
"""Of the last filter, guided by the image's colours from 0 to 1."""


def stages(sites: Mapping[str, Site], start: Site, size: tuple[int, int]) -> list[tuple[tuple[int, int], Site | None]]:
    """Grids from the map's own to half the image's size, each with the layer that guides there.

    A network that keeps its features on finer grids gives one layer for each: the last on that grid, outermost first. One
    that works on a single grid, as transformers do, gives the one in the middle of its depth; on finer grids, the
    image has to do.

    Args:
        sites: the model's layers that are maps, in order of execution.
        start: the layer of the map.
        size: `(H, W)` of the input.

    Returns:
        `(h, w)` and a site or None, from coarse to fine.
    """
    names = list(sites)
    before = [sites[name] for name in names[: names.index(start.name)]] if start.name in sites else list(sites.values())
    own = (start.height, start.width)
    grids: dict[tuple[int, int], list[Site]] = {}
    for site in before:
        if _regular((site.height, site.width), size):
            grids.setdefault((site.height, site.width), []).append(site)
    found: list[tuple[tuple[int, int], Site | None]] = []
    grid = own
    while 2 * grid[0] <= size[0] or grid == own:
        # padding may cost a network's grid a cell
        near = [key for key in grids if all(abs(a - b) <= 1 for a, b in zip(key, grid, strict=True))]
        here = grids[near[-1]] if near else []
        if grid == own:
            tokens = [site for site in here if site.is_tokens]
            if tokens:
                found.append((own, tokens[len(tokens) // 2]))
        elif 2 * grid[0] <= size[0] + 1:
            found.append((grid, _outermost(here)))
        grid = (2 * grid[0], 2 * grid[1])
    return found


def _regular(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid is the input's at a whole stride; attention matrices and padded maps are not."""
    stride = round(size[0] / grid[0])
    return all(g in (s // stride, -(-s // stride)) for g, s in zip(grid, size, strict=True))


def _outermost(here: list[Site]) -> Site | None:
    """The last layer among those that are nested least."""
    depth = min((site.name.count(".") for site in here), default=0)
    return next((site for site in reversed(here) if site.name.count(".") == depth), None)


def refine(
    coarse: Float[Tensor, "batch height width"],
    guides: Sequence[tuple[tuple[int, int], Tensor | None]],
    pixels: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch height width"]:
    """Guided filtering from coarse to fine, along the leading principal components of each stage's features.

    Args:
        coarse: `(B, H, W)` in [0, 1].
        guides: per stage the grid, and the features there `(B, C, h, w)`, or None for the image itself.
        pixels: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(B, H, W)` in [0, 1].

    Paper: Ha, Franchi, Moeller, Kolb, Blanz 2018, "Segmentation and Shape Extraction from Convolutional Neural Networks".
        Its numbers of components, radii and ε are not public; these were chosen on photos, see docs/shape.md.
    """
    heat = coarse
    for grid, features in guides:
        seen = interpolate(pixels, list(grid), mode="area") if features is None else features
        guide = principal_components(seen, COMPONENTS)
        heat = _resized(heat, guide.shape[-2:])
        heat = guided_filter(heat, guide, RADIUS, EPSILON).clamp(0, 1)
    return guided_filter(_resized(heat, pixels.shape[-2:]), pixels, PIXEL_RADIUS, PIXEL_EPSILON).clamp(0, 1)


def _resized(heat: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(heat[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]
