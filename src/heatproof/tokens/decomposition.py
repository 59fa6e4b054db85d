"""The exact token–head decomposition of a score: what each token, through each head of each layer, adds to it.

`s = Σ_lhi c[l,h,i] + Σ terms`, with `c[l,h,i] = Σ_q α[q,i] ⟨U[q], v_i⟩` and `U = ∂s/∂O` along the direct path, where `O`
is a head's output, `α` its attention weights and `v` its values. The text goes back through the projections to the
heads, not the heads' outputs forward into the embedding, so nothing larger than the contributions is ever made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from heatproof.errors import MethodError
from heatproof.models.sites import token_grid
from heatproof.models.tape import Readout, recording, run
from heatproof.tokens.attention import Attention, at_least
from heatproof.tokens.direct_path import DirectPath, Mixed, Term
from heatproof.tokens.leaves import mark

Aim = Callable[[Tensor, slice], Tensor]
"""From the scores of some images, and which images of the batch they are, to their targets `(b, T)`."""

_CHUNKS = 4
"""Parts of a batch that go one after the other: what one keeps for its backward is then less than a forward needs."""


@dataclass(frozen=True)
class Share:
    """What something besides attention adds to the scores: see `Term`."""

    place: str
    op: str
    part: str
    amount: Float[Tensor, "batch targets"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A score, in parts.

    Args:
        scores: `(B, C)` of all classes.
        explained: `(B, T)` of the targets.
        contributions: `(B, T, L, H, N)` of every token through every head of every attention layer that writes to the
            score; prefix tokens first. Without biases, which are terms of their own.
        layers: names of these L layers.
        terms: everything else, item by item.
        grid: `(h, w)` of the last `h · w` tokens.
    """

    scores: Float[Tensor, "batch classes"]
    explained: Float[Tensor, "batch targets"]
    contributions: Float[Tensor, "batch targets layers heads tokens"]
    layers: tuple[str, ...]
    terms: tuple[Share, ...]
    grid: tuple[int, int]

    @property
    def residual(self) -> Float[Tensor, "batch targets"]:
        """The sum of all terms besides attention."""
        return sum((term.amount for term in self.terms), torch.zeros_like(self.contributions[:, :, 0, 0, 0]))

    def ledger(self) -> list[dict[str, Any]]:
        """A row for each term, image and target."""
        rows = []
        for term in self.terms:
            for image, amounts in enumerate(term.amount.tolist()):
                for target, amount in enumerate(amounts):
                    said = {"place": term.place, "op": term.op, "part": term.part, "amount": amount}
                    rows.append({"image": image, "target": target, **said})
        return rows

    @property
    def prefix(self) -> int:
        """Tokens in front of the grid."""
        return self.contributions.shape[-1] - self.grid[0] * self.grid[1]


def live_queries(gradient: Float[Tensor, "batch heads queries d"]) -> Int[Tensor, " live"]:
    """The queries that the score reads at all: the class token's alone, or those of all tokens."""
    return gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]


def token_contributions(
    attention: Attention, gradient: Float[Tensor, "batch heads queries d"]
) -> Float[Tensor, "batch heads tokens"]:
    """`Σ_q α[q,i] ⟨U[q], v_i⟩`"""
    kind = at_least(attention.value)
    rows = live_queries(gradient)
    onto_values = gradient[:, :, rows].to(kind) @ attention.value.to(kind).transpose(-1, -2)
    return (attention.weights(rows) * onto_values).sum(2)


