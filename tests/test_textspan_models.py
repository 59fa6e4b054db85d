"""textspan on every library's transformers: the parts add up to the model's own score, whatever the readout."""

import pytest
import torch
from torch import nn

import heatproof as hp
from tiny import SIZE, TinyViT, images, seeded

WIDE = (48, 80)


def awake(module: nn.Module) -> nn.Module:
    """A network in which no parameter is zero, so that every path and every bias carries something."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return module


def wrapped(build) -> hp.Model:
    module = awake(seeded(build))
    spare = 8 if hasattr(module, "text_decoder") else 9
    model = hp.wrap(module, tokenizer=lambda texts: torch.tensor([[5, len(text), 49407] + [0] * spare for text in texts]))
    return model.with_prompts(["cat", "a dog", "some snow", "many hills", "the sea"]) if model.takes_prompts else model


def of_torchvision():
    from torchvision.models import VisionTransformer

    return VisionTransformer(48, 16, 3, 4, 32, 64, num_classes=5)


def of_timm(**options):
    from timm.models.vision_transformer import VisionTransformer

    given = {"img_size": WIDE, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    return lambda: VisionTransformer(**(given | options))


def of_open_clip(quick: bool = False, **vision):
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP

    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    cfg = {"image_size": list(WIDE), "layers": 3, "width": 64, "head_width": 16, "patch_size": 16} | vision
    if "attentional_pool" in vision:
        text |= {"embed_cls": True, "output_tokens": True, "context_length": 11}
        decoder = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        return lambda: CoCa(24, decoder, text, cfg, quick_gelu=quick)
    return lambda: CLIP(24, cfg, text, quick_gelu=quick)


def of_transformers(name: str, attention: str = "sdpa", **options):
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    # DINOv2 is trained on squares, its positions are stretched
    image = {"image_size": 48 if name.startswith("Dino") else WIDE, "patch_size": 16, "num_labels": 5}
    if name in ("CLIP", "Siglip"):
        config = getattr(transformers, f"{name}Config")(
            vision_config=tiny | {"image_size": 48, "patch_size": 16},
            text_config=tiny | {"vocab_size": 49408, "max_position_embeddings": 12, "eos_token_id": 49407},
            attn_implementation=attention,
        )
        return lambda: getattr(transformers, f"{name}Model")(config)
    config = getattr(transformers, f"{name}Config")(**(tiny | image | options), attn_implementation=attention)
    return lambda: getattr(transformers, f"{name}ForImageClassification")(config)


# build, input, layers that write to the score, heads, tokens, prefix tokens
CASES = {
    "by hand": (lambda: TinyViT, SIZE, 2, 3, 18, 3),
    "torchvision": (lambda: of_torchvision, (48, 48), 3, 4, 10, 1),
    "timm": (lambda: of_timm(), WIDE, 3, 4, 16, 1),
    "timm registers, layer scale, norms of queries": (
        lambda: of_timm(reg_tokens=4, init_values=0.3, qk_norm=True, pre_norm=True), WIDE, 3, 4, 20, 5,
    ),
    "timm mean": (lambda: of_timm(global_pool="avg"), WIDE, 3, 4, 16, 1),
    "timm mean without a class token": (
        lambda: of_timm(global_pool="avg", class_token=False, fc_norm=False), WIDE, 3, 4, 15, 0,
    ),
    "timm pooler": (lambda: of_timm(global_pool="map", class_token=False), WIDE, 1, 4, 15, 0),
    "open_clip": (lambda: of_open_clip(), WIDE, 3, 4, 16, 1),
    "open_clip QuickGELU": (lambda: of_open_clip(quick=True), WIDE, 3, 4, 16, 1),
    "open_clip mean, layer scale": (lambda: of_open_clip(pool_type="avg", ls_init_value=0.2), WIDE, 3, 4, 16, 1),
    "open_clip CoCa": (
        lambda: of_open_clip(attentional_pool=True, attn_pooler_heads=2, output_tokens=True), WIDE, 1, 2, 16, 1,
    ),
    "transformers ViT": (lambda: of_transformers("ViT"), WIDE, 3, 4, 16, 1),
    "transformers ViT, attention by hand": (lambda: of_transformers("ViT", "eager"), WIDE, 3, 4, 16, 1),
    "transformers DeiT": (lambda: of_transformers("DeiT"), WIDE, 3, 4, 17, 2),
    "transformers DINOv2": (lambda: of_transformers("Dinov2"), WIDE, 3, 4, 16, 1),
    "transformers DINOv2 gated": (lambda: of_transformers("Dinov2", use_swiglu_ffn=True), WIDE, 3, 4, 16, 1),
    "transformers DINOv2 registers": (
        lambda: of_transformers("Dinov2WithRegisters", num_register_tokens=4), WIDE, 3, 4, 20, 5,
    ),
    "transformers CLIP": (lambda: of_transformers("CLIP"), (48, 48), 3, 4, 10, 1),
    "transformers SigLIP": (lambda: of_transformers("Siglip"), (48, 48), 1, 4, 9, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_parts_add_up_to_the_models_own_score(name):
    build, size, layers, heads, tokens, prefix = CASES[name]
    model = wrapped(build())
    x = images(6, size=size)
    ex = hp.explain(model, x, method="textspan", target=[[0, 3]] * 6)
    with torch.no_grad():
        torch.testing.assert_close(ex.scores, model.readout(model.module, x).gather(1, ex.targets), rtol=1e-4, atol=1e-5)
    assert ex.contributions.shape == (6, 2, layers, heads, tokens)
    torch.testing.assert_close(ex.contributions.sum((2, 3, 4)) + ex.residual, ex.scores, rtol=1e-4, atol=1e-5)
    height, width = size[0] // 16, size[1] // 16
    height, width = (height, width) if name != "by hand" else (3, 5)
    assert ex.raw.shape == (6, 2, height, width) and tokens == prefix + height * width
    torch.testing.assert_close(ex.raw.flatten(2), ex.contributions.sum((2, 3))[..., prefix:])
    mlps = {row["place"] for row in ex.ledger if row["part"] == "mlp"}
    assert len(mlps) == (layers if layers > 1 else 0 if "CoCa" in name else 1)
    amounts = torch.zeros(6, 2)
    for row in ex.ledger:
        amounts[row["image"], row["target"]] += row["amount"]
    torch.testing.assert_close(amounts, ex.residual, rtol=1e-4, atol=1e-5)
