"""What heads and MLPs write into a model's embedding (or its logits), summed over tokens, image by image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import InputError
from heatproof.images import Sources
from heatproof.models.batching import batch_limit
from heatproof.models.model import Model, stack
from heatproof.models.readout import Similarity
from heatproof.models.shadow import shadow
from heatproof.models.tape import check_finite, placement, recording
from heatproof.tokens.attention import Attention, at_least
from heatproof.tokens.decomposition import follow, live_queries, stacked
from heatproof.tokens.direct_path import Mixed


@dataclass(frozen=True, eq=False)
class Spans:
    """One batch's outputs of E numbers per image, and what adds up to them.

    Args:
        outputs: `(b, E)`: unit-length embeddings of an image–text model, logits of a classifier.
        heads: `(b, L, H, E)` what each head adds, from all tokens.
        first: `(b, L, H, E)` the part of it that comes from the first token: the class token's attention to itself. None
            unless asked for.
        mlps: `(b, M, E)` what each MLP adds. None unless asked for.
    """

    outputs: Float[Tensor, "batch outputs"]
    heads: Float[Tensor, "batch layers heads outputs"]
    first: Float[Tensor, "batch layers heads outputs"] | None = None
    mlps: Float[Tensor, "batch mlps outputs"] | None = None


def spans(
    model: Model, images: Any, batch_size: int | None = None, *, first: bool = False, mlps: bool = False
) -> Iterator[Spans]:
    """The spans of many images, a batch at a time.

    Args:
        model: its embedding is spanned, or its logits where it takes no prompts.
        images: as `explain()` takes them.
        batch_size: images per forward; None chooses by their area.
        first: whether `first` is wanted.
        mlps: whether `mlps` are.

    Raises:
        InputError: an image that cannot be read. MethodError: no attention writes to the outputs.
    """
    module = shadow(model.module)
    done = 0
    for x in _batches(model, images, batch_size):
        with recording(False):
            try:
                parts = [_spans(model, module, x, first, mlps)]
            except Mixed:
                parts = [_spans(model, module, x[i : i + 1], first, mlps) for i in range(len(x))]
        for part in parts:
            check_finite(part.outputs, range(done, done + len(part.outputs)))
            done += len(part.outputs)
            yield part


def _spans(model: Model, module: nn.Module, x: Tensor, first: bool, mlps: bool) -> Spans:
    readout = model.readout
    heads, written = [], []
    with follow(module, readout.embed if isinstance(readout, Similarity) else readout, x, outputs=True) as (path, outputs):
        # a backward for each number of the output: along the direct path, in the few rows that are read
        for direction in torch.eye(outputs.shape[1]).to(outputs):
            found, terms = path.backward(
                outputs, direction.expand(outputs.shape), _both if first else _whole, ("mlp",) if mlps else ()
            )
            heads.append(stacked(found, terms))
            written.append(torch.stack(list(terms.values()), 1) if terms else outputs.new_zeros(len(x), 0))
    both = torch.stack(heads, -1)
    return Spans(
        outputs.detach().cpu(),
        both[..., 0, :].cpu(),
        both[..., 1, :].cpu() if first else None,
        torch.stack(written, -1).cpu() if mlps else None,
    )


def _whole(attention: Attention, gradient: Float[Tensor, "batch heads queries d"]) -> Float[Tensor, "batch heads 1"]:
    """What a head adds from all tokens."""
    rows = live_queries(gradient)
    return (gradient[:, :, rows].to(at_least(gradient)) * attention.output[:, :, rows]).sum((2, 3))[..., None]


def _both(attention: Attention, gradient: Float[Tensor, "batch heads queries d"]) -> Float[Tensor, "batch heads 2"]:
    """What a head adds from all tokens, and from the first alone."""
    kind = at_least(attention.value)
    rows = live_queries(gradient)
    onto_first = (gradient[:, :, rows].to(kind) @ attention.value[:, :, 0, :, None].to(kind))[..., 0]
    own = (attention.weights(rows)[..., 0] * onto_first).sum(2)
    return torch.cat([_whole(attention, gradient), own[..., None]], 2)


def _batches(model: Model, images: Any, batch_size: int | None) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    sources = Sources.of(images)
    start, limit = 0, 1
    while start < len(sources):
        tensors, _, errors = sources.read(start, start + limit, model.preprocess)
        if errors:
            raise InputError(next(iter(errors.values())))
        x = stack(tensors).to(*placement(model.module))
        yield x
        start += limit
        limit = batch_limit(2 * x.shape[-2], x.shape[-1], batch_size)  # half of what a forward takes: its heads are kept
