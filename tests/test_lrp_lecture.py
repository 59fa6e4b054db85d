"""The lecture's arguments, asserted: the same functions that `examples/lrp_lecture.py` prints and draws with."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

import heatproof as hp
from heatproof.lrp import Composite, WSquare, ZPlus

pytest.importorskip("skimage")

PLACE = Path(__file__).resolve().parent.parent / "examples" / "lrp_lecture.py"


@pytest.fixture(scope="module")
def lecture():
    spec = importlib.util.spec_from_file_location("lrp_lecture", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conservation_alone_is_not_enough(lecture):
    generator = torch.Generator().manual_seed(0)
    weight, features = torch.randn(7, generator=generator), torch.rand(7, generator=generator)
    by_size, contributions = lecture.conserving_but_wrong(weight, features, 0.4)
    score = weight @ features + 0.4
    torch.testing.assert_close(by_size.sum(), score)
    torch.testing.assert_close(contributions.sum(), score)
    removal = lecture.effect_of_removal(weight, features)
    # the contributions are right up to the share of the bias, the same for all; by size even the signs are wrong
    torch.testing.assert_close(contributions - removal, torch.full((7,), 0.4 / 7))
    assert (by_size.sign() != removal.sign()).any()

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Linear(27, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.row(x.flatten(1))

    net, x = Linear().eval(), torch.rand(1, 3, 3, 3)
    ex = hp.explain(net, x, "lrp", target=0, composite="lrp0")
    products = (net.row.weight[0] * x.flatten()).detach().view(3, 3, 3)
    torch.testing.assert_close(ex.raw[0, 0], products)  # heatproof keeps the bias apart instead of spreading it
    torch.testing.assert_close(ex.residual[0, 0], net.row.bias[0].detach())


def test_lrp_0_is_gradient_times_input_on_relu_networks(lecture):
    net = lecture.small_network().double()
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    for target in range(3):
        ours = hp.explain(net, x, "lrp", target=target, composite="lrp0")
        wanted = hp.explain(net, x, "gradient-x-input", target=target)
        torch.testing.assert_close(ours.raw, wanted.raw)
        torch.testing.assert_close(ours.residual, wanted.residual)


def test_rules_are_taylor_expansions_around_root_points(lecture):
    generator = torch.Generator().manual_seed(3)
    weight, a = torch.randn(27, generator=generator).double(), torch.rand(27, generator=generator).double()
    weight = weight * (1 if weight @ a > 0 else -1)
    zero = torch.zeros((), dtype=torch.float64)
    neuron = nn.Sequential(nn.Flatten(), nn.Linear(27, 1, bias=False)).double().eval()
    neuron[1].weight.data.copy_(weight[None])
    x = a.view(1, 3, 3, 3)

    def ours(rule) -> torch.Tensor:
        return hp.explain(neuron, x, "lrp", target=0, composite=rule).raw.flatten()

    torch.testing.assert_close(lecture.taylor_of_a_neuron(weight, zero, a, torch.zeros_like(a)), ours("lrp0"))
    # z⁺: the root on the way that leads down through the inputs with positive weights alone
    root = lecture.root_along(weight, zero, a, a * (weight > 0))
    assert float(weight @ root) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(lecture.taylor_of_a_neuron(weight, zero, a, root), ours(Composite(ZPlus(), ZPlus())))
    # w²: the nearest root, straight down the weights
    nearest = lecture.root_along(weight, zero, a, weight)
    torch.testing.assert_close(lecture.taylor_of_a_neuron(weight, zero, a, nearest), ours(Composite(pixels=WSquare())))


def test_epsilon_makes_a_photo_sparser_and_gamma_makes_it_positive(lecture):
    model = hp.load("efficientnet-lite0")
    sparse, positive = lecture.curves(model, model.tensor([lecture.PHOTO]))
    gini = [lecture.sparsity(ex.map) for ex in sparse]
    assert all(later > earlier - 0.005 for earlier, later in itertools.pairwise(gini)) and gini[-1] > gini[0] + 0.1
    negative = [lecture.negative_share(ex.map) for ex in positive]
    assert all(later < earlier + 0.005 for earlier, later in itertools.pairwise(negative))
    assert negative[0] > 0.4 and negative[-1] < 0.05
    kept = [float(ex.raw.abs().sum()) for ex in sparse]
    assert kept == sorted(kept, reverse=True)  # what ε absorbs is gone from the map, and in the residual
    for ex in (*sparse, *positive):
        torch.testing.assert_close(ex.raw.sum() + ex.residual.sum(), ex.scores.sum(), rtol=1e-3, atol=1e-3)


def test_the_example_runs(lecture, tmp_path, capsys):
    lecture.main(tmp_path)
    assert (tmp_path / "lrp-lecture.png").stat().st_size > 20_000
    said = capsys.readouterr().out
    assert "LRP-0 and gradient × input differ" in said and "residual" in said
