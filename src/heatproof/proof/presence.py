"""Does a score say whether a thing is there? Areas, thresholds and false finds, from scores with and without it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from heatproof.errors import InputError
from heatproof.proof.bootstrap import Mean


def auroc(there: Float[ndarray, "..."], absent: Float[ndarray, "..."]) -> float:
    """Area under the ROC curve: how often the score is higher with the thing than without it.

    `P(s⁺ > s⁻) + ½ P(s⁺ = s⁻)`

    Args:
        there: scores where the thing is, any shape.
        absent: scores where it is not.

    Returns:
        From 0 to 1; ½ is chance.

    Raises:
        InputError: no score on one side, or scores that are not finite.
    """
    return float(_pairs(_finite(there).reshape(1, -1), _finite(absent).reshape(1, -1)).item())


def threshold(scores: Float[ndarray, " count"], there: Bool[ndarray, " count"]) -> float:
    """Where to draw the line: the highest rate of hits minus that of false alarms.

    `argmax_t P(s > t | there) − P(s > t | absent)` over the middles between neighbouring scores; the highest such t

    Args:
        scores: one per image.
        there: whether the thing is in it.

    Raises:
        InputError: no image on one side, one score for all, or scores that are not finite.
    """
    scores, there = _finite(scores), np.asarray(there, bool)
    if there.all() or not there.any() or len(np.unique(scores)) < 2:
        raise InputError("a threshold needs different scores, of images with the thing and of images without it.")
    values, place = np.unique(-scores, return_inverse=True)
    # counts in place of rates, multiplied out: ties stay ties
    hits, alarms = (np.bincount(place[side], minlength=len(values)).cumsum() for side in (there, ~there))
    best = int(np.argmax((hits * (~there).sum() - alarms * there.sum())[:-1]))
    return float(-(values[best] + values[best + 1]) / 2)


def twins_auroc(
    there: Sequence[Float[ndarray, "_ versions"]],
    absent: Sequence[Float[ndarray, "_ versions"]],
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Mean, Float[ndarray, " draws"]]:
    """Mean over things of their AUROC, with an interval from a bootstrap over scenes: twins are drawn together.

    Args:
        there: for each thing, scores of scenes with it, each in several versions.
        absent: the same scenes without it.
        level: of the interval (percentiles).
        draws: samples of as many scenes, drawn with replacement within each thing.
        seed: of the draws. The same seed draws the same scenes, so that differences of two scores can be read too.

    Returns:
        The mean with its interval, and the mean in every draw.

    Raises:
        InputError: nothing to compare, or scores that are not finite.
    """
    rng = np.random.default_rng(seed)
    values, drawn = [], []
    for one, other in zip(there, absent, strict=True):
        wins = _pairs(_finite(one), _finite(other))
        count = len(wins)
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
        values.append(wins.mean())
        drawn.append(np.einsum("di,ij,dj->d", times, wins, times, optimize=True))
    if not values:
        raise InputError("there is nothing to tell apart; expected at least one thing with and without which scenes were scored.")
    means = np.mean(drawn, 0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(np.mean(values)), float(low), float(high), sum(map(len, there))), means


def _pairs(there: ndarray, absent: ndarray) -> ndarray:
    """`(n, m)`: how often a version of row i scores higher than one of row j, ties half."""
    one, other = there[:, None, :, None], absent[None, :, None, :]
    return ((one > other) + 0.5 * (one == other)).mean((2, 3))


def _finite(scores: ndarray) -> ndarray:
    scores = np.asarray(scores, float)
    if not scores.size or not np.isfinite(scores).all():
        raise InputError("scores that are NaN, infinite or missing came; expected numbers, at least one on each side.")
    return scores
