"""Itti's model, its competitions and its scan path, against slow versions of themselves."""

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.bottom_up.competition import competed, promoted
from heatproof.bottom_up.filters import gaussian
from heatproof.bottom_up.itti import CHANNELS, PAIRS, itti, pipeline
from heatproof.bottom_up.orientation import ANGLES
from heatproof.bottom_up.scanpath import scanpath
from pictures import noise, smooth


def test_promotion_against_a_search_for_peaks():
    maps = noise(3, 2, 9, 14)
    for one, found in zip(maps.flatten(0, 1), promoted(maps).flatten(0, 1), strict=True):
        one = (one - one.min()) / (one.max() - one.min())
        peaks = []
        for i in range(9):
            for j in range(14):
                around = one[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                if one[i, j] == around.max() and one[i, j] > 0:
                    peaks.append(float(one[i, j]))
        peaks.remove(max(peaks))
        torch.testing.assert_close(found, one * (1 - sum(peaks) / len(peaks)) ** 2)


def test_promotion_by_hand():
    one = torch.zeros(1, 3, 5, 9)
    one[0, 0, 2, 2] = 4.0  # alone: kept
    one[0, 1, 2, 2] = one[0, 1, 2, 6] = 4.0  # twins: gone
    one[0, 2, 2, 1], one[0, 2, 2, 4:6], one[0, 2, 2, 8] = 4.0, 1.0, 3.0  # a plateau is one peak
    found = promoted(one)
    assert found[0, 0].max() == 1 and found[0, 1].max() == 0
    assert found[0, 2].max() == pytest.approx((1 - (0.25 + 0.75) / 2) ** 2)


def test_competition_keeps_the_strong_one():
    maps = torch.zeros(1, 2, 30, 40)
    maps[0, :, 10, 10] = 1.0
    maps[0, 0, 20, 30] = 0.6
    smoothed = gaussian(maps, 1.0)
    found = competed(smoothed)
    assert found[0, 0].argmax() == 10 * 40 + 10 and found[0, 0, 20, 30] < 0.6 * found[0, 0, 10, 10]
    assert competed(torch.ones(1, 1, 5, 5)).max() == 0


def test_competition_against_the_formula_pixel_by_pixel():
    maps = noise(1, 1, 5, 7, seed=2)
    found = (maps - maps.min()) / (maps.max() - maps.min())
    for _ in range(10):
        near, far = gaussian(found, 0.02 * 7), gaussian(found, 0.25 * 7)
        old, found = found, torch.zeros_like(found)
        for i in range(5):
            for j in range(7):
                value = old[0, 0, i, j] + 0.5**2 * near[0, 0, i, j] - 1.5**2 * far[0, 0, i, j] - 0.02
                found[0, 0, i, j] = max(0.0, float(value))
    torch.testing.assert_close(competed(maps), found)


def test_the_pipeline_has_every_map_and_they_are_what_the_formulas_say():
    x = smooth(60, 90)
    steps = pipeline(x, longest=512)
    assert len(steps.features) == len(steps.normalised) == 42 == len(CHANNELS) * len(PAIRS)
    assert all(len(levels) == 9 for levels in steps.pyramids.values())
    pyramids = steps.pyramids

    def upsampled(level, size):
        return torch.nn.functional.interpolate(level[:, None], size, mode="bilinear")[:, 0]

    for (name, centre, surround), found in steps.features.items():
        c = pyramids[name][centre]
        s = upsampled(pyramids[name][surround], c.shape[-2:])
        # the surround of a red-green cell is green minus red
        expected = (c - s).abs() if name not in ("red-green", "blue-yellow") else (c + -s).abs()
        inside = (slice(None), slice(8, -8), slice(8, -8))
        if centre == 2:  # the border fades
            torch.testing.assert_close(found[inside], expected[inside])
        assert (found <= expected + 1e-6).all()
    total = {}
    for (name, centre, surround), maps in steps.normalised.items():
        torch.testing.assert_close(maps, promoted(steps.features[name, centre, surround][:, None])[:, 0])
        size = pyramids["intensity"][4].shape[-2:]
        small = torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", antialias=True)
        total[name] = total.get(name, 0) + small
    by_hand = {
        "intensity": total["intensity"],
        "colour": total["red-green"] + total["blue-yellow"],
        "orientation": sum(promoted(total[f"{angle}°"]) for angle in ANGLES),
    }
    for name, maps in by_hand.items():
        torch.testing.assert_close(steps.conspicuity[name], maps[:, 0], rtol=1e-4, atol=1e-6)
    total = sum(promoted(maps) for maps in by_hand.values())[:, 0] / 3
    torch.testing.assert_close(steps.saliency, gaussian(total, 0.03 * 32))  # 3 % of the longer side at level 4
    torch.testing.assert_close(pipeline(x, longest=512, smooth=0).saliency, total)


def test_opponent_colours_by_hand():
    image = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.5, 0.5, 0.1], [0.1, 0.1, 0.9], [0.4, 0.4, 0.4], [0.01, 0.0, 0.0]])
    early = hp.bottom_up.itti._early(image.T[None, :, None])[0, :, 0]
    for k, (r, g, b) in enumerate(image.double().tolist()):
        light = (r + g + b) / 3
        r, g, b = (c / light if light > 0.04 else 0.0 for c in (r, g, b))  # a tenth of the brightest, which is 0.4
        red, green, blue = max(0, r - (g + b) / 2), max(0, g - (r + b) / 2), max(0, b - (r + g) / 2)
        yellow = max(0, (r + g) / 2 - abs(r - g) / 2 - b)
        torch.testing.assert_close(early[:, k], torch.tensor([light, red - green, blue - yellow]), rtol=1e-5, atol=1e-6)


