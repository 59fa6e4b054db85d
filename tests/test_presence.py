"""Scores of presence against slow versions: pairs counted one by one, every threshold tried, every scene drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import heatproof as hp
from heatproof.proof.presence import auroc, threshold, twins_auroc

some = st.integers(-4, 4).map(float)
scores = hnp.arrays(float, st.integers(1, 9), elements=some)


def by_pairs(there: np.ndarray, absent: np.ndarray) -> float:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in there.flat for b in absent.flat]
    return sum(wins) / len(wins)


@given(scores, scores)
def test_auroc_is_the_share_of_pairs(there, absent):
    assert auroc(there, absent) == pytest.approx(by_pairs(there, absent))
    assert auroc(there, absent) + auroc(absent, there) == pytest.approx(1)


@given(hnp.arrays(float, 12, elements=some), hnp.arrays(bool, 12))
def test_threshold_is_the_best_of_all(values, there):
    if there.all() or not there.any() or len(set(values)) < 2:
        with pytest.raises(hp.InputError, match="different scores"):
            threshold(values, there)
        return
    levels = sorted(set(values))
    gain = {(a + b) / 2: (values[there] > (a + b) / 2).mean() - (values[~there] > (a + b) / 2).mean()
            for a, b in itertools.pairwise(levels)}  # fmt: skip
    found = threshold(values, there)
    assert gain[found] == pytest.approx(max(gain.values()))
    assert found == max(level for level, value in gain.items() if value > max(gain.values()) - 1e-12)


def test_twins_are_drawn_together():
    rng = np.random.default_rng(3)
    there = [rng.normal(1, 1, (n, 2)) for n in (9, 14)]
    absent = [rng.normal(0, 1, (n, 2)) for n in (9, 14)]
    mean, drawn = twins_auroc(there, absent, draws=4000, seed=5)
    assert mean.value == pytest.approx(np.mean([by_pairs(a, b) for a, b in zip(there, absent, strict=True)]))
    assert mean.count == 23
    assert drawn.shape == (4000,)
    slow = []
    for _ in range(600):
        values = []
        for one, other in zip(there, absent, strict=True):
            rows = rng.integers(len(one), size=len(one))
            values.append(by_pairs(one[rows], other[rows]))
        slow.append(np.mean(values))
    assert np.mean(drawn) == pytest.approx(np.mean(slow), abs=0.015)
    assert np.std(drawn) == pytest.approx(np.std(slow), rel=0.15)
    assert (mean.low, mean.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.035)


def test_the_same_seed_draws_the_same_scenes():
    rng = np.random.default_rng(3)
    there, absent = [rng.normal(1, 1, (9, 2))], [rng.normal(0, 1, (9, 2))]
    first, second = (twins_auroc(there, absent, draws=50, seed=1)[1] for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, twins_auroc([2 * there[0]], [2 * absent[0]], draws=50, seed=1)[1])
    perfect, always = twins_auroc([absent[0] + 99], absent, draws=50)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
    assert always == pytest.approx(np.ones(50))


@pytest.mark.parametrize("wrong", [np.array([]), np.array([np.nan]), np.array([1.0, np.inf])])
def test_scores_that_are_none(wrong):
    with pytest.raises(hp.InputError):
        auroc(wrong, np.ones(3))
    with pytest.raises(hp.InputError):
        threshold(wrong, np.arange(len(wrong)) == 0)
    with pytest.raises(hp.InputError):
        twins_auroc([np.ones((3, 1))], [wrong[:, None]])
    with pytest.raises(hp.InputError, match="nothing to tell apart"):
        twins_auroc([], [])