def decompose(module: nn.Module, readout: Readout, x: Tensor, aim: Aim, minus_mean: bool = False) -> Decomposition:
    """Decompose the scores of a batch, a part of it at a time.

    Args:
        module: a shadow of the user's module.
        readout: from it and a batch to scores `(B, C)`.
        x: `(B, 3, H, W)`.
        aim: which scores.
        minus_mean: decompose the score less the mean of all C scores; this mean is then one of the terms.

    Raises:
        MethodError: no attention writes to the score, one that is not known, or one of another shape than the others.
    """
    limit = -(-len(x) // _CHUNKS)
    try:
        parts = [_decompose(module, readout, x, aim, minus_mean, which) for which in _slices(len(x), limit)]
    except Mixed:
        parts = [_decompose(module, readout, x, aim, minus_mean, which) for which in _slices(len(x), 1)]
    terms = zip(*(part.terms for part in parts), strict=True)
    return Decomposition(
        torch.cat([part.scores for part in parts]),
        torch.cat([part.explained for part in parts]),
        torch.cat([part.contributions for part in parts]),
        parts[0].layers,
        tuple(Share(one[0].place, one[0].op, one[0].part, torch.cat([term.amount for term in one])) for one in terms),
        parts[0].grid,
    )


def follow(module: nn.Module, readout: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> tuple[DirectPath, Tensor]:
    """Run a batch with its direct path recorded: the path, and what the readout made of it.

    Raises:
        MethodError: something like attention that is none as we know it.
    """
    path = DirectPath(module, len(x))
    with recording(True):
        x = x.detach().clone()
        mark(x, "image")
        with path:
            output = run(readout, module, x)
    if output.grad_fn is None:
        raise _nothing(path.terms)
    if path.unknown:
        place, seen = path.unknown[0]
        raise MethodError(
            f"the attention in {place!r} cannot be decomposed by tokens ({seen}); textspan needs a plain vision transformer. "
            "lrp and the gradient methods take any network."
        )
    return path, output


def _slices(count: int, limit: int) -> list[slice]:
    return [slice(start, min(start + limit, count)) for start in range(0, count, limit)]


def _decompose(module: nn.Module, readout: Readout, x: Tensor, aim: Aim, minus_mean: bool, which: slice) -> Decomposition:
    path, scores = follow(module, readout, x[which])
    targets = aim(scores.detach(), which)
    if minus_mean and scores.shape[1] < 2:
        raise MethodError("minus_mean=True takes the mean over all classes or prompts, and there is but one; name at least two.")
    columns, labels, places = [], [], ()
    amounts: list[list[Tensor]] = []
    for target in targets.unbind(1):
        towards = torch.zeros_like(scores).scatter_(1, target[:, None], 1)
        found, terms = path.backward(scores, towards - 1 / scores.shape[1] if minus_mean else towards, token_contributions)
        columns.append(stacked(found, terms))
        places = tuple(attention.place for attention in found)
        labels = [(term.place, term.op, term.part) for term in terms]
        amounts.append([term.amount for term in terms])
    contributions = torch.stack(columns, 1)
    terms = [Share(*label, torch.stack(list(each), 1)) for label, each in zip(labels, zip(*amounts, strict=True), strict=True)]
    if minus_mean:
        mean = scores.detach().mean(1, keepdim=True)
        terms.append(Share("", "mean over classes", "mean", mean.expand(targets.shape)))
    grid = token_grid(contributions.shape[-1], (x.shape[-2], x.shape[-1]), reversed(path.grids))
    if grid is None:
        raise MethodError(
            f"{contributions.shape[-1]} tokens do not form a grid over an input of {tuple(x.shape[-2:])}; textspan needs a plain "
            "vision transformer."
        )
    result = Decomposition(scores.detach(), scores.detach().gather(1, targets), contributions, places, tuple(terms), grid)
    _check(result, len(x[which]) > 1)
    return result


def stacked(found: dict[Attention, Tensor], terms: Sequence[Term]) -> Float[Tensor, "batch layers heads tokens"]:
    """The layers in one tensor, which they only fit if all attend over the same tokens with the same number of heads."""
    if not found:
        raise _nothing(terms)
    shapes = {(value.shape[1], value.shape[2]): attention.place for attention, value in found.items()}
    if len(shapes) > 1:
        said = ", ".join(f"{place!r} has {heads} heads over {tokens} tokens" for (heads, tokens), place in shapes.items())
        raise MethodError(f"the layers do not attend alike ({said}); textspan needs the same heads and tokens in every layer.")
    return torch.stack(list(found.values()), 1)


def _nothing(terms: Sequence[Term]) -> MethodError:
    """The error for a score that no attention writes to."""
    last = next((term for term in reversed(terms) if term.part == "mlp"), None)
    why = f" What it reads comes out of the nonlinear part that ends in {last.place!r}." if last else ""
    return MethodError(
        f"no attention writes to this score along a linear path, so there are no tokens to decompose it by.{why} textspan "
        "needs a vision transformer with a residual stream; gradcam and lrp take any network."
    )


def _check(found: Decomposition, several: bool) -> None:
    """The parts are added up independently of the score, so that this can fail: where something hides from torch's dispatch."""
    total = found.contributions.flatten(2).sum(2) + found.residual
    size = found.explained.abs() + sum((term.amount.abs() for term in found.terms), found.contributions.abs().flatten(2).sum(2))
    rounding = max(1e-3, 8 * torch.finfo(found.explained.dtype).eps)
    if bool(((total - found.explained).abs() <= rounding * size).all()):
        return
    if several:
        raise Mixed
    raise MethodError(
        f"the parts of the score add up to {float(total.flatten()[0]):.4g}, but it is {float(found.explained.flatten()[0]):.4g}: "
        "an operation of this model (a scripted function, a custom autograd.Function, a write in place) hides from "
        "torch's dispatch. lrp and the gradient methods do not depend on it."
    )
