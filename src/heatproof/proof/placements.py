"""The same map elsewhere: copies that are moved and mirrored, spread evenly over all places where they could have been.

A map that knows nothing of the evidence could as well have been anywhere. Places are those of the marked region:

- If it fits into half of an axis, it is moved along that axis without being cut at the image's border; if it is cut
  already (it leaves on one side and enters on the other), to the places where it is cut too.
- If it is spread over more than half of the axis, it is rolled around.

Along each axis the places form a circle, and both circles together a torus. The copies sit on a lattice of this torus
of which the map itself is one point, so none of them is a near copy of the map, and since a lattice looks the same from
each of its points, the map and its copies are exchangeable: no other null than "every place was as likely" is assumed.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from heatproof import seeds


@dataclass(frozen=True)
class Placement:
    """A map is mirrored upside down or not, left to right or not, and then rolled by so many rows and columns."""

    flips: tuple[bool, bool]
    shift: tuple[int, int]

    def __call__(self, maps: Shaped[Tensor, "*maps height width"]) -> Shaped[Tensor, "*maps height width"]:
        """A copy of each map."""
        mirrored = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        maps = maps.flip(mirrored) if mirrored else maps
        return maps.roll(self.shift, (-2, -1)) if any(self.shift) else maps


@dataclass(frozen=True)
class _Circle:
    """The places along one axis: `count` of them from `first` on; the region is at `start` and `width` long."""

    size: int
    start: int
    width: int
    first: int
    count: int

    @classmethod
    def of(cls, occupied: Bool[Tensor, " lines"]) -> "_Circle":
        """From the lines that have a marked pixel. The widest gap, counted around, is what the region leaves free."""
        size = len(occupied)
        lines = occupied.nonzero().flatten().tolist()
        gaps = [(line - before - 1) % size for before, line in zip([lines[-1], *lines[:-1]], lines, strict=True)]
        gap = max(gaps)
        start, width = lines[gaps.index(gap)], size - gap
        if 2 * width > size:
            return cls(size, start, width, 0, size)
        if start + width <= size:
            return cls(size, start, width, 0, gap + 1)
        return cls(size, start, width, gap + 1, width - 1)

    def shift(self, steps: int, flip: bool, axis: int) -> int:
        """How far to roll so that the region is `steps` places further; `axis` is the axis of the mirror if it is rolled."""
        place = self.first + (self.start - self.first + steps) % self.count
        if flip and self.count == self.size:
            return (place - self.start + axis) % self.size
        now = (self.size - self.start - self.width) % self.size if flip else self.start
        return (place - now) % self.size


def placements(region: Bool[Tensor, "height width"], count: int, seed: int = 0) -> list[Placement]:
    """Where else a marked region could have been.

    Args:
        region: True where the map points; at least one pixel.
        count: K, how many copies.
        seed: of the mirrors, of the rounding to whole pixels, and of the order.

    Returns:
        K placements. On an image with fewer places than K they repeat, also the map's own, which makes p larger.
    """
    rows, columns = _Circle.of(region.any(1)), _Circle.of(region.any(0))
    points = count + 1
    step = _lattice(points, round(rows.count / columns.count, 2))
    chance = seeds.generator(seed)
    offsets = torch.rand(2, generator=chance, dtype=torch.float64).tolist()
    axes = [int(torch.randint(n, (1,), generator=chance)) for n in region.shape]
    flips = torch.randint(2, (points, 2), generator=chance).bool().tolist()
    # in random order, so that the first of them, where a run was interrupted, are a fair sample
    found = []
    for k in (torch.randperm(count, generator=chance) + 1).tolist():
        down = math.floor(k / points * rows.count + offsets[0])
        right = math.floor(k * step % points / points * columns.count + offsets[1])
        flip_y, flip_x = flips[k]
        found.append(Placement((flip_y, flip_x), (rows.shift(down, flip_y, axes[0]), columns.shift(right, flip_x, axes[1]))))
    return found


@lru_cache(maxsize=256)
def _lattice(points: int, ratio: float) -> int:
    """The step a for which the points (k/n, ka/n mod 1) keep the largest distance on a torus `ratio` times as high as wide."""
    k = torch.arange(1, points, dtype=torch.float64)
    best, farthest = 1, -1.0
    for step in range(1, points):
        if math.gcd(step, points) == 1:
            down, right = k / points, k * step % points / points
            away = (torch.minimum(down, 1 - down) * ratio).square() + torch.minimum(right, 1 - right).square()
            nearest = float(away.min())
            if nearest > farthest * (1 + 1e-9):
                best, farthest = step, nearest
    return best
