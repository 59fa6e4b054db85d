"""What the bottom-up models share: smoothing, pyramids, sizes, colours and oriented energy, against slow versions."""

import math

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.bottom_up.colour import dkl, lab
from heatproof.bottom_up.filters import enlarged, gaussian, pyramid, working
from heatproof.bottom_up.orientation import ANGLES, oriented
from heatproof.bottom_up.resample import averaged, stretched
from pictures import noise


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


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (9, 17)])
@pytest.mark.parametrize("mix", [None, ((0.2, 0.5, 0.3),), ((1.0, -1.0, 0.0), (0.0, 0.5, 0.5))])
def test_reductions_are_means_over_the_pixels_that_are_touched(size, mix):
    x = noise(2, 3, 9, 17)
    mixed = x if mix is None else torch.einsum("kc,bchw->bkhw", torch.tensor(mix), x)
    torch.testing.assert_close(averaged(x, size, mix), torch.nn.functional.adaptive_avg_pool2d(mixed, size))
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as images lie that come from files
    assert torch.equal(averaged(turned, size, mix), averaged(x, size, mix))
    four = noise(2, 4, 9, 17)
    torch.testing.assert_close(averaged(four, size), torch.nn.functional.adaptive_avg_pool2d(four, size))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (3, 5)])
@pytest.mark.parametrize("size", [(3, 5), (7, 5), (12, 20), (13, 31)])
def test_enlargements_are_bilinear(height, width, size):
    maps = noise(2, height, width)
    expected = torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(stretched(maps, size), expected[:, 0])
    torch.testing.assert_close(enlarged(maps[:, None].double(), size).float(), expected)  # another type goes through torch


@pytest.mark.parametrize("size", [(64, 80), (20, 24), (8, 10)])  # averaged, resized, enlarged
def test_the_working_image_is_mixed_and_clipped(size):
    x, mix = noise(1, 3, *size), ((0.299, 0.587, 0.114),)
    torch.testing.assert_close(
        working(x, 16, mix), torch.einsum("kc,bchw->bkhw", torch.tensor(mix), working(x, 16)), rtol=1e-5, atol=1e-6
    )
    assert working(3 * x - 1, 16).aminmax() == (0, 1)
    lost = x.clone()
    lost[0, 1, -1, -1] = math.nan
    with pytest.raises(hp.InputError):
        working(lost, 16, mix)
