"""Nothing unaccounted for: relevance and residual add up to the score, on every family of networks, row by row."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from lrp_networks import COMPOSITES, EXACT, missing

COLUMNS = ("bias", "epsilon", "norm", "softmax")

# family: smallest member, side of the input
FAMILIES = {
    "alexnet": ("alexnet", 64),
    "convnext": ("convnext_tiny", 64),
    "densenet": ("densenet121", 64),
    "efficientnet": ("efficientnet_b0", 64),
    "efficientnetv2": ("efficientnet_v2_s", 64),
    "googlenet": ("googlenet", 64),
    "inception": ("inception_v3", 80),
    "maxvit": ("maxvit_t", 64),
    "mnasnet": ("mnasnet0_5", 64),
    "mobilenetv2": ("mobilenet_v2", 64),
    "mobilenetv3": ("mobilenet_v3_small", 64),
    "regnet": ("regnet_y_400mf", 64),
    "resnet": ("resnet18", 64),
    "resnext": ("resnext50_32x4d", 64),
    "shufflenetv2": ("shufflenet_v2_x0_5", 64),
    "squeezenet": ("squeezenet1_0", 64),
    "swin": ("swin_t", 64),
    "swin_v2": ("swin_v2_t", 64),
    "vgg": ("vgg11", 32),
    "vit": ("vit_b_32", 64),
    "wide_resnet": ("wide_resnet50_2", 64),
}


def family(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the family as after training: batch norms know their data, no branch is switched off, biases count."""
    models = pytest.importorskip("torchvision").models
    member, side = FAMILIES[name]
    options: dict = {"num_classes": 7}
    if name == "vit":
        options |= {"image_size": side}
    if name in ("googlenet", "inception"):
        options |= {"init_weights": False, "aux_logits": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "maxvit":  # the member has 31 million weights at 224 pixels; the same blocks, smaller
            net = models.maxvit.MaxVit((side, side), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=7)
        else:
            net = models.get_model(member, weights=None, **options)
        x = torch.randn(3, 3, side, side)
        trained(net, x)
    return net, x[:2]


def trained(net: nn.Module, x: Tensor) -> None:
    """Give an untrained network what training would: biases, statistics of its data, branches and heads that matter."""
    net.eval()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif "layer_scale" in name:
            nn.init.uniform_(parameter, 0.3, 1.0)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        net(x)
    net.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_torchvision_family_adds_up(name):
    net, x = family(name)
    top = [[int(c)] for c in net(x).abs().argmax(1)]
    for composite in COMPOSITES:
        if composite not in EXACT:
            ex = hp.explain(net, x, "lrp", target=top, composite=composite)
            assert missing(ex) < 1e-3, composite
    net, x = net.double(), x.double()
    for composite in EXACT:
        ex = hp.explain(net, x, "lrp", target=top, composite=composite)
        assert ex.raw.dtype == torch.float64
        assert missing(ex) < 1e-8, composite
        assert ex.raw.abs().max() > 0 and torch.isfinite(ex.raw).all()


# --- networks without biases --------------------------------------------------------------------------------------


def free_of_biases(net: nn.Module, x: Tensor) -> None:
    """No biases, shifts, class tokens or positions; batch norms scale to what now arrives."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        last = name.split(".")[-1]
        if last.endswith(("bias", "running_mean")) or last in ("class_token", "pos_embedding"):
            tensor.data.zero_()
    scales = []

    def calibrate(norm: nn.Module, inputs: tuple) -> None:
        norm.running_var.copy_(inputs[0].var((0, 2, 3), correction=0) + 1e-3)

    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            scales.append(norm.register_forward_pre_hook(calibrate))
    with torch.no_grad():
        net(x)
    for handle in scales:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_without_biases_next_to_nothing_is_lost(name):
    net, x = family(name)
    free_of_biases(net, x)
    x = x[:1]
    for composite in ("lrp0", "epsilon"):
        ex = hp.explain(net, x, "lrp", target=[[int(net(x).abs().argmax())]], composite=composite)
        assert missing(ex) < 1e-3
        assert float(ex.residual.abs() / ex.scores.abs()) < 0.01, (composite, ex.residual, ex.scores)


# --- row by row ---------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """A ReLU network without branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.three = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 2), nn.Linear(5, 6)
        self.before, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)
        for norm in (self.norm, self.before):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = torch.relu(self.two(x)).mean((2, 3))
        return self.head(self.before(torch.relu(self.three(x))))


def chain() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Chain().eval(), torch.randn(3, 3, 9, 8, dtype=torch.float64)


