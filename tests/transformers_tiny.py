"""Tiny vision transformers of every library, each with its end written out by hand, and autograd's own attention gradients.

The second implementation: attention is a matrix that autograd differentiates, the end of each network is a formula.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from tiny import TinyViT, seeded

PROMPTS = ["a cat", "snow on a hill", "two dogs"]
TEXT = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": [48, 80], "layers": 3, "width": 48, "head_width": 16, "patch_size": 16}
HF = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "patch_size": 16}
TIMM = {"depth": 3, "embed_dim": 48, "num_heads": 3}


@dataclass
class Case:
    """A network, its blocks, and what it does with the tokens behind them.

    Args:
        end: from a pooled token `(B, K)` to scores; of a network with a pooler from tokens `(B, N, K)`.
        prefix: tokens in front of the grid.
        pooled: whether a pooler reads the tokens.
        reads: the tokens that the score reads.
    """

    module: nn.Module
    size: tuple[int, int]
    grid: tuple[int, int]
    prefix: int
    blocks: list[nn.Module]
    end: Callable[[Tensor, Tensor | None], Tensor]
    reads: Any = (0,)
    pooled: bool = False

    def model(self) -> hp.Model:
        """As a user has it, with prompts if it takes any."""
        if hasattr(self.module, "encode_text") or hasattr(self.module, "get_text_features"):
            return hp.wrap(self.module, prompts=PROMPTS, tokenizer=tokenizer)
        return hp.wrap(self.module)

    def images(self, count: int = 2) -> Tensor:
        return torch.randn(count, 3, *self.size, generator=torch.Generator().manual_seed(1))


def tokenizer(texts: list[str]) -> Tensor:
    """Letters as numbers; the last is the largest, which is where CLIP reads."""
    rows = [[1 + ord(c) % 90 for c in text][:11] for text in texts]
    return torch.tensor([row + [97] * (11 - len(row)) + [98] for row in rows])


def lively(build: Callable[[], Any]) -> Any:
    """Seeded, and no parameter is all zeros or all ones, so that every path to the score carries something."""
    module = seeded(build)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() and parameter.min() == parameter.max():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.std() < 0.05:
                parameter.mul_(5)  # as the libraries initialise, attention would be flat
    return module


def tiny() -> Case:
    net = lively(TinyViT)
    return Case(net, (24, 40), (3, 5), 3, list(net.blocks), lambda z, _: net.head(net.norm(z)))


def tiny_post_norm() -> Case:
    net = lively(lambda: _sequence_first(TinyViT()))
    return Case(net, (24, 40), (3, 5), 3, list(net.blocks), lambda z, _: net.head(net.norm(z)))


def _sequence_first(net: TinyViT) -> TinyViT:
    """Norms behind the residuals, and tokens before the batch."""
    make = lambda: nn.TransformerEncoderLayer(12, 3, 24, 0.1, batch_first=False, norm_first=False)  # noqa: E731
    net.blocks = nn.ModuleList(make() for _ in range(3))
    net.patch.register_forward_hook(lambda _m, _i, y: y)

    class Turned(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
            tokens = tokens.transpose(0, 1)
            for block in self.blocks:
                tokens = block(tokens)
            return self.head(self.norm(tokens)[0])

    net.__class__ = Turned
    return net


def torchvision_vit() -> Case:
    import torchvision

    net = lively(lambda: torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=5))
    return Case(net, (64, 64), (4, 4), 1, list(net.encoder.layers), lambda z, _: net.heads(net.encoder.ln(z)))


def _timm(name: str, fused: bool = True, **options: Any) -> nn.Module:
    import timm

    net = lively(lambda: timm.create_model(name, num_classes=5, **TIMM, **options))
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return net


def timm_vit(fused: bool = True) -> Case:
    net = _timm("vit_tiny_patch16_224", fused, img_size=(64, 96))
    return Case(net, (64, 96), (4, 6), 1, list(net.blocks), lambda z, _: net.head(net.norm(z)))


def timm_by_hand() -> Case:
    return timm_vit(fused=False)


def timm_registers() -> Case:
    net = _timm("vit_small_patch14_reg4_dinov2", img_size=(70, 98))
    return Case(net, (70, 98), (5, 7), 5, list(net.blocks), lambda z, _: net.head(net.norm(z)))


def timm_mean() -> Case:
    net = _timm("vit_medium_patch16_reg4_gap_256", img_size=(64, 96))
    return Case(net, (64, 96), (4, 6), 4, list(net.blocks), lambda z, _: net.head(net.fc_norm(net.norm(z))), reads=range(4, 28))


def timm_siglip() -> Case:
    net = _timm("vit_base_patch16_siglip_224", img_size=(64, 96))
    return Case(net, (64, 96), (4, 6), 0, list(net.blocks), lambda z, _: net.head(net.attn_pool(z)), pooled=True)


def timm_map_registers() -> Case:
    """A pooler that leaves the registers out."""
    net = _timm("vit_so150m_patch16_reg4_map_256", img_size=(64, 96))
    return Case(net, (64, 96), (4, 6), 4, list(net.blocks), lambda z, _: net.head(net.attn_pool(z[:, 4:])), pooled=True)


def _similar(embedding: Tensor, classifier: Tensor | None) -> Tensor:
    return F.normalize(embedding, dim=-1) @ classifier


def open_clip_clip() -> Case:
    import open_clip

    net = lively(lambda: open_clip.CLIP(32, VISION, TEXT))
    v = net.visual
    end = lambda z, c: _similar(v.ln_post(z) @ v.proj, c)  # noqa: E731
    return Case(net, (48, 80), (3, 5), 1, list(v.transformer.resblocks), end)


def open_clip_siglip(size: tuple[int, int] = (48, 80)) -> Case:
    import open_clip

    vision = {"image_size": size, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False,
              "timm_pool": "map", "timm_proj": "none"}  # fmt: skip
    text = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}

    def build() -> nn.Module:
        from timm.models import vision_transformer

        made = vision_transformer.VisionTransformer
        vision_transformer.VisionTransformer = lambda **options: made(
            **(options | TIMM | {"img_size": size})
        )  # open_clip passes no sizes on
        try:
            return open_clip.CustomTextCLIP(48, vision, text, init_logit_bias=-10)
        finally:
            vision_transformer.VisionTransformer = made

    net = lively(build)
    trunk = net.visual.trunk
    return Case(net, (48, 80), (3, 5), 0, list(trunk.blocks), lambda z, c: _similar(trunk.attn_pool(z), c), pooled=True)


def open_clip_coca(size: tuple[int, int] = (48, 80)) -> Case:
    import open_clip

    pooler = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True}
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    net = lively(
        lambda: open_clip.CoCa(32, TEXT | {"mlp_ratio": 4, "attn_pooler_heads": 2}, text, VISION | pooler | {"image_size": size})
    )
    v = net.visual
    end = lambda z, c: _similar(v.ln_post(v.attn_pool(z))[:, 0] @ v.proj, c)  # noqa: E731
    return Case(net, (48, 80), (3, 5), 1, list(v.transformer.resblocks), end, pooled=True)


def _hf(kind: str, config: str, **options: Any) -> nn.Module:
    import transformers

    made = getattr(transformers, config)(**(HF | {"image_size": (48, 80), "num_labels": 5} | options))
    return lively(lambda: getattr(transformers, kind)._from_config(made))


def hf_vit() -> Case:
    net = _hf("ViTForImageClassification", "ViTConfig")
    return Case(net, (48, 80), (3, 5), 1, _layers(net.vit), lambda z, _: net.classifier(net.vit.layernorm(z)))


def hf_vit_by_hand() -> Case:
    net = _hf("ViTForImageClassification", "ViTConfig", attn_implementation="eager")
    return Case(net, (48, 80), (3, 5), 1, _layers(net.vit), lambda z, _: net.classifier(net.vit.layernorm(z)))


def _layers(net: nn.Module) -> list[nn.Module]:
    return list(next(m for m in net.modules() if isinstance(m, nn.ModuleList) and len(m) == 3))


def hf_dinov2() -> Case:
    net = _hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", num_register_tokens=2, image_size=64)
    norm = net.dinov2_with_registers.layernorm
    blocks = _layers(net.dinov2_with_registers)
    return Case(net, (48, 80), (3, 5), 3, blocks, lambda z, _: net.classifier(torch.cat([norm(z), norm(z)], -1)))


def _hf_image_text(kind: str, prefix: str) -> nn.Module:
    import transformers

    text = HF | {"vocab_size": 99, "max_position_embeddings": 12, "num_hidden_layers": 1, "bos_token_id": 0, "eos_token_id": 98}
    text.pop("patch_size")
    config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=HF | {"image_size": 64}, projection_dim=32)
    return lively(lambda: getattr(transformers, kind)._from_config(config))


def hf_clip() -> Case:
    net = _hf_image_text("CLIPModel", "CLIP")
    vision = net.vision_model
    end = lambda z, c: _similar(net.visual_projection(vision.post_layernorm(z)), c)  # noqa: E731
    return Case(net, (64, 64), (4, 4), 1, _layers(vision), end)


def hf_siglip() -> Case:
    net = _hf_image_text("SiglipModel", "Siglip")
    head = net.vision_model.head

    def end(z: Tensor, c: Tensor | None) -> Tensor:
        read = head.attention(head.probe.expand(len(z), -1, -1), z, z, need_weights=False)[0]
        return _similar((read + head.mlp(head.layernorm(read)))[:, 0], c)

    return Case(net, (64, 64), (4, 4), 0, _layers(net.vision_model), end, pooled=True)


CASES = [
    tiny, tiny_post_norm, torchvision_vit, timm_vit, timm_by_hand, timm_registers, timm_mean, timm_siglip, timm_map_registers,
    open_clip_clip,
    open_clip_siglip, open_clip_coca, hf_vit, hf_vit_by_hand, hf_dinov2, hf_clip, hf_siglip,
]  # fmt: skip


class Materialised:
    """Inside, every fused attention makes its matrix, which is a leaf of the graph and is kept."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def __enter__(self) -> "Materialised":
        self._fused = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self._attention
        return self

    def __exit__(self, *error: Any) -> None:
        F.scaled_dot_product_attention = self._fused

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_rest):
        assert attn_mask is None and not is_causal and not dropout_p
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        weights = (query @ key.transpose(-1, -2) * scale).softmax(-1).detach().requires_grad_()
        self.weights.append(weights)
        return weights @ value


def block_outputs(case: Case, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention matrices and what every block returns `(B, N, K)`, in a graph from the matrices on."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tokens = output if isinstance(output, Tensor) else output[0]
        outputs.append(tokens if tokens.shape[0] == len(x) else tokens.transpose(0, 1))

    handles = [block.register_forward_hook(keep) for block in case.blocks]
    try:
        with torch.enable_grad(), Materialised() as seen:
            encode = getattr(case.module, "encode_image", None) or getattr(case.module, "get_image_features", None) or case.module
            encode(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen.weights, outputs
