"""Region contrast against loops over pixels and pairs of regions."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.segmentation import slic

import heatproof as hp
from heatproof.bottom_up.region_contrast import Regions, contrast, region_contrast, superpixels


def photo(height=40, width=56, seed=0):
    """Smooth colours with a square of another colour in them."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 4, generator=chance) * 0.4, (height, width), mode="bilinear")
    x[:, 0, 12:24, 20:34] = 0.9
    return x


def by_loops(lab, labels, strength):
    height, width = labels.shape
    pixels = {}
    for r in range(height):
        for c in range(width):
            pixels.setdefault(labels[r, c], []).append((lab[r, c], ((r + 0.5) / height, (c + 0.5) / width)))
    colour = {k: np.mean([p[0] for p in own], axis=0) for k, own in pixels.items()}
    place = {k: np.mean([p[1] for p in own], axis=0) for k, own in pixels.items()}
    result = np.zeros((height, width))
    for i in pixels:
        total = 0.0
        for j, own in pixels.items():
            weight = len(own) / (height * width) * np.exp(-np.linalg.norm(place[i] - place[j]) / strength)
            total += weight * np.linalg.norm(colour[i] - colour[j])
        result[labels == i] = total
    return result


@pytest.mark.parametrize("strength", [0.1, 0.4, 5.0])
def test_by_loops(strength):
    x = photo()
    lab = rgb2lab(x[0].permute(1, 2, 0).numpy())
    labels = superpixels(lab, 30, 10.0).labels
    assert len(np.unique(labels)) > 10
    expected = by_loops(lab, labels, strength)
    np.testing.assert_allclose(region_contrast(x, 30, strength)[0].numpy(), expected, rtol=1e-4)


def test_three_regions_by_hand():
    """Two alike of half and a quarter of the image, one of a quarter that is 10 away from both, all in one place."""
    regions = Regions(
        np.zeros((1, 1), int), np.array([[0.0, 0, 0], [0, 0, 0], [6, 8, 0]]), np.zeros((3, 2)), np.array([0.5, 0.25, 0.25])
    )
    np.testing.assert_allclose(contrast(regions, 0.4), [2.5, 2.5, 7.5])
    apart = regions._replace(places=np.array([[0, 0], [0, 0], [0, 0.4]]))
    np.testing.assert_allclose(contrast(apart, 0.4), np.array([2.5, 2.5, 7.5]) / np.e)


def test_superpixels_are_those_of_slic_on_the_image():
    x = photo(60, 80)[0].permute(1, 2, 0).numpy()
    x = (x - x.min()) / (x.max() - x.min())  # SLIC stretches an image before it takes Lab
    ours = superpixels(rgb2lab(x), 40, 10.0).labels
    theirs = slic(x, 40, 10.0, start_label=0)
    borders = [(m[:, 1:] != m[:, :-1]) for m in (ours, theirs)]
    assert (borders[0] == borders[1]).mean() > 0.99


def test_the_odd_colour_stands_out():
    found = region_contrast(photo())[0]
    row, column = divmod(int(found.argmax()), found.shape[1])
    assert 12 <= row < 24 and 20 <= column < 34


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (1, 4000), (4000, 1)])
def test_any_shape_and_constant_images(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    maps = region_contrast(x)
    assert maps.shape == (2, *size) and maps.dtype == torch.float32 and torch.isfinite(maps).all() and (maps >= 0).all()
    for value in (0.0, 0.3, 1.0):
        flat = region_contrast(torch.full((1, 3, *size), value))
        assert torch.isfinite(flat).all() and (flat.max() - flat.min()) < 1e-4  # Lab is rounded to float32


def test_batches_damage_and_options():
    x = torch.cat([photo(seed=1), photo(seed=2)])
    torch.testing.assert_close(region_contrast(x)[1], region_contrast(x[1:])[0], rtol=0, atol=0)
    x[0, 1, 2, 3] = torch.inf
    with pytest.raises(hp.InputError, match="NaN or infinite"):
        region_contrast(x)
    for name, value in {"regions": 0, "strength": -1.0, "compactness": float("nan")}.items():
        with pytest.raises(hp.MethodError, match=f"{name}="):
            hp.explain(None, photo(), method="region-contrast", **{name: value})


def test_larger_photos_are_worked_on_at_a_megapixel(monkeypatch):
    monkeypatch.setattr("heatproof.bottom_up.working_size.WORKING_PIXELS", 560)
    small = torch.nn.functional.avg_pool2d(photo(), 2)
    expected = torch.nn.functional.interpolate(region_contrast(small)[None], (40, 56), mode="bilinear")[0]
    torch.testing.assert_close(region_contrast(photo()), expected)
