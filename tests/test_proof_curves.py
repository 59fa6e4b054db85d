"""Curves against slow versions that edit one pixel after the other, and against an additive model's exact answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import heatproof as hp
import tiny
from heatproof.proof.curves import Deletion, Insertion, PixelFlipping, Road
from heatproof.proof.infill import INFILLS, Linear, Noise, Zero, infill
from heatproof.proof.maps import cells, ranks, says_nothing, spread, take_maps, tied
from heatproof.proof.subject import Subject

HEIGHT, WIDTH = tiny.SIZE


def subject(net=tiny.HeadNet, targets=((1, 4), (2, 0)), **options) -> Subject:
    return Subject(hp.wrap(tiny.seeded(net)), tiny.images(len(targets)), torch.tensor(targets), **options)


def random_maps(shape, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


class Additive(nn.Module):
    """`s_c = Σ_i w_ci x_i`: what each pixel is worth is known."""

    def __init__(self, size=tiny.SIZE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, *size) / 10)

    def forward(self, x):
        return torch.einsum("bkhw,ckhw->bc", x, self.weight)


def slow_probability(net, x, target: int) -> float:
    with torch.no_grad():
        return float(net(x[None])[0].softmax(0)[target])


@pytest.mark.parametrize("test", [Deletion(steps=7), Insertion(steps=7)])
def test_sweeps_against_one_pixel_at_a_time(test):
    net, asked = tiny.seeded(tiny.HeadNet), subject()
    maps = random_maps((2, 2, 3))
    result = test(asked, maps)
    counts = [round(k * HEIGHT * WIDTH / 7) for k in range(8)]
    for b, t, m in np.ndindex(2, 2, 3):
        target, x = int(asked.targets[b, t]), asked.x[b]
        empty = infill(test.infill)(x[None], torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool))[0]
        order = maps[b, t, m].flatten().argsort(descending=True).tolist()
        image, goal = (x.clone(), empty) if test.name == "deletion" else (empty.clone(), x)
        curve, done = [], 0
        for count in counts:
            for pixel in order[done:count]:
                image[:, pixel // WIDTH, pixel % WIDTH] = goal[:, pixel // WIDTH, pixel % WIDTH]
            done = count
            curve.append(slow_probability(net, image, target))
        torch.testing.assert_close(result.curves[b, t, m], torch.tensor(curve), atol=1e-5, rtol=1e-4)
        area = sum((curve[k] + curve[k + 1]) / 2 * (counts[k + 1] - counts[k]) for k in range(7)) / (HEIGHT * WIDTH)
        assert float(result.values[b, t, m]) == pytest.approx(area, abs=1e-5)
    assert asked.forwards == 2 + test.cost(asked, 3)
    assert result.fractions[-1] == 1 and result.curves.shape == (2, 2, 3, 8)


def test_rise_takes_as_many_pixels_per_step_as_the_image_is_wide():
    assert Deletion().steps == 224 and Deletion().infill == "zero" and Insertion().infill == "blur"
    curves = Deletion()(
        Subject(hp.wrap(tiny.seeded(lambda: Additive((224, 224)))), torch.randn(1, 3, 224, 224), torch.tensor([[0]])),
        torch.randn(1, 1, 1, 224, 224),
    )
    assert torch.equal((curves.fractions * 224 * 224).round().long(), torch.arange(225) * 224)


def test_additive_model_loses_exactly_what_is_removed():
    net = tiny.seeded(Additive)
    asked = Subject(hp.wrap(net), tiny.images(1), torch.tensor([[2]]))
    worth = (asked.x[0] * net.weight[2]).detach().sum(0)
    result = Deletion(steps=HEIGHT * WIDTH, read="score")(asked, worth[None, None, None])
    left = worth.sum() - worth.flatten().sort(descending=True).values.cumsum(0)
    torch.testing.assert_close(result.curves[0, 0, 0, 1:], left.detach(), atol=1e-4, rtol=1e-4)
    # no order can empty the score faster than that of the true worths
    others = torch.cat([worth[None], random_maps((20,)), -worth[None]])[None, None]
    values = Deletion(steps=40, read="score")(asked, others).values[0, 0]
    assert values.argmin() == 0 and values.argmax() == 21


@pytest.mark.parametrize("name", sorted(INFILLS))
def test_infills_touch_only_what_is_removed_and_do_not_see_the_batch(name):
    x, mask = tiny.images(3), torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) > 0.5
    edited = INFILLS[name]()(x, mask)
    kept = ~mask[:, None].expand_as(x)
    assert torch.equal(edited[kept], x[kept]) and torch.isfinite(edited).all()
    assert (edited != x).any(1)[mask].float().mean() > 0.99
    torch.testing.assert_close(INFILLS[name]()(x[1:2], mask[1:2]), edited[1:2], atol=2e-3, rtol=0)
    again = INFILLS[name]().on(x)(torch.tensor([2, 0, 2]), mask[[2, 0, 2]])
    torch.testing.assert_close(again, edited[[2, 0, 2]], atol=2e-3, rtol=0)


def test_road_against_images_filled_by_a_dense_solve():
    net, asked = tiny.seeded(tiny.HeadNet), subject()
    maps, fractions = random_maps((2, 2, 2)), (0.2, 0.7)
    result = Road(fractions, Linear(noise=0.0))(asked, maps)
    for b, t, m in np.ndindex(2, 2, 2):
        order = maps[b, t, m].flatten().argsort(descending=True)
        for s, fraction in enumerate(fractions):
            count, read = round(fraction * HEIGHT * WIDTH), []
            for chosen in (order[:count], order[-count:]):
                mask = torch.zeros(HEIGHT * WIDTH, dtype=torch.bool)
                mask[chosen] = True
                filled = dense_imputation(asked.x[b], mask.view(HEIGHT, WIDTH))
                read.append(slow_probability(net, filled, int(asked.targets[b, t])))
            most, least = read
            assert float(result.parts["most"][b, t, m, s]) == pytest.approx(most, abs=2e-4)
            assert float(result.parts["least"][b, t, m, s]) == pytest.approx(least, abs=2e-4)
            assert float(result.curves[b, t, m, s]) == pytest.approx((least - most) / 2, abs=2e-4)
    torch.testing.assert_close(result.values, result.curves.mean(-1))
    assert asked.forwards == 2 + Road(fractions).cost(asked, 2)


def dense_imputation(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Every equation written out, solved by elimination."""
    height, width = mask.shape
    pixels = [(i, j) for i in range(height) for j in range(width) if mask[i, j]]
    number = {pixel: n for n, pixel in enumerate(pixels)}
    matrix, right = torch.zeros(len(pixels), len(pixels), dtype=torch.float64), torch.zeros(len(pixels), 3, dtype=torch.float64)
    for n, (i, j) in enumerate(pixels):
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                near = (i + di, j + dj)
                if near == (i, j) or not (0 <= near[0] < height and 0 <= near[1] < width):
                    continue
                weight = 1 / 6 if di == 0 or dj == 0 else 1 / 12
                matrix[n, n] += weight
                if near in number:
                    matrix[n, number[near]] -= weight
                else:
                    right[n] += weight * x[:, near[0], near[1]].double()
    filled = x.clone()
    for pixel, value in zip(pixels, torch.linalg.solve(matrix, right), strict=True):
        filled[:, pixel[0], pixel[1]] = value.float()
    return filled


