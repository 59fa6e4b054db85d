"""Centre-surround, Itti, spectral residual, GBVS and entropy against slow versions of themselves and other libraries."""

import math

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.bottom_up.center_surround import box_mean, center_surround
from heatproof.bottom_up.colour import dkl, grey, lab
from heatproof.bottom_up.entropy import entropy
from heatproof.bottom_up.filters import gaussian, pyramid
from heatproof.bottom_up.gbvs import activated, concentrated, gbvs, graph
from heatproof.bottom_up.itti import CHANNELS, PAIRS, competed, itti, pipeline, promoted
from heatproof.bottom_up.method import finish
from heatproof.bottom_up.orientation import ANGLES, oriented
from heatproof.bottom_up.scanpath import scanpath
from heatproof.bottom_up.spectral_residual import spectral_residual, spectrum

MODELS = {
    "center-surround": center_surround,
    "itti": itti,
    "spectral-residual": spectral_residual,
    "gbvs": gbvs,
    "entropy": entropy,
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height, width, seed=0):
    """A colour image with structure at several scales, and no symmetry."""
    return gaussian(noise(1, 3, height, width, seed=seed), 2.0).sub(0.4).mul(4).clamp(0, 1)


# what all of them keep


@every_model
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 4000), (4000, 1), (2, 7), (33, 50)])
def test_any_size(model, size):
    maps = model(noise(2, 3, *size))
    assert maps.shape == (2, *size) and maps.dtype == torch.float32
    assert torch.isfinite(maps).all() and (maps >= 0).all()


@every_model
@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.3, 0.3, 0.3), (0.9, 0.1, 0.37)])
def test_constant_images_give_constant_maps(model, colour):
    maps = model(torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 37, 64).contiguous())
    assert torch.isfinite(maps).all()
    assert (maps.max() - maps.min()) <= 1e-6 * maps.max()


@every_model
def test_bad_values_and_shapes_are_said(model):
    bad = noise(3, 3, 20, 30)
    bad[1, 2, 5, 7] = torch.nan
    with pytest.raises(hp.InputError, match=r"NaN or infinite values in image\(s\) \[1\]"):
        model(bad)
    bad[1, 2, 5, 7] = torch.inf
    with pytest.raises(hp.InputError, match="infinite"):
        model(bad)


@every_model
@pytest.mark.parametrize("turn", ["columns", "rows"])
def test_a_mirrored_image_has_a_mirrored_map(model, turn):
    x, axis = smooth(47, 70), {"columns": 2, "rows": 1}[turn]
    expected = model(x).flip(axis)
    torch.testing.assert_close(model(x.flip(axis + 1)), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@every_model
def test_a_turned_image_has_a_turned_map(model):
    x = smooth(48, 48)
    expected = model(x).rot90(1, (1, 2))
    torch.testing.assert_close(model(x.rot90(1, (2, 3))), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@every_model
def test_batch_mates_do_not_matter_and_the_image_is_left_alone(model):
    x = torch.cat([smooth(40, 61, seed) for seed in range(3)])
    before = x.clone()
    together = model(x)
    assert torch.equal(x, before)
    for i in range(3):
        torch.testing.assert_close(together[i], model(x[i : i + 1])[0], rtol=1e-4, atol=1e-7)


# what they share


def test_centre_bias_and_blur_come_last_and_are_named():
    x = smooth(24, 40)
    plain = hp.explain(None, x, method="center-surround")
    weighed = hp.explain(None, x, method="center-surround", center_bias=0.5, blur=3)
    assert plain.options["center_bias"] is None and weighed.options["center_bias"] == 0.5 and weighed.options["blur"] == 3
    centre = hp.explain(None, x, method="center").map
    torch.testing.assert_close(weighed.map, gaussian(plain.map, 3.0) * centre)
    assert torch.equal(finish(plain.maps[0], 0, 0), plain.maps[0])
    for bad in (-1, True, math.inf, math.nan):
        with pytest.raises(hp.MethodError, match="center_bias"):
            finish(plain.maps[0], center_bias=bad)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("sigma", [0.4, 1.7, 30.0])
def test_gaussian_is_a_mean_over_what_is_inside(monkeypatch, dense, sigma):
    monkeypatch.setattr("heatproof.bottom_up.filters._DENSE", 1024 if dense else 0)
    maps, height, width = noise(2, 5, 9), 5, 9
    reach = int(4 * sigma + 0.5)
    slow = torch.zeros_like(maps)
    for i in range(height):
        for j in range(width):
            total = 0.0
            for k in range(max(0, i - reach), min(height, i + reach + 1)):
                for m in range(max(0, j - reach), min(width, j + reach + 1)):
                    weight = math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * sigma**2))
                    slow[:, i, j] += weight * maps[:, k, m]
                    total += weight
            slow[:, i, j] /= total
    torch.testing.assert_close(gaussian(maps, sigma), slow)


