"""Networks and weight files: each kind either works rightly, or ends in the right error, with a sentence that names what came."""

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import heatproof as hp
from heatproof.models.weights import load_state, read_state
from wrong import small


class Says(nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = small(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x))


class LikeAHuggingFaceOutput(OrderedDict):
    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(
    "form",
    [
        lambda s: (s,),
        lambda s: [s, s * 0],
        lambda s: {"logits": s},
        lambda s: {"loss": None, "logits": s, "hidden_states": (s, s)},
        lambda s: LikeAHuggingFaceOutput(hidden_states=(s * 0,), logits=s),
        lambda s: type("Output", (), {"logits": s})(),
        lambda s: (None, s),
    ],
)
def test_outputs_that_work(form: Callable[[Tensor], Any]) -> None:
    x = torch.rand(2, 3, 9, 11)
    assert torch.equal(hp.explain(Says(form), x).raw, hp.explain(small(), x).raw)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda s: None, ["NoneType", "logits"]),
        (lambda s: "cat", ["str"]),
        (lambda s: s > 0, ["torch.bool", "real scores"]),
        (lambda s: s.to(torch.complex64), ["torch.complex64", "real scores"]),
        (lambda s: 3.5, ["float"]),
        (lambda s: {}, ["dict"]),
        (lambda s: (), ["tuple"]),
        (lambda s: s.detach().numpy(), ["ndarray"]),
        (lambda s: s[:, :, None, None].expand(-1, -1, 4, 4), ["5, 4, 4)", "(B, C)"]),
        (lambda s: s[:, 0], ["shape (", ",)", "(B, C)"]),
        (lambda s: s.sum(), ["()", "(B, C)"]),
        (lambda s: s[:1], ["(1, 5)", "2 image"]),
        (lambda s: s * torch.nan, ["NaN", "weights"]),
        (lambda s: s / 0, ["infinite"]),
        (lambda s: s.argmax(1), [",)", "(B, C)"]),
        (lambda s: s[:, :0], [", 0)", "(B, C)"]),
        (lambda s: 1 / 0, ["ZeroDivisionError"]),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "gradient", "scorecam"])
def test_outputs_that_cannot_work(form: Callable[[Tensor], Any], words: list[str], method: str) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.explain(Says(form), torch.rand(2, 3, 9, 11), method=method)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", [row.name for row in hp.methods() if "model" in row.needs and row.family != "tokens"])
def test_weights_that_are_nan(value: float, method: str) -> None:
    net = small()
    net.head.weight.data[:] = value
    with pytest.raises(hp.ModelError, match=r"NaN or infinite.*weights"):
        hp.explain(net, torch.rand(3, 9, 11), method=method)


def test_one_nan_class_does_not_hide_the_others_silently() -> None:
    net = small()
    net.head.weight.data[2] = torch.nan
    with pytest.raises(hp.ModelError, match="NaN"):
        hp.explain(net, torch.rand(3, 9, 11), target=1)


def test_a_network_that_refuses_the_size() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(hp.ModelError, match=r"RuntimeError.*\(1, 3, 9, 11\).*size"):
        hp.explain(net, torch.rand(3, 9, 11), method="gradient")


@pytest.mark.parametrize("method", ["gradcam", "gradient", "layercam", "integrated-gradients"])
def test_a_network_without_gradients_says_what_to_use(method: str) -> None:
    with pytest.raises(hp.ModelError, match="scorecam"):
        hp.explain(Says(lambda s: s.detach()), torch.rand(3, 9, 11), method=method)
    assert torch.isfinite(hp.explain(Says(lambda s: s.detach()), torch.rand(3, 9, 11), method="scorecam").maps).all()


class Normalises(nn.Module):
    """A network that normalises its input, in place or not, and perhaps spoils it in the end."""

    def __init__(self, in_place: bool, spoils: bool = False) -> None:
        super().__init__()
        self.inner, self.in_place, self.spoils = small(), in_place, spoils

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.4).mul_(3.0) if self.in_place else (x - 0.4) * 3.0
        scores = self.inner(x)
        if self.spoils:
            x.zero_()  # the first convolution's backward would have needed it
        return scores


