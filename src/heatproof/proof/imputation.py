"""The linear system of ROAD's imputation, for all images and channels of a batch together."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad


def impute(
    x: Float[Tensor, "many channels height width"], mask: Bool[Tensor, "many height width"]
) -> Float[Tensor, "many channels height width"]:
    """Replace the pixels under the mask by the weighted mean of their neighbours, solved jointly.

    `A u = W x_known` with `A = D − W` over the removed pixels: conjugate gradients, whole batch at once.
    """
    removed = mask[:, None].to(x)
    everywhere = removed.mean((2, 3), keepdim=True) == 1
    known = x * (1 - removed)
    mean = torch.where(
        everywhere,
        x.mean((2, 3), keepdim=True),
        known.sum((2, 3), keepdim=True) / (1 - removed).sum((2, 3), keepdim=True).clamp_min(1),
    )
    degree = _around(torch.ones_like(x[:1, :1]))
    u = removed * mean
    known = known - 0.0
    r = removed * (_around(known + u) - degree * u)
    r = torch.where(everywhere, 0.0, r)
    p = z = r / degree
    rz = (r * z).sum((2, 3), keepdim=True)
    stop = 1e-10 * rz
    for _ in range(2000):
        if (rz <= stop).all():
            break
        q = removed * (degree * p - _around(p))
        alpha = rz / (p * q).sum((2, 3), keepdim=True).clamp_min(1e-30)
        u, r = u + alpha * p, r - alpha * q
        z = r / degree
        new = (r * z).sum((2, 3), keepdim=True)
        p = z + new / rz.clamp_min(1e-30) * p
        rz = new
    return u + known


def _around(u: Tensor) -> Tensor:
    """Sum over the eight neighbours, 1/6 beside and 1/12 across; nothing outside."""
    wide = pad(u, (1, 1, 1, 1))
    rows = 2 * wide[..., 1:-1, :] + wide[..., :-2, :] + wide[..., 2:, :]
    return (2 * rows[..., 1:-1] + rows[..., :-2] + rows[..., 2:] - 4 * u) / 12
