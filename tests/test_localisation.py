"""Localisation scores: by hand, and against slow versions that follow the definitions pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import heatproof as hp
from heatproof.proof import localisation as L


def case(seed=0, levels=None, shape=(9, 13), count=3):
    chance = np.random.default_rng(seed)
    maps = chance.normal(size=(count, *shape))
    if levels:
        maps = np.floor(maps * levels) / levels
    masks, void = chance.random((2, count, *shape)) < 0.3
    masks[:, 2:6, 3:8] = True
    void[:, 2, 3] = False
    return torch.tensor(maps, dtype=torch.float32), torch.tensor(masks), torch.tensor(void)


def pixels(mask):
    return [tuple(p) for p in np.argwhere(np.asarray(mask))]


def pointing_slowly(heat, mask, void, tolerance):
    free = pixels(~void)
    top = max(float(heat[p]) for p in free)
    best = [p for p in free if float(heat[p]) == top]
    goal = pixels(mask & ~void)
    hits = [min(((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) ** 0.5 for q in goal) <= tolerance for p in best]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("tolerance", [0, 1, 2.3])
@pytest.mark.parametrize("levels", [None, 1])
def test_pointing_game(tolerance, levels):
    maps, masks, void = case(1, levels)
    masks[:] = False
    masks[:, 4, 4:7] = True
    void[:, 4, 5] = False
    expected = [pointing_slowly(*one, tolerance) for one in zip(maps, masks, void, strict=True)]
    assert L.pointing_game(maps, masks, tolerance, void).tolist() == pytest.approx(expected)


def test_mass_and_rank():
    maps, masks, void = case(2, levels=2)
    for i in range(3):
        free = pixels(~void[i])
        on = set(pixels(masks[i] & ~void[i]))
        value = {p: float(maps[i][p]) for p in free}
        positive = sum(max(v, 0) for p, v in value.items() if p in on) / sum(max(v, 0) for v in value.values())
        both = sum(abs(v) for p, v in value.items() if p in on) / sum(abs(v) for v in value.values())
        assert L.energy_pointing(maps, masks, void)[i].item() == pytest.approx(positive, abs=1e-6)
        assert L.relevance_mass(maps, masks, void)[i].item() == pytest.approx(both, abs=1e-6)
        chance, draws = np.random.default_rng(0), []
        for _ in range(2000):  # ties are broken by lot
            order = sorted(free, key=lambda p: (-value[p], chance.random()))
            draws.append(sum(p in on for p in order[: len(on)]) / len(on))
        assert L.relevance_rank(maps, masks, void)[i].item() == pytest.approx(np.mean(draws), abs=0.005)


def overlap(marked, on):
    return len(marked & on) / len(marked | on)


@pytest.mark.parametrize("threshold", [0, 0.15, 0.5, 1, "mean", "best"])
def test_iou(threshold):
    maps, masks, void = case(3, levels=4)
    for i in range(3):
        free, on = pixels(~void[i]), set(pixels(masks[i] & ~void[i]))
        value = {p: float(maps[i][p]) for p in free}
        low, high = min(value.values()), max(value.values())
        if threshold == "best":
            expected = max(overlap({p for p in free if value[p] >= t}, on) for t in value.values())
        else:
            level = sum(value.values()) / len(value) if threshold == "mean" else low + threshold * (high - low)
            expected = overlap({p for p in free if value[p] > level}, on)
        assert L.iou(maps, masks, threshold, void)[i].item() == pytest.approx(expected)


def test_otsu_parts_two_levels():
    mask = torch.zeros(1, 8, 10, dtype=torch.bool)
    mask[:, 2:5, 3:9] = True
    heat = mask.float() * 3 + torch.rand(1, 8, 10, generator=torch.Generator().manual_seed(0))
    assert L.iou(heat, mask, "otsu").item() == 1


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_average_precision_is_scikit_learns(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    maps, masks, void = case(4, levels)
    for i in range(3):
        expected = metrics.average_precision_score(masks[i][~void[i]].numpy(), maps[i][~void[i]].numpy())
        assert L.average_precision(maps, masks, void)[i].item() == pytest.approx(expected, abs=1e-6)


SCORES = [L.energy_pointing, L.relevance_mass, L.relevance_rank, L.average_precision, L.pointing_game, L.iou]


@pytest.mark.parametrize("score", SCORES, ids=lambda f: f.__name__)
def test_the_mask_itself_gets_one_and_images_do_not_see_each_other(score):
    maps, masks, _ = case(5)
    assert score(masks.float(), masks).tolist() == [1, 1, 1]
    assert score(1 - masks.float(), masks).max() < 0.8
    together = score(maps, masks)
    assert together.shape == (3,) and together.dtype == torch.float32
    assert torch.equal(together, torch.cat([score(maps[i : i + 1], masks[i : i + 1]) for i in range(3)]))
    assert torch.equal(together, score(maps.numpy(), masks.numpy()))  # any library's arrays


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(-5, 5))
def test_only_the_order_counts_for_rank_pointing_and_precision(seed, gain, shift):
    maps, masks, _ = case(seed)
    other = (maps.double() * gain + shift).float()
    for score in (L.relevance_rank, L.average_precision, L.pointing_game):
        assert torch.allclose(score(maps, masks), score(other, masks), atol=1e-3)


def test_a_constant_map_gets_what_chance_gets():
    _, masks, _ = case(6)
    flat, share = torch.full(masks.shape, 0.3), masks.float().mean((1, 2))
    for score in (L.relevance_rank, L.average_precision, L.pointing_game, L.energy_pointing):
        assert torch.allclose(score(flat, masks), share, atol=1e-6)
    assert L.iou(flat, masks).tolist() == [0, 0, 0] and torch.allclose(L.iou(flat, masks, "best"), share)
    assert L.energy_pointing(-flat, masks).tolist() == [0, 0, 0]


def test_boxes():
    masks = L.box_masks([(1, 2, 4, 5), [(0, 0, 1, 1), (-3, 5, 2, 99)]], (6, 5))
    expected = torch.zeros(2, 6, 5, dtype=torch.bool)
    expected[0, 2:5, 1:4] = expected[1, 0, 0] = expected[1, 5, :2] = True
    assert torch.equal(masks, expected)
    for bad in [(4, 2, 1, 5), (1, 2, 3), ("a", 1, 2, 3), (9, 0, 12, 3), (0, 0, float("nan"), 2)]:
        with pytest.raises(hp.InputError):
            L.box_masks([bad], (6, 5))


def test_bad_input_is_told():
    maps, masks, void = case(7)
    with pytest.raises(hp.InputError, match="shapes"):
        L.iou(maps[:, 1:], masks)
    with pytest.raises(hp.InputError, match="NaN"):
        L.energy_pointing(maps * float("nan"), masks)
    with pytest.raises(hp.InputError, match=r"image\(s\) \[1\] is empty"):
        L.relevance_rank(maps, masks & torch.tensor([True, False, True])[:, None, None])
    with pytest.raises(hp.InputError, match="is empty"):
        L.relevance_rank(maps, masks, void | masks)
    for wrong in ("median", 1.2, True):
        with pytest.raises(hp.InputError, match="threshold"):
            L.iou(maps, masks, wrong)
    with pytest.raises(hp.InputError, match="tolerance"):
        L.pointing_game(maps, masks, -1)
