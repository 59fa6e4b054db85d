"""The exact token–head decomposition of a score: what each token, through each head of each layer, adds to it.

`s = Σ_lhi c[l,h,i] + Σ terms`, with `c[l,h,i] = Σ_q α[q,i] ⟨U[q], v_i⟩` and `U = ∂s/∂O` along the direct path, where `O`
is a head's output, `α` its attention weights and `v` its values. The text goes back through the projections to the
heads, not the heads' outputs forward into the embedding, so nothing larger than the contributions is ever made.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from heatproof.errors import MethodError
from heatproof.models.sites import token_grid
from heatproof.models.tape import Readout, Tape, recording, run
from heatproof.tokens.attention import Attention, at_least
from heatproof.tokens.direct_path import DirectPath, Mixed, Term
from heatproof.tokens.leaves import mark

Aim = Callable[[Tensor, slice], Tensor]
"""From the scores of some images, and which images of the batch they are, to their targets `(b, T)`."""

_CHUNKS = 4
"""Parts of a batch that go one after the other: what one keeps for its backward is then less than a forward needs."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A score, in parts.

    Args:
        scores: `(B, C)` of all classes.
        explained: `(B, T)` of the targets.
        contributions: `(B, T, L, H, N)` of every token through every head of every attention layer that writes to the
            score; prefix tokens first. Without biases, which are terms of their own.
        layers: names of these L layers.
        terms: everything else, item by item; see `Term`.
        amounts: `(B, T, K)` what these K terms add.
        grid: `(h, w)` of the last `h · w` tokens.
        minus_mean: whether the score is that less the mean of all C scores; this mean is then one of the terms.
    """

    scores: Float[Tensor, "batch classes"]
    explained: Float[Tensor, "batch targets"]
    contributions: Float[Tensor, "batch targets layers heads tokens"]
    layers: tuple[str, ...]
    terms: tuple[Term, ...]
    amounts: Float[Tensor, "batch targets terms"]
    grid: tuple[int, int]
    minus_mean: bool = False

    @property
    def residual(self) -> Float[Tensor, "batch targets"]:
        """The sum of all terms besides attention."""
        return self.amounts.sum(2)

    def ledger(self) -> list[dict[str, Any]]:
        """A row for each image, target and term."""
        rows = []
        for image, targets in enumerate(self.amounts.tolist()):
            for target, amounts in enumerate(targets):
                for term, amount in zip(self.terms, amounts, strict=True):
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


def decomposition(tape: Tape, aim: Aim | None = None, minus_mean: bool = False) -> Decomposition:
    """Of the tape's scores, computed once for all methods that ask for the same.

    Args:
        tape: of the batch.
        aim: which scores, where the tape has none yet.
        minus_mean: see `decompose`.
    """
    found = tape.decomposition
    if found is None or found.minus_mean != minus_mean:
        aim = aim or (lambda _, which: tape.targets[which])
        found = tape.decomposition = decompose(tape.module, tape.readout, tape.x, aim, minus_mean)
    return found


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
    return Decomposition(
        torch.cat([part.scores for part in parts]),
        torch.cat([part.explained for part in parts]),
        torch.cat([part.contributions for part in parts]),
        parts[0].layers,
        parts[0].terms,
        torch.cat([part.amounts for part in parts]),
        parts[0].grid,
        minus_mean,
    )


@contextmanager
def follow(
    module: nn.Module, readout: Callable[[nn.Module, Tensor], Tensor], x: Tensor, outputs: bool = False
) -> Iterator[tuple[DirectPath, Tensor]]:
    """Run a batch with its direct path recorded: the path, and what the readout made of it; inside the block only.

    Raises:
        MethodError: something like attention that is none as we know it.
    """
    path = DirectPath(module, len(x), outputs)
    try:
        yield path, _run(path, module, readout, x)
    finally:
        path.release()


def _run(path: DirectPath, module: nn.Module, readout: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Tensor:
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
    return output


def _slices(count: int, limit: int) -> list[slice]:
    return [slice(start, min(start + limit, count)) for start in range(0, count, limit)]


def _decompose(module: nn.Module, readout: Readout, x: Tensor, aim: Aim, minus_mean: bool, which: slice) -> Decomposition:
    with follow(module, readout, x[which]) as (path, scores):
        return _account(path, scores, aim(scores.detach(), which), minus_mean, (x.shape[-2], x.shape[-1]))


def _account(path: DirectPath, scores: Tensor, targets: Tensor, minus_mean: bool, size: tuple[int, int]) -> Decomposition:
    if minus_mean and scores.shape[1] < 2:
        raise MethodError("minus_mean=True takes the mean over all classes or prompts, and there is but one; name at least two.")
    columns, amounts = [], []
    found: dict[Attention, Tensor] = {}
    terms: dict[Term, Tensor] = {}
    for target in targets.unbind(1):
        towards = torch.zeros_like(scores).scatter_(1, target[:, None], 1)
        found, terms = path.backward(scores, towards - 1 / scores.shape[1] if minus_mean else towards, token_contributions)
        if minus_mean:
            terms[Term("", "mean over classes", "mean")] = scores.detach().mean(1)
        columns.append(stacked(found, terms))
        amounts.append(torch.stack(list(terms.values()), 1))
    contributions = torch.stack(columns, 1)
    grid = token_grid(contributions.shape[-1], size, reversed(path.grids))
    if grid is None:
        raise MethodError(
            f"{contributions.shape[-1]} tokens do not form a grid over an input of {size}; textspan needs a plain "
            "vision transformer."
        )
    result = Decomposition(
        scores.detach(),
        scores.detach().gather(1, targets),
        contributions,
        tuple(attention.place for attention in found),
        tuple(terms),
        torch.stack(amounts, 1),
        grid,
        minus_mean,
    )
    _check(result, path.images > 1)
    return _with_rounding(result)


def _with_rounding(found: Decomposition) -> Decomposition:
    """A model in half precision rounds between its operations what is accounted for in more: that is a term of its own."""
    if found.explained.dtype == at_least(found.explained):
        return found
    lost = found.explained - (found.contributions.flatten(2).sum(2) + found.residual)
    terms = (*found.terms, Term("", f"rounding to {found.explained.dtype}".replace("torch.", ""), "rounding"))
    return replace(found, terms=terms, amounts=torch.cat([found.amounts, lost[..., None]], 2))


def stacked(found: dict[Attention, Tensor], terms: Iterable[Term]) -> Float[Tensor, "batch layers heads tokens"]:
    """The layers in one tensor, which they only fit if all attend over the same tokens with the same number of heads."""
    if not found:
        raise _nothing(terms)
    shapes = {(value.shape[1], value.shape[2]): attention.place for attention, value in found.items()}
    if len(shapes) > 1:
        said = ", ".join(f"{place!r} has {heads} heads over {tokens} tokens" for (heads, tokens), place in shapes.items())
        raise MethodError(f"the layers do not attend alike ({said}); textspan needs the same heads and tokens in every layer.")
    return torch.stack(list(found.values()), 1)


def _nothing(terms: Iterable[Term]) -> MethodError:
    """The error for a score that no attention writes to."""
    last = next((term for term in reversed(list(terms)) if term.part == "mlp"), None)
    why = f" What it reads comes out of the nonlinear part that ends in {last.place!r}." if last else ""
    return MethodError(
        f"no attention writes to this score along a linear path, so there are no tokens to decompose it by.{why} textspan "
        "needs a vision transformer with a residual stream; gradcam and lrp take any network."
    )


def _check(found: Decomposition, several: bool) -> None:
    """The parts are added up independently of the score, so that this can fail: where something hides from torch's dispatch."""
    if not bool(torch.isfinite(found.explained).all()):
        return  # the tape says what is wrong with such scores
    total = found.contributions.flatten(2).sum(2) + found.residual
    size = found.explained.abs() + found.contributions.abs().flatten(2).sum(2) + found.amounts.abs().sum(2)
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
