"""Nothing unaccounted for on the networks of other libraries."""

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from lrp_networks import COMPOSITES, EXACT, missing


def adds_up(net: nn.Module, x: Tensor, tolerance: float = 1e-8) -> None:
    """Every composite, on a network as after training: exact ones in float64, the others in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trained_lightly(net)
    for composite in COMPOSITES:
        exact = composite in EXACT
        net, x = (net.double(), x.double()) if exact else (net.float(), x.float())
        ex = hp.explain(net, x, "lrp", composite=composite)
        assert missing(ex) < (tolerance if exact else 1e-3), composite
        assert torch.isfinite(ex.raw).all() and ex.raw.abs().max() > 0


def trained_lightly(net: nn.Module) -> None:
    """Biases that count, and no branch or head that is still zero."""
    net.eval()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim <= 1 and float(parameter.detach().abs().max()) < 1e-3:
            nn.init.uniform_(parameter, 0.3, 1.0)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)


SMALL = {"embed_dim": 12, "depth": 2, "num_heads": 2, "img_size": (24, 40), "patch_size": 8, "num_classes": 5}
TIMM = {
    "ViT": ("vit_tiny_patch16_224", SMALL, (24, 40)),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", SMALL, (24, 40)),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", SMALL, (24, 40)),
    "SigLIP": ("vit_base_patch16_siglip_224", SMALL, (24, 40)),
    "CaiT": ("cait_xxs24_224", SMALL | {"depth_token_only": 1}, (24, 40)),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL | {"embed_dim": 16}, (24, 40)),
    "Swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
                                              "img_size": (32, 64), "num_classes": 5}, (32, 64)),
    "Swin v2": ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
                                            "img_size": (32, 64), "num_classes": 5}, (32, 64)),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "num_classes": 5}, (64, 96)),
    "ConvNeXt v2": ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "num_classes": 5}, (64, 96)),
    "EfficientNet": ("efficientnet_lite0", {"num_classes": 5}, (64, 96)),
    "EfficientNet, TF padding": ("tf_efficientnetv2_b0", {"num_classes": 5}, (64, 96)),
    "MaxViT": ("maxvit_rmlp_pico_rw_256", {"num_classes": 5, "img_size": 128}, (128, 128)),
    "NFNet": ("nf_regnet_b0", {"num_classes": 5}, (64, 96)),
    "ResNet-D": ("resnet10t", {"num_classes": 5}, (64, 96)),
    "MobileNetV4": ("mobilenetv4_conv_small_035", {"num_classes": 5}, (64, 96)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    member, options, size = TIMM[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(member, pretrained=False, **options)
        adds_up(net, torch.randn(1, 3, *size))


TRANSFORMERS = {
    "ViT": ("ViT", {"image_size": 32, "patch_size": 8}),
    "DINOv2": ("Dinov2", {"image_size": 32, "patch_size": 8}),
    "DINOv2, registers": ("Dinov2WithRegisters", {"image_size": 32, "patch_size": 8, "num_register_tokens": 2}),
    "DeiT": ("DeiT", {"image_size": 32, "patch_size": 8}),
    "Swin": ("Swin", {"image_size": 64, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}),
    "ConvNeXt": ("ConvNext", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}),
    "ResNet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic"}),
    "SigLIP": ("Siglip", {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 12, "num_hidden_layers": 2,
                                            "num_attention_heads": 2, "intermediate_size": 20}}),
    "CLIP": ("CLIP", {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 12, "num_hidden_layers": 2,
                                        "num_attention_heads": 2, "intermediate_size": 20}}),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, attention):
    transformers = pytest.importorskip("transformers")
    kind, options = TRANSFORMERS[name]
    convolutional, towers = kind in ("ConvNext", "ResNet"), "vision_config" in options
    if convolutional and attention == "sdpa":
        pytest.skip("a convolutional network")
    if not (convolutional or towers or kind == "Swin"):
        options = options | {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    side = 32 if towers else options.get("image_size", 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(transformers, f"{kind}ForImageClassification")(
            getattr(transformers, f"{kind}Config")(**options, num_labels=5)
        )
        if not convolutional:
            net.set_attn_implementation(attention)
        # eager attention computes its softmax in float32, whatever the model is in
        adds_up(net, torch.randn(1, 3, side, side), 1e-6 if attention == "eager" else 1e-8)


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "SigLIP"])
def test_open_clip_towers(kind):
    open_clip = pytest.importorskip("open_clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ResNet":
            net = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 6, 2, image_size=64, width=8)
            x = torch.randn(1, 3, 64, 64)
        else:
            more = {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True} if kind == "SigLIP" else {}
            net = open_clip.transformer.VisionTransformer(32, 8, 12, 2, 2, 2.0, output_dim=6, **more)
            x = torch.randn(1, 3, 32, 32)
        adds_up(net, x)