def lost(row: dict) -> float:
    return sum(row[column] for column in COLUMNS)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_rows_sum_to_the_residual_for_every_image_and_target(composite):
    net, x = chain()
    ex = hp.explain(net, x, "lrp", target=[[0, 3], [1, 2], [2, 2]], composite=composite, ledger=True)
    for i in range(3):
        for t in range(2):
            rows = [row for row in ex.ledger if (row["image"], row["target"]) == (i, t)]
            assert sum(map(lost, rows)) == pytest.approx(float(ex.residual[i, t]), rel=1e-10)
            for row in rows:
                assert row["relevance_in"] - lost(row) == pytest.approx(row["relevance_out"], abs=1e-12)
                assert isinstance(row["place"], str) and isinstance(row["op"], str) and isinstance(row["rule"], str)
            assert rows[-1]["relevance_in"] == pytest.approx(float(ex.scores[i, t]))
            assert rows[0]["relevance_out"] == pytest.approx(float(ex.raw[i, t].sum()))


@pytest.mark.parametrize("composite", ["lrp0", "epsilon", "epsilon-plus-flat"])
def test_consecutive_rows_of_a_chain_hand_over_exactly(composite):
    net, x = chain()
    ex = hp.explain(net, x, "lrp", target=[0, 1, 2], composite=composite, ledger=True, epsilon=0.05)
    for i in range(3):
        rows = [row for row in ex.ledger if row["image"] == i]
        assert [row["op"] for row in rows if row["op"] != "relu"] == [
            "conv2d+batch_norm", "conv2d", "mean", "linear", "batch_norm", "linear"]  # fmt: skip
        for below, above in itertools.pairwise(rows):
            assert above["relevance_out"] == pytest.approx(below["relevance_in"], rel=1e-9, abs=1e-12), (below, above)


def test_under_lrp_0_on_relu_networks_each_bias_takes_b_times_its_gradient():
    net, x = chain()
    ex = hp.explain(net, x, "lrp", target=[3, 0, 1], composite="lrp0", ledger=True)
    for i, target in enumerate((3, 0, 1)):
        net.zero_grad()
        net(x[i : i + 1])[0, target].backward()
        took = {name: (p * p.grad).sum().item() for name, p in net.named_parameters() if name.endswith("bias")}
        rows = {row["place"]: row for row in ex.ledger if row["image"] == i and lost(row)}
        assert rows["two"]["bias"] == pytest.approx(took["two.bias"], rel=1e-9)
        assert rows["three"]["bias"] == pytest.approx(took["three.bias"], rel=1e-9)
        assert rows["head"]["bias"] == pytest.approx(took["head.bias"], rel=1e-9)
        assert rows["one"]["bias"] == pytest.approx(took["one.bias"] + took["norm.bias"], rel=1e-9)
        assert rows["before"]["bias"] == pytest.approx(took["before.bias"], rel=1e-9)
        # what the running mean takes: −μ ∂f/∂β · γ/σ
        scale = net.before.weight / (net.before.running_var + net.before.eps).sqrt()
        taken = -(net.before.running_mean * scale * net.before.bias.grad).sum()
        assert rows["before"]["norm"] == pytest.approx(taken.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["resnet", "vgg", "googlenet", "densenet"])
def test_every_bias_of_a_relu_network_against_autograd(name):
    net, x = family(name)
    net, x = net.double(), x[:1].double()
    ex = hp.explain(net, x, "lrp", target=2, composite="lrp0", ledger=True)
    net(x)[0, 2].backward()
    wanted = sum((p * p.grad).sum().item() for n, p in net.named_parameters() if n.endswith("bias"))
    assert sum(row["bias"] for row in ex.ledger) == pytest.approx(wanted, rel=1e-8)
    by_place: dict[str, float] = {}
    for row in ex.ledger:
        by_place[row["place"]] = by_place.get(row["place"], 0.0) + row["bias"]
    for place, module in net.named_modules():
        if isinstance(module, nn.Linear):
            assert by_place[place] == pytest.approx((module.bias * module.bias.grad).sum().item(), rel=1e-8)


def test_no_ledger_unless_asked():
    net, x = chain()
    assert hp.explain(net, x, "lrp").ledger is None
    assert hp.explain(net, x, "lrp", ledger=True).ledger


def test_what_the_softmax_rule_does_not_conserve_has_its_own_column():
    net, x = family("vit")
    ex = hp.explain(net, x[:1], "lrp", target=1, composite="attnlrp", ledger=True)
    plain = hp.explain(net, x[:1], "lrp", target=1, composite="epsilon", ledger=True)
    assert any(row["softmax"] for row in ex.ledger) and not any(row["softmax"] for row in plain.ledger)
    assert {row["op"] for row in ex.ledger if row["softmax"]} <= {"attention", "softmax"}
