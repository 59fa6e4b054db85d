"""Every rule against the explicit matrix form of a layer: its Jacobian, and the formula as the papers print it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import heatproof as hp
from heatproof.lrp import AlphaBeta, Composite, Epsilon, Flat, Gamma, Passed, Rule, WSquare, ZBox, Zero, ZPlus
from relevance import explicit, matrix

SIZE = (5, 4)
LOW, HIGH = torch.tensor([-2.5, -2.0, -3.0]).view(1, 3, 1, 1), torch.tensor([2.0, 3.0, 2.5]).view(1, 3, 1, 1)

LAYERS = {
    "linear": lambda bias: nn.Sequential(nn.Flatten(), nn.Linear(60, 7, bias=bias)),
    "conv": lambda bias: nn.Conv2d(3, 4, 3, bias=bias),
    "stride and padding": lambda bias: nn.Conv2d(3, 4, 3, 2, 1, bias=bias),
    "uneven stride": lambda bias: nn.Conv2d(3, 4, (2, 3), (1, 2), (1, 0), bias=bias),
    "dilation": lambda bias: nn.Conv2d(3, 2, 2, dilation=2, padding=1, bias=bias),
    "groups": lambda bias: nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=bias),
    "same": lambda bias: nn.Conv2d(3, 2, 3, padding="same", bias=bias),
    "same, uneven": lambda bias: nn.Conv2d(3, 2, (2, 4), padding="same", bias=bias),
    "padded before": lambda bias: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 2, 3, 2, bias=bias)),
    "reflected": lambda bias: nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect", bias=bias),
    "transposed": lambda bias: nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1, bias=bias),
    "transposed groups": lambda bias: nn.ConvTranspose2d(3, 6, 2, groups=3, bias=bias),
}
NORMED = [name for name in LAYERS if name not in ("reflected", "padded before")]
RULES = [Zero(), Epsilon(0.3), Epsilon(1e-6), Gamma(0.25), Gamma(0.0), Gamma(5.0), AlphaBeta(2.0, 1.0), AlphaBeta(1.5, 0.5),
         ZPlus(), WSquare(), Flat(), ZBox()]  # fmt: skip


class OneLayer(nn.Module):
    """One weighted layer under scores that are plain sums of its outputs, so that `R_k = v_k z_k` is known above it."""

    def __init__(self, layer: nn.Module, norm: bool, size: tuple[int, int] = SIZE) -> None:
        super().__init__()
        y = layer(torch.zeros(1, 3, *size))
        channels, outputs = y.shape[1], y[0].numel()
        self.layer = layer
        if norm:
            self.norm = nn.BatchNorm1d(channels) if isinstance(layer, nn.Sequential) else nn.BatchNorm2d(channels)
            for tensor, low in ((self.norm.weight, -1.5), (self.norm.bias, -0.5), (self.norm.running_mean, -0.5)):
                nn.init.uniform_(tensor, low, 1.5)
            nn.init.uniform_(self.norm.running_var, 0.5, 2)
        else:
            self.norm = nn.Identity()
        self.register_buffer("above", torch.randn(outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).flatten(1) @ self.above


def one_layer(name: str, bias: bool, norm: bool, seed: int = 0) -> OneLayer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OneLayer(LAYERS[name](bias), norm).double().eval()


def weighted(net: OneLayer) -> nn.Module:
    return next(m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d))


def placed(rule) -> Composite:
    return Composite(convolution=rule, linear=rule) if not rule.pixels_only else Composite(pixels=rule)


def values(count: int, signed: bool, seed: int = 3) -> Tensor:
    x = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.clamp(-1.9, 1.9) if signed else x.clamp(0, 1.9)  # within the box, or its shares are 0 / 0


def expected(net: OneLayer, rule, x: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """`R`, bias and ε of one image, from the layer's matrix."""
    if isinstance(net.layer, nn.Conv2d) and net.layer.padding_mode == "reflect":
        # the mirrored pixels are inputs of their own, whose relevance comes back to the pixels that they mirror
        mirror = lambda a: nn.functional.pad(a, (1, 1, 1, 1), mode="reflect")  # noqa: E731
        copies, _ = matrix(mirror, x)
        plain = OneLayer(nn.Conv2d(3, 2, 3, bias=net.layer.bias is not None), False, tuple(mirror(x[None]).shape[2:])).double()
        plain.layer.load_state_dict(net.layer.state_dict())
        plain.above = net.above
        relevance, bias, lost = expected(plain, rule, mirror(x[None])[0], target)
        return (copies.T @ relevance.flatten()).view_as(x), bias, lost
    run = lambda a: net.norm(net.layer(a))  # noqa: E731
    w, b = matrix(run, x)
    layer = weighted(net)
    kept = layer.weight.detach().clone(), layer.bias
    layer.weight.data.fill_(1.0)
    layer.bias = None
    ones, _ = matrix(net.layer, x)
    layer.weight.data.copy_(kept[0])
    layer.bias = kept[1]
    z = run(x[None])[0].flatten().detach()
    box = tuple(edge.double().expand(1, *x.shape).flatten() for edge in (LOW, HIGH))
    relevance, bias, lost = explicit(rule, x.flatten(), w, b, z * net.above[:, target], ones, box)
    return relevance.view_as(x), bias, lost


