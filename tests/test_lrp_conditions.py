"""Conditional relevance: through channels of any layer and through heads of any attention, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.lrp import AlphaBeta, Composite, Epsilon, Gamma
from lrp_networks import lrp, missing, network, settle
from tiny import images, seeded


class Mixed(nn.Module):
    """Layers of every kind that books something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.next = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 6, 3)
        self.plus, self.group, self.pad = nn.Softplus(), nn.GroupNorm(2, 6), nn.ConstantPad2d(1, 0.4)
        self.attention, self.last, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6), nn.Linear(6, 5)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pad(self.group(self.plus(self.next(self.act(self.norm(self.conv(x)))))))
        y = y.flatten(2).transpose(1, 2)
        y = y + self.attention(y, y, y)[0]
        return self.head(self.last(y).mean(1))


LAYERS = ("conv", "norm", "act", "next", "plus", "group", "pad", "attention", "last")


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-gamma-box", "attnlrp"])
@pytest.mark.parametrize("layer", LAYERS)
def test_channels_of_any_layer_add_up_to_all_of_them(layer, composite):
    net, x = seeded(Mixed), images(2, size=(8, 9)).double()
    whole = lrp(net, x, composite, [1, 2])
    parts = [lrp(net, x, composite, [1, 2], through={layer: channel}) for channel in range(6)]
    around = lrp(net, x, composite, [1, 2], through={layer: []}, ledger=True)
    assert max(map(missing, [*parts, around])) < 1e-8
    torch.testing.assert_close(sum(part.raw - around.raw for part in parts) + around.raw, whole.raw)
    assert any(row["op"] == "condition" and row["condition"] for row in around.ledger)
    if layer != "attention":  # there is a way around it
        assert not around.raw.any()


class Grid(nn.Module):
    """Channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.turn, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.turn(self.conv(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


def test_channels_that_come_last_are_channels():
    net, x = seeded(Grid), images(2, size=(8, 12)).double()
    ex = lrp(net, x, "lrp0", 1, through={net.turn: [0, 2]})
    leaf = x.clone().requires_grad_()
    y = net.turn(net.conv(leaf).permute(0, 2, 3, 1))
    y = torch.where(torch.tensor([True, False, True, False]), y, y.detach())
    net.head(y.relu().mean((1, 2)))[:, 1].sum().backward()
    torch.testing.assert_close(ex.raw[:, 0], (leaf * leaf.grad).detach())


class Heads(nn.Module):
    """A block whose heads can be cut from the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix, self.head = nn.Conv2d(3, 6, 4, 4), nn.Module(), nn.Linear(6, 5)
        self.mix.qkv, self.mix.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.double()

    def forward(self, x: Tensor, only: int | None = None) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.mix.qkv(t).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 3**0.5).softmax(-1)
        y = (weights if only is None else weights.detach()) @ v
        if only is not None:
            y = torch.where(torch.arange(2).view(2, 1, 1) == only, y, y.detach())
        return self.head((t + self.mix.out(y.transpose(1, 2).flatten(2))).mean(1))


def test_a_head_by_hand():
    net, x = seeded(Heads), images(2, size=(8, 12)).double()
    for head in (0, 1):
        ex = lrp(net, x, "lrp0", 1, through={"": {"heads": [head]}}, ledger=True)
        leaf = x.clone().requires_grad_()
        net(leaf, head)[:, 1].sum().backward()
        torch.testing.assert_close(ex.raw[:, 0], (leaf * leaf.grad).detach())
        assert missing(ex) < 1e-8 and any(row["rule"] == f"only heads [{head}]" for row in ex.ledger)


@pytest.mark.parametrize("composite", ["lrp0", "attnlrp"])
@pytest.mark.parametrize("kind", ["by hand", "fused", "multihead", "multihead fused"])
def test_heads_in_any_spelling_add_up(kind, composite):
    net, x = network(f"vit, {kind}"), images(2, size=(8, 12)).double()
    place = "mix" if kind.startswith("multihead") else ""
    whole, first, second, around = (
        lrp(net, x, composite, [3, 1], through=through)
        for through in (None, *({place: {"heads": heads}} for heads in ([0], [1], [])))
    )
    assert max(map(missing, (whole, first, second, around))) < 1e-8
    torch.testing.assert_close(first.raw + second.raw - around.raw, whole.raw)
    assert not torch.allclose(first.raw, second.raw)


