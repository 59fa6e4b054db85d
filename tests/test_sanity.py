"""Sanity checks: the randomised copy against plain torch, the measures against scipy and scikit-image."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import torch
from torch import nn

import heatproof as hp
from heatproof.proof.randomisation import cascade, compare_models, emprt, explanations, smoothed
from heatproof.proof.reinitialise import Forgetful
from heatproof.proof.similarity import MEASURES, similarity
from tiny import GapNet, HeadNet, TinyViT, images, seeded


def gradient(model, x):
    return hp.explain(model, x, method="gradient-x-input", target=1).maps


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# the copy that forgets


class Odd(nn.Module):
    """Weights that are tied, used functionally, left unused, normalised, run without a graph; out of definition order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.unused = nn.Linear(3, 3)
        self.tied = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.randn(5, 1, 1))
        self.functional = nn.Conv2d(5, 5, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3))
        self.again = nn.Linear(5, 5)
        self.again.weight = self.tied.weight

    def forward(self, x):
        with torch.no_grad():
            x = self.normed(x)
        x = nn.functional.conv2d(x, self.functional.weight, self.functional.bias) * self.scale
        x = self.again(self.tied(x.relu().mean((2, 3))).relu())
        return self.head(x)


def test_layers_in_the_order_in_which_they_run():
    found = Forgetful(hp.wrap(seeded(Odd)), images(1)).layers
    names = [layer.name for layer in found]
    assert names[-4:] == ["functional", "scale", "tied", "head"] or names[-5:] == ["functional", "scale", "tied", "again", "head"]
    assert {name.split(".")[0] for name in names[: names.index("functional")]} == {"normed"}
    assert not any("unused" in name for name in names)
    tied = next(slot for layer in found for slot in layer.slots if len(slot.holders) == 2)
    assert tied.learned.shape == (5, 5)
    vit = [layer.name for layer in Forgetful(hp.wrap(seeded(TinyViT)), images(1)).layers]
    assert vit[0] == "patch" and vit[-2:] == ["norm", "head"] and {"prefix", "position"} < set(vit)
    assert vit.index("blocks.0.self_attn.out_proj") < vit.index("blocks.0.linear1") < vit.index("blocks.1.norm1")
    assert len(vit) == len(set(vit))


@pytest.mark.parametrize("build", [GapNet, TinyViT, Odd])
def test_fresh_values(build):
    net = seeded(build)
    copied = Forgetful(hp.wrap(net), images(2))
    fresh, again, other = copied.fresh(3), copied.fresh(3), copied.fresh(4)
    modules = dict(copied.model.module.named_modules())
    for n, layer in enumerate(copied.layers):
        for slot, value, twice, different in zip(layer.slots, fresh[n], again[n], other[n], strict=True):
            assert value.shape == slot.learned.shape and torch.isfinite(value).all() and torch.equal(value, twice)
            module, name = slot.holders[0]
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and name in ("weight", "bias"):
                assert (value == (name == "weight")).all()
            elif not (slot.learned == slot.learned.flatten()[0]).all() and "bias" not in name:
                assert not torch.equal(value, slot.learned) and not torch.equal(value, different)
            if layer.name not in modules:  # no initialiser knows it: the same values in another order
                assert torch.equal(value.flatten().sort().values, slot.learned.flatten().sort().values)
            elif isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
                assert value.abs().max() <= value[0].numel() ** -0.5  # torch's own law: uniform within 1/√fan-in


