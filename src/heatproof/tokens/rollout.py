"""Attention itself as a map: of the last block, and rolled out through all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from heatproof.methods import Maps
from heatproof.models.tape import Tape
from heatproof.tokens.attention import Attention, at_least
from heatproof.tokens.stream import Stream, stream

_VALUES = 2**22
"""Attention weights that exist at once."""


@dataclass(frozen=True)
class Rollout:
    """Where what the last block reads has come from, if attention were all that moves it.

    `r ← r · (½ mean_h A^l + ½ I)` from the last block to the first, beginning at the class token

    Without a class token it begins at the tokens that are averaged, each with the same share; with an attentional
    pooler at the pooler's own attention.

    Args:
        layers: block indices from 0, or negative ones from the end; None is all of them.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0 on the grid of tokens: shares of one, less what prefix tokens keep. The same for every
        target.

    Raises:
        MethodError: a network without attention or of a kind that is not known; no such block.

    Misleads by knowing nothing of the target, of values, of the MLPs or of signs: the mean of heads marks what any of
    them looks at, and tokens that serve as scratch space light up.

    Paper: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3, equation 1.
    """

    signed: ClassVar[bool] = False
    layers: Any = None

    def watch(self, tape: Tape) -> Tensor:
        """Be the tape's own forward: token methods alone then need no other."""
        return stream(tape, graph=False).scores

    def __call__(self, tape: Tape) -> Maps:
        seen = stream(tape, graph=False)
        layers = seen.layout.numbers(self.layers)
        share = _readers(seen)
        for number in reversed(layers):
            share = (share + _attended(share, seen.attentions[number])) / 2
        return _maps(tape, seen, share, layers if self.layers is None else self.layers)


@dataclass(frozen=True)
class RawAttention:
    """What the last block's class token attends to.

    `map_j = mean_h A_{h, class, j}`

    Without a class token the mean over the tokens that are averaged takes its place; with an attentional pooler and no
    `layers` it is the pooler's attention, and that of what it reads otherwise.

    Args:
        layers: block indices from 0, or negative ones from the end, whose mean is taken; None is the last.

    Returns:
        `raw` `(B, T, h, w)` in [0, 1] on the grid of tokens: shares of one, less what prefix tokens get. The same for
        every target.

    Raises:
        MethodError: a network without attention or of a kind that is not known; no such block.

    Misleads by knowing nothing of the target or of what is taken from where it looks: a token with a value of zero is
    marked like any other, and late tokens need not stand for the patch they are named after.

    Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", appendix D.8; for one layer.
    """

    signed: ClassVar[bool] = False
    layers: Any = None

    def watch(self, tape: Tape) -> Tensor:
        """Be the tape's own forward: token methods alone then need no other."""
        return stream(tape, graph=False).scores

    def __call__(self, tape: Tape) -> Maps:
        seen = stream(tape, graph=False)
        if self.layers is None and seen.layout.pooler is not None:
            return _maps(tape, seen, _readers(seen), None)
        layers = seen.layout.numbers(self.layers, default=[-1])
        share = torch.stack([_attended(_readers(seen), seen.attentions[number]) for number in layers]).mean(0)
        return _maps(tape, seen, share, layers if self.layers is None else self.layers)


def _maps(tape: Tape, seen: Stream, share: Float[Tensor, "batch tokens"], layers: Any) -> Maps:
    raw = seen.layout.to_map(share)[:, None].repeat(1, tape.targets.shape[1], 1, 1)
    return Maps(raw, resolved={"layers": layers})


def _readers(seen: Stream) -> Float[Tensor, "batch tokens"]:
    """The share with which each token of the last block is read."""
    built, last = seen.layout, seen.attentions[-1]
    images, kind = last.output.shape[0], at_least(last.value)
    if seen.pooler is not None:
        share = torch.stack([seen.pooler.weights(slice(n, n + 1)).mean((1, 2)) for n in built.queries]).mean(0)
        return pad(share, (built.tokens - share.shape[1], 0))  # a pooler may leave prefix tokens out
    share = torch.zeros(images, built.tokens, device=last.value.device, dtype=kind)
    share[:, list(built.readers)] = 1 / len(built.readers)
    return share


def _attended(share: Float[Tensor, "batch queries"], attention: Attention) -> Float[Tensor, "batch keys"]:
    """`share · mean_h A`, a few queries at a time: those that have a share."""
    images, heads, _, keys = attention.shape
    live = (share != 0).any(0).nonzero().flatten()
    total = share.new_zeros(images, keys)
    for some in _runs(live.tolist(), max(1, _VALUES // (images * heads * keys))):
        total += torch.einsum("bi,bhij->bj", share[:, some], attention.weights(some).to(share)) / heads
    return total


def _runs(numbers: list[int], limit: int) -> Iterator[slice]:
    """Slices that cover ascending numbers and nothing else, none longer than the limit."""
    start = 0
    while start < len(numbers):
        stop = start + 1
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1 and stop - start < limit:
            stop += 1
        yield slice(numbers[start], numbers[stop - 1] + 1)
        start = stop
