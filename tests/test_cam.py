"""Every class activation map once more, in loops, from its formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

import heatproof as hp
from heatproof.cam.saliency import saliency
from heatproof.cam.weights import gradcam_plus_plus, xgradcam
from tiny import CLASSES, GapNet, HeadNet, TinyViT, images, seeded

NETS = {"gap": GapNet, "head": HeadNet}


def parts(net, x, target, layer="features"):
    """Activations, gradients and scores by hooks on the net itself, one image at a time."""
    kept = {}
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda m, i, o: kept.update(a=o))
    rows = []
    for i in range(len(x)):
        score = net(x[i : i + 1])[0, target]
        (g,) = torch.autograd.grad(score, kept["a"])
        rows.append((kept["a"][0].detach().numpy().astype(np.float64), g[0].numpy().astype(np.float64)))
    handle.remove()
    return rows


def by_loops(name, a, g):
    """Sal[i,j] = Σ_k w_kij A_kij with the weights written out."""
    channels, height, width = a.shape
    out = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                if name == "gradcam":
                    w = sum(g[k, p, q] for p in range(height) for q in range(width)) / (height * width)
                elif name == "gradcam++":
                    w = 0.0
                    for p in range(height):
                        for q in range(width):
                            second, third = g[k, p, q] ** 2, g[k, p, q] ** 3
                            if second > 0:
                                w += second / (2 * second + a[k].sum() * third) * max(g[k, p, q], 0)
                elif name == "xgradcam":
                    w = (g[k] * a[k]).sum() / a[k].sum() if a[k].sum() else 0.0
                elif name == "hirescam":
                    w = g[k, i, j]
                elif name == "layercam":
                    w = max(g[k, i, j], 0)
                out[i, j] += w * a[k, i, j]
    return out if name == "hirescam" else np.maximum(out, 0)


def test_xgradcam_of_faint_activations_is_not_damped():
    """`w_k` is a mean of gradients: scaling the activations does not change it, however small they become."""
    g = torch.Generator().manual_seed(0)
    a, slope = torch.rand(2, 4, 3, 5, generator=g).double(), torch.randn(2, 2, 4, 3, 5, generator=g).double()
    a[0, 1] = 0
    w = xgradcam(a, slope)
    assert (w[0, :, 1] == 0).all()
    torch.testing.assert_close(xgradcam(1e-9 * a, slope), w)


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam"])
def test_gradient_methods_equal_three_loops(name, net_name):
    net, x = seeded(NETS[net_name]), images(2)
    for target in (0, 3):
        raw = hp.explain(net, x, method=name, target=target).raw
        for i, (a, g) in enumerate(parts(net, x, target)):
            np.testing.assert_allclose(raw[i, 0].numpy(), by_loops(name, a, g), rtol=1e-4, atol=1e-6)


def test_cam_is_the_head_applied_everywhere_and_averages_to_the_score():
    net, x = seeded(GapNet), images(3)
    ex = hp.explain(net, x, method="cam", target=[[0, 4], [1, 2], [3, 0]])
    for i in range(3):
        features = net.features(net.stem(x[i : i + 1]))[0].detach()
        for t, target in enumerate(ex.targets[i].tolist()):
            expected = sum(net.fc.weight[target, k].item() * features[k] for k in range(7))
            torch.testing.assert_close(ex.raw[i, t], expected)
            torch.testing.assert_close(ex.raw[i, t].mean() + net.fc.bias[target].detach(), ex.scores[i, t])


def test_gradcam_is_cam_on_gap_networks_up_to_the_grid_size_bias_and_relu():
    net, x = seeded(GapNet), images(2)
    both = hp.explain(net, x, method=["cam", "gradcam", "hirescam"], target=2)
    torch.testing.assert_close(both["gradcam"].raw, both["cam"].raw.relu() / 15)
    torch.testing.assert_close(both["hirescam"].raw, both["cam"].raw / 15)


def test_cam_takes_a_functional_relu_and_class_maps_before_the_pooling():
    class Functional(GapNet):  # as DenseNet does
        def __init__(self):
            super().__init__()
            self.features = self.features[:3]

        def forward(self, x):
            return self.fc(torch.relu_(self.features(self.stem(x))).mean((2, 3)))

    class ClassMaps(GapNet):  # as SqueezeNet does
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Conv2d(7, CLASSES, 1)

        def forward(self, x):
            return self.fc(self.features(self.stem(x))).mean((2, 3))

    x = images(2)
    net = seeded(Functional)
    ex = hp.explain(net, x, method="cam", target=1)
    torch.testing.assert_close(ex.raw.mean((2, 3)) + net.fc.bias[1].detach(), ex.scores)
    net = seeded(ClassMaps)
    ex = hp.explain(net, x, method="cam", target=1)
    torch.testing.assert_close(ex.raw[:, 0], net.fc(net.features(net.stem(x)))[:, 1].detach())


@pytest.mark.parametrize(("net", "layer"), [(HeadNet, None), (GapNet, "stem"), (GapNet, ["features", "stem"]), (TinyViT, None)])
def test_cam_says_what_fits_where_it_does_not_apply(net, layer):
    with pytest.raises(hp.MethodError, match="hirescam"):
        hp.explain(seeded(net), images(1), method="cam", layer=layer)


def test_grad_cam_plus_plus_closed_form_on_gap_networks():
    """α = 1 / (2 + w_k mean A_k), constant in space, and w_k⁺⁺ = ReLU(w_k) / (2 + w_k mean A_k)."""
    net, x = seeded(GapNet), images(1)
    features = net.features(net.stem(x))[0].detach()
    w = net.fc.weight[1].detach()
    expected = sum(w[k].relu() / (2 + w[k] * features[k].mean()) * features[k] for k in range(7)).relu()
    torch.testing.assert_close(hp.explain(net, x, method="gradcam++", target=1).raw[0, 0], expected)


def test_grad_cam_plus_plus_equals_the_third_derivative_formula_on_an_exponential_score():
    """The course's α = ∂²Y / (2 ∂²Y + Σ_ab A_ab ∂³Y), with derivatives of Y = exp(s) by autograd, in each activation."""
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64)
    slope = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    scale = float(torch.exp((slope * a).sum()))  # Y itself, which only scales the map
    for k in range(4):
        for i in range(3):
            for j in range(5):
                value = a[k, i, j].clone().requires_grad_()
                y = torch.exp((slope * a).sum() + slope[k, i, j] * (value - a[k, i, j]))
                (first,) = torch.autograd.grad(y, value, create_graph=True)
                (second,) = torch.autograd.grad(first, value, create_graph=True)
                (third,) = torch.autograd.grad(second, value)
                alpha = second / (2 * second + a[k].sum() * third)
                expected[k] += (alpha * first.relu()).item() / scale
    found = gradcam_plus_plus(a[None], slope[None, None])[0, 0, :, 0, 0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam"])
def test_eigen_methods_are_the_first_principal_component_signed_by_the_mean_activation(name):
    net, x = seeded(HeadNet), images(2)
    raw = hp.explain(net, x, method=name, target=1).raw
    for i, (a, g) in enumerate(parts(net, x, 1)):
        m = (a if name == "eigencam" else a * g).reshape(7, -1).T
        m = m - m.mean(0)
        vectors = np.linalg.eigh(m.T @ m)[1]  # the second way: eigenvectors of the covariance
        expected = (m @ vectors[:, -1]).reshape(3, 5)
        mean = a.mean(0) - a.mean()
        expected *= np.sign((expected * mean).sum())
        np.testing.assert_allclose(raw[i, 0].numpy(), expected, rtol=1e-3, atol=1e-5)
        assert (raw[i, 0].numpy() * mean).sum() >= 0


def test_scorecam_masks_the_input_with_each_channel():
    net, x = seeded(HeadNet), images(2)
    ex = hp.explain(net, x, method="scorecam", target=[[1, 3], [0, 2]], batch_size=3)
    for i in range(2):
        a = net.features(net.stem(x[i : i + 1]))[0].detach()
        for t, target in enumerate(ex.targets[i].tolist()):
            scores = []
            for k in range(7):
                mask = interpolate(a[None, k : k + 1], (24, 40), mode="bilinear", align_corners=False)
                spread = mask.max() - mask.min()
                mask = (mask - mask.min()) / spread if spread else mask * 0
                scores.append(net(x[i : i + 1] * mask)[0, target].item())
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = sum(weights[k] * a[k] for k in range(7)).relu()
            torch.testing.assert_close(ex.raw[i, t], expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", [HeadNet, GapNet])
def test_ablationcam_takes_each_channel_away(net):
    net, x = seeded(net), images(2)
    ex = hp.explain(net, x, method="ablationcam", target=[[1, 3], [0, 2]], batch_size=3)
    for i in range(2):
        a = net.features(net.stem(x[i : i + 1])).detach()
        tail = (lambda f: net.fc(f)) if isinstance(net, HeadNet) else (lambda f: net.fc(f.mean((2, 3))))
        for t, target in enumerate(ex.targets[i].tolist()):
            whole = tail(a)[0, target]
            expected = torch.zeros(3, 5)
            for k in range(7):
                without = a.clone()
                without[:, k] = 0
                expected += ((whole - tail(without)[0, target]) / whole.abs()).item() * a[0, k]
            torch.testing.assert_close(ex.raw[i, t], expected.relu(), rtol=1e-4, atol=1e-6)


def test_ablationcam_where_the_layer_is_concatenated_with_one_below():
    class Dense(GapNet):
        def __init__(self):
            super().__init__()
            self.side = torch.nn.Conv2d(6, 4, 3, 4, 1)
            self.fc = torch.nn.Linear(11, CLASSES)

        def forward(self, x):
            stem = self.stem(x)
            return self.fc(torch.cat([self.features(stem), self.side(stem)], 1).mean((2, 3)))

    net, x = seeded(Dense), images(2)
    ex = hp.explain(net, x, method="ablationcam", target=1, layer="features")
    for i in range(2):
        stem = net.stem(x[i : i + 1])
        a, side = net.features(stem).detach(), net.side(stem).detach()
        tail = lambda f, side=side: net.fc(torch.cat([f, side], 1).mean((2, 3)))[0, 1].item()  # noqa: E731
        expected = torch.zeros(3, 5)
        for k in range(7):
            without = a.clone()
            without[:, k] = 0
            expected += (tail(a) - tail(without)) / abs(tail(a)) * a[0, k]
        torch.testing.assert_close(ex.raw[i, 0], expected.relu(), rtol=1e-4, atol=1e-6)


def test_ablationcam_on_tokens_leaves_the_prefix_alone():
    net, x = seeded(TinyViT), images(1)
    ex = hp.explain(net, x, method="ablationcam", target=2)
    assert ex.layer == ("blocks.1.norm1",)
    site = hp.wrap(net).sites(None, x)[0]
    assert (site.kind, site.prefix, site.height, site.width) == ("bnk", 3, 3, 5)
    kept = {}
    norm = net.blocks[1].norm1
    handle = norm.register_forward_hook(lambda m, i, o: kept.update(a=o.detach()))
    whole = net(x)[0, 2].item()
    handle.remove()
    grid = kept["a"][0, 3:].T.reshape(12, 3, 5)
    expected = torch.zeros(3, 5)
    for k in range(12):

        def without(m, i, o, k=k):
            o = o.clone()
            o[:, 3:, k] = 0
            return o

        handle = norm.register_forward_hook(without)
        expected += (whole - net(x)[0, 2].item()) / abs(whole) * grid[k]
        handle.remove()
    torch.testing.assert_close(ex.raw[0, 0], expected.relu(), rtol=1e-3, atol=1e-5)


def test_gradcam_on_tokens_uses_the_grid_without_the_prefix():
    net, x = seeded(TinyViT), images(2)
    raw = hp.explain(net, x, method="gradcam", target=4).raw
    kept = {}
    net.blocks[1].norm1.register_forward_hook(lambda m, i, o: kept.update(a=o))
    for i in range(2):
        (g,) = torch.autograd.grad(net(x[i : i + 1])[0, 4], kept["a"])
        expected = torch.zeros(3, 5)
        for k in range(12):
            weight = sum(g[0, 3 + n, k].item() for n in range(15)) / 15
            for n in range(15):
                expected[n // 5, n % 5] += weight * kept["a"][0, 3 + n, k].item()
        torch.testing.assert_close(raw[i, 0], expected.relu(), rtol=1e-3, atol=1e-6)


def test_several_layers_add_up_on_the_finest_grid():
    net, x = seeded(HeadNet), images(2)
    ex = hp.explain(net, x, method="hirescam", target=1, layer=["features", net.stem])
    assert ex.layer == ("features", "stem")
    single = [hp.explain(net, x, method="hirescam", target=1, layer=name).raw for name in ("features", "stem")]
    coarse = interpolate(single[0], single[1].shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(ex.raw, coarse + single[1])


def test_maps_are_raw_resized_bilinearly_to_the_input():
    ex = hp.explain(seeded(GapNet), images(2), method="hirescam")
    assert ex.raw.shape == (2, 1, 3, 5) and ex.maps.shape == (2, 1, 24, 40)
    torch.testing.assert_close(ex.maps, interpolate(ex.raw, (24, 40), mode="bilinear", align_corners=False))


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(1, 3), st.integers(1, 4))
def test_saliency_is_linear_in_its_weights(first, second, targets, channels):
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    features = [rand(2, 1, channels, 3, 5), rand(2, 1, channels, 6, 7)]
    one, two = ([rand(2, targets, channels, 1, 1) for _ in features] for _ in range(2))
    mixed = saliency([(first * u + second * v, f) for u, v, f in zip(one, two, features, strict=True)])
    apart = first * saliency(zip(one, features, strict=True)) + second * saliency(zip(two, features, strict=True))
    torch.testing.assert_close(mixed, apart)
    assert mixed.shape == (2, targets, 6, 7)
