"""timm: default layers of its families, weights from files, its own data configuration."""

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import heatproof as hp

timm = pytest.importorskip("timm")

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
WIDE = (64, 96)
STAGES = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}

# network, options, input, layer, grid, prefix tokens
CASES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": WIDE} | TINY, WIDE, "blocks.1.norm1", (4, 6), 1),
    "qk-norm": ("vit_tiny_patch16_224", {"img_size": WIDE, "qk_norm": True} | TINY, WIDE, "blocks.1.norm1", (4, 6), 1),
    "mean pool": ("vit_tiny_patch16_224", {"img_size": WIDE, "global_pool": "avg"} | TINY, WIDE, "blocks", (4, 6), 1),
    "mean pool, registers": ("vit_medium_patch16_reg4_gap_256", {"img_size": WIDE} | TINY, WIDE, "blocks", (4, 6), 4),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {"img_size": WIDE} | TINY, WIDE, "blocks.1.norm1", (4, 6), 2),
    "dinov2, registers": (
        "vit_small_patch14_reg4_dinov2", {"img_size": (70, 98), "num_classes": 7} | TINY, (70, 98), "blocks.1.norm1", (5, 7), 5,
    ),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": WIDE, "num_classes": 7} | TINY, WIDE, "norm", (4, 6), 0),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": WIDE, "num_classes": 7} | TINY, WIDE, "norm", (4, 6), 5),
    "cait": ("cait_xxs24_224", {"img_size": WIDE} | TINY, WIDE, "blocks_token_only.1.norm1", (4, 6), 1),
    "beit": ("beit_base_patch16_224", {"img_size": WIDE} | TINY, WIDE, "blocks.1", (4, 6), 1),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": (112, 224)} | STAGES, (112, 224), "norm", (4, 7), 0),
    "swin v2": ("swinv2_tiny_window8_256", {"img_size": (64, 128)} | STAGES, (64, 128), "norm", (2, 4), 0),
    "convnext": ("convnext_atto", {}, WIDE, "stages", (2, 3), 0),
    "maxvit": ("maxvit_nano_rw_256", {"img_size": 128}, (128, 128), "norm", (4, 4), 0),
    "resnet": ("resnet18", {}, WIDE, "layer4", (2, 3), 0),
    "xcit": ("xcit_nano_12_p16_224", {"img_size": WIDE}, WIDE, "cls_attn_blocks.1.norm1", (4, 6), 1),
    "mixer": ("mixer_s32_224", {"img_size": 64}, (64, 64), "norm", (2, 2), 0),
}  # fmt: skip


def build(name: str, **options) -> nn.Module:
    """A seeded network in which no parameter is zero, so that every path to the score carries something."""
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return module


def check(module: nn.Module, size: tuple[int, int], layer: str, grid: tuple[int, int], prefix: int) -> None:
    model = hp.wrap(module)
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    (site,) = model.sites(None, x)
    assert (site.name, (site.height, site.width), site.prefix) == (layer, grid, prefix)
    for explanation in hp.explain(model, x, method=["gradcam", "hirescam"], target=[list(range(5))]).values():
        assert torch.isfinite(explanation.maps).all()
        assert explanation.maps.shape == (1, 5, *size)
        assert (explanation.raw.flatten(2).std(2) > 0).any()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (290, 333, 3), dtype=np.uint8))


@pytest.mark.parametrize("case", CASES)
def test_default_layer(case):
    name, options, size, layer, grid, prefix = CASES[case]
    check(build(name, **options), size, layer, grid, prefix)


def test_default_layer_of_one_network_at_three_sizes():
    module = build("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, **TINY)
    for size, grid in (((64, 64), (4, 4)), ((64, 96), (4, 6)), ((96, 64), (6, 4))):
        check(module, size, "blocks.1.norm1", grid, 1)


def test_nothing_but_the_prefix_matters_behind_the_default_of_a_class_token():
    """The definition of the default, checked by hand: the next candidate's patch tokens do not move the score."""
    module = build("vit_small_patch14_reg4_dinov2", img_size=(70, 98), num_classes=7, **TINY).eval()
    kept = {}
    for name in ("blocks.1.norm1", "blocks.1"):
        module.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: kept.__setitem__(name, output))
    score = module(torch.rand(1, 3, 70, 98))[0, 0]
    for name, matters in (("blocks.1.norm1", True), ("blocks.1", False)):
        (gradient,) = torch.autograd.grad(score, kept[name], retain_graph=True)
        assert bool(gradient[:, 5:].any()) == matters


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_finetuned_weights_bring_their_number_of_classes(tmp_path, name):
    module = build(name, num_classes=10).eval()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = hp.load(f"timm/{name}", weights=tmp_path / "w.safetensors")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.scores(x), module(x))
    assert model.labels is None


def test_preprocessing_is_timms_own(tmp_path, image):
    module = build("convnext_atto")
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = hp.load("timm/convnext_atto.d2_in1k", weights=tmp_path / "w.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    x = model.preprocess(image)
    assert torch.equal(x, transform(image))
    mean, std = (torch.tensor(module.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close((model.preprocess.pixels(x[None])[0] - mean) / std, x, atol=1e-5, rtol=0)
    assert len(model.labels) == 1000
    assert "timm" in model.versions


def test_wrapping_a_network_of_timm_asks_timm(image):
    model = hp.wrap(build("vit_tiny_patch16_224", img_size=WIDE, **TINY))
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    assert model.preprocess(image).shape == (3, *WIDE)
    assert model.labels[1] == "goldfish"
    assert hp.wrap(build("resnet18", num_classes=12)).labels is None


def test_labels_of_larger_heads(tmp_path):
    labels = hp.wrap(build("vit_tiny_patch16_224.augreg_in21k", **TINY)).labels
    assert len(labels) == timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k").num_classes


def test_weights_that_do_not_fit(tmp_path):
    safetensors.torch.save_file(build("resnet18").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(hp.ModelError, match="do not fit timm/convnext_atto"):
        hp.load("timm/convnext_atto", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "says"),
    [("resnet81", "resnet18"), ("resnet18.foo", "resnet18.a1_in1k"), ("resnet18", "cannot be fetched")],
)
def test_what_cannot_be_had_is_a_sentence(monkeypatch, name, says):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(hp.ModelError, match=says):
        hp.load(f"timm/{name}")


@pytest.mark.parametrize("method", ["legrad", "gradcam", "textspan"])
def test_gradient_checkpointing_is_for_training(method):
    module = timm.create_model("vit_tiny_patch16_224", img_size=WIDE, num_classes=5, **TINY)
    x = torch.randn(1, 3, *WIDE, generator=torch.Generator().manual_seed(0))
    expected = hp.explain(module, x, method, target=1).raw
    module.set_grad_checkpointing()
    assert torch.equal(hp.explain(module, x, method, target=1).raw, expected) and module.grad_checkpointing
