"""How well a map says where people look: the scores of the MIT/Tübingen saliency benchmark.

A map is `(H, W)`; points are `(N, 2)`, row and column in pixels, where `(0.0, 0.0)` is the upper left corner of the upper
left pixel. Points outside the map are left out. Every score is a plain number; higher is better, but for `kl`.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from heatproof.errors import InputError

EPS = 2.2204e-16
"""What keeps logarithms finite, as in the benchmark's code."""

SPREAD = 35 / 1024
"""One degree of visual angle as a share of the longer side, as on the benchmark's screen: 35 of 1024 pixels."""


def auc_judd(heat: Any, points: Any) -> float:
    """Area under the ROC curve with the fixated pixels against all others.

    `tp_i = i / N`, `fp_i = #{other pixels ≥ t_i} / (HW − N)`, with `t_1 ≥ … ≥ t_N` the map at the N fixated pixels; trapezoids
    between these N points, (0, 0) and (1, 1)

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. A pixel that was fixated twice counts once.

    Returns:
        From 0 to 1; a constant map gets about ½. The benchmark breaks ties by a random jitter; this is the mean over all
        jitters, so there is no chance in it.

    Raises:
        InputError: a map that is not finite, or no point inside it.

    Paper: Judd, Ehinger, Durand, Torralba 2009, "Learning to Predict Where Humans Look"; Bylinskii et al. 2019.
    """
    heat = _heat(heat)
    hit = np.zeros(heat.shape, bool)
    hit[tuple(_pixels(heat, points).T)] = True
    positive, negative = heat[hit], heat[~hit]
    if not len(negative):
        raise InputError("every pixel of the map is fixated; there is nothing to compare with.")
    # The trapezoids give, over the staircase that is the exact ROC curve, half a step along the false positives up to
    # the lowest fixated pixel. Of those tied with it, q against p fixated ones, q p / (p + 1) come before it on average.
    lowest = positive.min()
    tied = (positive == lowest).sum()
    before = (negative > lowest).sum() + (negative == lowest).sum() * tied / (tied + 1)
    return _roc(positive, negative) + float(before) / len(negative) / (2 * len(positive))


def auc_uniform(heat: Any, points: Any) -> float:
    """Area under the ROC curve with every fixation against all pixels, ties counted half: the Tübingen convention.

    `P(heat at a fixation > heat at a random pixel) + ½ P(equal)`

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. Each counts, also where two are in one pixel.

    Returns:
        From 0 to 1, ½ is chance.

    Raises:
        InputError: a map that is not finite, or no point inside it.

    Paper: Kümmerer, Wallis, Bethge 2018, "Saliency Benchmarking Made Easy".
    """
    heat = _heat(heat)
    return _roc(heat[tuple(_pixels(heat, points, True).T)], heat.ravel())


def auc_borji(heat: Any, points: Any, splits: int = 100, seed: int = 0, step: float | None = None) -> float:
    """Area under the ROC curve with the fixated pixels against as many random ones, averaged over draws.

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. A pixel that was fixated twice counts once.
        splits: draws of N random pixels, with replacement.
        seed: of the draws.
        step: None takes the exact ROC curve. The benchmark's code takes `0.1`: only thresholds at multiples of a tenth of
            the map's range, which underestimates.

    Returns:
        From 0 to 1, ½ is chance.

    Raises:
        InputError: a map that is not finite, no point inside it, or no splits.

    Paper: Borji, Tavakoli, Sihite, Itti 2013, "Analysis of Scores, Datasets, and Models in Visual Saliency Prediction".
    """
    heat = _stretched(_heat(heat))
    positive = heat[tuple(_pixels(heat, points).T)]
    chance = np.random.default_rng(seed)
    draws = (heat.ravel()[chance.integers(heat.size, size=len(positive))] for _ in range(_count(splits)))
    return float(np.mean([_roc(positive, draw) if step is None else _stepped(positive, draw, step) for draw in draws]))


