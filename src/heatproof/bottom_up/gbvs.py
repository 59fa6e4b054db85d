"""Graph-based visual saliency: where random walks over dissimilar places spend their time."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.colour import dkl
from heatproof.bottom_up.filters import fitted, gaussian, levelled, pyramid, resized, working
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.orientation import oriented
from heatproof.errors import MethodError

LONGEST, GRID = 640, 32
"""Pixels of the longer side that the pyramid starts from, and nodes along the longer side of the graph."""

LEVELS = (2, 3, 4)
SPREAD, GATHER, SMOOTH = 0.15, 0.06, 0.02
"""σ of the distances in activation and in concentration, and of the last smoothing, in sides of the graph."""

_FLAT, _FLOOR, _CHUNK = 1e-4, 1e-2, 1 << 20

Maps = Float[Tensor, "maps height width"]


class Graph(NamedTuple):
    """The steps from images to saliency, on the graph's own grid, channel by channel.

    Args:
        features: "colour" `(B, 6, h, w)` (two opponencies × three levels), "intensity" `(B, 3, h, w)`, "orientation"
            `(B, 12, h, w)`.
        activation: equilibria of the dissimilarity chains, of the same shapes, each map summing to 1.
        concentration: equilibria of the concentration chains, likewise.
        saliency: `(B, h, w)` means over each channel, summed and smoothed.
    """

    features: dict[str, Float[Tensor, "batch _ height width"]]
    activation: dict[str, Float[Tensor, "batch _ height width"]]
    concentration: dict[str, Float[Tensor, "batch _ height width"]]
    saliency: Float[Tensor, "batch height width"]


def gbvs(
    x: Float[Tensor, "batch 3 height width"], dissimilarity: str = "difference", longest: int = LONGEST, grid: int = GRID
) -> Float[Tensor, "batch height width"]:
    """Saliency as the equilibrium of Markov chains; `graph` returns every step of it.

    Args:
        x: RGB in [0, 1].
        dissimilarity: "difference" `|M_i − M_j|`, or "log" `|ln M_i / M_j|`.
        longest: pixels of the longer side that the pyramid starts from.
        grid: nodes along the longer side of the graph.

    Returns:
        float32 ≥ 0 at the images' size; constant for a constant image.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that cannot be.

    Paper: Harel, Koch, Perona 2006, "Graph-Based Visual Saliency".
    """
    return levelled(resized(graph(x, dissimilarity, longest, grid).saliency[:, None], (x.shape[-2], x.shape[-1]))[:, 0])


def graph(
    x: Float[Tensor, "batch 3 height width"], dissimilarity: str = "difference", longest: int = LONGEST, grid: int = GRID
) -> Graph:
    """Feature maps of three pyramid levels on a small grid, their activation, its concentration, and the sum.

    Arguments and errors are those of `gbvs`.
    """
    if dissimilarity not in ("difference", "log"):
        raise MethodError(f"dissimilarity={dissimilarity!r}; expected 'difference' or 'log'.")
    for name, value in {"longest": longest, "grid": grid}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MethodError(f"{name}={value!r}; expected a whole number, 1 or more.")
    size = fitted((x.shape[-2], x.shape[-1]), grid)
    features = _features(working(x, longest), size)
    activation, concentration = {}, {}
    for name, maps in features.items():
        flat = maps.flatten(0, 1)
        active = activated(_logarithm(flat) if dissimilarity == "log" else flat)
        activation[name] = active.view(maps.shape)
        concentration[name] = concentrated(active).view(maps.shape)
    total = torch.stack([maps.mean(1) for maps in concentration.values()]).sum(0)
    return Graph(features, activation, concentration, gaussian(total, SMOOTH * max(size)))


def _features(x: Float[Tensor, "batch 3 height width"], size: tuple[int, int]) -> dict[str, Tensor]:
    """Colour opponency, intensity and orientation at each of `LEVELS`, averaged to the graph's grid."""
    levels = pyramid(torch.cat([x.mean(1, keepdim=True), dkl(x)[:, 1:]], 1), max(LEVELS) + 1)
    parts = [torch.cat([level, oriented(level[:, :1])], 1) for level in (levels[k] for k in LEVELS)]
    maps = torch.stack([resized(part, size) for part in parts], 2)  # batch, feature, level
    return {
        "colour": maps[:, 1:3].flatten(1, 2),
        "intensity": maps[:, :1].flatten(1, 2),
        "orientation": maps[:, 3:].flatten(1, 2),
    }


