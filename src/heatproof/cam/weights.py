"""Weight functions: activations `A` `(B, K, h, w)` and gradients `g = ∂s/∂A` `(B, T, K, h, w)` to weights `w`.

Pure functions. Weights that are constant in space come as `(B, T, K, 1, 1)`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

A = Float[Tensor, "batch channels height width"]
G = Float[Tensor, "batch targets channels height width"]
W = Float[Tensor, "batch targets channels _ _"]


def gradcam(activation: A, gradient: G) -> W:
    """`w_k = mean_ij g_kij` (Selvaraju et al. 2017, equation 1)."""
    return gradient.mean((-2, -1), keepdim=True)


def gradcam_plus_plus(activation: A, gradient: G) -> W:
    """`w_k = Σ_ij α_kij ReLU(g_kij)`, `α_kij = 1 / (2 + g_kij Σ_ab A_kab)` where `g ≠ 0`, else 0.

    The paper's `α = ∂²Y / (2 ∂²Y + Σ_ab A_ab ∂³Y)` for `Y = exp(s)` and a score that is piecewise linear in `A`:
    `∂ⁿY = Y gⁿ`, and `g²` cancels (Chattopadhay et al. 2018, equations 10 and 19). `Y` itself only scales the map.
    """
    total = activation.sum((-2, -1))[:, None, :, None, None]
    denominator = 2 + gradient * total
    # only negative activations can bring it near zero, where the paper's expansion says nothing
    alpha = torch.where(gradient == 0, 0.0, 1 / torch.where(denominator.abs() < 1e-3, 1e-3, denominator))
    return (alpha * gradient.relu()).sum((-2, -1), keepdim=True)


def xgradcam(activation: A, gradient: G) -> W:
    """`w_k = Σ_ij g_kij A_kij / Σ_ij A_kij` (Fu et al. 2020, equation 8); 0 for a channel that sums to zero."""
    total = activation.sum((-2, -1))[:, None, :, None, None]
    share = (gradient * activation[:, None]).sum((-2, -1), keepdim=True)
    return torch.where(total == 0, 0.0, share / total)


def hirescam(activation: A, gradient: G) -> G:
    """`w_kij = g_kij` (Draelos & Carin 2020, equation 2)."""
    return gradient


def layercam(activation: A, gradient: G) -> G:
    """`w_kij = ReLU(g_kij)` (Jiang et al. 2021, equation 3)."""
    return gradient.relu()


def first_component(features: G) -> tuple[W, G]:
    """First right singular vector `v` of the centred `hw × K` matrix of features, as weights, and those features.

    The sign of `v` is arbitrary in theory; the caller chooses it.
    """
    matrix = features.flatten(-2).transpose(-2, -1)
    centred = matrix - matrix.mean(-2, keepdim=True)
    vector = torch.linalg.svd(centred, full_matrices=False).Vh[..., 0, :]
    return vector[..., None, None], centred.transpose(-2, -1).reshape(features.shape)