@pytest.mark.parametrize(
    ("through", "message"),
    [
        ("features", "expected {layer"),
        (["stem"], "expected {layer"),
        ({"stm": [0]}, "Did you mean 'stem'"),
        ({"stem": [4]}, r"channels \[4\]"),
        ({"stem": [-1]}, r"channels \[-1\]"),
        ({"stem": [0.5]}, "a list of indices"),
        ({"stem": [True, False]}, "a list of indices"),
        ({"stem": "0"}, "a list of indices"),
        ({"stem": {"heads": [0]}}, "no attention with heads"),
        ({nn.ReLU(): [0]}, "does not have"),
    ],
)
def test_what_is_no_condition_is_refused(through, message):
    with pytest.raises(hp.MethodError, match=message):
        hp.explain(network("residual"), images(1, size=(9, 7)).double(), "lrp", through=through)


def test_a_head_that_does_not_exist():
    with pytest.raises(hp.MethodError, match=r"heads \[2\] .* which has 2"):
        hp.explain(network("vit, fused"), images(1, size=(8, 12)).double(), "lrp", through={"": {"heads": [2]}})


# --- rules and bounds that make no sense ---------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gamma(-1),
        lambda: Gamma(float("inf")),
        lambda: Epsilon(float("nan")),
        lambda: AlphaBeta(2, 2),
        lambda: AlphaBeta(-1, -2),
        lambda: Epsilon("small"),
        lambda: Composite(convolution="gamma"),
        lambda: Composite(linear=None),
        lambda: Composite(top=Gamma),
        lambda: Composite(choose="deep"),
        lambda: Composite(products="all"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rules_and_composites_that_make_no_sense_are_refused_where_they_are_made(make):
    with pytest.raises(hp.MethodError, match="expected"):
        make()


def test_a_choice_that_is_no_rule():
    with pytest.raises(hp.MethodError, match="choose\\(\\) of a Composite returned 'ε' for 'fc'"):
        hp.explain(network("residual"), images(1, size=(9, 7)).double(), "lrp", composite=Composite(choose=lambda layer: "ε"))


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers():
    net, x = network("residual"), images(1, size=(9, 7)).double()
    one = hp.explain(net, x, "lrp", target=1, composite="epsilon", epsilon=np.float32(0.5))
    torch.testing.assert_close(one.raw, hp.explain(net, x, "lrp", target=1, composite="epsilon", epsilon=0.5).raw)


def test_bounds_for_each_channel_and_the_wrong_way_round():
    net, x = network("residual"), images(1, size=(9, 7)).double()
    low, high = torch.tensor([-4.0, -5.0, -6.0]), torch.tensor([4.0, 5.0, 6.0])
    flat = hp.explain(net, x, "lrp", target=1, low=low.tolist(), high=high)
    full = hp.explain(net, x, "lrp", target=1, low=low.view(1, 3, 1, 1), high=high.view(3, 1, 1))
    torch.testing.assert_close(flat.raw, full.raw)
    with pytest.raises(hp.InputError, match="lies above high="):
        hp.explain(net, x, "lrp", low=3, high=-3)


def test_one_layer_at_a_time():
    net, x = network("residual"), images(1, size=(9, 7)).double()
    with pytest.raises(hp.MethodError, match="layer= names 2 layers"):
        hp.explain(net, x, "lrp", layer=["a", "b"])
    torch.testing.assert_close(hp.explain(net, x, "lrp", layer=["a"]).raw, hp.explain(net, x, "lrp", layer="a").raw)


def test_a_spread_of_tokens_is_not_taken_for_channels():
    """The channels of tokens are their last axis, also where there are as many tokens as images."""
    net, x = network("vit, fused"), images(7, size=(8, 12)).double()
    together = lrp(net, x, "lrp0", 1, through={"second": [0, 3]})
    alone = lrp(net, x[:1], "lrp0", 1, through={"second": [0, 3]})
    torch.testing.assert_close(together.raw[:1], alone.raw)

    assert missing(together) < 1e-8
