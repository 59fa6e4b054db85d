"""What a verdict is made of, each against the slow and obvious version: regions, places, spectra, ranks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from heatproof.proof.chance import interval, p_value
from heatproof.proof.placements import Placement, placements
from heatproof.proof.regions import WIDEST, marked
from heatproof.proof.spectrum import matched_spectrum


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slowly_marked(heat, part):
    """Level sets from the highest value down, until one has the mass; the largest within the limit if that is too wide."""
    low = max(0.0, float(heat.min()))
    values = [[max(0.0, float(v) - low) for v in row] for row in heat]
    total, found = sum(map(sum, values)), None
    for level in sorted({v for row in values for v in row}, reverse=True):
        region = [[v >= level for v in row] for row in values]
        if found is not None and sum(map(sum, region)) > WIDEST * heat.numel():
            break
        found = region
        if sum(v for row in values for v in row if v >= level) >= part * total * (1 - 1e-9):
            break
    return torch.tensor(found)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_marked_region_by_thresholds(seed, part):
    smooth, coarse = noise(9, 13, seed=seed), (noise(9, 13, seed=seed) * 1.5).round()
    for heat in (smooth, coarse, coarse.clamp_min(0), smooth.exp(), smooth - 1):
        assert torch.equal(marked(heat, part), slowly_marked(heat, part))
    assert torch.equal(marked(torch.stack([smooth, coarse]), part)[1], marked(coarse, part))


def test_what_points_nowhere_marks_nothing_and_equal_values_stay_together():
    assert not marked(torch.full((5, 7), 3.0), 0.5).any()
    assert not marked(-noise(5, 7).abs(), 0.5).any()
    mask = torch.zeros(8, 8)
    mask[2:5, 3:6] = 2.0
    assert torch.equal(marked(mask, 0.5), mask > 0) and torch.equal(marked(mask, 0.8), mask > 0)
    assert torch.equal(marked(1 - mask, 0.5), mask == 0)  # more than half of the image at one value: it is all there is


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.8]), st.integers(0, 8), st.integers(0, 10), st.booleans(), st.booleans()
)
def test_a_moved_or_mirrored_map_marks_the_moved_or_mirrored_region(seed, part, down, right, up, left):
    heat = (noise(9, 11, seed=seed) * 2).round()
    place = Placement((up, left), (down, right))
    assert torch.equal(marked(place(heat), part), place(marked(heat, part)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.exp, torch.sigmoid, lambda m: m**3]))
def test_a_monotone_transform_changes_how_much_is_marked_but_not_in_which_order(seed, transform):
    heat = noise(9, 11, seed=seed)
    one, two = marked(heat, 0.5), marked(transform(heat), 0.5)
    assert not (one & ~two).any() or not (two & ~one).any()
    assert torch.equal(marked(heat * 7, 0.5), one)
    positive = heat.double() - heat.min()
    assert torch.equal(marked(positive + 3, 0.5), marked(positive, 0.5))


def block(height, width, top, left, rows, columns):
    region = torch.zeros(height, width, dtype=torch.bool)
    lines = torch.tensor([(top + i) % height for i in range(rows)])
    region[lines[:, None], torch.tensor([(left + i) % width for i in range(columns)])] = True
    return region


def test_a_placement_mirrors_and_rolls():
    heat = torch.arange(12.0).view(3, 4)
    assert torch.equal(Placement((True, False), (1, 2))(heat), heat.flip(0).roll((1, 2), (0, 1)))
    assert torch.equal(Placement((False, False), (0, 0))(heat), heat)


@pytest.mark.parametrize("top, left, cut", [(3, 5, False), (0, 0, False), (18, 5, True), (18, 27, True)])
def test_a_compact_region_moves_whole_and_one_that_is_cut_stays_cut(top, left, cut):
    region = block(20, 30, top, left, 5, 7)
    region[(top + 1) % 20, (left + 2) % 30] = False  # so that mirrors show
    starts = set()
    for place in placements(region, 40):
        copy = place(region)
        assert copy.sum() == region.sum()
        rows, columns = copy.any(1).nonzero().flatten(), copy.any(0).nonzero().flatten()
        assert (len(rows), len(columns)) == (5, 7)
        assert (int(rows[-1] - rows[0]) == 4) == (top + 5 <= 20) and (int(columns[-1] - columns[0]) == 6) == (left + 7 <= 30)
        starts.add((int(rows[0]), int(columns[0])))
    if not cut:
        assert len(starts) == 40 and (top, left) not in starts
        assert min(max(abs(top - r), abs(left - c)) for r, c in starts) >= 2


def test_a_spread_region_is_rolled_all_around_and_mirrored():
    region = noise(16, 24) > 1
    places = placements(region, 63)
    shifts = {place.shift for place in places}
    assert len(set(places)) == 63 and max(r for r, _ in shifts) > 12 and max(c for _, c in shifts) > 20
    assert len({place.flips for place in places}) == 4


def test_copies_come_from_their_seed():
    region, state = noise(16, 24) > 1, torch.get_rng_state()
    assert placements(region, 9, 3) == placements(region, 9, 3) != placements(region, 9, 4)
    assert torch.equal(torch.get_rng_state(), state)


def ranks_over_all_places(height, width, rows, columns, copies, seed):
    """p of a block at every place where it fits, for a statistic that is any function of the place."""
    values = noise(height, width, seed=99).double()
    found = []
    for top, left in itertools.product(range(height - rows + 1), range(width - columns + 1)):
        region = block(height, width, top, left, rows, columns)
        null = []
        for place in placements(region, copies, seed):
            copy = place(region)
            null.append(values[int(copy.any(1).nonzero()[0]), int(copy.any(0).nonzero()[0])])
        found.append(p_value(values[top, left], torch.stack(null)))
    return torch.stack(found)


def test_p_is_exactly_uniform_over_all_places():
    p = ranks_over_all_places(13, 24, 4, 5, copies=9, seed=0)  # 10 × 20 places, a lattice of 10
    assert [int((p * 10).round().eq(k).sum()) for k in range(1, 11)] == [20] * 10


def test_p_is_uniform_also_where_the_lattice_does_not_fit_the_pixels():
    p = torch.cat([ranks_over_all_places(13, 17, 4, 5, copies=9, seed=seed) for seed in range(6)])
    share = torch.tensor([(p <= k / 10 + 1e-9).double().mean() for k in range(1, 11)])
    assert (share - torch.arange(1, 11) / 10).abs().max() < 0.03


def test_copies_of_the_same_texture_have_its_values_and_its_spectrum():
    f = torch.fft.fftfreq(32)
    heat = torch.fft.ifft2(torch.fft.fft2(noise(32, 32)) * torch.exp(-60 * (f[:, None] ** 2 + f**2))).real
    copies = matched_spectrum(heat, 3, seed=1)
    for copy in copies:
        assert torch.equal(copy.flatten().sort().values, heat.flatten().sort().values)
        rough = ((copy - copy.roll(1, 0)).square().mean() / (heat - heat.roll(1, 0)).square().mean()).item()
        assert 0.7 < rough < 1.5
        assert abs(torch.corrcoef(torch.stack([copy.flatten(), heat.flatten()]))[0, 1]) < 0.5
    assert torch.equal(copies, matched_spectrum(heat, 3, seed=1)) and not torch.equal(copies, matched_spectrum(heat, 3, seed=2))


def test_the_rank_by_counting():
    null = torch.tensor([[1.0, 2, 3, 3], [1, 2, torch.nan, torch.nan]])
    assert p_value(torch.tensor([3.0, 1.5]), null).tolist() == [3 / 5, 2 / 3]
    assert p_value(torch.tensor([3.0, 1.5]), null, higher=False).tolist() == [5 / 5, 2 / 3]
    assert p_value(torch.tensor([9.0, 9.0]), null).tolist() == [1 / 5, 1 / 3]
    assert p_value(torch.zeros(1), torch.zeros(1, 4)).tolist() == [1.0] and p_value(
        torch.zeros(1), torch.zeros(1, 0)
    ).tolist() == [1.0]
    assert p_value(torch.tensor([torch.nan]), torch.zeros(1, 4)).isnan().all()


@pytest.mark.parametrize("beaten", [0, 1, 7, 20])
def test_the_interval_is_where_the_count_is_no_longer_surprising(beaten):
    null = torch.cat([torch.ones(beaten), torch.zeros(20 - beaten)])
    low, high = interval(torch.tensor(0.5), null).tolist()
    assert low == 0 if beaten == 0 else binom.sf(beaten - 1, 20, low) == pytest.approx(0.025)
    assert high == 1 if beaten == 20 else binom.cdf(beaten, 20, high) == pytest.approx(0.025)
    assert low <= beaten / 20 <= high
