"""How well a map says where people look: the scores of the MIT/Tübingen saliency benchmark.

A map is `(H, W)`; points are `(N, 2)`, row and column in pixels, where `(0.0, 0.0)` is the upper left corner of the upper
left pixel. Points outside the map are left out. Every score is a plain number; higher is better, but for `kl`.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from heatproof.errors import InputError
from heatproof.proof.fixated import both_finite, finite, fixated, stretched
from heatproof.proof.fixation_areas import auc_borji, auc_judd, auc_shuffled, auc_uniform

__all__ = [
    "EPS",
    "SPREAD",
    "auc_borji",
    "auc_judd",
    "auc_shuffled",
    "auc_uniform",
    "cc",
    "centre_prior",
    "fixation_density",
    "information_gain",
    "kl",
    "nss",
    "sim",
]

EPS = 2.2204e-16
"""What keeps logarithms finite, as in the benchmark's code."""

SPREAD = 35 / 1024
"""One degree of visual angle as a share of the longer side, as on the benchmark's screen: 35 of 1024 pixels."""


def nss(heat: Any, points: Any) -> float:
    """Normalised scanpath saliency: the map in standard deviations from its mean, at the fixated pixels.

    `mean_i (heat(p_i) − mean(heat)) / std(heat)`, the standard deviation with `HW − 1`

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. A pixel that was fixated twice counts once.

    Returns:
        0 is chance. A constant map gets 0: it says nothing.

    Raises:
        InputError: a map that is not finite, or no point inside it.

    Paper: Peters, Iyer, Itti, Koch 2005, "Components of bottom-up gaze allocation in natural images".
    """
    heat = finite(heat)
    at = heat[tuple(fixated(heat, points).T)]
    if heat.max() == heat.min():
        return 0.0
    return float((at.mean() - heat.mean()) / heat.std(ddof=1))


def cc(heat: Any, density: Any) -> float:
    """Pearson's correlation of a map with the density of fixations.

    Args:
        heat: `(H, W)`, any range.
        density: `(H, W)`, as `fixation_density` gives it.

    Returns:
        From −1 to 1; 0 where one of the two is constant.

    Raises:
        InputError: not finite, or not of one size.
    """
    p, q = both_finite(heat, density)
    if p.max() == p.min() or q.max() == q.min():
        return 0.0
    p, q = p - p.mean(), q - q.mean()
    return float((p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum()))


def sim(heat: Any, density: Any) -> float:
    """Similarity: what two distributions share.

    `Σ min(P, Q)`, each stretched to [0, 1] and then divided by its sum

    Args:
        heat: `(H, W)`, any range; a constant one is the uniform distribution.
        density: `(H, W)`, as `fixation_density` gives it.

    Returns:
        From 0 to 1.

    Raises:
        InputError: not finite, or not of one size.

    Paper: Judd, Durand, Torralba 2012, "A Benchmark of Computational Models of Saliency to Predict Human Fixations".
    """
    p, q = both_finite(heat, density)
    return float(np.minimum(_share(stretched(p)), _share(stretched(q))).sum())


def kl(heat: Any, density: Any) -> float:
    """Kullback–Leibler divergence of the map from the density of fixations; smaller is better.

    `Σ Q log(ε + Q / (P + ε))`, each divided by its sum, natural logarithm

    Args:
        heat: `(H, W)` ≥ 0; an empty one is the uniform distribution.
        density: `(H, W)` ≥ 0, as `fixation_density` gives it.

    Returns:
        About 0 or more. Zeros of the map where people looked cost up to 36 each.

    Raises:
        InputError: negative, not finite, or not of one size.
    """
    p, q = (_share(_positive(one)) for one in both_finite(heat, density))
    return float((q * np.log(EPS + q / (p + EPS))).sum())


def information_gain(heat: Any, points: Any, baseline: Any, floor: float = 0.0) -> float:
    """Bits per fixation that a map knows over a baseline.

    `mean_i log2(ε + P(p_i)) − log2(ε + B(p_i))`, each stretched to [0, 1] and then divided by its sum

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. A pixel that was fixated twice counts once.
        baseline: `(H, W)`, usually a centre prior.
        floor: share of the uniform distribution that is mixed into both. The benchmark's code has none, and one fixation
            where the map is 0 costs some 36 bits; a heat map is no probability.

    Returns:
        Bits; 0 is as good as the baseline.

    Raises:
        InputError: not finite, not of one size, no point inside, or a floor that is no share.

    Paper: Kümmerer, Wallis, Bethge 2015, "Information-theoretic model comparison unifies saliency metrics".
    """
    if not 0 <= floor <= 1:
        raise InputError(f"floor={floor!r}; expected a share from 0 to 1.")
    both = [(1 - floor) * _share(stretched(one)) + floor / one.size for one in both_finite(heat, baseline)]
    at = tuple(fixated(both[0], points).T)
    return float((np.log2(EPS + both[0][at]) - np.log2(EPS + both[1][at])).mean())


def fixation_density(points: Any, size: tuple[int, int], sigma: float | None = None) -> np.ndarray:
    """Where people look, as a density: fixations, each spread by a Gaussian.

    Args:
        points: `(N, 2)`. Each counts.
        size: `(H, W)`.
        sigma: of the Gaussian in pixels, one degree of visual angle; None is `SPREAD` of the longer side. What falls
            outside the image is lost.

    Returns:
        `(H, W)` float64 that sums to 1.

    Raises:
        InputError: no point inside.
    """
    counts = np.zeros(size)
    np.add.at(counts, tuple(fixated(counts, points, True).T), 1)
    return _share(gaussian_filter(counts, SPREAD * max(size) if sigma is None else sigma, mode="constant"))


def centre_prior(size: tuple[int, int], sigma: float = 0.5) -> np.ndarray:
    """The Gaussian around the centre that every map has to beat; `sigma` in halves of the sides.

    Returns:
        `(H, W)` float64 in (0, 1].
    """
    v, u = ((np.arange(n) + 0.5) / n * 2 - 1 for n in size)
    return np.exp(-(v[:, None] ** 2 + u[None, :] ** 2) / (2 * sigma**2))


def _share(values: np.ndarray) -> np.ndarray:
    """Divided by the sum; nothing becomes the uniform distribution."""
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1 / values.size)


def _positive(values: np.ndarray) -> np.ndarray:
    if (values < 0).any():
        raise InputError("a map with negative values came; expected a distribution. Take the positive part, or shift it.")
    return values
