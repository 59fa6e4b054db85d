"""The method `chili`, and the room `hp.chili`: a score split into object, context and pseudo-registers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.errors import MethodError, nearest
from heatproof.explanation import Explanation
from heatproof.methods import Maps
from heatproof.models.tape import Tape
from heatproof.tokens.chili_fit import fit
from heatproof.tokens.chili_weights import ChiliWeights, as_weights
from heatproof.tokens.decomposition import decomposition
from heatproof.tokens.registers import without_registers

__all__ = ["Chili", "ChiliWeights", "Split", "fit", "split", "without_registers"]

PARTS = ("object", "context", "register")


@dataclass(frozen=True, eq=False)
class Split:
    """What each patch adds to a score, in three parts that sum to what it adds in all.

    Args:
        object: `(B, T, h, w)` through heads that look at objects.
        context: `(B, T, h, w)` through the others.
        register: `(B, T, h, w)` of tokens that stand out from their neighbours.
        prefix: `(B, T)` what class and register tokens add, which lie nowhere in the image.
    """

    object: Float[Tensor, "batch targets h w"]
    context: Float[Tensor, "batch targets h w"]
    register: Float[Tensor, "batch targets h w"]
    prefix: Float[Tensor, "batch targets"]


@dataclass(frozen=True)
class Chili:
    """The score of a vision transformer, split into the object's part, its context's and that of pseudo-registers.

    `A_object = w ⊙ f_m(A)`, `A_context = (1 − w) ⊙ f_m(A)`, `A_register = A − f_m(A)`; `Sal_i = Σ_lh A_part[l,h,i]`, where
    `A[l,h,i]` is what token i adds through head h of layer l (`textspan`) and `f_m` the 3×3 median

    Args:
        weights: `w_{l,h}`: what `hp.chili.fit()` returns, a file of them, an array `(L, H)`, or what CHILI's authors
            released `(classes, L, H)`, as a file or an array. None counts every head as the object's, which removes the
            pseudo-registers and no more.
        part: `"object"`, `"context"` or `"register"`: which map.

    Returns:
        `raw` `(B, T, h, w)` signed, in units of the score: `raw.sum()` is `S_part`; `contributions` `(B, T, L, H, N)` of
        all parts; `residual` `(B, T)`, everything that no token adds. `ledger` itemises the score: rows with `place`,
        `op`, `part` and `amount`, first the parts `object`, `context`, `register` and `prefix`, then the residual's.

    Raises:
        MethodError: a model that textspan cannot decompose, weights of another number of layers or heads, or no such part.
        InputError: weights that cannot be read.

    Misleads where a head attends to objects of one kind and to contexts of another: it has one weight for all concepts.
    The median also removes true evidence that is a single patch wide.

    Paper: Kazmierczak et al. 2025, "CHILI".
    """

    signed: ClassVar[bool] = True
    weights: Any = None
    part: str = "object"

    def watch(self, tape: Tape) -> Tensor:
        """Be the tape's own forward: the decomposition needs no other."""
        return decomposition(tape, tape.resolve).scores

    def __call__(self, tape: Tape) -> Maps:
        if self.part not in PARTS:
            raise MethodError(f"part={self.part!r} is not known.{nearest(str(self.part), PARTS)} Known: {', '.join(PARTS)}.")
        weights = None if self.weights is None else as_weights(self.weights)
        found = decomposition(tape)
        parts = split_contributions(found.contributions, found.grid, weights)
        told = {"weights": "none: registers are removed, all heads count" if weights is None else repr(weights)}
        return Maps(
            getattr(parts, self.part),
            residual=found.residual,
            ledger=_items(parts) + found.ledger(),
            contributions=found.contributions,
            resolved=told,
        )


def split(explanation: Explanation, weights: Any) -> Split:
    """Split what another run found already: object, context and register maps without another forward.

    Args:
        explanation: of `textspan` or `chili`.
        weights: as the method takes them.

    Returns:
        A `Split`.

    Raises:
        MethodError: an explanation without contributions, or of a model with other layers and heads than the weights'.
    """
    if explanation.contributions is None:
        raise MethodError(f"an explanation by {explanation.method} has no contributions; make it with textspan or chili.")
    height, width = explanation.raw.shape[-2:]
    return split_contributions(explanation.contributions, (height, width), None if weights is None else as_weights(weights))


def split_contributions(
    contributions: Float[Tensor, "batch targets layers heads tokens"], grid: tuple[int, int], weights: ChiliWeights | None
) -> Split:
    """`A = w f_m(A) + (1 − w) f_m(A) + (A − f_m(A))`, each summed over layers and heads.

    Raises:
        MethodError: weights of other layers and heads.
    """
    layers, heads, tokens = contributions.shape[2:]
    if weights is not None and tuple(weights.values.shape) != (layers, heads):
        had = " × ".join(map(str, weights.values.shape))
        raise MethodError(
            f"the head weights are for {had} layers and heads, this model has {layers} × {heads}; fit them on this model with "
            "hp.chili.fit(model, probing_set)."
        )
    prefix = tokens - grid[0] * grid[1]
    patches = contributions[..., prefix:].unflatten(-1, grid)
    clean = without_registers(patches)
    w = contributions.new_ones(layers, heads) if weights is None else weights.values.to(contributions)
    seen, beside = (torch.einsum("btlhij,lh->btij", clean, one) for one in (w, 1 - w))
    return Split(seen, beside, (patches - clean).sum((2, 3)), contributions[..., :prefix].sum((2, 3, 4)))


def _items(parts: Split) -> list[dict[str, Any]]:
    amounts = {name: getattr(parts, name).sum((2, 3)) for name in PARTS} | {"prefix": parts.prefix}
    return [
        {"image": b, "target": t, "place": "", "op": "attention", "part": name, "amount": float(amount[b, t])}
        for b in range(len(parts.prefix))
        for t in range(parts.prefix.shape[1])
        for name, amount in amounts.items()
    ]
