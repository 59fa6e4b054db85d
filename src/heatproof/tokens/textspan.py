"""The method `textspan`, and the room `hp.textspan`: what a score is made of, token by token and head by head."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from heatproof.methods import Maps
from heatproof.models.tape import Tape
from heatproof.tokens.ablation import Ablation, ablate
from heatproof.tokens.decomposition import Decomposition, decomposition
from heatproof.tokens.label_heads import HeadLabel, HeadLabels, descriptions, label_heads, span_texts
from heatproof.tokens.select import indices

__all__ = ["Ablation", "Decomposition", "HeadLabel", "HeadLabels", "TextSpan", "ablate", "descriptions", "label_heads",
           "span_texts"]  # fmt: skip


@dataclass(frozen=True)
class TextSpan:
    """The score of a vision transformer, taken apart into what each token adds through each attention head.

    `s = Σ_lhi c[l,h,i] + residual`, `c[l,h,i] = Σ_q α[q,i] ⟨∂s/∂O[q], v_i⟩`; `Sal_i = Σ_lh c[l,h,i]`, norms linearised

    Args:
        layers: which of the L layers the map sums, as indices (negative from the end); None all. `contributions` has
            them all in any case.
        heads: which heads of these layers, likewise.
        minus_mean: explain the score less the mean score of all classes or prompts, as the published segmentation
            numbers do; needs at least two.

    Returns:
        `raw` `(B, T, h, w)` signed, in units of the score, one value per patch token; `contributions`
        `(B, T, L, H, N)` of all N tokens (prefix first) in the attention layers that write to the score;
        `residual` `(B, T)`: everything else, counted item by item in `ledger`: rows with `place`, `op`, `part`
        (`embedding`, `constant`, `mlp`, `bias`, `mean`, `rounding`) and `amount`. `contributions.sum() + residual` is the
        score.

    Raises:
        MethodError: no attention writes to the score along a linear path (a CNN), it works within windows, or layers
            and heads that do not exist.

    Misleads where tokens have mixed: a late token stands for its patch only as far as the layers before it left it
    there, and single tokens that serve as scratch space shine without having been seen. What MLPs do is not on the map.

    Paper: Gandelsman, Efros & Steinhardt 2024, section 3 (layers, heads and tokens).
    """

    signed: ClassVar[bool] = True
    layers: Any = None
    heads: Any = None
    minus_mean: bool = False

    def watch(self, tape: Tape) -> Tensor:
        """Be the tape's own forward: the decomposition needs no other."""
        return decomposition(tape, tape.resolve, self.minus_mean).scores

    def __call__(self, tape: Tape) -> Maps:
        found = decomposition(tape, minus_mean=self.minus_mean)
        count, heads = found.contributions.shape[2:4]
        chosen = found.contributions[:, :, indices("layers", self.layers, count)][:, :, :, indices("heads", self.heads, heads)]
        raw = chosen.sum((2, 3))[..., found.prefix :].unflatten(-1, found.grid)
        return Maps(raw, residual=found.residual, ledger=found.ledger(), contributions=found.contributions)