def test_running_statistics_are_those_of_the_randomised_network():
    net, x = seeded(GapNet), images(3)
    copied = Forgetful(hp.wrap(net), x)
    fresh = copied.fresh(0)
    with copied.installed(fresh, range(len(fresh))) as model:
        plain = copy.deepcopy(model.module).train()
        plain.stem[1].momentum = 1.0
        plain(x)
        torch.testing.assert_close(model.module.stem[1].running_mean, plain.stem[1].running_mean)
        torch.testing.assert_close(model.module.stem[1].running_var, plain.stem[1].running_var)
        hidden = model.module.stem[:2](x)
    assert hidden.mean((0, 2, 3)).abs().max() < 1e-5 and (hidden.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_the_users_model_is_never_touched_and_the_copy_is_restored():
    net, x = seeded(GapNet), images(2)
    before, outputs, generator = state(net), net(x), torch.get_rng_state()
    copied = Forgetful(hp.wrap(net), x)
    fresh = copied.fresh(0)
    learned = copied.model.scores(x)
    with pytest.raises(RuntimeError), copied.installed(fresh, [0, 2]) as model:
        assert not torch.equal(model.scores(x), learned)
        assert model.module.fc.weight.data_ptr() == net.fc.weight.data_ptr() or "fc" in copied.layers[2].name
        raise RuntimeError
    assert torch.equal(copied.model.scores(x), learned) and torch.equal(net(x), outputs) and same(before, state(net))
    assert torch.equal(torch.get_rng_state(), generator) and not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    shared = {p.data_ptr() for p in net.parameters()}
    assert all(slot.learned.data_ptr() in shared for layer in copied.layers for slot in layer.slots if slot.learned.ndim > 1)


# cascades


@pytest.mark.parametrize("order", ["top-down", "bottom-up", "independent"])
@pytest.mark.parametrize("build", [GapNet, TinyViT])
def test_a_cascade_is_what_copying_the_whole_network_gives(build, order):
    net, x = seeded(build), images(2)
    before = state(net)
    found = cascade(hp.wrap(net), x, gradient, order=order, seeds=(5,), stages=3)
    copied = Forgetful(hp.wrap(net), x)
    fresh, count = copied.fresh(5), len(copied.layers)
    assert [name for group in found.stages for name in group] == [
        layer.name for layer in (copied.layers if order == "bottom-up" else copied.layers[::-1])
    ]
    original = gradient(hp.wrap(net), x)
    assert torch.equal(found.original, original)
    done = 0
    for k, group in enumerate(found.stages):
        numbers = list(range(done, done + len(group))) if order == "independent" else list(range(done + len(group)))
        done += len(group)
        numbers = numbers if order == "bottom-up" else [count - 1 - n for n in numbers]
        whole = copy.deepcopy(net)
        names = {id(m): name for name, m in copied.model.module.named_modules()}
        with torch.no_grad():
            for n in numbers:
                for slot, value in zip(copied.layers[n].slots, fresh[n], strict=True):
                    for module, name in slot.holders:
                        getattr(whole.get_submodule(names[id(module)]), name).copy_(value)
        changed = gradient(hp.wrap(whole), x)
        for name, value in similarity(original.flatten(0, 1), changed.flatten(0, 1)).items():
            torch.testing.assert_close(found.similarity[name][0, k, :, 0], value, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.randomised[0], changed)
    assert same(before, state(net))


def test_what_ignores_the_model_keeps_its_map_and_constant_maps_say_nothing():
    net, x = hp.wrap(seeded(HeadNet)), images(2)
    edges = cascade(net, x, lambda m, x: hp.explain(None, x.sigmoid(), "edges").maps, seeds=(0,), stages=2)
    assert all(torch.allclose(value, torch.ones_like(value)) for value in edges.similarity.values())
    assert emprt(edges.original, edges.randomised).abs().max() == 0
    flat = cascade(net, x, lambda m, x: torch.zeros(2, 1, 9, 9), seeds=(0,), stages=2)
    assert torch.isnan(flat.similarity["ssim"]).all() and torch.isnan(flat.curve()[0]).all()


def test_curves_seeds_and_counts():
    net, x, calls = hp.wrap(seeded(GapNet)), images(2), []

    def counted(model, x):
        calls.append(1)
        return gradient(model, x)

    found = cascade(net, x, counted, seeds=(0, 7), progress=lambda: calls.append(0))
    layers = len(found.stages)
    assert layers == 5 == len(Forgetful(net, x).layers) and found.similarity["ssim"].shape == (2, 5, 2, 1)
    assert calls.count(1) == calls.count(0) == explanations(layers, 2) == 11 and explanations(layers, 2, 3) == 7
    mean, spread = found.curve("ssim")
    per_seed = found.similarity["ssim"].mean((2, 3))
    torch.testing.assert_close(mean, per_seed.mean(0))
    torch.testing.assert_close(spread, (per_seed[0] - per_seed[1]).abs() / 2)
    for wrong in ({"order": "sideways"}, {"seeds": ()}, {"stages": 0}, {"seeds": (-1,)}):
        with pytest.raises(hp.InputError):
            cascade(net, x, gradient, **wrong)
    with pytest.raises(hp.InputError, match="measure"):
        found.curve("rmse")
    with pytest.raises(hp.InputError, match="no parameters"):
        cascade(hp.wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), x, gradient)


