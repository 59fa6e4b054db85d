"""From a map to an outline: each step against a slow version, the whole on scenes whose object is known, and on a photo."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from skimage.draw import polygon2mask
from torch import nn

import heatproof as hp
from heatproof.models.planted import World
from heatproof.models.preprocess import RAW
from heatproof.models.sites import Site
from heatproof.shaping.cut import _cheapest, cut, outline_level
from heatproof.shaping.guided import box_mean, guided_filter, principal_components
from heatproof.shaping.mask import Mask
from heatproof.shaping.refine import refine, stages
from tiny import GapNet, TinyViT, images, seeded


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(height, width, radius):
    for i, j in itertools.product(range(height), range(width)):
        rows, columns = slice(max(0, i - radius), i + radius + 1), slice(max(0, j - radius), j + radius + 1)
        yield i, j, rows, columns


@pytest.mark.parametrize("radius", [1, 2, 20])
def test_box_mean(radius):
    x = noise(2, 3, 7, 11)
    expected = torch.zeros_like(x)
    for i, j, rows, columns in windows(7, 11, radius):
        expected[..., i, j] = x[..., rows, columns].mean((-2, -1))
    torch.testing.assert_close(box_mean(x, radius), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_guided_filter_is_a_ridge_regression_in_every_window(channels):
    p, guide, radius, epsilon = noise(1, 6, 9)[0], noise(1, channels, 6, 9, seed=1)[0], 2, 0.3
    a, b = torch.zeros(channels, 6, 9, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.float64)
    for i, j, rows, columns in windows(6, 9, radius):
        x, y = guide[:, rows, columns].flatten(1).T, p[rows, columns].flatten()
        count = len(y)
        design = torch.cat([x, torch.ones(count, 1, dtype=torch.float64)], 1)
        ridge = torch.diag(torch.tensor([count * epsilon] * channels + [0.0], dtype=torch.float64))  # not on the intercept
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ y)
        a[:, i, j], b[i, j] = solution[:-1], solution[-1]
    expected = torch.zeros_like(p)
    for i, j, rows, columns in windows(6, 9, radius):
        expected[i, j] = (a[:, rows, columns].mean((-2, -1)) * guide[:, i, j]).sum() + b[rows, columns].mean()
    torch.testing.assert_close(guided_filter(p[None], guide[None], radius, epsilon)[0], expected)


def test_guided_filter_keeps_constants_and_takes_edges():
    guide = torch.zeros(1, 1, 12, 20)
    guide[..., 10:] = 1
    flat = torch.full((1, 12, 20), 0.4)
    torch.testing.assert_close(guided_filter(flat, guide, 3, 0.01), flat)
    ramp = torch.linspace(0, 1, 20).expand(1, 12, 20)
    assert (guided_filter(ramp, guide, 4, 1e-3)[0, 6].diff().argmax()) == 9
    for bad in [(ramp, guide, 0, 0.1), (ramp, guide, 2, 0.0)]:
        with pytest.raises(hp.InputError):
            guided_filter(*bad)


@pytest.mark.parametrize("channels", [4, 60])
def test_principal_components(channels):
    x = noise(2, channels, 5, 6).float()
    found = principal_components(x, 3)
    for one, own in zip(x, found, strict=True):
        flat = one.flatten(1).double()
        _, s, v = torch.linalg.svd(flat - flat.mean(1, keepdim=True), full_matrices=False)
        expected = (s[:3, None] * v[:3]) / (s[0] / 30**0.5)
        signs = (expected * own.flatten(1)).sum(1, keepdim=True).sign()
        torch.testing.assert_close(own.flatten(1).double(), expected * signs, atol=1e-4, rtol=1e-4)
    assert principal_components(x[:, :2], 3).shape == (2, 2, 5, 6)
    assert (principal_components(torch.ones(1, 4, 5, 6), 2) == 0).all()


def test_the_cut_is_the_cheapest_of_all():
    chance = np.random.default_rng(0)
    for _ in range(20):
        unary = chance.normal(size=8).round(2)
        edges = np.array([(i, j) for i in range(8) for j in range(i + 1, 8) if chance.random() < 0.4])
        borders = chance.random(len(edges)).round(2)

        def cost(y):
            y = np.array(y)
            left = np.where(y, 0, unary.clip(0)) + np.where(y, (-unary).clip(0), 0)  # noqa: B023
            return left.sum() + borders[y[edges[:, 0]] != y[edges[:, 1]]].sum()  # noqa: B023

        best = min(cost(y) for y in itertools.product([False, True], repeat=8))
        assert cost(_cheapest(unary, edges, borders)) == pytest.approx(best, abs=1e-6)


def test_the_sharpest_outline():
    soft = np.zeros((40, 60))
    soft[8:30, 10:50] = 0.45
    soft[12:26, 20:40] = 1.0
    assert 0.2 <= outline_level(soft) < 0.45  # the outer edge, not the brighter core
    assert outline_level(np.zeros((9, 9))) == 0.5
    assert not cut(np.zeros((30, 30)), np.random.default_rng(0).random((30, 30, 3))).any()


def test_stages():
    def site(name, h, w, kind="bkhw"):
        return Site(name, kind, h, w)

    known = [site("stem", 112, 112), site("stem.pad", 114, 114), site("a", 56, 56), site("a.conv", 56, 56), site("b.c", 28, 28)]
    sites = {one.name: one for one in [*known, site("attention", 197, 197), site("c", 7, 7), site("after", 28, 28)]}
    found = stages(sites, sites["c"], (224, 224))
    assert [(grid, one and one.name) for grid, one in found] == [
        ((14, 14), None), ((28, 28), "b.c"), ((56, 56), "a"), ((112, 112), "stem")
    ]  # fmt: skip
    model = hp.wrap(seeded(lambda: TinyViT(depth=4)))
    survey = model.survey(images(1))
    plan = stages(survey.sites, survey.default, (24, 40))
    assert plan[0][0] == (3, 5) and plan[0][1].is_tokens and plan[1:] == [((6, 10), None), ((12, 20), None)]


class Red(nn.Module):
    """Knows red by its colour, on a grid of 8 pixels; its first layers keep edges."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Conv2d(3, 4, 3, 1, 1)
        self.pool = nn.AvgPool2d(8)
        self.mix = nn.Conv2d(4, 2, 1, bias=False)
        with torch.no_grad():
            self.colour.weight.zero_()
            self.colour.bias.zero_()
            self.colour.weight[:3, :, 1, 1] = torch.eye(3)
            self.colour.weight[3, :, 1, 1] = torch.tensor([1.0, -1, -1])
            self.mix.weight.zero_()
            self.mix.weight[1, 3] = 1

    def forward(self, x):
        return self.mix(self.pool(self.colour(x).relu())).mean((2, 3))