def auc_shuffled(
    heat: Any, points: Any, others: Any, splits: int | None = None, seed: int = 0, step: float | None = None
) -> float:
    """Area under the ROC curve with the fixated pixels against where people looked in other images.

    Whoever always looks at the centre does so in other images too: a map that is only a centre prior gets ½.

    Args:
        heat: `(H, W)`, any range.
        points: `(N, 2)`. A pixel that was fixated twice counts once.
        others: `(M, 2)` fixations of other images, brought to this one's size.
        splits: None takes all of `others`. The benchmark's code takes 100 draws of at most N of them, without replacement.
        seed: of the draws.
        step: None takes the exact ROC curve, the benchmark's code `0.1`; see `auc_borji`.

    Returns:
        From 0 to 1, ½ is chance.

    Raises:
        InputError: a map that is not finite, no points inside it, or no splits.

    Paper: Tatler, Baddeley, Gilchrist 2005, "Visual correlates of fixation selection"; Zhang et al. 2008.
    """
    heat = _stretched(_heat(heat))
    positive = heat[tuple(_pixels(heat, points).T)]
    negative = heat[tuple(_pixels(heat, others, splits is None).T)]
    score = _roc if step is None else lambda p, n: _stepped(p, n, step)
    if splits is None:
        return float(score(positive, negative))
    chance = np.random.default_rng(seed)
    size = min(len(positive), len(negative))
    return float(np.mean([score(positive, chance.permutation(negative)[:size]) for _ in range(_count(splits))]))


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
    heat = _heat(heat)
    at = heat[tuple(_pixels(heat, points).T)]
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
    p, q = _both(heat, density)
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
    p, q = _both(heat, density)
    return float(np.minimum(_share(_stretched(p)), _share(_stretched(q))).sum())


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
    p, q = (_share(_positive(one)) for one in _both(heat, density))
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
    both = [(1 - floor) * _share(_stretched(one)) + floor / one.size for one in _both(heat, baseline)]
    at = tuple(_pixels(both[0], points).T)
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
    np.add.at(counts, tuple(_pixels(counts, points, True).T), 1)
    return _share(gaussian_filter(counts, SPREAD * max(size) if sigma is None else sigma, mode="constant"))


def centre_prior(size: tuple[int, int], sigma: float = 0.5) -> np.ndarray:
    """The Gaussian around the centre that every map has to beat; `sigma` in halves of the sides.

    Returns:
        `(H, W)` float64 in (0, 1].
    """
    v, u = ((np.arange(n) + 0.5) / n * 2 - 1 for n in size)
    return np.exp(-(v[:, None] ** 2 + u[None, :] ** 2) / (2 * sigma**2))


def _roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """`P(positive > negative) + ½ P(equal)`: the exact area."""
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def _stepped(positive: np.ndarray, negative: np.ndarray, step: float) -> float:
    """The area from thresholds at multiples of `step` only."""
    if not 0 < step <= 1:
        raise InputError(f"step={step!r}; expected a threshold step above 0 and up to 1, or None for the exact curve.")
    top = max(positive.max(), negative.max())
    thresholds = np.arange(int(top / step + 1e-9), -1, -1) * step
    tp, fp = (np.r_[0.0, (side[:, None] >= thresholds - 1e-12).mean(0), 1.0] for side in (positive, negative))
    return float(((tp[1:] + tp[:-1]) / 2 * np.diff(fp)).sum())


def _heat(heat: Any) -> np.ndarray:
    if hasattr(heat, "detach"):
        heat = heat.detach().cpu()
    heat = np.asarray(heat, dtype=np.float64)
    if heat.ndim != 2 or not heat.size or not np.isfinite(heat).all():
        raise InputError(f"a map of shape {heat.shape} came; expected (H, W) with finite values.")
    return heat


def _both(heat: Any, density: Any) -> tuple[np.ndarray, np.ndarray]:
    p, q = _heat(heat), _heat(density)
    if p.shape != q.shape:
        raise InputError(f"maps of shapes {p.shape} and {q.shape} came; expected one size. Resize the first.")
    return p, q


def _pixels(heat: np.ndarray, points: Any, repeated: bool = False) -> np.ndarray:
    """Rows and columns of the pixels that the points are in, each once unless `repeated`."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2:
        raise InputError(f"points of shape {points.shape} came; expected (N, 2), row and column.")
    pixels = np.floor(points[np.isfinite(points[:, :2]).all(1), :2]).astype(np.int64)
    inside = pixels[((pixels >= 0) & (pixels < heat.shape)).all(1)]
    if not len(inside):
        raise InputError(f"none of the {len(points)} points is inside the map of {heat.shape[0]}×{heat.shape[1]}.")
    return inside if repeated else np.unique(inside, axis=0)


def _stretched(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; a constant map is 0."""
    values = values - values.min()
    return values / (values.max() or 1)


def _share(values: np.ndarray) -> np.ndarray:
    """Divided by the sum; nothing becomes the uniform distribution."""
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1 / values.size)


def _positive(values: np.ndarray) -> np.ndarray:
    if (values < 0).any():
        raise InputError("a map with negative values came; expected a distribution. Take the positive part, or shift it.")
    return values


def _count(splits: Any) -> int:
    if isinstance(splits, bool) or not isinstance(splits, int) or splits < 1:
        raise InputError(f"splits={splits!r}; expected a whole number, 1 or more.")
    return splits
