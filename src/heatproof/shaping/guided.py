"""Guided filtering with many guides at once: a map takes over the edges of other images of the same scene."""

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.errors import InputError


def guided_filter(
    target: Float[Tensor, "batch height width"],
    guide: Float[Tensor, "batch channels height width"],
    radius: int,
    epsilon: float,
) -> Float[Tensor, "batch height width"]:
    """The best local linear function of the guides, for every window, and their mean where windows overlap.

    `a_k = (Σ_k + εI)⁻¹ (mean_k(I p) − μ_k p̄_k)`, `b_k = p̄_k − a_kᵀ μ_k`, `q_i = ā_iᵀ I_i + b̄_i`

    Args:
        target: `(B, H, W)`, `p`, what is filtered.
        guide: `(B, C, H, W)`, `I`, of which the edges are.
        radius: of the windows, `(2r + 1)²` pixels; at the border only those inside count.
        epsilon: ε, in the guide's unit squared: contrasts well below its root are smoothed away.

    Returns:
        `(B, H, W)`, `q`, in the target's unit; it may leave its range a little.

    Raises:
        InputError: a radius or ε that is not positive.

    Paper: He, Sun, Tang 2013, "Guided Image Filtering", with a guide of several channels.
    """
    if radius < 1 or not epsilon > 0:
        raise InputError(f"radius={radius!r}, epsilon={epsilon!r}; expected at least one pixel, and a positive number.")
    p, guide = target.double(), guide.double()
    guide = guide - guide.mean((-2, -1), keepdim=True)  # sums of squares lose less around zero
    mean_i, mean_p = box_mean(guide, radius), box_mean(p, radius)
    covariance = box_mean(guide * p[:, None], radius) - mean_i * mean_p[:, None]
    products = box_mean(guide[:, :, None] * guide[:, None], radius) - mean_i[:, :, None] * mean_i[:, None]
    system = products.permute(0, 3, 4, 1, 2) + epsilon * torch.eye(guide.shape[1], dtype=p.dtype, device=p.device)
    a = torch.linalg.solve(system, covariance.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    b = mean_p - (a * mean_i).sum(1)
    return ((box_mean(a, radius) * guide).sum(1) + box_mean(b, radius)).to(target.dtype)


def box_mean(x: Float[Tensor, "*batch height width"], radius: int) -> Float[Tensor, "*batch height width"]:
    """Mean over `(2r + 1)²` windows, or what of them is inside; from sums, so the radius costs nothing."""
    for axis in (-2, -1):
        size = x.shape[axis]
        places = torch.arange(size, device=x.device)
        low, high = (places - radius).clamp_min(0), (places + radius + 1).clamp_max(size)
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.cumsum(axis)], axis)
        count = (high - low).to(x.dtype)
        x = (total.index_select(axis, high) - total.index_select(axis, low)) / (count if axis == -1 else count[:, None])
    return x


def principal_components(
    features: Float[Tensor, "batch channels height width"], count: int
) -> Float[Tensor, "batch components height width"]:
    """The leading principal components of feature maps, pixels being the samples.

    `X V_n / √λ_1`, `X` the features less their mean over the pixels, `V_n` the first n eigenvectors of their covariance

    Args:
        features: `(B, C, H, W)`.
        count: of components, fewer where there are fewer channels or pixels.

    Returns:
        `(B, n, H, W)`; the first has variance 1, the others less, in proportion to what they explain. Zero where all
        features are constant.
    """
    x = features.detach().double().flatten(2)
    x = x - x.mean(2, keepdim=True)
    count = min(count, *x.shape[1:])
    # of the smaller of the two Gram matrices, which have the same eigenvalues
    if x.shape[1] <= x.shape[2]:
        values, vectors = torch.linalg.eigh(x @ x.mT / x.shape[2])
        projected = vectors[..., -count:].flip(-1).mT @ x
    else:
        values, vectors = torch.linalg.eigh(x.mT @ x / x.shape[2])
        projected = vectors[..., -count:].flip(-1).mT * (values[:, -count:].flip(-1).clamp_min(0) * x.shape[2]).sqrt()[..., None]
    first = values[:, -1].clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (projected / first[:, None, None]).unflatten(2, features.shape[-2:]).float()