@pytest.mark.parametrize("method", [row.name for row in hp.methods() if row.family in ("cam", "gradients", "relevance")])
def test_a_network_that_writes_into_its_input(method: str) -> None:
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    kept, options = x.clone(), {"steps": 5} if method == "integrated-gradients" else {}
    options |= {"layer": "inner.act"} if hp.methods()[method].family == "cam" else {}
    mine, plain = (hp.explain(Normalises(which), x, method, target=1, **options) for which in (True, False))
    assert torch.equal(x, kept)
    assert torch.equal(mine.images, plain.images)
    torch.testing.assert_close(mine.raw, plain.raw)


@pytest.mark.parametrize("method", ["gradient", "gradient-x-input", "smoothgrad"])
def test_a_network_that_spoils_its_own_backward(method: str) -> None:
    with pytest.raises(hp.ModelError, match=r"the backward through the model raised RuntimeError.*scorecam"):
        hp.explain(Normalises(False, spoils=True), torch.rand(2, 3, 9, 11), method)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_traced_network_has_gradients_but_no_layers() -> None:
    x = torch.rand(2, 3, 9, 11)
    traced = torch.jit.trace(small().eval(), x)
    assert torch.equal(hp.explain(traced, x, "gradient").raw, hp.explain(small(), x, "gradient").raw)
    with pytest.raises(hp.ModelError, match="no layer with spatial features"):
        hp.explain(traced, x, "gradcam")


def test_a_network_without_parameters_or_classes() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((-2, -1))

    ex = hp.explain(Mean(), torch.rand(2, 3, 9, 11), method="gradient")
    torch.testing.assert_close(ex.maps, torch.full_like(ex.maps, 1 / 99))


# Weight files


class Bomb:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_code_in_a_weights_file_never_runs(tmp_path: Path, suffix: str, writer: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    state = {"head.weight": torch.zeros(2, 2), "extra": Bomb(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "torch")
    assert not mark.exists()
    for load in (lambda: read_state(path), lambda: hp.load("efficientnet-lite0", weights=path)):
        with pytest.raises(hp.ModelError) as caught:
            load()
        assert path.name in str(caught.value) and not mark.exists()
    if suffix != ".safetensors":
        assert "not run" in str(caught.value)
    pickle.loads(pickle.dumps(state))  # the trap does work
    assert mark.exists()


def damaged(kind: str, path: Path) -> None:
    good = {"conv.weight": torch.zeros(6, 3, 3, 3)}
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no weights here, sorry" * 9)
    elif kind == "half":
        (save_file if path.suffix == ".safetensors" else torch.save)(good, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge header":
        path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "numbers":
        torch.save([1, 2], path)
    else:
        assert kind == "missing"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "kind", ["zero bytes", "text", "half", "folder", "huge header", "missing", "no tensors", "a tensor", "numbers"]
)
def test_damaged_weights(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"best{suffix}"
    damaged(kind, path)
    for load in (lambda: read_state(path), lambda: hp.load("efficientnet-lite0", weights=path)):
        with pytest.raises(hp.ModelError) as caught:
            load()
        assert path.name in str(caught.value)


def test_weights_of_another_model_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    state = {name: tensor.clone() for name, tensor in small(7).state_dict().items()} | {"more": torch.zeros(1)}
    del state["conv.bias"]
    save_file(state, path)
    before = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    net = small()
    with pytest.raises(hp.ModelError) as caught:
        load_state(net, read_state(path), path)
    for word in ("1 missing", "conv.bias", "1 unknown", "more", "2 of another shape", "head.weight", "other.safetensors"):
        assert word in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_usual_wrappings_of_weights_are_understood(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in small().state_dict().items()}
    path = tmp_path / "w.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    net = small()
    net.head.weight.data.zero_()
    load_state(net, read_state(path), path)
    assert torch.equal(net.head.weight, small().head.weight)


def test_a_lazy_layer_that_never_ran_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(hp.ModelError, match="lazy layer whose weights have no shape yet"):
        hp.explain(net, torch.rand(1, 3, 9, 11), method="gradient", target=0)
    net(torch.rand(1, 3, 9, 11))
    assert hp.explain(net, torch.rand(1, 3, 9, 11), method="gradient", target=0).maps.shape == (1, 1, 9, 11)
