"""Spanning trees against brute force on small grids: every path, every edge."""

import numpy as np
import pytest
import torch
from skimage.morphology import reconstruction

import heatproof as hp
from grids import grid_edges, random_image
from heatproof.bottom_up import spanning_tree as tree
from heatproof.bottom_up.mst import barrier, cleaned, mst, unlike_border
from heatproof.bottom_up.watershed import watershed
from heatproof.bottom_up.working_size import WORKING_PIXELS

SHAPES = [(1, 1), (1, 6), (7, 1), (2, 2), (3, 3), (5, 4), (4, 7)]
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


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