def scene(seed, size=(96, 128)):
    """A red disc on textured grey, with blue clutter."""
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = 90 + 40 * chance.random((*size, 1)) + 8 * np.sin(columns / 5)[..., None] + np.zeros(3)
    mask = np.zeros(size, bool)
    for colour, keep in (([40, 60, 200], False), ([210, 40, 40], True)):
        r, c, radius = chance.uniform(25, 70), chance.uniform(25, 100), chance.uniform(14, 22)
        disc = (rows - r) ** 2 + (columns - c) ** 2 < radius**2
        image[disc] = np.array(colour) + chance.normal(0, 12, (disc.sum(), 3))
        mask = disc if keep else mask & ~disc
    return image.clip(0, 255).astype(np.uint8), mask


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


def test_outlines_of_known_objects_beat_the_thresholded_map():
    net = Red().eval()
    model = hp.wrap(net, preprocess=RAW)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cuts, maps = [], []
    for seed in range(6):
        image, truth = scene(seed)
        found = hp.shape(model, image, 1)
        cuts.append(overlap(found.mask, truth))
        heat = hp.explain(model, image, "gradcam", 1).map.numpy()
        maps.append(overlap(heat > 0.2 * heat.max(), truth))
    assert np.mean(cuts) > 0.95 and min(cuts) > 0.9 and np.mean(maps) < 0.75
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_planted_objects_are_cut_out():
    planted = hp.load("planted-cnn")
    cuts, maps = [], []
    for scene in World().scenes(16, seed=3):
        found = hp.shape(planted, scene.image, scene.object)
        cuts.append(overlap(found.mask, scene.object_mask))
        heat = hp.explain(planted, scene.image, "gradcam", scene.object).map.numpy()
        levels = np.linspace(0.05, 0.95, 19) * heat.max()
        maps.append(max(overlap(heat > level, scene.object_mask) for level in levels))  # the best it could be
    assert np.mean(cuts) > 0.7 and np.mean(cuts) > np.mean(maps) + 0.15


