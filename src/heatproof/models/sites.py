"""Where a network keeps its spatial features, and how a layer's output becomes a map.

One forward tells what every module returned. A shape is read against the size of the input: `(B, K, h, w)` and
`(B, h, w, K)` where `h × w` has the input's proportions, `(B, N, K)` tokens where a grid of that kind and a few
prefix tokens (class, distillation, registers) make up `N`. No architecture is named anywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MAX_PREFIX = 32
"""No known vision transformer has more prefix tokens in front of its grid."""


@dataclass(frozen=True)
class Site:
    """A layer whose output is a map.

    Args:
        name: the module's name.
        kind: `"bkhw"` convolutional, `"bhwk"` channels last, `"bnk"` tokens, `"nbk"` tokens before the batch.
        prefix: tokens in front of the grid.
        height, width: the grid.
        run: which run of the module in a forward this is, the last: activations are often one module used everywhere.
    """

    name: str
    kind: str
    height: int
    width: int
    prefix: int = 0
    run: int = 1

    @property
    def is_tokens(self) -> bool:
        """Whether the layer returns a sequence of tokens, not an image."""
        return self.kind in ("bnk", "nbk")

    def to_map(self, output: Tensor) -> Float[Tensor, "batch channels height width"]:
        """The layer's output, or a gradient with respect to it, on the grid; prefix tokens left out."""
        if self.kind == "bkhw":
            return output
        if self.kind == "bhwk":
            return output.permute(0, 3, 1, 2)
        tokens = output if self.kind == "bnk" else output.transpose(0, 1)
        grid = tokens[:, self.prefix :].transpose(1, 2)
        return grid.reshape(*grid.shape[:2], self.height, self.width)

    def scale_channels(self, output: Tensor, factors: Float[Tensor, "copies channels"]) -> Tensor:
        """The layer's output with the grid's channels multiplied, one row of factors per copy; one image becomes many."""
        if self.kind == "bkhw":
            return output * factors[:, :, None, None]
        if self.kind == "bhwk":
            return output * factors[:, None, None, :]
        tokens = output if self.kind == "bnk" else output.transpose(0, 1)
        prefix = tokens[:, : self.prefix].expand(len(factors), -1, -1)
        scaled = torch.cat([prefix, tokens[:, self.prefix :] * factors[:, None, :]], 1)
        return scaled if self.kind == "bnk" else scaled.transpose(0, 1)


def read_shape(name: str, shape: torch.Size, batch: int, size: tuple[int, int], grids: Iterable[tuple[int, int]]) -> Site | None:
    """Understand one layer's output, or return None where it is no map.

    Args:
        name: the module's name.
        shape: of its output.
        batch: number of images.
        size: `(H, W)` of the input.
        grids: `(h, w)` of the feature maps seen before in this forward, newest first.
    """
    if len(shape) == 4 and shape[0] == batch:
        _, second, third, fourth = shape
        last, first = proportional((third, fourth), size), proportional((second, third), size)
        if first and not last and second * third > 1:
            return Site(name, "bhwk", second, third)
        if third * fourth > 1 and third <= size[0] and fourth <= size[1]:
            return Site(name, "bkhw", third, fourth)
    if len(shape) == 3 and batch in shape[:2]:
        kind, count = ("bnk", shape[1]) if shape[0] == batch else ("nbk", shape[0])
        grid = token_grid(count, size, grids)
        if grid is not None:
            return Site(name, kind, *grid, prefix=count - grid[0] * grid[1])
    return None


def proportional(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid has the input's proportions, to within the cell that padding and rounding can cost."""
    height, width = grid
    return height <= size[0] and width <= size[1] and abs(height * size[1] - width * size[0]) < max(size)


def token_grid(count: int, size: tuple[int, int], grids: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The grid that `count` tokens form: one that was seen as a feature map, else the one with the fewest prefix tokens."""
    seen = [grid for grid in grids if 0 <= count - grid[0] * grid[1] <= MAX_PREFIX and grid[0] * grid[1] > 1]
    if seen:
        return seen[0]
    height, width = size
    floors = {(height // stride, width // stride) for stride in range(1, max(size) + 1)}
    ceilings = {(-(-height // stride), -(-width // stride)) for stride in range(1, max(size) + 1)}
    fitting = [(h, w) for h, w in floors | ceilings if h * w > 1 and 0 <= count - h * w <= MAX_PREFIX]
    return min(fitting, key=lambda grid: count - grid[0] * grid[1], default=None)