@pytest.mark.parametrize("size", [(24, 40), (13, 7), (1, 9), (33, 2)])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_imputation_against_a_dense_solve(size, share):
    noise = torch.Generator().manual_seed(5)
    x = torch.randn(3, 3, *size, generator=noise) + 20
    scattered = torch.rand(3, *size, generator=noise) < share
    scattered[:, 0, 0] = False
    block = torch.ones(3, *size, dtype=torch.bool)
    block.flatten(1)[:, : max(1, int((1 - share) * size[0] * size[1]))] = False
    for mask in (scattered, block):
        filled = Linear(noise=0.0)(x, mask)
        slow = torch.stack([dense_imputation(a, b) for a, b in zip(x, mask, strict=True)])
        assert float((filled - slow).abs().max()) < 5e-3


def test_imputation_of_nothing_and_of_everything():
    x = tiny.images(2)
    none, every = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool), torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(Linear()(x, none), x)
    filled = Linear(noise=0.0)(x, torch.stack([none[0], every[1]]))
    assert torch.equal(filled[0], x[0])
    torch.testing.assert_close(filled[1], x[1].mean((1, 2), keepdim=True).expand_as(x[1]))


def test_roads_noise_has_its_size_and_seed():
    x, mask = torch.zeros(1, 3, 60, 60), torch.ones(1, 60, 60, dtype=torch.bool)
    assert float(Linear(noise=0.1)(x, mask).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(Linear(seed=4)(x, mask), Linear(seed=4)(x, mask))
    assert not torch.equal(Linear(seed=4)(x, mask), Linear(seed=5)(x, mask))


def test_pixel_flipping_region_by_region():
    net, asked = tiny.seeded(tiny.HeadNet), subject()
    test, maps = PixelFlipping(side=9, regions=11, repeats=2, seed=6), random_maps((2, 2, 2))
    result = test(asked, maps)
    boxes = [(slice(i, i + 9), slice(j, j + 9)) for i in range(0, HEIGHT, 9) for j in range(0, WIDTH, 9)]
    for b, t, m in np.ndindex(2, 2, 2):
        order = sorted(boxes, key=lambda box: -float(maps[b, t, m][box].mean()))
        target, areas = int(asked.targets[b, t]), []
        for repeat in range(2):
            noise = Noise(6 + repeat)(asked.x[b : b + 1], torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool))[0]
            image, losses = asked.x[b].clone(), [0.0]
            for rows, columns in order[:11]:
                image[:, rows, columns] = noise[:, rows, columns]
                with torch.no_grad():
                    losses.append(float(asked.scores[b, t] - net(image[None])[0, target]))
            areas.append(sum(losses) / 12)
        assert float(result.values[b, t, m]) == pytest.approx(sum(areas) / 2, abs=1e-4)
    assert result.curves.shape == (2, 2, 2, 12)
    assert asked.forwards == 2 + test.cost(asked, 2)
    assert PixelFlipping(side=9).cost(asked, 1) == 10 * 15 * 4  # no more than there are regions


