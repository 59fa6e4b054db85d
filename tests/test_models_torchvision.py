"""torchvision: the default layer of all 21 classification families, weights from files and from the cache, preprocessing."""

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import heatproof as hp

torchvision = pytest.importorskip("torchvision")

WIDE, SQUARE, FULL = (96, 160), (64, 64), (224, 224)

# family: smallest member, input, layer that feeds the pooling (of ViT: the last norm in front of the last attention), grid
FAMILIES = {
    "alexnet": ("alexnet", WIDE, "features", (2, 4)),
    "convnext": ("convnext_tiny", WIDE, "features", (3, 5)),
    "densenet": ("densenet121", WIDE, "features", (3, 5)),
    "efficientnet": ("efficientnet_b0", WIDE, "features", (3, 5)),
    "efficientnetv2": ("efficientnet_v2_s", WIDE, "features", (3, 5)),
    "googlenet": ("googlenet", WIDE, "inception5b", (3, 5)),
    "inception": ("inception_v3", (128, 192), "Mixed_7c", (2, 4)),
    "maxvit": ("maxvit_t", FULL, "blocks.3", (7, 7)),
    "mnasnet": ("mnasnet0_5", WIDE, "layers", (3, 5)),
    "mobilenetv2": ("mobilenet_v2", WIDE, "features", (3, 5)),
    "mobilenetv3": ("mobilenet_v3_small", WIDE, "features", (3, 5)),
    "regnet": ("regnet_y_400mf", WIDE, "trunk_output", (3, 5)),
    "resnet": ("resnet18", WIDE, "layer4", (3, 5)),
    "resnext": ("resnext50_32x4d", WIDE, "layer4", (3, 5)),
    "shufflenetv2": ("shufflenet_v2_x0_5", WIDE, "conv5", (3, 5)),
    "squeezenet": ("squeezenet1_0", WIDE, "classifier.1", (5, 9)),
    "swin": ("swin_t", WIDE, "norm", (3, 5)),
    "swin_v2": ("swin_v2_t", WIDE, "norm", (3, 5)),
    "vgg": ("vgg11", WIDE, "features", (3, 5)),
    "vit": ("vit_b_32", SQUARE, "encoder.layers.encoder_layer_11.ln_1", (2, 2)),
    "wide_resnet": ("wide_resnet50_2", WIDE, "layer4", (3, 5)),
}


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (290, 333, 3), dtype=np.uint8))


def test_every_family_is_in_the_table():
    modules = {
        torchvision.models.get_model_builder(name).__module__
        for name in torchvision.models.list_models(module=torchvision.models)
    }
    mine = {torchvision.models.get_model_builder(name).__module__ for name, *_ in FAMILIES.values()}
    assert mine == modules


@pytest.mark.parametrize("family", FAMILIES)
def test_default_layer(family):
    name, size, layer, grid = FAMILIES[family]
    module = build(name, **({"image_size": size[0]} if family == "vit" else {}))
    if family == "vit":  # a head of zeros, as it comes, explains nothing
        nn.init.normal_(module.heads.head.weight, std=0.02)
    model = hp.wrap(module)
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    (site,) = model.sites(None, x)
    assert (site.name, site.height, site.width) == (layer, *grid)
    assert site.prefix == (1 if family == "vit" else 0)
    assert site.kind == {"swin": "bhwk", "swin_v2": "bhwk", "vit": "bnk"}.get(family, "bkhw")
    # several targets: the ReLU of Grad-CAM leaves nothing of a class that a random network speaks against everywhere
    found = hp.explain(model, x, method=["gradcam", "hirescam"], target=[list(range(8))])
    for explanation in found.values():
        assert torch.isfinite(explanation.maps).all()
        assert explanation.maps.shape == (1, 8, *size)
        assert (explanation.raw.flatten(2).std(2) > 0).any()


def test_default_layer_of_a_head_that_is_still_zero():
    module = build("vit_b_32", image_size=64)
    assert not module.heads.head.weight.any()
    (site,) = hp.wrap(module).sites(None, torch.rand(1, 3, 64, 64))
    assert site.name == "encoder.layers.encoder_layer_11.ln_1"
    assert not module.heads.head.weight.any()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_finetuned_weights_bring_their_number_of_classes(tmp_path, ending):
    module = build("resnet18", num_classes=10).eval()
    path = tmp_path / f"weights.{ending}"
    save(module.state_dict(), path)
    model = hp.load("torchvision/resnet18", weights=path)
    x = torch.rand(2, 3, 64, 96)
    assert torch.equal(model.scores(x), module(x))
    assert model.labels is None
    assert not model.module.training


