"""Hierarchies of watersheds against brute force on small grids."""

import itertools

import numpy as np
import pytest
import torch

import heatproof as hp
from grids import grid_edges
from heatproof.bottom_up.watershed import contours, khalimsky, on_pixels, steps, watershed


def minimax(right, down):
    """Largest edge on the best path between all pairs, by Floyd and Warshall."""
    height, width = len(right), down.shape[1]
    best = np.full((height * width,) * 2, np.inf)
    np.fill_diagonal(best, 0)
    for a, b in grid_edges(height, width):
        weight = right[a // width, a % width] if b == a + 1 and width > 1 else down[a // width, a % width]
        best[a, b] = best[b, a] = weight
    for k in range(len(best)):
        best = np.minimum(best, np.maximum(best[:, k : k + 1], best[k : k + 1]))
    return best


def random_edges(seed, shape=(6, 7), levels=9):
    chance = np.random.default_rng(seed)
    height, width = shape
    return (
        chance.integers(1, levels, size=(height, width - 1)).astype(float),
        chance.integers(1, levels, size=(height - 1, width)).astype(float),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(6, 7), (1, 8), (5, 1)])
def test_flat_zones_are_the_minimax_paths(seed, shape):
    right, down = random_edges(seed, shape)
    between = minimax(right, down)
    found_right, found_down = contours(right, down, "flat-zones")
    width = shape[1]
    for r, c in itertools.product(*map(range, shape)):
        if c + 1 < width:
            assert found_right[r, c] == between[r * width + c, r * width + c + 1] <= right[r, c]
        if r + 1 < shape[0]:
            assert found_down[r, c] == between[r * width + c, (r + 1) * width + c] <= down[r, c]


@pytest.mark.parametrize("attribute", ["area", "dynamics", "volume", "flat-zones"])
def test_every_hierarchy_is_an_ultrametric(attribute):
    right, down = random_edges(11)
    found = contours(right, down, attribute)
    again = contours(*found, "flat-zones")  # a saliency map is its own minimax map
    np.testing.assert_allclose(again[0], found[0])
    np.testing.assert_allclose(again[1], found[1])
    d = minimax(*found)
    assert (d[:, None, :] <= np.maximum(d[:, :, None], d[None, :, :]) + 1e-9).all()
    if attribute == "dynamics":  # the depth of a basin is at most its pass
        assert (found[0] <= right).all() and (found[1] <= down).all()


def test_area_keeps_the_larger_basins_longer():
    """Three flat basins of 2, 9 and 4 pixels in a row: the smaller of two neighbours gives a contour its level."""
    right = np.zeros((1, 14))
    right[0, [1, 10]] = 5.0, 7.0
    found, _ = contours(right, np.zeros((0, 15)), "area")
    assert found[0, 1] == 2 and found[0, 10] == 4 and found[0, [0, *range(2, 10), 11, 12, 13]].max() == 0


def test_drawing_by_loops():
    right, down = random_edges(5, (4, 5))
    grid = khalimsky(right, down)
    assert grid.shape == (7, 9)
    for r, c in itertools.product(range(7), range(9)):
        if r % 2 == 0 and c % 2 == 0:
            expected = 0
        elif r % 2 == 0:
            expected = right[r // 2, c // 2]
        elif c % 2 == 0:
            expected = down[r // 2, c // 2]
        else:
            expected = max(grid[r - 1, c], grid[r + 1, c], grid[r, c - 1], grid[r, c + 1])
        assert grid[r, c] == expected
    padded = np.pad(grid, 1)
    for r, c in itertools.product(range(4), range(5)):
        y, x = 2 * r + 1, 2 * c + 1
        assert on_pixels(right, down)[r, c] == max(padded[y - 1, x], padded[y + 1, x], padded[y, x - 1], padded[y, x + 1])


def test_weights_are_distances_in_lab():
    from skimage.color import rgb2lab

    image = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    lab = rgb2lab(np.moveaxis(image, 0, 2))
    right, down = steps(image)
    for r, c in itertools.product(range(4), range(5)):
        if c < 4:
            assert right[r, c] == pytest.approx(np.linalg.norm(lab[r, c] - lab[r, c + 1]), rel=1e-4)
        if r < 3:
            assert down[r, c] == pytest.approx(np.linalg.norm(lab[r, c] - lab[r + 1, c]), rel=1e-4)


@pytest.mark.parametrize("turn", [lambda m: m.flip(-1), lambda m: m.rot90(1, (-2, -1))], ids=["mirrored", "turned"])
def test_contours_turn_with_the_image(turn):
    """Without ties the hierarchy is one and only, whatever the order of the pixels."""
    x = torch.rand(1, 3, 12, 17, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(watershed(turn(x), "flat-zones"), turn(watershed(x, "flat-zones")), rtol=1e-4, atol=1e-3)


def test_unknown_attributes_are_said():
    with pytest.raises(hp.MethodError, match="expected area, dynamics, volume, flat-zones"):
        hp.explain(None, torch.rand(3, 8, 9), method="watershed", attribute="height")