def test_a_map_and_its_copies_are_treated_alike_whatever_the_batches():
    maps = random_maps((2, 2, 1)).expand(-1, -1, 4, -1, -1)
    for test in (Deletion(steps=5), Road((0.3,)), PixelFlipping(regions=3, repeats=1)):
        one, other = test(subject(), maps), test(subject(batch_size=3), maps)
        torch.testing.assert_close(one.values, one.values[:, :, :1].expand(-1, -1, 4), atol=1e-4, rtol=0)
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=0)


def test_top_1_and_score_readings():
    asked = subject()
    asked_top = (asked.all_scores.argmax(1, keepdim=True) == asked.targets).float()
    assert torch.equal(asked.clean("top-1"), asked_top)
    curves = Deletion(steps=4, read="top-1")(asked, random_maps((2, 2, 1))).curves
    assert set(curves.flatten().tolist()) <= {0.0, 1.0}
    with pytest.raises(hp.InputError, match="read='logit'"):
        asked.clean("logit")


def test_ties_are_broken_by_the_seed_and_not_by_position():
    flat = torch.zeros(1, 30, 30)
    order = ranks(flat)
    assert torch.equal(order.flatten().sort().values, torch.arange(900, dtype=torch.int32))
    assert torch.equal(order, ranks(flat)) and not torch.equal(order, ranks(flat, seed=1))
    upper = order[0, :15].float().mean()
    assert abs(float(upper) - 449.5) < 40  # by position it would be 224.5
    half = torch.arange(900.0).view(1, 30, 30) * (torch.arange(900) >= 450).view(1, 30, 30)
    assert torch.equal(ranks(half).flatten()[450:], torch.arange(449, -1, -1, dtype=torch.int32))
    assert float(tied(half)[0]) == pytest.approx(0.5) and float(tied(torch.arange(6.0).view(1, 2, 3))[0]) == 0


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 14))
def test_cells_are_means_and_go_back(side, height, width):
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * 20 + width))
    wide = spread(cells(maps, side), side, (height, width))
    for i in range(height):
        for j in range(width):
            box = maps[:, i // side * side :, j // side * side :][:, :side, :side]
            torch.testing.assert_close(wide[:, i, j], box.mean((1, 2)))


def test_maps_of_any_kind_are_taken():
    values = np.arange(2 * 6 * 10).reshape(2, 6, 10)
    taken, said = take_maps(values, 2, 1, (6, 10))
    assert taken.shape == (2, 1, 6, 10) and taken.dtype == torch.float32 and not said
    assert take_maps(values, 1, 2, (6, 10)).maps.shape == (1, 2, 6, 10)
    assert take_maps(values[0].tolist(), 1, 1, (6, 10)).maps.shape == (1, 1, 6, 10)
    taken, said = take_maps(torch.ones(2, 3, 5), 2, 1, (6, 10))
    assert taken.shape == (2, 1, 6, 10) and "3×5 were resized to the model's 6×10" in said[0]
    assert says_nothing(taken).all() and not says_nothing(torch.tensor([[0.0, 1.0]]))
    for wrong in (np.zeros((3, 6, 10)), np.zeros((2, 2, 6, 10)), np.zeros((2, 3, 4, 6, 10)), "map", [[1], [1, 2]]):
        with pytest.raises(hp.InputError):
            take_maps(wrong, 2, 1, (6, 10))
    broken = torch.zeros(2, 1, 6, 10)
    broken[1, 0, 2, 2] = torch.nan
    with pytest.raises(hp.InputError, match="image 1, target 0 has values that are NaN"):
        take_maps(broken, 2, 1, (6, 10))


def test_bad_options_are_sentences():
    for wrong in (
        lambda: Deletion(steps=0),
        lambda: Road(fractions=(0.5, 1.0)),
        lambda: Road(fractions=()),
        lambda: PixelFlipping(side=True),
        lambda: Linear(noise=-1),
        lambda: Subject(hp.wrap(tiny.seeded(tiny.GapNet)), tiny.images(2), torch.tensor([[9], [0]])),
        lambda: Subject(hp.wrap(tiny.seeded(tiny.GapNet)), tiny.images(2), torch.tensor([[0]])),
    ):
        with pytest.raises(hp.InputError, match=r"expected|classes 0 to"):
            wrong()
    with pytest.raises(hp.MethodError, match="Did you mean 'blur'"):
        Deletion(infill="blurr")
    assert infill(Zero()) == Zero()


def test_probability_says_what_it_is():
    assert subject().reading == "softmax probability"
    torch.testing.assert_close(subject().probabilities, subject().all_scores.softmax(1).gather(1, subject().targets))

    class One(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None]

    single = Subject(hp.wrap(One()), tiny.images(2), torch.zeros(2, 1, dtype=torch.long))
    assert single.reading == "sigmoid"
    torch.testing.assert_close(single.probabilities, single.scores.sigmoid())