def test_finetuned_vit_of_another_size(tmp_path):
    module = build("vit_b_32", num_classes=10, image_size=96).eval()
    nn.init.normal_(module.heads.head.weight)
    save({f"module.{name}": tensor for name, tensor in module.state_dict().items()}, tmp_path / "vit.safetensors")
    model = hp.load("torchvision/vit_b_32", weights=tmp_path / "vit.safetensors")
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():  # attention takes another path under no_grad
        assert torch.equal(model.scores(x), module(x))
    assert model.labels is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_by_name(tmp_path, family):
    name, size, *_ = FAMILIES[family]
    size = FULL if family == "vit" else size
    module = build(name, num_classes=7).eval()
    save(module.state_dict(), tmp_path / "w.safetensors")
    model = hp.load(f"torchvision/{name}", weights=tmp_path / "w.safetensors")
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    if hasattr(module, "transform_input"):  # its own weights expect it, and torchvision builds it so around them
        module.transform_input = True
    with torch.no_grad():
        assert torch.equal(model.scores(x), module(x))
    assert model.labels is None


@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5"])
def test_weights_of_the_usual_classes_keep_the_labels(tmp_path, name):
    module = build(name)
    save(module.state_dict(), tmp_path / "w.safetensors")
    model = hp.load(f"torchvision/{name}", weights=tmp_path / "w.safetensors")
    assert len(model.labels) == 1000
    assert model.labels[0] == "tench"
    assert set(model.versions) == {"torchvision"}


def test_weights_of_another_network_are_refused(tmp_path):
    save(build("squeezenet1_1").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(hp.ModelError, match="do not fit this model"):
        hp.load("torchvision/resnet18", weights=tmp_path / "w.safetensors")


def test_cached_default_weights_need_no_network(tmp_path, monkeypatch, image):
    """DenseNet as published: old layer names, and no counters in the batch norms."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    module = build("densenet121").eval()
    old = {}
    for name, tensor in module.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    assert any(".norm.1." in name for name in old)
    save(old, cache_file(tmp_path, "densenet121"))
    model = hp.load("torchvision/densenet121")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.scores(x), module(x))
    known = torchvision.models.DenseNet121_Weights.DEFAULT
    assert torch.equal(model.preprocess(image), known.transforms()(image))
    assert model.labels == tuple(known.meta["categories"])


def test_a_cached_file_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trace = tmp_path / "ran"
    torch.save(Bomb(str(trace)), cache_file(tmp_path, "squeezenet1_1"))
    with pytest.raises(hp.ModelError, match="weights=FILE"):
        hp.load("torchvision/squeezenet1_1")
    assert not trace.exists()


def test_no_network_and_no_cache_is_a_sentence(tmp_path, monkeypatch, capfd):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(hp.ModelError, match=r"no route to host.*weights=FILE"):
        hp.load("torchvision/resnet18")
    assert capfd.readouterr() == ("", "")  # the sentence is all there is


def test_unknown_name_has_near_misses():
    with pytest.raises(hp.ModelError, match="resnet50"):
        hp.load("torchvision/resnet5O")


def test_preprocess_knows_its_normalisation(tmp_path, image):
    save(build("squeezenet1_1").state_dict(), tmp_path / "w.safetensors")
    model = hp.load("torchvision/squeezenet1_1", weights=tmp_path / "w.safetensors")
    x = model.preprocess(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = model.preprocess.bounds()
    torch.testing.assert_close(low.flatten(), -mean / std)
    torch.testing.assert_close(high.flatten(), (1 - mean) / std)
    pixels = model.preprocess.pixels(x[None])[0]
    torch.testing.assert_close((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), x, atol=1e-5, rtol=0)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def save(state: dict, path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)


def cache_file(home: Path, name: str) -> Path:
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / Path(torchvision.models.get_model_weights(name).DEFAULT.url).name