def test_pyramid_levels_are_a_binomial_and_odd_sides_round_up():
    maps = noise(1, 1, 8, 13)
    levels = pyramid(maps, 6)
    assert [tuple(level.shape[-2:]) for level in levels] == [(8, 13), (4, 7), (2, 4), (1, 2), (1, 1), (1, 1)]
    even = noise(1, 1, 1, 16)
    expected = [sum(w * float(even[0, 0, 0, 2 * i - 1 + k]) for k, w in enumerate((1, 3, 3, 1))) / 8 for i in range(1, 7)]
    torch.testing.assert_close(pyramid(even, 2)[1][0, 0, 0, 1:7], torch.tensor(expected))


def test_colours_against_scikit_image_and_by_hand():
    from skimage.color import rgb2lab

    x = noise(2, 3, 6, 5)
    torch.testing.assert_close(
        lab(x), torch.from_numpy(np.moveaxis(rgb2lab(np.moveaxis(x.double().numpy(), 1, 3)), 3, 1)).float(), rtol=1e-4, atol=1e-3
    )
    greys = dkl(noise(1, 1, 4, 4).expand(1, 3, 4, 4))
    assert (greys[:, 0] > 0).all() and greys[:, 1:].abs().max() < 1e-6
    red, blue = dkl(torch.eye(3).view(3, 3, 1, 1))[[0, 2], :, 0, 0]
    assert (
        red[1] > 0
        and blue[2] > 0
        and torch.allclose(dkl(torch.ones(1, 3, 1, 1))[0, :, 0, 0], torch.tensor([1.0, 0, 0]), atol=1e-6)
    )


@pytest.mark.parametrize("k, angle", list(enumerate(ANGLES)))
def test_oriented_energy_is_largest_along_the_stripes(k, angle):
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    turn = math.radians(angle)
    # distance across stripes that run `angle` counter-clockwise from horizontal, rows going down
    stripes = torch.sin(2 * math.pi * (columns * math.sin(turn) + rows * math.cos(turn)) / 4) / 2 + 0.5
    energy = oriented(stripes[None, None])[0, :, 12:28, 12:28].mean((1, 2))
    assert energy.argmax() == k and energy[k] > 3 * energy.sort().values[-2]
    assert oriented(torch.full((1, 1, 20, 20), 0.7)).abs().max() < 1e-6


# centre-surround