def check(net: OneLayer, rule, x: Tensor, target: int = 1) -> None:
    ex = hp.explain(net, x, "lrp", target=target, composite=placed(rule), low=LOW, high=HIGH, ledger=True)
    for i, image in enumerate(x):
        relevance, bias, lost = expected(net, rule, image, target)
        torch.testing.assert_close(ex.raw[i, 0], relevance, rtol=1e-6, atol=1e-6)  # rules divide by z ± 1e-9
        rows = [row for row in ex.ledger if row["image"] == i]
        # what the running mean takes away is booked as "norm" where a rule can tell it from the bias
        torch.testing.assert_close(sum(row["bias"] + row["norm"] for row in rows), float(bias), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sum(row["epsilon"] for row in rows), float(lost), rtol=1e-6, atol=1e-6)
        assert any(row["rule"] == repr(rule) for row in rows)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "positive"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_rule_against_the_matrix(name, rule, bias, signed):
    check(one_layer(name, bias, norm=False), rule, values(2, signed))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", NORMED)
def test_rule_with_a_batch_norm_on_top(name, rule):
    check(one_layer(name, True, norm=True), rule, values(2, True))


def test_the_norm_column_is_the_running_mean_and_the_bias_column_the_parameters():
    net = one_layer("stride and padding", True, norm=True)
    x = values(1, True)
    ex = hp.explain(net, x, "lrp", target=2, composite="lrp0", ledger=True)
    scale = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
    v = net.above[:, 2].view_as(net.layer(x)[0])
    (row,) = [row for row in ex.ledger if "norm" in row["op"]]
    per_channel = v.sum((1, 2))
    bias = (per_channel * (net.layer.bias * scale + net.norm.bias)).sum()
    assert row["bias"] == pytest.approx(bias.item(), rel=1e-10)
    assert row["norm"] == pytest.approx(-(per_channel * scale * net.norm.running_mean).sum().item(), rel=1e-10)


