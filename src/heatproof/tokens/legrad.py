"""LeGrad: the gradient of a score at the attention of every block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from heatproof.errors import MethodError
from heatproof.methods import Maps
from heatproof.models.tape import Tape, recording, target_gradients
from heatproof.tokens.attention import at_least
from heatproof.tokens.decomposition import live_queries
from heatproof.tokens.layout import Layout
from heatproof.tokens.slopes import backward
from heatproof.tokens.stream import Stream, stream
from heatproof.tokens.tail import tail

_EMPTY_PROMPT = "a photo of a"
_TOO_COMMON = 0.8
_VALUES = 2**20
"""Of the matrix of queries and keys, that many entries exist at once."""


@dataclass(frozen=True)
class LeGrad:
    """Where more attention, in any block, would raise the score.

    `s^l = score(mean_i Z^l_i)`, `E^l_j = mean_{h,i} max(0, ∂s^l / ∂A^l_{h,i,j})`, `map = mean_l E^l`

    `Z^l` are the tokens that block `l` returns, `A^l` its attention; the rest of the network (final norm, projection,
    classifier or prompts) is applied to their mean. In closed form `∂s/∂A_h = (∂s/∂O_h) · v_hᵀ` with the attention's
    output `O` and values `v`: no attention matrix is kept, and all targets share one forward. A network that reads its
    tokens with an attentional pooler (SigLIP, CoCa) has `A` there: the pooler is applied to what each block returns.

    Args:
        layers: block indices from 0, or negative ones from the end; None is all of them.
        pooling: `"mean"` over all tokens, the class token and registers included, as the authors' code has it, or
            `"class"` for the class token alone. A pooler needs neither.
        correction: whether to blank what a pooler gives the prompt "a photo of a" (over 0.8 of its range). None does
            so where there is a pooler and a text encoder.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0 on the grid of tokens, score per unit of attention, not normalised.

    Raises:
        MethodError: a network without attention or of a kind that is not known, which is named; no such block; no
            class token; a correction without a pooler or prompts.

    Misleads by its rectification: evidence against the target is cut off, so there is always something to see, for an
    absent object too. And attention says from where a block takes information, which by then may have moved.

    Paper: Bousselham et al. 2024, "LeGrad", section 3, equations 5 to 10.
    """

    signed: ClassVar[bool] = False
    layers: Any = None
    pooling: str = "mean"
    correction: bool | None = None

    def watch(self, tape: Tape) -> Tensor:
        """Be the tape's own forward: token methods alone then need no other."""
        return stream(tape, graph=True).scores

    def __call__(self, tape: Tape) -> Maps:
        if self.pooling not in ("mean", "class"):
            raise MethodError(f"pooling={self.pooling!r}; expected 'mean' or 'class'.")
        seen = stream(tape, graph=True)
        layers = seen.layout.numbers(self.layers)
        said = {"layers": layers if self.layers is None else self.layers}
        if seen.layout.pooler is None:
            self._check(seen.layout)
            columns = _through_blocks(tape, seen, layers, self.pooling)
            return Maps(seen.layout.to_map(columns), resolved=said | {"correction": False})
        empty = self._empty_prompt(tape)
        columns = _through_pooler(tape, seen, layers, empty)
        maps = seen.layout.to_map(columns)
        if empty is not None:
            maps = _corrected(maps[:, :-1], maps[:, -1:])
        return Maps(maps, resolved=said | {"pooling": "pooler", "correction": empty is not None})

    def _check(self, built: Layout) -> None:
        if self.correction:
            raise MethodError("correction=True is for networks with an attentional pooler, and this one has none; leave it out.")
        if self.pooling == "class" and built.stream.prefix == 0:
            raise MethodError("pooling='class', but the network has no class token in front of its grid; use pooling='mean'.")

    def _empty_prompt(self, tape: Tape) -> Tensor | None:
        """The classifier column of the prompt that says nothing."""
        if self.correction is False or (self.correction is None and tape.prompt is None):
            return None
        if tape.prompt is None:
            raise MethodError(
                f"correction=True needs the prompt {_EMPTY_PROMPT!r}, and the model has no text encoder with a tokenizer; leave "
                "it out."
            )
        return tape.prompt(_EMPTY_PROMPT)