def test_planted_objects_are_cut_out_by_a_transformer():
    model = hp.load("planted-clip")
    cuts, maps = [], []
    for scene in World().scenes(12, seed=11):
        found = hp.shape(model, scene.image, f"a photo of a {scene.object}")
        cuts.append(overlap(found.mask, scene.object_mask))
        heat = hp.explain(model, scene.image, "gradcam", f"a photo of a {scene.object}").map.numpy()
        levels = np.linspace(0.05, 0.95, 19) * heat.max()
        maps.append(max(overlap(heat > level, scene.object_mask) for level in levels))
    assert found.scales == (1.0,) and np.mean(cuts) > 0.5 and np.mean(cuts) > np.mean(maps) + 0.1


def test_contours_box_and_pictures():
    image, truth = scene(0)
    truth[2:6, 2:7] = True
    truth[3, 4] = False
    found = Mask(truth, truth * 0.9, truth * 0.5, image, 1, "red", "gradcam", "Red", (1.0,))
    drawn = np.zeros_like(truth)
    for line in found.contours:
        assert np.array_equal(line[0], line[-1])
        drawn ^= polygon2mask(truth.shape, line)
    assert overlap(drawn, truth) > 0.93 and len(found.contours) >= 2
    left, top, right, bottom = found.box
    assert truth[top:bottom, left:right].sum() == found.area == truth.sum()
    assert found.overlay().size == (128, 96) and "red" in repr(found) and found._repr_png_().startswith(b"\x89PNG")
    empty = Mask(truth & False, truth * 0.0, truth * 0.0, image, 1, "red", "gradcam", "Red", (1.0,))
    assert empty.box is None and empty.contours == [] and "nothing found" in repr(empty) and empty.overlay().size == (128, 96)


def test_a_photo():
    path = Path(skimage.__file__).parent / "data" / "coffee.png"
    model = hp.load("efficientnet-lite0")
    found = hp.shape(model, path)
    again = hp.shape(model, path, "espresso")
    assert found.target_name == "espresso" and found.scales == (1.0, 1.5, 2.0)
    assert np.array_equal(found.mask, again.mask) and np.array_equal(found.soft, again.soft)
    assert found.mask.shape == found.soft.shape == (224, 224) and found.mask.dtype == bool
    assert found.soft.min() >= 0 and found.soft.max() == 1 and 0.1 < found.mask.mean() < 0.9
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(hp.shape(model, pixels).mask, found.mask)


@pytest.mark.parametrize("build", [GapNet, TinyViT])
def test_any_network(build):
    net = seeded(build)
    found = hp.shape(net, images(1), 2, method="hirescam")
    assert found.mask.shape == (24, 40) and found.method == "hirescam" and found.target == 2
    assert found.scales == ((1.0, 1.5, 2.0) if build is GapNet else (1.0,))  # this transformer takes one size
    named = hp.shape(net, images(1), layer="features.1" if build is GapNet else "blocks.0.norm1")
    assert np.isfinite(named.soft).all()


def test_nothing_to_cut():
    net = Red().eval()
    found = hp.shape(net, torch.zeros(3, 64, 64), 1)
    assert found.area == 0 and found.soft.max() == 0


def test_refine_without_stages_is_the_filter_by_colours():
    pixels = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    coarse = noise(1, 20, 24).float().sigmoid()
    torch.testing.assert_close(refine(coarse, [], pixels), guided_filter(coarse, pixels, 8, 1e-3).clamp(0, 1))


def test_bad_input():
    net = seeded(GapNet)
    with pytest.raises(hp.InputError, match="2 images"):
        hp.shape(net, images(2))
    with pytest.raises(hp.InputError, match="2 targets"):
        hp.shape(net, images(1), [[0, 1]])
    with pytest.raises(hp.InputError, match="no file"):
        hp.shape(net, "nowhere.png")
    with pytest.raises(hp.ModelError):
        hp.shape(None, images(1))
    with pytest.raises(hp.MethodError):
        hp.shape(net, images(1), method="gradcan")
