"""Whole networks against relevance that is worked out layer by layer, and what may not change it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import heatproof as hp
from heatproof.lrp import Composite, Epsilon, Gamma, ZBox, ZPlus
from lrp_networks import COMPOSITES, HIGH, LOW, NETWORKS, every_composite, lrp, naive, network, ones_of
from relevance import Value
from tiny import images, seeded


@every_composite
@pytest.mark.parametrize("name", NETWORKS)
def test_against_relevance_worked_out_layer_by_layer(name, composite):
    net = network(name)
    x = images(2, size=net.size).double()
    ex = lrp(net, x, composite, target=[3, 1])
    for i, target in enumerate((3, 1)):
        pixels = Value(x[i])
        top = net.naive(naive(composite), pixels)
        torch.testing.assert_close(top.x, net(x)[i].detach())
        top.propagate(torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(target), 1) * top.x)
        torch.testing.assert_close(ex.raw[i, 0], pixels.relevance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-9, atol=1e-9)


# --- what does not matter -----------------------------------------------------------------------------------------


@every_composite
@pytest.mark.parametrize("name", ["residual", "gated", "vit, by hand", "vit, multihead", "vit, fused"])
def test_batches_and_targets_are_single_images_and_single_targets(name, composite):
    net = network(name)
    x = images(3, size=net.size).double()
    together = lrp(net, x, composite, [[0, 3], [2, 1], [4, 2]], ledger=True)
    for i in range(3):
        for t in range(2):
            alone = lrp(net, x[i : i + 1], composite, int(together.targets[i, t]), ledger=True)
            torch.testing.assert_close(together.raw[i, t], alone.raw[0, 0])
            torch.testing.assert_close(together.residual[i, t], alone.residual[0, 0])
            rows = [row for row in together.ledger if (row["image"], row["target"]) == (i, t)]
            assert [(row["place"], row["op"]) for row in rows] == [(row["place"], row["op"]) for row in alone.ledger]
            for column in ("relevance_in", "relevance_out", "bias", "epsilon", "norm", "softmax"):
                ours, theirs = (torch.tensor([row[column] for row in some]) for some in (rows, alone.ledger))
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@every_composite
def test_swin_windows_share_the_batch_axis_and_still_do_not_mix_images(composite):
    models = pytest.importorskip("torchvision").models
    build = lambda: models.SwinTransformer([2, 2], 6, [2], [3], [3, 3], num_classes=4)  # noqa: E731
    net, x = seeded(build).double(), images(2, size=(13, 18)).double()
    together = lrp(net, x, composite, [1, 2])
    for i in range(2):
        alone = lrp(net, x[i : i + 1], composite, i + 1)
        torch.testing.assert_close(together.raw[i], alone.raw[0])
        torch.testing.assert_close(together.residual[i], alone.residual[0])


@every_composite
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_splitting_a_convolution_from_its_batch_norm_changes_nothing(composite, seed):
    net = network("residual", seed)
    whole = copy.deepcopy(net)
    for conv, norm in (("stem", "norm"), ("a", "an"), ("b", "bn"), ("short", "sn")):
        setattr(whole, conv, fuse_conv_bn_eval(getattr(whole, conv), getattr(whole, norm)))
        setattr(whole, norm, nn.Identity())
    x = images(2, seed, net.size).double()
    one, other = (lrp(some, x, composite, [seed % 5, 0]) for some in (net, whole))
    torch.testing.assert_close(one.raw, other.raw, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.residual, other.residual, rtol=1e-6, atol=1e-8)


def without_biases(net: nn.Module) -> nn.Module:
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith(("bias", "running_mean")) or name in ("token", "position"):
            tensor.data.zero_()
    return net


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat", "epsilon-gamma-box"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_positive_homogeneity(composite, seed, factor):
    """Without biases a ReLU network is homogeneous, and so is its relevance: `R(λx) = λ R(x)`, the box grown along."""
    net = without_biases(network("vgg", seed))
    x = images(1, seed, net.size).double()
    one = lrp(net, x, composite, 2, epsilon=0.0)
    other = lrp(net, factor * x, composite, 2, epsilon=0.0, low=factor * LOW, high=factor * HIGH)
    torch.testing.assert_close(other.raw, factor * one.raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("composite", ["lrp0", "epsilon", "attnlrp", Composite(Gamma(0.25)), Composite(ZPlus(), Epsilon(0.1))])
@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10_000))
def test_nothing_goes_to_a_pixel_that_is_zero(composite, name, seed):
    net = network(name, seed)
    x = images(1, seed, net.size).double()
    off = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    x[off] = 0
    raw = lrp(net, x, composite, 1).raw[:, 0]
    assert (raw[off] == 0).all() and (raw[~off] != 0).any()


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), composite=st.sampled_from(COMPOSITES), seed=st.integers(0, 10_000))
def test_conservation_whatever_the_weights(name, composite, seed):
    net = network(name, seed)
    ex = lrp(net, images(2, seed, net.size).double(), composite, [[0, 1, 2]] * 2)
    size = ex.raw.abs().flatten(2).sum(2) + ex.residual.abs() + ex.scores.abs()
    assert ((ex.raw.flatten(2).sum(2) + ex.residual - ex.scores).abs() <= 1e-10 * size).all()


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_on_relu_networks_lrp_0_is_gradient_times_input(name):
    net = network(name)
    x = images(2, size=net.size).double()
    wanted = hp.explain(net, x, "gradient-x-input", target=[[1, 4], [0, 2]])
    torch.testing.assert_close(lrp(net, x, "lrp0", [[1, 4], [0, 2]]).raw, wanted.raw)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shrinking_epsilon_ends_in_lrp_0(name):
    net = network(name)
    x = images(1, size=net.size).double()
    wanted = lrp(net, x, "lrp0", 1).raw
    gaps = [float((lrp(net, x, "epsilon", 1, epsilon=e).raw - wanted).abs().max()) for e in (1e-2, 1e-4, 1e-6, 1e-9)]
    assert gaps[-1] < 1e-5 * float(wanted.abs().max()) and gaps[-1] < gaps[0]
    plain = Composite(Gamma(0.0), Gamma(0.0))
    torch.testing.assert_close(lrp(net, x, plain, 1).raw, wanted, rtol=1e-5, atol=1e-7)


# --- relevance anywhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), [("vgg", "features.2"), ("vgg", "features.4"), ("inception", "stem"),
                                             ("vit, fused", "second")])  # fmt: skip
@every_composite
def test_relevance_of_a_layer(name, layer, composite):
    net = network(name)
    x = images(2, size=net.size).double()
    kept = {}
    handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, y: kept.update(shape=y.shape))
    net(x)
    handle.remove()
    ex = lrp(net, x, composite, [[0, 1], [3, 2]], layer=layer, ledger=True)
    assert ex.raw.shape == (2, 2, *kept["shape"][1:]) and ex.maps.shape == (2, 2, *net.size) and ex.layer == (layer,)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
    bypass = sum(row.get("bypass", 0) for row in ex.ledger if (row["image"], row["target"]) == (1, 0))
    assert (abs(bypass) > 1e-9) == name.startswith("vit")  # a transformer's residual stream runs around its norms


def test_relevance_of_a_layer_is_what_arrives_there():
    """On a chain, the naive relevance of the value itself."""
    net = network("vgg")
    x = images(1, size=net.size).double()
    ex = lrp(net, x, "epsilon-gamma-box", 2, layer="features.4")
    n, f, c = naive("epsilon-gamma-box"), net.features, net.classifier
    a = n.activation(n.affine(Value(x[0]), f[0], pixels=True, ones=ones_of(f[0])), torch.relu)
    pooled = n.max_pool(n.activation(n.affine(a, f[2]), torch.relu), 2)
    a = n.linear_map(n.activation(n.affine(pooled, f[5]), torch.relu), net.pool)
    a = n.view(a, torch.flatten, lambda r: r.view(4, 2, 1))
    top = n.affine(n.activation(n.affine(a, c[0], "linear"), torch.relu), c[3], "linear", top=True)
    top.propagate(torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(2), 1) * top.x)
    torch.testing.assert_close(ex.raw[0, 0], pooled.relevance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat"])
def test_conditional_relevance_adds_up_over_the_channels(composite):
    net = network("vgg")
    x = images(2, size=net.size).double()
    whole = lrp(net, x, composite, [1, 0])
    parts = [lrp(net, x, composite, [1, 0], through={"features.2": channels}) for channels in ([0], [1, 4], [2, 3])]
    torch.testing.assert_close(sum(part.raw for part in parts), whole.raw)
    for part in parts:
        torch.testing.assert_close(part.raw.flatten(2).sum(2) + part.residual, part.scores)
    blind = lrp(net, x, composite, [1, 0], through={"features.2": []})
    assert not blind.raw.any()
    with pytest.raises(hp.MethodError, match="which has 5"):
        lrp(net, x, composite, 1, through={"features.2": [5]})
    with pytest.raises(hp.MethodError, match="does not have"):
        lrp(net, x, composite, 1, through={"nowhere": [0]})


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat", "attnlrp"])
def test_contrast_is_a_difference_of_maps_where_rules_are_linear_in_relevance(composite):
    net = network("residual")
    x = images(2, size=net.size).double()
    each = lrp(net, x, composite, [[0, 1, 2, 3, 4]] * 2)
    against = lrp(net, x, composite, 3, contrast=1)
    torch.testing.assert_close(against.raw[:, 0], each.raw[:, 3] - each.raw[:, 1])
    rest = lrp(net, x, composite, 3, contrast="rest", ledger=True)
    torch.testing.assert_close(rest.raw[:, 0], each.raw[:, 3] - each.raw[:, [0, 1, 2, 4]].mean(1))
    for ex in (against, rest):
        torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
    for wrong in (5, -1, True, "others"):
        with pytest.raises(hp.InputError, match="contrast="):
            lrp(net, x, composite, 3, contrast=wrong)


def test_bounds_and_where_they_come_from():
    net = network("vgg")
    x = images(2, size=net.size).double()
    own = hp.explain(net, x, "lrp", target=0)  # a plain module: nobody said how images enter it
    assert own.options["low"] == own.options["high"] == "each image's own range"

    class Normalised:
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.5)

        def __call__(self, image):
            return torch.zeros(3, *net.size)

    known = hp.explain(hp.wrap(net, preprocess=Normalised()), x, "lrp", target=0)
    assert known.options["low"] == "[-2.0, -2.0, -1.0] (preprocessing)"
    assert known.options["high"] == "[2.0, 2.0, 1.0] (preprocessing)" and not torch.allclose(known.raw, own.raw)
    wide = hp.explain(net, x, "lrp", target=0, low=-9.0, high=torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1))
    assert wide.options["low"] == "[-9.0, -9.0, -9.0] (given)" and wide.options["high"] == "[7.0, 8.0, 9.0] (given)"
    assert not torch.allclose(own.raw, wide.raw)
    for i in range(2):
        low, high = x[i].amin((1, 2)).view(3, 1, 1), x[i].amax((1, 2)).view(3, 1, 1)
        by_hand = hp.explain(net, x[i], "lrp", target=0, low=low, high=high)
        torch.testing.assert_close(by_hand.raw[0], own.raw[i])
    with pytest.raises(hp.InputError, match="low= does not broadcast"):
        hp.explain(net, x, "lrp", target=0, low=torch.zeros(4))


class Normalised(nn.Module):
    """A network that normalises its input itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.size = net, net.size
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.3], dtype=torch.float64).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@pytest.mark.parametrize("composite", ["epsilon-gamma-box", "epsilon-plus-flat", Composite(pixels=ZBox())])
def test_normalising_inside_the_network_moves_the_box_along(composite):
    net = network("vgg")
    outer = Normalised(net)
    x = torch.rand(2, 3, *net.size, generator=torch.Generator().manual_seed(2)).double()
    inside = lrp(outer, x, composite, 1, low=0.0, high=1.0, ledger=True)
    outside = lrp(net, (x - outer.mean) / outer.std, composite, 1, low=-outer.mean / outer.std, high=(1 - outer.mean) / outer.std)
    torch.testing.assert_close(inside.raw, outside.raw)
    torch.testing.assert_close(inside.residual, outside.residual)