@pytest.mark.parametrize("channels", ["lab", "intensity"])
def test_center_surround_against_loops(channels):
    x, size = noise(2, 3, 7, 10), 5
    planes = lab(x) if channels == "lab" else x.mean(1, keepdim=True)
    slow = torch.zeros(2, 7, 10)
    for i in range(7):
        for j in range(10):
            window = planes[:, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            slow[:, i, j] = (planes[:, :, i, j] - window.mean((2, 3))).norm(dim=1)
    torch.testing.assert_close(center_surround(x, size, channels=channels), slow, rtol=1e-4, atol=1e-4)


def test_center_surround_averages_its_sizes_and_takes_a_gaussian():
    x = noise(1, 3, 24, 33)
    mean = (center_surround(x, 3) + center_surround(x, 7) + center_surround(x, 13)) / 3
    torch.testing.assert_close(center_surround(x), mean)  # 24 // 8, 24 // 4 and 24 // 2, made odd
    torch.testing.assert_close(center_surround(x, [3, 7, 13]), mean)
    planes = x.mean(1)
    expected = (planes - gaussian(planes, 2.25)).abs()
    torch.testing.assert_close(center_surround(x, 9, "gaussian", "intensity"), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(box_mean(planes, 999), planes.mean((1, 2), keepdim=True).expand_as(planes))


@pytest.mark.parametrize(
    "options", [{"size": 4}, {"size": 0}, {"size": []}, {"size": [3, 4]}, {"surround": "x"}, {"channels": "x"}]
)
def test_center_surround_says_what_cannot_be(options):
    with pytest.raises(hp.MethodError, match=next(iter(options))):
        center_surround(noise(1, 3, 5, 5), **options)


def test_large_photos_are_worked_on_smaller(monkeypatch):
    monkeypatch.setattr("heatproof.bottom_up.working_size.WORKING_PIXELS", 40 * 60)
    x = smooth(80, 120)
    small = torch.nn.functional.interpolate(x, (40, 60), mode="area")
    for model in (center_surround, entropy):  # a surround of 21 pixels is one of 11 at half the size
        enlarged = torch.nn.functional.interpolate(model(small, 11)[:, None], (80, 120), mode="bilinear")[:, 0]
        torch.testing.assert_close(model(x, 21), enlarged)


# spectral residual


def test_spectral_residual_against_numpy():
    x = noise(1, 3, 48, 64)
    found = spectrum(x)
    image = grey(x)[0, 0].double().numpy()
    transform = np.fft.fft2(image)
    amplitude = np.log(np.abs(transform) + 1e-9)
    mean = sum(np.roll(amplitude, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    power = np.abs(np.fft.ifft2(np.exp(amplitude - mean) * np.exp(1j * np.angle(transform)))) ** 2
    np.testing.assert_allclose(found.log_amplitude[0, 0], amplitude, atol=1e-3)
    np.testing.assert_allclose(found.residual[0, 0], amplitude - mean, atol=1e-3)
    # a phase is defined up to full turns
    np.testing.assert_allclose(np.exp(1j * found.phase[0, 0].numpy()), np.exp(1j * np.angle(transform)), atol=1e-2)
    np.testing.assert_allclose(found.saliency[0], gaussian(torch.from_numpy(power)[None].float(), 2.5)[0], rtol=2e-3)
    torch.testing.assert_close(spectral_residual(x), found.saliency)
    unsmoothed = spectrum(x, sigma=0).saliency[0]
    np.testing.assert_allclose(unsmoothed, power, rtol=5e-3, atol=1e-3 * power.max())


def test_spectral_residual_against_opencv():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "saliency"):
        pytest.skip("OpenCV without its contributed modules")
    from skimage import data

    for name in ("astronaut", "coffee", "chelsea"):
        # of one size beforehand, for OpenCV shrinks without averaging
        photo = cv2.resize(getattr(data, name)(), (64, 64), interpolation=cv2.INTER_AREA)
        theirs = cv2.saliency.StaticSaliencySpectralResidual_create().computeSaliency(np.ascontiguousarray(photo[..., ::-1]))[1]
        ours = spectral_residual(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255, sigma=1.5)[0].numpy()
        # theirs smooths amplitudes and squares them; ours squares before smoothing, as the paper does
        assert np.corrcoef(ours.ravel() ** 0.5, theirs.ravel() ** 0.5)[0, 1] > 0.9


def test_spectral_residual_of_lab_is_the_mean_of_its_channels():
    x = smooth(64, 64)
    found = spectrum(x, "lab", sigma=0)
    assert found.phase.shape == (1, 3, 64, 64)
    power = [torch.fft.ifft2(torch.polar(found.residual[:, k].exp(), found.phase[:, k])).abs() ** 2 for k in range(3)]
    torch.testing.assert_close(found.saliency, torch.stack(power).mean(0))
    for options in ({"channels": "hsv"}, {"sigma": -1}, {"longest": 0}):
        with pytest.raises(hp.MethodError, match=next(iter(options))):
            spectral_residual(x, **options)


# Itti


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
    torch.testing.assert_close(steps.saliency, sum(promoted(maps) for maps in by_hand.values())[:, 0] / 3)


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


@pytest.mark.parametrize("options", [{"normalisation": "x"}, {"opponency": "x"}, {"border": 0.6}, {"longest": 0}])
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


# GBVS


def equilibrium(weights):
    """By power iteration, lazily, so that a chain that swings between two halves settles too."""
    step = weights / weights.sum(1, keepdims=True)
    mass = np.full(len(step), 1 / len(step))
    for _ in range(20000):
        mass = (mass + mass @ step) / 2
    return mass


def chain(height, width, share, strength):
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    sigma = share * (height + width) / 2
    weights = np.zeros((height * width, height * width))
    for i in range(height * width):
        for j in range(height * width):
            squared = (rows[i] - rows[j]) ** 2 + (columns[i] - columns[j]) ** 2
            weights[i, j] = strength(i, j) * math.exp(-squared / (2 * sigma**2))
    return weights


@pytest.mark.parametrize("two_valued", [False, True])
def test_activation_is_the_equilibrium_of_its_chain(two_valued):
    maps = noise(2, 5, 7)
    maps = (maps > 0.7).float() if two_valued else maps
    for one, found in zip(maps.double().numpy(), activated(maps), strict=True):
        values = one.ravel()
        expected = equilibrium(chain(5, 7, 0.15, lambda i, j, values=values: abs(values[i] - values[j])))
        np.testing.assert_allclose(found.flatten(), expected, rtol=1e-3, atol=1e-6)


def test_concentration_is_the_equilibrium_of_its_chain():
    maps = noise(2, 5, 7)
    for one, found in zip(maps.double().numpy(), concentrated(maps), strict=True):
        values = one.ravel()
        # σ = 0.36 pixels: neighbours barely communicate, so this also needs the iteration to be long
        expected = equilibrium(chain(5, 7, 0.06, lambda i, j, values=values: values[j]))
        np.testing.assert_allclose(found.flatten(), expected, rtol=1e-2, atol=1e-4)


def test_the_graph_has_every_map():
    found = graph(smooth(60, 90), grid=12)
    assert {name: tuple(maps.shape) for name, maps in found.features.items()} == {
        "colour": (1, 6, 8, 12),
        "intensity": (1, 3, 8, 12),
        "orientation": (1, 12, 8, 12),
    }
    for maps in (*found.activation.values(), *found.concentration.values()):
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(maps.shape[:2]))
    total = sum(maps.mean(1) for maps in found.concentration.values())
    torch.testing.assert_close(found.saliency, gaussian(total, 0.02 * 12))
    a, b = (gbvs(smooth(60, 90), kind) for kind in ("difference", "log"))
    assert not torch.allclose(a, b)
    for options in ({"dissimilarity": "x"}, {"longest": 0}, {"grid": 0}):
        with pytest.raises(hp.MethodError, match=next(iter(options))):
            gbvs(smooth(5, 5), **options)


# entropy


@pytest.mark.parametrize(
    "window, size", [("disk", 15), ("disk", 1), ("square", 9), ("square", 99), ("square", 100_001), ("disk", 199)]
)
def test_entropy_against_scikit_image(window, size):
    from skimage.filters.rank import entropy as rank_entropy
    from skimage.morphology import disk, footprint_rectangle

    values = np.random.default_rng(0).integers(0, 256, (41, 57), dtype=np.uint8) // 5 * 5
    footprint = disk(size // 2) if window == "disk" else footprint_rectangle((min(size, 199),) * 2)
    x = torch.from_numpy(values).float().div(255).expand(1, 3, -1, -1)
    np.testing.assert_allclose(entropy(x, size, window)[0], rank_entropy(values, footprint), atol=1e-5)


def test_entropy_of_colours_against_loops():
    x, bins = noise(2, 3, 6, 8), 3
    found = entropy(x, 5, "square", "colour", bins)
    codes = (x * bins).long()
    for b in range(2):
        for i in range(6):
            for j in range(8):
                window = codes[b, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].flatten(1).T
                share = window.unique(dim=0, return_counts=True)[1] / len(window)
                assert found[b, i, j].item() == pytest.approx(-(share * share.log2()).sum().item(), abs=1e-5)


@pytest.mark.parametrize("options", [{"size": 4}, {"size": -1}, {"window": "x"}, {"channels": "x"}, {"bins": 1}, {"bins": 10**6}])
def test_entropy_says_what_cannot_be(options):
    with pytest.raises(hp.MethodError, match=next(iter(options))):
        entropy(noise(1, 3, 5, 5), **options)
