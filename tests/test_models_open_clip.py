"""open_clip: CLIP, CoCa and SigLIP by name with weights from a file or a tag; default layers; preprocessing."""

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import heatproof as hp

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": [48, 80], "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
POOLER = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
SIGLIP_VISION = {
    "image_size": 224,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
}
CONFIGS = {
    "tiny-vit": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-mean": {"embed_dim": 32, "vision_cfg": VISION | {"pool_type": "avg"}, "text_cfg": TEXT},
    "tiny-rn": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-coca": {
        "embed_dim": 32,
        "custom_text": True,
        "multimodal_cfg": TEXT | {"mlp_ratio": 4, "attn_pooler_heads": 2},
        "vision_cfg": VISION | POOLER,
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True, "context_length": 11},
    },
    "tiny-sig": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": SIGLIP_VISION,
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "tiny-convnext": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": SIGLIP_VISION
        | {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
}

# architecture: layer, grid, prefix tokens
LAYERS = {
    "tiny-vit": ("visual.transformer.resblocks.1.ln_1", (3, 5), 1),
    "tiny-mean": ("visual.ln_post", (3, 5), 1),
    "tiny-rn": ("visual.layer4", (2, 2), 0),
    "tiny-coca": ("visual.attn_pool.ln_k", (3, 5), 1),
    "tiny-sig": ("visual.trunk.norm", (14, 14), 1),
    "tiny-convnext": ("visual.trunk.stages", (2, 2), 0),
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Tiny architectures beside open_clip's own, for as long as these tests run."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    open_clip.factory._rescan_model_configs()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (290, 333, 3), dtype=np.uint8))


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    module = open_clip.create_model(name, pretrained_text=False, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return module


@pytest.mark.parametrize("name", CONFIGS)
def test_by_name_with_weights_from_a_file(tmp_path, name, image):
    module = build(name)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    model = hp.load(f"open_clip/{name}", weights=tmp_path / "w.pt")
    texts = ["a cat", "snow on a hill"]
    x = model.tensor(image)
    with torch.no_grad():
        embedded = [nn.functional.normalize(e, dim=-1) for e in (
            module.encode_image(x), module.encode_text(open_clip.get_tokenizer(name)(texts))
        )]  # fmt: skip
    prompted = model.with_prompts(texts)
    torch.testing.assert_close(prompted.scores(x), embedded[0] @ embedded[1].T, atol=1e-6, rtol=1e-5)
    assert prompted.prompts == tuple(texts)

    (site,) = model.with_prompts(texts).sites(None, x)
    assert (site.name, (site.height, site.width), site.prefix) == LAYERS[name]
    for explanation in hp.explain(prompted, x, method=["gradcam", "hirescam"], target=[texts]).values():
        assert torch.isfinite(explanation.maps).all()
        assert explanation.maps.shape == (1, 2, *x.shape[-2:])
    assert (explanation.raw.flatten(2).std(2) > 0).all()


def test_knowing_more_texts_keeps_the_places_of_those_that_are_known(image):
    model = hp.wrap(build("tiny-vit"), tokenizer=open_clip.get_tokenizer("tiny-vit"))
    one = model.knowing(["snow", "a cat", "snow"])
    assert one.labels == ("snow", "a cat") and one.knowing(["a cat"]) is one and model.knowing([]) is model
    more = one.knowing(["ice", "snow"])
    assert more.labels == ("snow", "a cat", "ice")
    torch.testing.assert_close(more.scores(model.tensor(image))[:, :2], one.scores(model.tensor(image)))
    classifier = hp.wrap(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert classifier.knowing(["snow"]) is classifier


@pytest.mark.parametrize(("name", "size"), [("tiny-vit", (64, 48)), ("tiny-sig", (64, 96))])
def test_wrapping_a_model_forced_to_another_size(name, size, image):
    module = build(name, force_image_size=size)
    model = hp.wrap(module, prompts=["a cat", "a dog"])
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**module.visual.preprocess_cfg), False)
    x = model.tensor(image)
    assert x.shape == (1, 3, *size)
    assert torch.equal(x[0], transform(image))
    mean, std = (torch.tensor(module.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close((model.preprocess.pixels(x)[0] - mean) / std, x[0], atol=1e-5, rtol=0)
    (site,) = model.sites(None, x)
    assert (site.height, site.width) == (size[0] // 16, size[1] // 16)


def test_a_tag_brings_its_preprocessing(tmp_path, monkeypatch, image):
    module = build("tiny-vit")
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    tag = {"file": str(tmp_path / "w.safetensors"), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"mine": tag})
    model = hp.load("open_clip/tiny-vit:mine")
    assert model.preprocess.mean == (0.5, 0.4, 0.3)
    assert model.preprocess.std == (0.2, 0.3, 0.4)
    pixels = np.asarray(image.resize((80, 48), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = torch.from_numpy((pixels - np.float32(tag["mean"])) / np.float32(tag["std"])).permute(2, 0, 1)
    torch.testing.assert_close(model.preprocess(image), expected)
    x = torch.rand(1, 3, 48, 80)
    with torch.no_grad():
        assert torch.equal(model.readout.embed(model.module, x), nn.functional.normalize(module.encode_image(x), dim=-1))


def test_a_tag_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    trace = tmp_path / "ran"
    torch.save({"state_dict": Bomb(str(trace))}, tmp_path / "w.pt")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"mine": {"file": str(tmp_path / "w.pt")}})
    with pytest.raises(hp.ModelError, match="was not run"):
        hp.load("open_clip/tiny-vit:mine")
    assert not trace.exists()


def test_a_tag_that_needs_the_other_gelu_gets_it(tmp_path, monkeypatch):
    torch.save(build("tiny-vit").state_dict(), tmp_path / "w.pt")
    tag = {"file": str(tmp_path / "w.pt"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"mine": tag})
    module = hp.load("open_clip/tiny-vit:mine").module
    assert type(module.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_weights_of_another_architecture_are_refused(tmp_path):
    safetensors.torch.save_file(build("tiny-mean").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(hp.ModelError, match="do not fit open_clip/tiny-rn"):
        hp.load("open_clip/tiny-rn", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B-32", "openai.*laion2b_s34b_b79k"),
        ("ViT-B-32:opena", "Did you mean 'openai'"),
        ("ViT-B-3", "Did you mean 'ViT-B-32"),
        ("tiny-vit", "no published weights"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(name, says):
    with pytest.raises(hp.ModelError, match=says):
        hp.load(f"open_clip/{name}")


def test_no_network_is_a_sentence(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.download_pretrained", offline)
    with pytest.raises(hp.ModelError, match=r"no route to host.*weights=FILE"):
        hp.load("open_clip/ViT-B-32:openai")


class Bomb:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_tokenizer_of_another_model_is_a_sentence():
    module = open_clip.create_model("tiny-vit")
    foreign = hp.wrap(module, tokenizer=lambda texts: torch.full((len(texts), 12), 50000))
    with pytest.raises(hp.ModelError, match=r"IndexError came of 2 text.*encode_text.*tokenizer is that of CLIP"):
        foreign.with_prompts(["a cat", "snow"])
    with pytest.raises(hp.ModelError, match=r"AttributeError.*tokenizer"):
        hp.wrap(module, tokenizer=lambda texts: [[1, 2]]).with_prompts(["a cat"])
