"""The linear system of ROAD's imputation: conjugate gradients behind one multigrid cycle, for a whole batch and all channels.

A removed region is a hole in an image, and filling it is Laplace's equation on that hole. A direct sparse solver needs a
factorisation per mask; this needs some ten passes over the image, whatever the mask's shape, and runs on any device.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

_CACHED = 2**18
"""Numbers that one solve may hold per array on a processor: more would not stay in its cache."""

_TOLERANCE, _MOST_ITERATIONS = 2e-4, 100
_DAMPING = 0.8
_COARSEST = 3


def impute(
    x: Float[Tensor, "many channels height width"], mask: Bool[Tensor, "many height width"]
) -> Float[Tensor, "many channels height width"]:
    """Make every pixel under the mask the weighted mean of its eight neighbours, all of them jointly.

    `u_i Σ_j w_ij = Σ_j w_ij u_j` for removed i, `u_i = x_i` for the others; `w` 1/6 beside and 1/12 across, no j outside

    Args:
        x: images in float32 or float64.
        mask: True where a pixel is to be filled in.

    Returns:
        The images with their holes filled, to some thousandths of the image's contrast. An image of which nothing
        is left becomes its mean colour.

    Paper: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods".
    """
    together = len(x) if x.device.type != "cpu" else max(1, _CACHED // x[0].numel())
    return torch.cat([_solve(a, b) for a, b in zip(x.split(together), mask.split(together), strict=True)])


def _solve(x: Tensor, mask: Tensor) -> Tensor:
    removed = mask[:, None].to(x)
    kept = 1 - removed
    centre = torch.where(
        kept.any((2, 3), keepdim=True), _total(x * kept) / _total(kept).clamp_min(1), x.mean((2, 3), keepdim=True)
    )
    known = (x - centre) * kept  # centred: rounding is then relative to the contrast, and a flat surrounding costs nothing
    levels = _pyramid(removed)
    finest = levels[0]
    u, r = torch.zeros_like(x), finest.spread(known)
    z = _cycle(levels, r)
    p, energy = z, _total(r * z)
    enough = _TOLERANCE**2 * energy
    for _ in range(_MOST_ITERATIONS):
        if (energy <= enough).all():
            break
        q = finest.apply(p)
        step = energy / _total(p * q).clamp_min(1e-30)
        u, r = u.addcmul_(step, p), r.addcmul_(step, q, value=-1)
        z = _cycle(levels, r)
        before, energy = energy, _total(r * z)
        p = torch.addcmul(z, energy / before.clamp_min(1e-30), p)
    return u + known + centre


class _Level:
    """The operator `A u = D u − W u` on the removed pixels of one resolution, zero elsewhere."""

    def __init__(self, removed: Tensor) -> None:
        degree = (_blurred(torch.ones_like(removed[:1])) - 4) / 12
        self.removed = removed
        self.inverse = _DAMPING * removed / degree.clamp_min(1 / 12)  # the only pixel of an image has no neighbour
        self.own, self.others = removed * (degree + 1 / 3), removed / 12

    def apply(self, u: Tensor) -> Tensor:
        return (self.own * u).addcmul_(self.others, _blurred(u), value=-1)

    def rest(self, r: Tensor, u: Tensor) -> Tensor:
        """`r − A u`"""
        return torch.addcmul(r, self.own, u, value=-1).addcmul_(self.others, _blurred(u))

    def spread(self, known: Tensor) -> Tensor:
        """What the pixels that are left give to their removed neighbours."""
        return self.others * _blurred(known)


def _pyramid(removed: Tensor) -> list[_Level]:
    """The same hole at half, a quarter … of the resolution: a coarse pixel is removed where all that it covers are."""
    levels = [_Level(removed)]
    while min(removed.shape[-2:]) > _COARSEST:
        removed = (avg_pool2d(_even(removed, 1.0), 2) == 1).to(removed)
        if not removed.any():
            break
        levels.append(_Level(removed))
    return levels


def _cycle(levels: list[_Level], r: Tensor) -> Tensor:
    """An approximate solution of `A u = r`: smooth, correct on the coarser grid, smooth. Symmetric, as it precedes CG."""
    level, *coarser = levels
    u = level.inverse * r
    if coarser:
        rest = level.rest(r, u)
        # in two dimensions the Laplacian does not know its scale: sums go down, values come up, the stencil stays
        e = _cycle(coarser, 4 * avg_pool2d(_even(rest, 0.0), 2) * coarser[0].removed)
        e = interpolate(e, scale_factor=2, mode="nearest")[..., : u.shape[-2], : u.shape[-1]]
        u = u.addcmul_(level.removed, e)
    else:
        for _ in range(8):
            u = u.addcmul_(level.inverse, level.rest(r, u))
    return u.addcmul_(level.inverse, level.rest(r, u))


def _blurred(u: Tensor) -> Tensor:
    """Binomial sums over 3×3 pixels, weights 4, 2 and 1: twelve times the neighbours' `W u`, and four times the pixel."""
    rows = u + u
    rows[..., 1:, :].add_(u[..., :-1, :])
    rows[..., :-1, :].add_(u[..., 1:, :])
    both = rows + rows
    both[..., 1:].add_(rows[..., :-1])
    both[..., :-1].add_(rows[..., 1:])
    return both


def _even(u: Tensor, value: float) -> Tensor:
    height, width = u.shape[-2:]
    return pad(u, (0, width % 2, 0, height % 2), value=value) if height % 2 or width % 2 else u


def _total(u: Tensor) -> Tensor:
    return u.sum((2, 3), keepdim=True)