def _logarithm(maps: Maps) -> Maps:
    """Logarithm of a map stretched to [0.01, 1], so that no ratio is without bounds."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.log(torch.where(high - low > _FLAT, (maps - low) / (high - low).clamp_min(_FLAT), 0) + _FLOOR)


def activated(maps: Maps) -> Maps:
    """Where a walker ends up that steps from node to node the likelier, the more different and the nearer they are.

    `P(i → j) ∝ |M_i − M_j| F(i − j)`, `F(d) = exp(−‖d‖² / 2σ²)`, `σ = 0.15 · (h + w)/2`. The weights are symmetric, so
    the walk is reversible and its equilibrium needs no iteration: `π_i ∝ Σ_j |M_i − M_j| F(i − j)`.

    Args:
        maps: each `(h, w)` by itself.

    Returns:
        `π`, summing to 1; uniform for a map without structure.
    """
    count, height, width = maps.shape
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    flat = maps.reshape(count, -1)
    near = _nearness(height, width, SPREAD).to(flat)
    chunk = max(1, _CHUNK // flat.shape[1] ** 2)
    degree = torch.cat([((part[:, :, None] - part[:, None, :]).abs_().mul_(near)).sum(2) for part in flat.split(chunk)])
    degree = torch.where((high - low > _FLAT)[:, None], degree, 1)
    return (degree / degree.sum(1, keepdim=True)).view(maps.shape)


@lru_cache(maxsize=8)
def _nearness(height: int, width: int, share: float) -> Float[Tensor, "nodes nodes"]:
    """`F` between all nodes of a grid."""
    return torch.kron(*_axes(height, width, share))


def _axes(height: int, width: int, share: float) -> tuple[Float[Tensor, "height height"], Float[Tensor, "width width"]]:
    """`F` is a product of one Gaussian along the rows and one along the columns."""
    sigma = share * (height + width) / 2
    rows, columns = (
        torch.exp(-((torch.arange(n)[:, None] - torch.arange(n)).float() ** 2) / (2 * sigma**2)) for n in (height, width)
    )
    return rows, columns


def concentrated(activation: Maps) -> Maps:
    """Where a walker ends up that steps from node to node the likelier, the more active and the nearer the next one is.

    `P(i → j) ∝ A_j F(i − j)` with `σ = 0.06 · (h + w)/2`. It is reversible too, and `F` is separable:
    `π_i ∝ A_i (F ∗ A)_i`.

    Args:
        activation: ≥ 0, each `(h, w)` by itself.

    Returns:
        `π`, summing to 1; a uniform activation stays uniform.
    """
    rows, columns = (axis.to(activation) for axis in _axes(activation.shape[-2], activation.shape[-1], GATHER))
    mass = activation * (rows @ activation @ columns)
    uniform = activation.amax((1, 2), keepdim=True) == activation.amin((1, 2), keepdim=True)
    mass = torch.where(uniform, 1, mass)
    return mass / mass.sum((1, 2), keepdim=True)


@dataclass(frozen=True, kw_only=True)
class GBVS(BottomUp):
    """Where random walks spend their time that prefer dissimilar places: colour, intensity and orientation on a graph.

    `π_i ∝ Σ_j |M_i − M_j| exp(−d_ij² / 2σ²)` (activation), then `π_i ∝ A_i Σ_j A_j exp(−d_ij² / 2σ′²)` (concentration),
    for each of 21 feature maps; means over each channel are summed

    Args:
        dissimilarity: "difference" `|M_i − M_j|`, or "log" `|ln M_i / M_j|`.
        longest: pixels of the longer side that the pyramid starts from.
        grid: nodes along the longer side of the graph.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0, the same for all targets.

    Misleads by a centre bias of its own, although none was asked for: nodes at the border have fewer neighbours.

    Paper: Harel, Koch, Perona 2006, "Graph-Based Visual Saliency".
    """

    dissimilarity: Literal["difference", "log"] = "difference"
    longest: int = LONGEST
    grid: int = GRID

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return gbvs(pixels, self.dissimilarity, self.longest, self.grid)