def test_smoothed():
    net, x = hp.wrap(seeded(HeadNet)), images(2)
    found = smoothed(gradient, samples=3, spread=0.2, seed=4)(net, x)
    chance = torch.Generator().manual_seed(4)
    total = 0
    for _ in range(3):
        noise = torch.randn(x.shape, generator=chance)
        total += gradient(net, torch.stack([one + 0.2 * (one.max() - one.min()) * n for one, n in zip(x, noise, strict=True)]))
    torch.testing.assert_close(found, total / 3)
    assert torch.equal(smoothed(gradient, samples=1, spread=0.0)(net, x), gradient(net, x))
    with pytest.raises(hp.InputError):
        smoothed(gradient, samples=0)


def test_two_models():
    first, second, x = hp.wrap(seeded(GapNet)), hp.wrap(seeded(GapNet, 1)), images(2)
    assert all(torch.allclose(value, torch.ones(2, 1)) for value in compare_models(gradient, first, first, x).values())
    found = compare_models(gradient, first, second, x)
    expected = similarity(gradient(first, x)[:, 0], gradient(second, x)[:, 0])
    assert all(torch.equal(found[name][:, 0], expected[name]) for name in MEASURES)


# hp.sanity


def test_sanity_on_real_weights():
    path = Path(skimage.__file__).parent / "data" / "chelsea.png"
    model = hp.load("efficientnet-lite0")
    ticks = []
    cam = hp.sanity(model, [path] * 2, "gradcam", orders=("top-down",), seeds=2, stages=2, progress=ticks.append)
    assert cam.depends_on_model and "depends on what the model learned" in cam.sentence and "all 99 layers" in repr(cam)
    assert cam.emprt.shape == (2, 2, 1) and len(cam.table) == 2 and ticks == [5] * 5
    edges = hp.sanity(model, path, "edges", orders=("independent",), seeds=1, stages=2)
    assert not edges.depends_on_model and edges.kept.value == pytest.approx(1) and "explains 100%" in edges.sentence
    assert "is left (no interval; 1 image, 1 draw)" in edges.sentence and "is left (95 %" in cam.sentence
    assert set(edges.cascades) == {"independent", "all at once"}


def test_sanity_takes_what_explain_takes():
    net = seeded(GapNet)
    before = state(net)
    found = hp.sanity(net, images(2), "layercam", [1, 3], net.features[1], seeds=1, stages=2, smooth=2)
    assert set(found.cascades) == {"top-down", "bottom-up", "independent", "smoothed"} and same(before, state(net))
    original = hp.explain(net, images(2), "layercam", [1, 3], layer="features.1").maps
    assert torch.equal(found.cascades["top-down"].original, original)
    assert len(found.table) == 8 and isinstance(found.sentence, str)
    for wrong in ({"seeds": 0}, {"orders": ("sideways",)}, {"images": "nowhere.png"}, {"target": 99}):
        with pytest.raises(hp.InputError):
            hp.sanity(**{"model": net, "images": images(1), **wrong})
    with pytest.raises(hp.MethodError):
        hp.sanity(net, images(1), "gradcan")
    with pytest.raises(hp.ModelError):
        hp.sanity(None, images(1))


def test_a_constant_map_is_said_to_say_nothing():
    net = seeded(GapNet)
    with torch.no_grad():
        net.fc.weight.zero_()
    found = hp.sanity(net, images(2), "gradient", target=0, orders=("top-down",), seeds=1, stages=1)
    assert found.says_nothing and not found.depends_on_model and "constant" in found.sentence


def test_threads_explain_while_a_copy_forgets():
    net, x = seeded(GapNet), images(2)
    expected, results = gradient(hp.wrap(net), x), []
    worker = threading.Thread(target=lambda: results.extend(gradient(hp.wrap(net), x) for _ in range(10)))
    worker.start()
    cascade(hp.wrap(net), x, gradient, seeds=(0,))
    worker.join()
    assert len(results) == 10 and all(torch.equal(one, expected) for one in results)


def test_prompts_of_an_image_text_model_stay():
    from heatproof.models.readout import Similarity

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = seeded(GapNet), nn.Linear(4, 5)

        def encode_image(self, x):
            return self.image(x)

    model = replace(hp.wrap(seeded(GapNet)), module=Clip().eval(), readout=Similarity("encode_image", torch.eye(5)))
    names = [layer.name for layer in Forgetful(model, images(1)).layers]
    assert names[0].startswith("image.") and not any("text" in name for name in names)
