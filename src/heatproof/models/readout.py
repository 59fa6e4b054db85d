"""From what a module returns to scores `(B, C)`: logits of a classifier, or similarities of an image with prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import ModelError


def first_tensor(output: Any, names: tuple[str, ...]) -> Tensor | None:
    """The tensor that matters in a module's output: itself, a named field, or the first tensor of a tuple."""
    if isinstance(output, Tensor):
        return output
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def embedding_in(output: Any, names: tuple[str, ...]) -> Tensor:
    """The embedding in an encoder's output.

    Raises:
        ModelError: there is no tensor in it.
    """
    embedding = first_tensor(output, names)
    if embedding is None:
        raise ModelError(f"the model's encoder returned {type(output).__name__} without a tensor; expected embeddings (B, d).")
    return embedding


@dataclass(frozen=True)
class Logits:
    """Scores of a classifier: its output, or the `logits` of a tuple, a mapping or a Hugging Face output."""

    def __call__(self, module: nn.Module, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        output = module(x)
        scores = first_tensor(output, ("logits", "out", "scores", "pred"))
        if scores is None:
            raise ModelError(
                f"the model returned {type(output).__name__} without a tensor of logits; wrap it in a module that returns "
                "(B, C) scores."
            )
        if scores.ndim != 2 or scores.shape[0] != x.shape[0] or scores.shape[1] == 0:
            raise ModelError(
                f"the model returned a tensor of shape {tuple(scores.shape)} for {x.shape[0]} image(s); expected (B, C) scores. "
                "For a detector or a segmenter, wrap it in a module that returns one score per class."
            )
        if scores.dtype == torch.bool or scores.is_complex():
            raise ModelError(
                f"the model returned {scores.dtype} values; expected real scores. Return them before they are decided."
            )
        return scores


@dataclass(frozen=True, eq=False)
class Similarity:
    """Scores of an image–text model: cosine of the image's embedding with each column of `classifier`.

    `score_c = ⟨e(x) / ‖e(x)‖, t_c⟩`, where the unit-length text embeddings `t_c` are the columns of a `d × C` matrix.

    Args:
        encoder: name of the module's method that embeds images.
        classifier: `(d, C)` with columns of length one, or None as long as there are no prompts.
    """

    encoder: str
    classifier: Tensor | None = None

    def __call__(self, module: nn.Module, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        if self.classifier is None:
            raise ModelError(
                "this image–text model has no prompts yet; call model.with_prompts(['a photo of a cat', …]), or pass "
                "target='a photo of a cat'."
            )
        return self.embed(module, x) @ self.classifier.to(x)

    def embed(self, module: nn.Module, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding"]:
        """Image embeddings of length one."""
        embedding = embedding_in(getattr(module, self.encoder)(x), ("pooler_output", "image_embeds"))
        return torch.nn.functional.normalize(embedding, dim=-1)
