"""Bad input: each kind either works rightly, or ends in the right error, with a sentence that names what came."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import heatproof as hp
from wrong import model, picture, small, to_unit

# Arrays, tensors, lists


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), ["float32", "255"]),
        (np.zeros((4, 5, 3), np.int64), ["int64", "uint8"]),
        (np.zeros((4, 5, 2), np.uint8), ["(4, 5, 2)", "H×W×3"]),
        (np.zeros((3, 4, 5), np.uint8), ["(3, 4, 5)", "H×W×3"]),
        (np.zeros((5,), np.uint8), ["(5,)"]),
        (np.zeros((0, 5, 3), np.uint8), ["(0, 5, 3)"]),
        (np.zeros((2, 3, 4, 5, 3), np.uint8), ["(2, 3, 4, 5, 3)"]),
        (np.array([["a"]]), ["uint8"]),
    ],
)
def test_arrays(array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), array)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x[0, 0], ["(9, 11)", "(3,H,W)"]),
        (lambda x: x[:, :1], ["(2, 1, 9, 11)", "(B,3,H,W)"]),
        (lambda x: x[:, [0, 1, 2, 2]], ["(2, 4, 9, 11)"]),
        (lambda x: x.permute(0, 2, 3, 1), ["(2, 9, 11, 3)"]),
        (lambda x: x[None], ["(1, 2, 3, 9, 11)"]),
        (lambda x: x[:0], ["(0, 3, 9, 11)"]),
        (lambda x: x[..., :0], ["(2, 3, 9, 0)", "pixel"]),
        (lambda x: (x * 255).to(torch.uint8), ["uint8", "preprocess"]),
        (lambda x: x.long(), ["int64", "floats"]),
        (lambda x: x.bool(), ["bool"]),
        (lambda x: x.to(torch.complex64), ["complex64"]),
        (lambda x: x.index_fill(0, torch.tensor(1), torch.nan), ["NaN", "[1]"]),
        (lambda x: x.index_fill(3, torch.tensor(4), torch.inf), ["infinite", "[0, 1]"]),
        (lambda x: x.index_fill(3, torch.tensor(4), -torch.inf), ["infinite"]),
    ],
)
def test_tensors(make: Callable[[Tensor], Tensor], words: list[str]) -> None:
    x = make(torch.rand(2, 3, 9, 11))
    for ask in (lambda: hp.explain(model(), x), lambda: model().scores(x), lambda: hp.explain(None, x, method="edges")):
        with pytest.raises(hp.InputError) as caught:
            ask()
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("source", [[], (), None, 7, {"a": 1}, b"bytes", object(), [None], [3.5]])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_image(source: Any) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), source)
    assert "no images" in str(caught.value) or "expected" in str(caught.value)


def test_images_of_different_sizes_are_named() -> None:
    with pytest.raises(hp.InputError, match=r"different sizes.*one size each"):
        hp.explain(model(), [picture(), picture().resize((9, 9))])


@pytest.mark.usefixtures("unchecked")
def test_a_preprocess_that_returns_something_else() -> None:
    for transform, word in ((lambda i: np.zeros(3), "ndarray"), (lambda i: torch.zeros(1, 4, 4), "(1, 4, 4)")):
        with pytest.raises(hp.InputError, match="preprocess") as caught:
            hp.explain(hp.wrap(small(), preprocess=transform), picture())
        assert word in str(caught.value)


def test_a_preprocess_that_raises() -> None:
    def transform(_image: Image.Image) -> Tensor:
        raise RuntimeError("out of paper")

    with pytest.raises(hp.InputError, match="out of paper"):
        hp.explain(hp.wrap(small(), preprocess=transform), picture())


def test_a_preprocess_that_makes_nan() -> None:
    with pytest.raises(hp.InputError, match="NaN"):
        hp.explain(hp.wrap(small(), preprocess=lambda i: to_unit(i) / 0 * 0), picture())


# Targets


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, ["5", "5 classes", "0 to 4"]),
        (-1, ["-1", "0 to 4"]),
        (10**30, ["out of range"]),
        (True, ["True", "bool"]),
        (1.0, ["1.0", "float"]),
        ([0, 1.5], ["1.5", "float"]),
        (float("nan"), ["float"]),
        ([0], ["1 targets", "2 image"]),
        ([0, 1, 2], ["3 targets", "2 image"]),
        ([], ["0 targets", "2 image"]),
        ([[0, 1], [2]], ["differ in length"]),
        ([[0], 1], ["differ in length"]),
        ([[], []], ["at least one"]),
        ([0, 9], ["9", "0 to 4"]),
        ([[0, 1], [2, "dgo"]], ["dgo", "'dog'"]),
        ("tabyb", ["tabyb", "'tabby'", "5 labels"]),
        ("", ["''"]),
        ("7", ["7", "0 to 4"]),
        ({"cat": 1}, ["dict"]),
        (b"cat", ["bytes"]),
        (object(), ["object"]),
        (np.array([0.5, 1.5]), ["float"]),
        (torch.tensor([0, 7]), ["7", "0 to 4"]),
        (torch.tensor([True, False]), ["bool"]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_targets(target: Any, words: list[str]) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), torch.rand(2, 3, 9, 11), target=target)
    assert all(word in str(caught.value) for word in words), caught.value


def test_targets_that_are_right() -> None:
    x = torch.rand(2, 3, 9, 11)
    top = model().scores(x).argmax(1)[:, None]
    for target, expected in (
        (None, top),
        (3, [[3], [3]]),
        ("Tabby ", [[2], [2]]),
        ("1", [[1], [1]]),
        ([1, "dog"], [[1], [1]]),
        ((0, 4), [[0], [4]]),
        ([[0, "zebra"], [None, 2]], [[0, 4], [int(top[1]), 2]]),
        (np.array([1, 2]), [[1], [2]]),
        (np.int64(2), [[2], [2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ):
        ex = hp.explain(model(), x, target=target)
        assert torch.equal(ex.targets, torch.as_tensor(expected)), target
        assert torch.equal(ex.scores, model().scores(x).gather(1, ex.targets))


def test_labels_that_are_ambiguous_or_absent() -> None:
    twice = hp.wrap(small(), labels=("crane", "crane", "Cardigan", "cardigan", "a, b"))
    x = torch.rand(3, 9, 11)
    with pytest.raises(hp.InputError, match=r"\[0, 1\]"):
        hp.explain(twice, x, target="crane")
    assert [int(hp.explain(twice, x, target=t).targets) for t in ("Cardigan", "cardigan", "b")] == [2, 3, 4]
    with pytest.raises(hp.InputError, match=r"this model has none.*index"):
        hp.explain(small(), x, target="cat")
    with pytest.raises(hp.InputError, match="labels"):
        hp.wrap(small(), labels="cat")


def test_fewer_labels_than_classes_still_name_what_they_can() -> None:
    ex = hp.explain(hp.wrap(small(), labels=("cat",)), torch.rand(3, 9, 11), target=[[0, 3]])
    assert ex.target_names == [["cat", "class 3"]]


# Methods, options, layers


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("grad-cam", {}, ["grad-cam", "'gradcam'", "hp.methods()"]),
        ("GradCAM", {}, ["'gradcam'"]),
        ("integrated", {}, ["'integrated-gradients'"]),
        ("", {}, ["''"]),
        ([], {}, ["no method"]),
        (["gradcam", "nope"], {}, ["nope"]),
        ("gradcam", {"steps": 3}, ["gradcam", "'steps'", "Known", "layer"]),
        ("smoothgrad", {"sample": 3}, ["'sample'", "'samples'"]),
        ("edges", {"layer": "conv"}, ["edges", "layer"]),
        (["gradcam", "smoothgrad"], {"nois": 1}, ["'noise'"]),
    ],
)
def test_methods_and_options(method: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(hp.MethodError) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), method=method, **options)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("method", [None, 3, ["gradcam", 3], {"gradcam"}])
@pytest.mark.usefixtures("unchecked")
def test_a_method_that_is_no_name(method: Any) -> None:
    with pytest.raises(hp.MethodError):
        hp.explain(model(), torch.rand(3, 9, 11), method=method)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated-gradients", {"steps": 0}),
        ("integrated-gradients", {"steps": 2.5}),
        ("integrated-gradients", {"steps": True}),
        ("integrated-gradients", {"baseline": torch.zeros(3, 2, 2)}),
        ("integrated-gradients", {"baseline": "black"}),
        ("smoothgrad", {"samples": -1}),
        ("smoothgrad", {"noise": -0.1}),
        ("smoothgrad", {"noise": float("nan")}),
        ("taylor", {"root": torch.zeros(4, 9, 11)}),
        ("scorecam", {"batch_size": 0}),
        ("ablationcam", {"batch_size": "many"}),
        ("smoothgrad", {"seed": "x"}),
        ("random", {"seed": 1.5}),
        ("smoothgrad", {"noise": "loud"}),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_option_values(method: str, options: dict[str, Any]) -> None:
    with pytest.raises((hp.InputError, hp.MethodError)) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), method=method, **options)
    assert next(iter(options)) in str(caught.value)


def test_a_method_without_its_model() -> None:
    with pytest.raises(hp.MethodError, match=r"gradcam.*needs a model"):
        hp.explain(None, torch.rand(3, 9, 11), method="gradcam")
    assert hp.explain(None, torch.rand(3, 9, 11), method="center").scores is None


@pytest.mark.parametrize("wrong", ["efficientnet-lite0", 3, object()])
@pytest.mark.usefixtures("unchecked")
def test_a_model_that_is_none(wrong: Any) -> None:
    with pytest.raises(hp.ModelError, match="load"):
        hp.explain(wrong, torch.rand(3, 9, 11))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("con", ["'con'", "'conv'", "named_modules"]),
        ("", ["no layer ''", "''. named_modules"]),
        ("head", ["head", "no map", "'act'"]),
        ([], ["no layer"]),
        (["conv", "nope"], ["nope"]),
        (3, ["3"]),
        (nn.Conv2d(3, 3, 1), ["Conv2d", "not part of"]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_layers(layer: Any, words: list[str]) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), layer=layer)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_whole_model_is_no_layer() -> None:
    net = model()
    with pytest.raises(hp.ModelError, match="the whole model; pass one of the modules inside"):
        hp.explain(net, torch.rand(3, 9, 11), layer=net.module)


def test_a_batch_in_a_list_is_not_cut_to_its_first_image() -> None:
    batch = torch.rand(2, 3, 9, 11)
    with pytest.raises(hp.InputError, match=r"\(2, 3, 9, 11\), a batch, came as one image of a list"):
        hp.explain(model(), [batch, batch])
    singles = hp.explain(model(), [batch[:1], batch[1]])
    assert torch.equal(singles.maps, hp.explain(model(), batch).maps)


@pytest.mark.parametrize(("method", "option"), [("integrated-gradients", "baseline"), ("taylor", "root")])
def test_reference_points_of_no_numbers(method: str, option: str) -> None:
    with pytest.raises(hp.InputError, match=f"{option}= has NaN"):
        hp.explain(model(), torch.rand(3, 9, 11), method=method, **{option: torch.tensor(torch.nan)})


def test_a_layer_that_never_runs() -> None:
    net = small()
    net.spare = nn.Conv2d(3, 3, 1)

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = small(), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(hp.ModelError, match=r"spare.*did not run"):
        hp.explain(Skips(), torch.rand(3, 9, 11), layer="spare")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet-lite", ["'efficientnet-lite0'"]),
        ("resnet50", ["resnet50", "torchvision/NAME"]),
        ("torchvision/", ["torchvision/NAME"]),
        ("nowhere/resnet50", ["Known"]),
        ("", ["''"]),
    ],
)
def test_model_names(name: str, words: list[str]) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.load(name)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.usefixtures("unchecked")
def test_wrap_wants_a_module() -> None:
    with pytest.raises(hp.ModelError, match=r"str.*Module"):
        hp.wrap("resnet50")
    with pytest.raises(hp.InputError, match="preprocess"):
        hp.wrap(small(), preprocess=3)
    for labels in (5, "cat", [1, 2]):
        with pytest.raises(hp.InputError, match="labels= is not a list of texts"):
            hp.wrap(small(), labels=labels)
    with pytest.raises(hp.ModelError, match="text encoder"):
        hp.wrap(small(), prompts=["a cat"])
