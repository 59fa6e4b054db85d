"""Spanning trees and hierarchies against brute force on small grids: every path, every edge."""

import itertools
import logging

import numba.core.config
import numpy as np
import pytest
import torch
from skimage.morphology import reconstruction

import heatproof as hp
from heatproof.bottom_up import compiled as compiling
from heatproof.bottom_up import spanning_tree as tree
from heatproof.bottom_up.mst import barrier, cleaned, mst, unlike_border
from heatproof.bottom_up.watershed import contours, khalimsky, on_pixels, steps, watershed
from heatproof.bottom_up.working_size import WORKING_PIXELS

SHAPES = [(1, 1), (1, 6), (7, 1), (2, 2), (3, 3), (5, 4), (4, 7)]
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def grid_edges(height, width):
    """Pairs of pixel numbers, row by row, to the right before down."""
    for r, c in itertools.product(range(height), range(width)):
        if c + 1 < width:
            yield r * width + c, r * width + c + 1
        if r + 1 < height:
            yield r * width + c, (r + 1) * width + c


def random_image(shape, seed, levels=256):
    """Few levels make many ties."""
    return (np.random.default_rng(seed).integers(levels, size=(*shape, 3)) * (255 // (levels - 1))).astype(np.uint8)


def step_of(image, a, b):
    pixels = image.reshape(-1, 3).astype(int)
    return int(np.abs(pixels[a] - pixels[b]).max())


def kruskal(image):
    """Total weight of a minimum spanning tree, by sorting all edges."""
    group = list(range(image.shape[0] * image.shape[1]))

    def find(a):
        while group[a] != a:
            a = group[a]
        return a

    total = 0
    for a, b in sorted(grid_edges(*image.shape[:2]), key=lambda edge: step_of(image, *edge)):
        if find(a) != find(b):
            group[find(a)] = find(b)
            total += step_of(image, a, b)
    return total


def simple_paths(neighbours, start):
    """Every path from `start` that visits no pixel twice."""
    stack = [(start,)]
    while stack:
        path = stack.pop()
        yield path
        stack += [(*path, following) for following in neighbours[path[-1]] if following not in path]


def least_range(neighbours, values, border, start):
    """The smallest max − min over all paths from a pixel to the border."""
    ending = (path for path in simple_paths(neighbours, start) if border[path[-1]])
    ranges = (max(values[p] for p in path) - min(values[p] for p in path) for path in ending)
    return min(ranges)


def border_of(height, width):
    return [r in (0, height - 1) or c in (0, width - 1) for r in range(height) for c in range(width)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 4, 256])
def test_the_tree_spans_with_the_least_weight(shape, levels):
    image = random_image(shape, levels, levels)
    order, parent, weight = tree.spanning_tree(image)
    assert sorted(order) == list(range(len(order))) and order[0] == 0 and parent[0] == -1
    place = {node: n for n, node in enumerate(order.tolist())}
    edges = set(grid_edges(*shape))
    for node in range(1, len(order)):
        up = int(parent[node])
        assert (min(node, up), max(node, up)) in edges and place[up] < place[node]
        assert weight[node] == step_of(image, node, up)
    assert weight.astype(int).sum() == kruskal(image)


@pytest.mark.parametrize("seed", range(6))
def test_barrier_distances_are_the_least_over_all_paths_of_the_tree(seed):
    shape = (6, 7)
    image = random_image(shape, seed, 5 if seed % 2 else 256)
    _, parent, _ = tree.spanning_tree(image)
    neighbours = {n: [] for n in range(len(parent))}
    for node, up in enumerate(parent.tolist()):
        if up >= 0:
            neighbours[node].append(up)
            neighbours[up].append(node)
    border = border_of(*shape)
    expected = np.zeros(len(parent))
    for channel in range(3):
        values = image[..., channel].ravel().astype(int)
        expected += [least_range(neighbours, values, border, n) for n in range(len(parent))]
    np.testing.assert_array_equal(barrier(image).ravel(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_paths_of_the_tree_are_never_better_than_those_of_the_grid(seed):
    shape = (4, 5)
    image = random_image(shape, seed)
    image[...] = image[..., :1]  # grey: one tree edge is one step of the values
    neighbours = {n: [] for n in range(shape[0] * shape[1])}
    for a, b in grid_edges(*shape):
        neighbours[a].append(b)
        neighbours[b].append(a)
    values = image[..., 0].ravel().astype(int)
    on_grid = [least_range(neighbours, values, border_of(*shape), n) for n in range(len(values))]
    assert (np.array(on_grid) <= barrier(image).ravel() / 3).all()


def test_one_path_per_pixel_is_not_enough():
    """15 is reached from 14 over 25 (range 11) and from 5 (range 10); at 25 the wider one is the better one."""
    values = np.array([14, 25, 15, 5, 25], np.uint8)
    order, parent = np.arange(5, dtype=np.int32), np.array([-1, 0, 1, 2, 2], np.int32)
    seed = np.array([True, False, False, True, False])
    assert tree.barrier_distance(values[:, None], order, parent, seed, 1)[4] == 20
    assert tree.barrier_distance(values[:, None], order, parent, seed, tree.PAIRS)[4] == 11


def test_more_pairs_than_there_is_room_for_leave_an_upper_bound():
    values = np.random.default_rng(0).integers(256, size=(30, 30)).astype(np.uint8)
    order, parent, _ = tree.spanning_tree(np.repeat(values[..., None], 3, 2))
    seed = np.array(border_of(30, 30))
    exact = tree.barrier_distance(values.reshape(-1, 1), order, parent, seed, 256)
    for pairs in (1, 2, 3):
        assert (tree.barrier_distance(values.reshape(-1, 1), order, parent, seed, pairs) >= exact).all()
    np.testing.assert_array_equal(tree.barrier_distance(values.reshape(-1, 1), order, parent, seed, tree.PAIRS), exact)


def test_the_tree_filter_is_a_mean_over_all_pixels():
    image, sigma = random_image((5, 6), 3), 40.0
    order, parent, weight = tree.spanning_tree(image)
    values = np.random.default_rng(1).random(30)

    def to_root(node):
        path = [node]
        while parent[path[-1]] >= 0:
            path.append(int(parent[path[-1]]))
        return path

    expected = []
    for a in range(30):
        shares = []
        for b in range(30):
            one, other = set(to_root(a)), set(to_root(b))
            shares.append(np.exp(-sum(float(weight[n]) for n in one ^ other) / sigma))  # what they share is not walked
        expected.append(np.dot(shares, values) / np.sum(shares))
    np.testing.assert_allclose(tree.smoothed(values, order, parent, weight, sigma), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (23, 31)])
def test_reconstruction_is_scikit_images(shape):
    chance = np.random.default_rng(2)
    mask = chance.random(shape).astype(np.float32)
    marker = np.where(chance.random(shape) < 0.1, mask, 0).astype(np.float32)
    footprint = CROSS if min(shape) > 1 else np.ones((3, 3))
    np.testing.assert_array_equal(tree.reconstructed(marker, mask), reconstruction(marker, mask, footprint=footprint))


def test_small_spots_go_and_outlines_stay():
    square = np.zeros((60, 60), np.float32)
    square[20:50, 15:45] = 1
    spotted = square.copy()
    spotted[5, 5], spotted[30, 30] = 1, 0
    np.testing.assert_array_equal(cleaned(spotted), square)


def test_unlike_border_by_loops():
    image = random_image((9, 12), 5)
    image[3:6, 4:8] = (255, 0, 0)
    image[[0, -1]] = image[:, [0, -1]] = (20, 90, 200)  # one colour all round: the covariance is zero
    from skimage.color import rgb2lab

    lab = rgb2lab(image)
    expected = np.linalg.norm(lab - lab[0, 0], axis=2)
    np.testing.assert_allclose(unlike_border(image), expected, rtol=1e-4, atol=1e-3)


def test_an_object_stands_out_and_one_at_the_border_does_not():
    image = torch.full((1, 3, 40, 60), 0.5)
    image[:, 0, 12:26, 20:38] = 1.0
    inside = torch.zeros(40, 60, dtype=torch.bool)
    inside[12:26, 20:38] = True
    found = mst(image)[0]
    assert found[inside].min() > 0.9 and found[~inside].max() < 0.1
    image[:, 0, :26, 20:38] = 1.0
    assert mst(image, dissimilarity=False, post=False).max() == 0


@pytest.mark.parametrize("function", [mst, watershed])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 4000), (4000, 1)])
def test_any_shape_and_constant_images(function, size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    maps = function(x)
    assert maps.shape == (2, *size) and maps.dtype == torch.float32 and torch.isfinite(maps).all() and (maps >= 0).all()
    for value in (0.0, 0.3, 1.0):
        flat = function(torch.full((1, 3, *size), value))
        assert torch.isfinite(flat).all() and flat.min() == flat.max()


@pytest.mark.parametrize("function", [mst, watershed])
def test_damaged_values_are_said_and_batches_do_not_matter(function):
    x = torch.rand(3, 3, 21, 34, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(function(x)[1], function(x[1:2])[0], rtol=0, atol=0)
    x[1, 0, 3, 3] = torch.nan
    with pytest.raises(hp.InputError, match=r"NaN or infinite values in image\(s\) \[1\]"):
        function(x)


@pytest.mark.parametrize("function", [mst, watershed])
def test_larger_photos_are_worked_on_at_a_megapixel(function, monkeypatch):
    assert WORKING_PIXELS == 1024 * 1024
    monkeypatch.setattr("heatproof.bottom_up.working_size.WORKING_PIXELS", 900)
    x = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(x, 2)
    expected = torch.nn.functional.interpolate(function(small)[None], (60, 60), mode="bilinear")[0]
    torch.testing.assert_close(function(x), expected)
    assert function(torch.rand(1, 3, 1, 4000)).shape == (1, 1, 4000)


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


def twice(n):
    return 2 * n


def test_the_first_call_says_what_it_does(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))

    kernel = compiling.compiled(twice)
    with caplog.at_level(logging.WARNING, logger="heatproof"):
        compiling.announce(kernel, "a loop")
        assert "compiling a loop, once per installation" in caplog.text and str(tmp_path) in caplog.text
        assert kernel(4) == 8
        caplog.clear()
        compiling.announce.cache_clear()
        compiling.announce(kernel, "a loop")
        assert not caplog.text
