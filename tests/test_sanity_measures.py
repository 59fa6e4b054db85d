"""How alike two maps are: the measures of the sanity checks against scipy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, pearsonr, spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity

import heatproof as hp
from heatproof.proof.randomisation import emprt, histogram_entropy
from heatproof.proof.similarity import MEASURES, SIDE, Reference, explained_by, similarity


def maps(seed=0, count=3, size=(17, 23)):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)).cumsum(1).cumsum(2)


@pytest.mark.parametrize("signed", [True, False])
def test_measures(signed):
    first, second = maps(0), maps(1)
    if not signed:
        first, second = first.clamp_min(0), second.relu()
    found = similarity(first, second)
    assert set(found) == set(MEASURES)
    for i, (a, b) in enumerate(zip(first.double().numpy(), second.double().numpy(), strict=True)):
        p, q = abs(a), abs(b)
        expected = {"spearman": spearmanr(a.ravel(), b.ravel())[0], "spearman_abs": spearmanr(p.ravel(), q.ravel())[0]}
        p, q = ((m - m.min()) / (m.max() - m.min()) for m in (p, q))
        expected["ssim"] = structural_similarity(p, q, win_size=7, data_range=1)
        cells = {"pixels_per_cell": (2, 2), "cells_per_block": (3, 3)}
        expected["hog"] = pearsonr(hog(p, **cells), hog(q, **cells))[0]
        assert {name: found[name][i].item() for name in found} == pytest.approx(expected, abs=1e-5)


def test_measures_at_the_ends():
    first = maps()
    for name, value in similarity(first, first * 3).items():
        assert torch.allclose(value, torch.ones(3)), name
    assert similarity(first, -first)["spearman"].tolist() == pytest.approx([-1] * 3)
    assert similarity(first, -first)["spearman_abs"].tolist() == pytest.approx([1] * 3)
    flat = torch.ones_like(first)
    constant = similarity(first, flat)
    assert constant["spearman"].tolist() == constant["hog"].tolist() == [0] * 3
    assert all(torch.isnan(value).all() for value in similarity(flat, first).values())
    for value in similarity(maps(size=(3, 4)), maps(1, size=(3, 4))).values():
        assert torch.isfinite(value).all()
    for bad in (first * float("nan"), maps(size=(2, 9))):
        with pytest.raises(hp.InputError):
            similarity(bad, bad)
    with pytest.raises(hp.InputError, match="compared"):
        Reference(first).compare(first[:2])


def test_large_maps_are_averaged_down():
    large = maps(size=(SIDE * 2, SIDE * 2 - 20)).abs()
    small = large.view(3, SIDE, 2, SIDE - 10, 2).mean((2, 4))
    other = maps(1, size=(SIDE * 2, SIDE * 2 - 20)).abs()
    found = similarity(large, other), similarity(small, other.view(3, SIDE, 2, SIDE - 10, 2).mean((2, 4)))
    for name in MEASURES:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-5)


def test_what_edges_explain():
    edges = maps(5).abs()
    found = explained_by(torch.cat([edges, maps(6)]), torch.cat([edges * 2 + 1, edges]))
    assert torch.allclose(found["r2"][:3], torch.ones(3)) and torch.allclose(found["spearman"][:3], torch.ones(3))
    for i, (a, b) in enumerate(zip(maps(6).abs(), edges, strict=True)):
        assert found["r2"][3 + i].item() == pytest.approx(pearsonr(a.ravel(), b.ravel())[0] ** 2, abs=1e-5)
        assert found["spearman"][3 + i].item() == pytest.approx(spearmanr(a.ravel(), b.ravel())[0], abs=1e-5)


def test_entropy():
    values = maps(3, count=4)
    values[3] = 7
    for one, found in zip(values, histogram_entropy(values), strict=True):
        counts = np.histogram(one.double().numpy(), 100)[0]
        assert found.item() == pytest.approx(entropy(counts), abs=1e-5)
    score = emprt(values[None], torch.stack([values.flip(0)[None], values[None]]))
    assert score.shape == (2, 1, 4) and score[1, 0, :3].tolist() == [0] * 3 and torch.isnan(score[:, 0, 3]).all()
    assert score[0, 0, 0] == -1  # a constant map has no entropy
