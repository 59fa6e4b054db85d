"""Hugging Face: classifiers, CLIP and SigLIP from folders, with processors and tokenizers made here; default layers."""

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import heatproof as hp

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WIDE = (48, 80)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = TINY | {"image_size": WIDE, "patch_size": 16, "num_labels": 5}
CONV = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
TEXT = TINY | {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = TINY | {"image_size": 48, "patch_size": 16}
SWIN = {"image_size": (112, 224), "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "num_labels": 5}

# class, configuration, options, input, layer, grid, prefix tokens
CASES = {
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, WIDE, "vit.layers.1.layernorm_before", (3, 5), 1),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VIT, WIDE, "deit.layers.1.layernorm_before", (3, 5), 2),
    "beit": ("BeitForImageClassification", "BeitConfig", VIT, WIDE, "beit.layers.1", (3, 5), 1),
    "dinov2": (
        "Dinov2ForImageClassification", "Dinov2Config", VIT | {"image_size": 48}, WIDE, "dinov2.layernorm", (3, 5), 1,
    ),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig",
        VIT | {"image_size": 48, "num_register_tokens": 4}, WIDE, "dinov2_with_registers.layernorm", (3, 5), 5,
    ),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN, (112, 224), "swin.layernorm", (7, 14), 0),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", CONV, (64, 96), "convnext.encoder", (2, 3), 0),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig", CONV | {"embedding_size": 8, "layer_type": "basic"}, (64, 96),
        "resnet.encoder", (2, 3), 0,
    ),
}  # fmt: skip


def seeded(make) -> nn.Module:
    """A seeded network in which no parameter is zero, so that every path to the score carries something."""
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return module


def classifier(case: str = "vit", **more) -> nn.Module:
    cls, config, options, *_ = CASES[case]
    return seeded(lambda: getattr(transformers, cls)(getattr(transformers, config)(**(options | more))))


def image_text(kind: str) -> nn.Module:
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
        return seeded(lambda: transformers.CLIPModel(config))
    return seeded(lambda: transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)))