def test_three_dimensional_weights_beyond_images():
    """conv1d and conv3d inside a network, against the same maps as matrices."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.cube = nn.Conv1d(3, 2, 3, padding=1), nn.Conv3d(1, 2, (2, 3, 2), padding=(0, 1, 0))
            self.register_buffer("above", torch.randn(2 * 20, 3))
            self.register_buffer("over", torch.randn(2 * 2 * 5 * 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x.flatten(2)).flatten(1) @ self.above + self.cube(x[:, None]).flatten(1) @ self.over

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().double().eval()
    x = values(1, True)
    got = hp.explain(net, x, "lrp", target=0, composite=placed(Gamma(0.5))).raw[0, 0]
    wanted = torch.zeros(60, dtype=torch.float64)
    for layer, above in ((lambda a: net.line(a.flatten(2)), net.above), (lambda a: net.cube(a[:, None]), net.over)):
        w, b = matrix(layer, x[0])
        wanted += explicit(Gamma(0.5), x[0].flatten(), w, b, layer(x)[0].flatten().detach() * above[:, 0])[0]
    torch.testing.assert_close(got, wanted.view_as(x[0]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rule", [Gamma(0.25), ZPlus(), AlphaBeta(2.0, 1.0), Epsilon(0.5), Zero()], ids=repr)
def test_an_output_at_zero_hands_nothing_down(rule):
    net = one_layer("conv", False, norm=False)
    net.layer.weight.data[0] = 0
    ex = hp.explain(net, values(2, True), "lrp", target=0, composite=placed(rule))
    assert torch.isfinite(ex.raw).all()
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-9, atol=1e-9)


def test_gamma_zero_and_epsilon_to_zero_are_lrp_0():
    for name in ("conv", "linear", "transposed"):
        net, x = one_layer(name, True, norm=True), values(2, True)
        wanted = hp.explain(net, x, "lrp", target=1, composite="lrp0").raw
        torch.testing.assert_close(hp.explain(net, x, "lrp", target=1, composite=placed(Gamma(0.0))).raw, wanted)
        gaps = []
        for epsilon in (1e-1, 1e-3, 1e-5, 1e-7):
            found = hp.explain(net, x, "lrp", target=1, composite=placed(Epsilon(epsilon))).raw
            gaps.append(float((found - wanted).abs().max()))
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-4 * float(wanted.abs().max())


def test_gamma_without_bound_is_z_plus_on_positive_values():
    net, x = one_layer("stride and padding", False, norm=False), values(1, False)
    net.layer.weight.data.abs_().sub_(0.05)  # most outputs positive, as above a ReLU
    net.above.copy_(net.above * 0 + 1.0)
    positive = net.layer(x)[0].flatten().detach() > 0
    net.above[~positive] = 0
    a = hp.explain(net, x, "lrp", target=0, composite=placed(Gamma(1e9))).raw
    b = hp.explain(net, x, "lrp", target=0, composite=placed(ZPlus())).raw
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(LAYERS)),
    rule=st.sampled_from(RULES),
    bias=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_rule_on_any_layer_accounts_for_everything(name, rule, bias, norm, seed):
    net, x = one_layer(name, bias, norm and name in NORMED, seed), values(2, True, seed)
    ex = hp.explain(net, x, "lrp", target=seed % 3, composite=placed(rule), low=LOW, high=HIGH, ledger=True)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-8, atol=1e-8)
    total = sum(row[column] for row in ex.ledger for column in ("bias", "epsilon", "norm", "softmax"))
    assert total == pytest.approx(float(ex.residual.sum()), rel=1e-8, abs=1e-8)


class Between(Rule):
    """Half of one rule, half of another, and a look at the output afterwards."""

    needs_input = True

    def __call__(self, layer, gradient):
        parts = [Epsilon(0.1)(layer, gradient), Gamma(0.5)(layer, gradient)]
        assert layer.output.shape == gradient.shape
        return Passed(
            *((getattr(parts[0], name) + getattr(parts[1], name)) / 2 for name in ("gradient", "bias", "epsilon", "norm"))
        )


class Doubled(Epsilon):
    """A rule derived from one that uses up what was kept, which asks it twice."""

    def __call__(self, layer, gradient):
        super().__call__(layer, gradient)
        return super().__call__(layer, gradient)


@pytest.mark.parametrize("target", [1, [[0, 1, 2]]])
def test_a_rule_of_the_users_may_be_made_of_others(target):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(60, 3)).double()
    x = torch.rand(1, 3, 8, 7, dtype=torch.float64)

    def relevance(rule):
        ex = hp.explain(net, x, "lrp", target, composite=Composite(Zero(), rule))
        torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
        return ex.raw

    # below a linear layer everything is linear in what that layer hands down
    torch.testing.assert_close(relevance(Between()), (relevance(Epsilon(0.1)) + relevance(Gamma(0.5))) / 2)
    torch.testing.assert_close(relevance(Doubled(0.1)), relevance(Epsilon(0.1)))
