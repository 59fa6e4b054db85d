"""What all models keep; centre-surround, spectral residual, GBVS and entropy against slow versions and other libraries."""

import math

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.bottom_up.center_surround import box_mean, center_surround
from heatproof.bottom_up.colour import grey, lab
from heatproof.bottom_up.entropy import entropy
from heatproof.bottom_up.filters import gaussian
from heatproof.bottom_up.gbvs import activated, concentrated, gbvs, graph
from heatproof.bottom_up.itti import itti
from heatproof.bottom_up.method import finish
from heatproof.bottom_up.spectral_residual import spectral_residual, spectrum
from pictures import noise, smooth

MODELS = {
    "center-surround": center_surround,
    "itti": itti,
    "spectral-residual": spectral_residual,
    "gbvs": gbvs,
    "entropy": entropy,
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


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
    np.testing.assert_allclose(found.saliency[0], gaussian(torch.from_numpy(power)[None].float(), 4.0)[0], rtol=2e-3)
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