def save_tokenizer(folder) -> None:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "cat", "dog", "snow", "on", "hill"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (290, 333, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A repository of a ViT classifier."""
    module = classifier(id2label={0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"})
    module.save_pretrained(tmp_path / "repo")
    size = {"height": WIDE[0], "width": WIDE[1]}
    transformers.ViTImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(
        tmp_path / "repo"
    )
    return tmp_path / "repo"


@pytest.mark.parametrize("case", CASES)
def test_default_layer(case):
    *_, size, layer, grid, prefix = CASES[case]
    module = classifier(case)
    model = hp.wrap(module)
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.scores(x), module(x).logits)
    (site,) = model.sites(None, x)
    assert (site.name, (site.height, site.width), site.prefix) == (layer, grid, prefix)
    for explanation in hp.explain(model, x, method=["gradcam", "hirescam"], target=[list(range(5))]).values():
        assert torch.isfinite(explanation.maps).all()
        assert (explanation.raw.flatten(2).std(2) > 0).any()


def test_classifier_from_a_folder(folder, image):
    model = hp.load(f"hf/{folder}")
    module = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    x = model.preprocess(image)
    assert torch.equal(x, processor(images=image, return_tensors="pt")["pixel_values"][0])
    with torch.no_grad():
        assert torch.equal(model.scores(x), module(x[None]).logits)
    assert model.labels == ("ant", "bee", "cat", "dog", "eel")
    assert model.preprocess.mean == pytest.approx((0.5, 0.4, 0.3), abs=1e-6)
    assert model.preprocess.std == pytest.approx((0.2, 0.3, 0.4), abs=1e-6)
    pixels = model.preprocess.pixels(x[None])[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close((pixels - mean) / std, x, atol=1e-5, rtol=0)
    assert model.module.config._attn_implementation == module.config._attn_implementation == "sdpa"


def test_wrapping_a_module_from_a_folder_finds_what_lies_there(folder, image):
    module = transformers.ViTForImageClassification.from_pretrained(folder)
    model = hp.wrap(module)
    assert model.labels == ("ant", "bee", "cat", "dog", "eel")
    assert torch.equal(model.preprocess(image), hp.load(f"hf/{folder}").preprocess(image))
    assert hp.wrap(classifier()).labels is None


def test_weights_from_a_file_bring_their_number_of_classes(folder, tmp_path):
    module = classifier(num_labels=9)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = hp.load(f"hf/{folder}", weights=tmp_path / "w.safetensors")
    x = torch.rand(1, 3, *WIDE)
    with torch.no_grad():
        torch.testing.assert_close(model.scores(x), module(x).logits)
    assert model.labels is None


def test_weights_that_lack_a_head_are_refused(folder, tmp_path):
    state = {name: tensor for name, tensor in classifier().state_dict().items() if not name.startswith("classifier")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(hp.ModelError, match="would be random"):
        hp.load(f"hf/{folder}", weights=tmp_path / "w.safetensors")
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(hp.ModelError, match="would be random"):
        hp.load(f"hf/{folder}")


def test_a_checkpoint_with_code_in_it_is_not_run(folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": torch.zeros(5, 32), "more": Bomb(str(trace))}, folder / "pytorch_model.bin")
    with pytest.raises(hp.ModelError, match=r"weights of hf/.*are a pickle.*was not run. Save them"):
        hp.load(f"hf/{folder}")
    assert not trace.exists()


def test_the_command_says_one_line(folder, tmp_path):
    """No bar that the library draws comes before it."""
    arguments = ["explain", "photo.jpg", "--model", f"hf/{folder}", "--target", "no such thing", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "heatproof", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("heatproof: target 'no such thing'") and done.stderr.count("\n") == 1


def test_half_precision_checkpoints_are_explained_in_float32(folder):
    transformers.ViTForImageClassification.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in hp.load(f"hf/{folder}").module.parameters()} == {torch.float32}


def test_no_image_processor_is_a_sentence(tmp_path):
    classifier().save_pretrained(tmp_path)
    with pytest.raises(hp.ModelError, match="image processor"):
        hp.load(f"hf/{tmp_path}")


def test_no_such_repository_is_a_sentence(tmp_path):
    with pytest.raises(hp.ModelError, match="configuration of hf/"):
        hp.load(f"hf/{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("kind", "layer", "prefix"),
    [("clip", "vision_model.encoder.layers.1.layer_norm1", 1), ("siglip", "vision_model.post_layernorm", 0)],
)
def test_image_text_models_from_a_folder(tmp_path, image, kind, layer, prefix):
    module = image_text(kind)
    module.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    if kind == "clip":
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    else:
        processor = transformers.SiglipImageProcessor(size={"height": 48, "width": 48})
    processor.save_pretrained(tmp_path)
    texts = ["a cat", "snow on a hill"]
    model = hp.load(f"hf/{tmp_path}")
    with pytest.raises(hp.ModelError, match="with_prompts"):
        model.scores(image)
    model = model.with_prompts(texts)
    x = model.tensor(image)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(x, processor(images=image, return_tensors="pt")["pixel_values"])

    ids = [[1, 4, 5, 2], [1, 7, 8, 4, 9, 2]]  # by hand, from the vocabulary
    padded = torch.tensor([row + [0] * ((8 if kind == "siglip" else 6) - len(row)) for row in ids])
    masks = {} if kind == "siglip" else {"attention_mask": (padded != 0).long()}
    with torch.no_grad():
        output = module(input_ids=padded, pixel_values=x, **masks)
    expected = nn.functional.normalize(output.image_embeds, dim=-1) @ nn.functional.normalize(output.text_embeds, dim=-1).T
    torch.testing.assert_close(model.scores(x), expected, atol=1e-6, rtol=1e-5)

    (site,) = model.sites(None, x)
    assert (site.name, (site.height, site.width), site.prefix) == (layer, (3, 3), prefix)
    raw = hp.explain(model, x, method="hirescam", target=[texts]).raw
    assert torch.isfinite(raw).all()
    assert (raw.flatten(2).std(2) > 0).all()

    wrapped = hp.wrap(transformers.AutoModel.from_pretrained(tmp_path)).with_prompts(texts)
    assert torch.equal(wrapped.scores(x), model.scores(x))


class Bomb:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