def test_printed_opponency_adds_the_surround():
    x = smooth(40, 64)
    steps = pipeline(x, opponency="printed", border=0, longest=256)
    level = steps.pyramids["red-green"]
    surround = torch.nn.functional.interpolate(level[5][:, None], level[2].shape[-2:], mode="bilinear")[:, 0]
    torch.testing.assert_close(steps.features["red-green", 2, 5], (level[2] + surround).abs())


@pytest.mark.parametrize("options", [{"normalisation": "x"}, {"opponency": "x"}, {"border": 0.6}, {"smooth": -1}, {"longest": 0}])
def test_itti_says_what_cannot_be(options):
    with pytest.raises(hp.MethodError, match=next(iter(options))):
        itti(noise(1, 3, 5, 5), **options)


def test_scanpath_visits_peaks_in_order_and_does_not_return_at_once():
    maps = torch.zeros(2, 60, 90)
    peaks = [(15, 20, 1.0), (45, 70, 0.8), (14, 72, 0.6), (46, 18, 0.4)]
    for row, column, height in peaks:
        maps[0, row, column] = height
    maps[1] = maps[0].flip(1)
    path = scanpath(maps, 4)
    assert path.positions[0].tolist() == [[row, column] for row, column, _ in peaks]
    assert path.positions[1].tolist() == [[row, 89 - column] for row, column, _ in peaks]
    assert path.times[0, 0] == pytest.approx(0.030, abs=1e-3) and (path.times.diff(dim=1) > 0).all()
    waits = path.times[0].diff()
    assert (waits.diff() > 0).all() and waits.min() > 0.03 and waits.max() < 0.1
    # inhibition falls: the strongest place is seen again, hundreds of milliseconds later
    again = scanpath(maps, 30)
    first_again = next(k for k in range(1, 30) if again.positions[0, k].tolist() == [15, 20])
    assert first_again >= 4 and again.times[0, first_again] > 0.2


def test_scanpath_against_steps_in_small_time():
    """Integrate the neurons in steps of a tenth of a millisecond instead of solving for the time they fire."""
    maps = gaussian(noise(1, 12, 17), 1.5)
    path = scanpath(maps, 5)
    strength = (maps / maps.max())[0].double().numpy()
    rows, columns = np.mgrid[:12, :17]
    inhibition, near, clock, step = np.zeros((12, 17)), np.ones((12, 17)), 0.0, 1e-4
    for k in range(5):
        drive = strength * (1 - inhibition) * near + 0.2
        voltage, waited = np.zeros((12, 17)), 0.0
        while voltage.max() < 0.19:
            voltage += step / 0.174 * (drive - voltage)
            waited += step
        clock += waited
        row, column = np.unravel_index(voltage.argmax(), voltage.shape)
        assert path.positions[0, k].tolist() == [row, column]
        assert path.times[0, k].item() == pytest.approx(clock, abs=2e-3)
        distance = np.hypot(rows - row, columns - column)
        inhibition = np.maximum(inhibition * np.exp(-waited / 0.3), distance <= 2)
        near = 1 + 0.1 * np.exp(-(distance**2) / (2 * 4**2))


def test_scanpath_of_nothing_and_of_bad_maps():
    assert torch.isfinite(scanpath(torch.zeros(1, 5, 5), 3).times).all()
    with pytest.raises(hp.InputError, match="NaN"):
        scanpath(torch.full((1, 5, 5), torch.nan))
    with pytest.raises(hp.MethodError, match="fixations"):
        scanpath(torch.zeros(1, 5, 5), 0)
