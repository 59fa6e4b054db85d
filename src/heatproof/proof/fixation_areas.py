"""How well the order of a map's values tells fixated places from others: areas under ROC curves.

Maps and points are those of `heatproof.proof.fixations`.
"""

from typing import Any

import numpy as np

from heatproof.errors import InputError
from heatproof.proof.fixated import finite, fixated, stretched


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
    heat = finite(heat)
    hit = np.zeros(heat.shape, bool)
    hit[tuple(fixated(heat, points).T)] = True
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
    heat = finite(heat)
    return _roc(heat[tuple(fixated(heat, points, True).T)], heat.ravel())


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
    heat = stretched(finite(heat))
    positive = heat[tuple(fixated(heat, points).T)]
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
    heat = stretched(finite(heat))
    positive = heat[tuple(fixated(heat, points).T)]
    negative = heat[tuple(fixated(heat, others, splits is None).T)]
    score = _roc if step is None else lambda p, n: _stepped(p, n, step)
    if splits is None:
        return float(score(positive, negative))
    chance = np.random.default_rng(seed)
    size = min(len(positive), len(negative))
    return float(np.mean([score(positive, chance.permutation(negative)[:size]) for _ in range(_count(splits))]))


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


def _count(splits: Any) -> int:
    if isinstance(splits, bool) or not isinstance(splits, int) or splits < 1:
        raise InputError(f"splits={splits!r}; expected a whole number, 1 or more.")
    return splits
