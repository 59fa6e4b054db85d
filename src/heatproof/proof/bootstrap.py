"""How sure a mean is, from the sample itself."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Mean:
    """A mean and its confidence interval."""

    value: float
    low: float
    high: float
    count: int


def bootstrap_mean(values: Float[np.ndarray, " count"], level: float = 0.95, draws: int = 2000, seed: int = 0) -> Mean:
    """The mean, and the middle `level` of the means of samples of the same size, drawn with replacement (percentiles).

    The same seed draws the same images for every column of one length, so that differences can be read too.

    Args:
        values: one per image; NaN is left out.
        level: of the interval.
        draws: samples.
        seed: of the draws.

    Returns:
        NaN for no value, an interval without width for one.

    Paper: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Mean(np.nan, np.nan, np.nan, 0)
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(values.mean()), float(low), float(high), len(values))