def _through_blocks(tape: Tape, seen: Stream, layers: Sequence[int], pooling: str) -> Float[Tensor, "batch targets tokens"]:
    """`E` of every token, from what each block's own attention does to the pooled tokens' score."""
    images = len(tape.x)
    together = max(1, tape.limit(None) // (2 * images))  # half of what a forward takes: all their gradients exist at once
    pooled = torch.stack([_pooled(seen.tokens[n].detach(), pooling) for n in layers]).flatten(0, 1)
    slopes = [_slopes(tape, seen.layout, rows, targets) for rows, targets in _portions(tape, pooled, len(layers))]
    slope = torch.cat(slopes, 1).unflatten(1, (len(layers), images))
    total = torch.zeros((), device=tape.x.device)
    for place, number in enumerate(layers):
        attention, tokens = seen.attentions[number], seen.tokens[number]
        found = []
        for some in slope[:, place].split(together):
            gradients = backward(tokens, attention.output, _unpooled(some, tokens, pooling))
            if pooling == "class":
                gradients = gradients[:, :, :, live_queries(gradients.flatten(0, 1))]
            found += [positive(one, attention.value) for one in gradients]
        heads, queries = attention.shape[1:3]
        total = total + torch.stack(found, 1) / (heads * queries * len(layers))
    return total


def _pooled(tokens: Float[Tensor, "batch tokens width"], pooling: str) -> Float[Tensor, "batch width"]:
    return tokens[:, 0] if pooling == "class" else tokens.to(at_least(tokens)).mean(1).to(tokens.dtype)


def _unpooled(
    slope: Float[Tensor, "targets batch width"], tokens: Float[Tensor, "batch tokens width"], pooling: str
) -> Float[Tensor, "targets batch tokens width"]:
    """Backward through the pooling."""
    slope, count = slope[:, :, None], tokens.shape[1]
    return (slope / count).expand(-1, -1, count, -1) if pooling == "mean" else pad(slope, (0, 0, 0, count - 1))


def _portions(tape: Tape, rows: Tensor, layers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of all layers with their targets, so many at a time as images are."""
    limit = tape.limit(None)
    yield from zip(rows.split(limit), tape.targets.repeat(layers, 1).split(limit), strict=True)


def _slopes(tape: Tape, built: Layout, pooled: Tensor, targets: Tensor) -> Float[Tensor, "targets rows width"]:
    """`∂s/∂(mean Z)`: the rest of the network sees the pooled token everywhere, so whichever it reads, it reads this."""
    with recording(True):
        pooled = pooled.detach().requires_grad_()
        scores, _ = tail(tape, built, pooled[:, None].expand(-1, built.tokens, -1))
        return target_gradients(scores, targets, [pooled])[0]


def _through_pooler(
    tape: Tape, seen: Stream, layers: Sequence[int], empty: Tensor | None
) -> Float[Tensor, "batch targets tokens"]:
    """`E` of every token, from what the pooler's attention to each block's tokens does to the score."""
    readout: Any = tape.readout
    if empty is not None:
        readout = replace(readout, classifier=torch.cat([readout.classifier, empty[:, None].to(readout.classifier)], 1))
    assert seen.pooler is not None
    skipped = seen.layout.tokens - seen.pooler.shape[3]  # a pooler may leave prefix tokens out
    found = []
    for tokens, targets in _portions(tape, torch.cat([seen.tokens[n][:, skipped:].detach() for n in layers]), len(layers)):
        with recording(True):
            scores, attention = tail(tape, seen.layout, tokens, readout)
            if empty is not None:
                targets = pad(targets, (0, 1), value=scores.shape[1] - 1)
            assert attention is not None  # the survey saw it there
            (gradients,) = target_gradients(scores, targets, [attention.output])
        # queries that the score does not read have no gradient, so the sum is over those that it does
        found.append(torch.stack([positive(g, attention.value) for g in gradients], 1) / attention.shape[1])
    return pad(torch.cat(found).unflatten(0, (len(layers), -1)).mean(0), (skipped, 0))


def _corrected(maps: Tensor, empty: Tensor) -> Tensor:
    """Zero where the prompt that says nothing is strong."""
    low, high = empty.amin((-2, -1), keepdim=True), empty.amax((-2, -1), keepdim=True)
    return torch.where(empty - low > _TOO_COMMON * (high - low), 0.0, maps)


def positive(gradient: Float[Tensor, "batch heads queries width"], value: Float[Tensor, "batch heads keys width"]) -> Tensor:
    """`Σ_{h,i} max(0, g_{h,i} · v_{h,j})` for every key `j`: `(B, M)`. Few entries of the matrix exist at once."""
    kind = at_least(value)
    gradient, value = gradient.detach().to(kind), value.detach().to(kind).transpose(-1, -2)
    step = max(1, _VALUES // (gradient.shape[2] * value.shape[3]))
    with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
        parts = zip(gradient.flatten(0, 1).split(step), value.flatten(0, 1).split(step), strict=True)
        return torch.cat([(g @ v).clamp_min_(0).sum(1) for g, v in parts]).unflatten(0, gradient.shape[:2]).sum(1)
