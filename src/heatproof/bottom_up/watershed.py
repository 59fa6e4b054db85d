"""Contours by how long they last when regions merge: the saliency map of mathematical morphology, through spanning trees."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import higra as hg
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.colour import lab
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.working_size import back, within
from heatproof.errors import MethodError
from heatproof.images import check_tensor

_HIERARCHIES: dict[str, Callable[..., Any]] = {
    "area": hg.watershed_hierarchy_by_area,
    "dynamics": hg.watershed_hierarchy_by_dynamics,
    "volume": hg.watershed_hierarchy_by_volume,
    "flat-zones": hg.quasi_flat_zone_hierarchy,
}


@dataclass(frozen=True, kw_only=True)
class Watershed(BottomUp):
    """Contours, each as strong as the regions that it parts are hard to merge.

    `s({p, q}) = altitude(LCA(p, q))` in a hierarchical watershed of the 4-connected pixel grid, edges weighted by the
    distance of colours in Lab; a pixel gets the largest `s` of its four edges

    Args:
        attribute: "area", "dynamics" or "volume" of the smaller region, or "flat-zones" for the largest step on the best
            path.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0: pixels for `area`, units of Lab for `dynamics` and `flat-zones`, their product for
        `volume`.

    Misleads as a map of interest: it shows outlines, also those between two parts of a dull background.

    Paper: Cousty, Najman, Kenmochi, Guimarães 2018, "Hierarchical Segmentations with Graphs".
    """

    attribute: str = "area"

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return watershed(pixels, self.attribute)


def watershed(x: Float[Tensor, "batch 3 height width"], attribute: str = "area") -> Float[Tensor, "batch height width"]:
    """How important the contour through each pixel is: the level at which the regions on its two sides merge.

    `s({p, q}) = altitude(LCA(p, q))` in a hierarchical watershed of the pixel grid, edges weighted by the distance of
    colours in Lab. A pixel gets the largest `s` of its four edges.

    Args:
        x: RGB in [0, 1].
        attribute: what decides how long a region lasts: its area in pixels, its dynamics (contrast with its
            surroundings), its volume (both), or nothing ("flat-zones": the largest step on the best path).

    Returns:
        float32 ≥ 0: pixels for `area`, units of Lab for `dynamics` and `flat-zones`, their product for `volume`. Images
        over `WORKING_PIXELS` are worked on at that size, whose pixels are meant then.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an attribute that does not exist.

    Paper: Cousty, Najman, Kenmochi, Guimarães 2018, "Hierarchical Segmentations with Graphs"; Cousty, Najman 2011.
    """
    x = check_tensor(x)
    size = (x.shape[-2], x.shape[-1])
    maps = []
    for image in within(x.detach().float()).clamp(0, 1).cpu().numpy():
        right, down = contours(*steps(image), attribute)
        maps.append(torch.from_numpy(on_pixels(right, down).astype(np.float32)))
    return back(torch.stack(maps).to(x.device), size)


def steps(
    image: Float[np.ndarray, "3 height width"],
) -> tuple[Float[np.ndarray, "height right"], Float[np.ndarray, "down width"]]:
    """Weights of the edges: Euclidean distance in Lab of each pixel to its right `(H, W−1)` and lower `(H−1, W)` neighbour."""
    colours = lab(torch.from_numpy(image)[None])[0]
    # vector_norm over the first axis of three takes ten times as long
    right, down = (colours.diff(dim=axis).square_().sum(0).sqrt_().numpy() for axis in (2, 1))
    return right, down


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> Any:
    return hg.get_4_adjacency_graph((height, width))


def contours(
    right: Float[np.ndarray, "height right"], down: Float[np.ndarray, "down width"], attribute: str = "area"
) -> tuple[Float[np.ndarray, "height right"], Float[np.ndarray, "down width"]]:
    """The saliency of every edge of the grid: the ultrametric that the hierarchy is.

    Args:
        right: `(H, W−1)` weights of the edges to the right.
        down: `(H−1, W)` weights of the edges downwards.
        attribute: see `watershed`.

    Returns:
        The same two arrays with the saliency. For `flat-zones` it is the largest ultrametric that is nowhere above the
        weights, and so the same again when it is computed from itself.

    Raises:
        MethodError: an attribute that does not exist.
    """
    if attribute not in _HIERARCHIES:
        raise MethodError(f"attribute={attribute!r}; expected {', '.join(_HIERARCHIES)}.")
    height, width = len(right), down.shape[1]
    if height * width == 1:
        return right, down
    graph = _grid(height, width)
    tree, altitudes = _HIERARCHIES[attribute](graph, _as_edges(right, down))
    return _as_arrays(np.asarray(hg.saliency(tree, altitudes, leaf_graph=graph)), height, width)


def _as_edges(right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Weights in higra's order: pixel by pixel, to the right and then downwards, those that exist."""
    height, width = len(right), down.shape[1]
    both = np.zeros((height, width, 2), right.dtype)  # float32 is sorted in less time than float64
    both[:, :-1, 0] = right
    both[:-1, :, 1] = down
    return both[_exists(height, width)]


def _as_arrays(edges: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    both = np.zeros((height, width, 2))
    both[_exists(height, width)] = edges
    return both[:, :-1, 0], both[:-1, :, 1]


@lru_cache(maxsize=4)
def _exists(height: int, width: int) -> np.ndarray:
    exists = np.ones((height, width, 2), bool)
    exists[:, -1, 0] = exists[-1, :, 1] = False
    return exists


def khalimsky(right: Float[np.ndarray, "height right"], down: Float[np.ndarray, "down width"]) -> Float[np.ndarray, "tall wide"]:
    """The contours drawn between the pixels, on a grid of `(2H−1) × (2W−1)`.

    Pixels are at even rows and columns and 0, an edge lies between its two pixels, and the junction of four pixels
    gets the largest of the four edges that meet there.
    """
    height, width = len(right), down.shape[1]
    grid = np.zeros((2 * height - 1, 2 * width - 1))
    grid[::2, 1::2] = right
    grid[1::2, ::2] = down
    grid[1::2, 1::2] = np.maximum(np.maximum(right[:-1], right[1:]), np.maximum(down[:, :-1], down[:, 1:]))
    return grid


def on_pixels(
    right: Float[np.ndarray, "height right"], down: Float[np.ndarray, "down width"]
) -> Float[np.ndarray, "height width"]:
    """The contours drawn on the pixels: each gets the largest of its four edges."""
    grid = np.zeros((len(right), down.shape[1]))
    grid[:, :-1] = right
    np.maximum(grid[:, 1:], right, out=grid[:, 1:])
    np.maximum(grid[:-1], down, out=grid[:-1])
    np.maximum(grid[1:], down, out=grid[1:])
    return grid
