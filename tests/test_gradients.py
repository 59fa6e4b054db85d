"""Input attributions once more, slowly, one image, one target and one step at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import heatproof as hp
from tiny import GapNet, HeadNet, TinyViT, images, seeded


def slope(net, x, target):
    x = x.clone().requires_grad_()
    score = net(x[None])[0, target]
    return torch.autograd.grad(score, x)[0]


def test_gradient_is_signed_in_raw_and_the_strongest_channel_in_the_map():
    net, x = seeded(HeadNet), images(2)
    ex = hp.explain(net, x, method="gradient", target=[[0, 3], [2, 1]])
    for i in range(2):
        for t, target in enumerate(ex.targets[i]):
            expected = slope(net, x[i], target)
            torch.testing.assert_close(ex.raw[i, t], expected)
            torch.testing.assert_close(ex.maps[i, t], torch.maximum(torch.maximum(*expected.abs()[:2]), expected.abs()[2]))


def test_gradient_x_input_explains_a_network_without_biases_completely():
    net, x = seeded(lambda: GapNet(bias=False)), images(2)
    net.stem[1].reset_running_stats()
    ex = hp.explain(net, x, method="gradient-x-input", target=1)
    torch.testing.assert_close(ex.raw[0, 0], x[0] * slope(net, x[0], 1))
    torch.testing.assert_close(ex.raw.sum((2, 3, 4)) + ex.residual, ex.scores)
    assert (ex.residual.abs() < 1e-5).all()
    torch.testing.assert_close(ex.maps, ex.raw.sum(2))


def test_integrated_gradients_with_given_steps_is_the_trapezoid_sum():
    net, x = seeded(HeadNet), images(2)
    start = images(1, seed=9)
    ex = hp.explain(net, x, method="integrated-gradients", target=3, steps=7, baseline=start, batch_size=3)
    for i in range(2):
        total = torch.zeros_like(x[i])
        for n in range(8):
            weight = 0.5 if n in (0, 7) else 1.0
            total += weight / 7 * slope(net, start[0] + n / 7 * (x[i] - start[0]), 3)
        torch.testing.assert_close(ex.raw[i, 0], (x[i] - start[0]) * total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", [GapNet, HeadNet, TinyViT])
@pytest.mark.parametrize("start", [None, 0.5])
def test_integrated_gradients_complete_to_a_thousandth(net, start):
    net, x = seeded(net), images(2)
    ex = hp.explain(net, x, method="integrated-gradients", target=[[0, 1], [4, 2]], baseline=start)
    at_start = net(torch.full((1, 3, 24, 40), start or 0.0))[0].detach()
    change = ex.scores - at_start[ex.targets]
    missed = (ex.raw.sum((2, 3, 4)) - change).abs()
    assert (missed <= 2e-3 * change.abs().clamp_min(1e-3)).all()
    torch.testing.assert_close(ex.raw.sum((2, 3, 4)) + ex.residual, ex.scores)


def test_integrated_gradients_find_the_step_that_equal_steps_miss():
    """All of the score is made in one thousandth of the path; the exact answer is known."""

    class Step(nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1, keepdim=True) / x[0].numel()
            return torch.cat([1000 * ((total - 0.5).relu() - (total - 0.501).relu()), total], 1)

    x = torch.ones(1, 3, 4, 6)
    exact = torch.full_like(x, 1 / 72)
    fine = hp.explain(Step(), x, method="integrated-gradients", target=0)
    coarse = hp.explain(Step(), x, method="integrated-gradients", target=0, steps=64)
    torch.testing.assert_close(fine.raw[0], exact, rtol=2e-3, atol=0)
    assert (coarse.raw[0] - exact).abs().max() > 0.5 / 72


def test_smoothgrad_is_the_mean_gradient_over_seeded_noise():
    net, x = seeded(HeadNet), images(2)
    ex = hp.explain(net, x, method="smoothgrad", target=2, samples=5, noise=0.2, seed=11, batch_size=2)
    generator = torch.Generator().manual_seed(11)
    noise = [torch.randn(1, 3, 24, 40, generator=generator) for _ in range(5)]
    for i in range(2):
        sigma = 0.2 * (x[i].max() - x[i].min())
        expected = sum(slope(net, x[i] + sigma * n[0], 2) for n in noise) / 5
        torch.testing.assert_close(ex.raw[i, 0], expected, rtol=1e-4, atol=1e-7)


def test_numbers_of_numpy_and_torch_are_numbers():
    net, x = seeded(HeadNet), images(1)
    plain = hp.explain(net, x, method="smoothgrad", samples=3, noise=0.5, seed=4)
    other = hp.explain(net, x, method="smoothgrad", samples=np.int64(3), noise=np.float32(0.5), seed=torch.tensor(4))
    assert torch.equal(plain.raw, other.raw)
    assert plain.options == other.options


def test_smoothgrad_does_not_depend_on_the_batch_size():
    net, x = seeded(HeadNet), images(1)
    maps = [hp.explain(net, x, method="smoothgrad", samples=7, batch_size=n).raw for n in (1, 3, 7, None)]
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-4, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.floats(-1, 1))
def test_taylor_is_exact_on_a_linear_score_whatever_the_root(weights, offset):
    class Linear(nn.Module):
        def forward(self, x):
            w = torch.tensor(weights).view(1, 3, 1, 1)
            return torch.stack([(x * w).sum((1, 2, 3)) + offset, x.sum((1, 2, 3))], 1)

    x, root = images(2, size=(3, 5)), images(1, seed=4, size=(3, 5))
    ex = hp.explain(Linear(), x, method="taylor", target=0, root=root)
    expected = torch.tensor(weights).view(1, 3, 1, 1) * (x - root)
    torch.testing.assert_close(ex.raw[:, 0], expected)
    torch.testing.assert_close(ex.residual[:, 0], Linear()(root)[:, 0].expand(2), rtol=1e-3, atol=1e-4)


def test_taylor_searches_the_nearest_root_towards_zero():
    """s(α x) = α² − 0.25 has its root at α = 0.5; the decomposition there is ∇s · (x − x̃) = 2·0.5·0.5."""

    class Square(nn.Module):
        def forward(self, x):
            return (x[:, 0, 0, :1] ** 2 - 0.25).expand(-1, 2)

    ex = hp.explain(Square(), torch.ones(1, 3, 2, 2), method="taylor", target=1)
    torch.testing.assert_close(ex.raw.sum(), torch.tensor(0.5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ex.residual, torch.tensor([[0.25]]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated-gradients", {"steps": 0}),
        ("integrated-gradients", {"baseline": torch.zeros(2, 2)}),
        ("smoothgrad", {"samples": 0}),
        ("smoothgrad", {"noise": -1.0}),
        ("smoothgrad", {"batch_size": 0}),
        ("taylor", {"root": "black"}),
    ],
)
def test_options_out_of_range_are_sentences(method, options):
    with pytest.raises(hp.InputError, match=next(iter(options))):
        hp.explain(seeded(GapNet), images(1), method=method, **options)


def test_a_model_that_cuts_the_graph_says_which_methods_need_none():
    class Cut(GapNet):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(hp.ModelError, match="scorecam"):
        hp.explain(seeded(Cut), images(1), method="gradient")
