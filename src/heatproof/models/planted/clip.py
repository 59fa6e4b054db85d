"""A CLIP of open_clip's architecture and state dict, small enough to come with the install."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from heatproof.models.model import Model
from heatproof.models.planted.objects import OBJECTS
from heatproof.models.planted.words import END, LENGTH, PROMPT, tokenize
from heatproof.models.preprocess import resize_crop
from heatproof.models.readout import Similarity
from heatproof.models.weights import load_state, read_state

SIZE, PATCH, EMBEDDING = 64, 8, 64
VISION = {"width": 96, "heads": 6, "layers": 4}
TEXT = {"width": 64, "heads": 4, "layers": 2}

WEIGHTS = Path(__file__).with_name("planted-clip.safetensors")
PREPROCESS = resize_crop(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3)


class Block(nn.Module):
    """Attention and a network on each token, both behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Float[Tensor, "batch tokens width"], mask: Tensor | None = None) -> Float[Tensor, "batch tokens width"]:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Float[Tensor, "batch tokens width"], mask: Tensor | None = None) -> Float[Tensor, "batch tokens width"]:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTower(nn.Module):
    """A vision transformer that is read at its class token."""

    def __init__(self) -> None:
        super().__init__()
        width = VISION["width"]
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(**VISION)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, EMBEDDING) * width**-0.5)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding"]:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class PlantedCLIP(nn.Module):
    """An image tower and a text tower whose embeddings meet.

    Its state dict is that of `open_clip.model.CLIP` with the same sizes; only what no small core install needs is gone.
    """

    attn_mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        width = TEXT["width"]
        self.visual = VisionTower()
        self.transformer = Transformer(**TEXT)
        self.token_embedding = nn.Embedding(END + 1, width)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, width) * 0.01)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, EMBEDDING) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("attn_mask", torch.full((LENGTH, LENGTH), -torch.inf).triu(1), persistent=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding"]:
        """Image embeddings, of any length."""
        return self.visual(image)

    def encode_text(self, text: Int[Tensor, "texts length"]) -> Float[Tensor, "texts embedding"]:
        """Text embeddings, of any length, read at the end token."""
        x = self.transformer(self.token_embedding(text) + self.positional_embedding, self.attn_mask)
        return self.ln_final(x)[torch.arange(len(x)), text.argmax(1)] @ self.text_projection


def load(weights: Any = None) -> Model:
    """planted-clip, 64 px; its prompts are the objects until `with_prompts()` gives it others.

    Raises:
        ModelError: `weights` cannot be read or does not fit.
    """
    path = WEIGHTS if weights is None else weights
    module = PlantedCLIP().eval()
    load_state(module, read_state(path), path)
    model = Model(
        module,
        "planted-clip",
        readout=Similarity("encode_image"),
        preprocess=PREPROCESS,
        tokenizer=tokenize,
        text_encoder="encode_text",
    )
    return model.with_prompts([PROMPT.format(o=name) for name in OBJECTS])
