"""Rules that treat contributions by their sign: γ, αβ and z⁺.

All work in units of a batch norm's `|scale|`: `z / |scale| = (sign(scale) W) a + b / |scale|`. What is handed down is
the same, and neither the weights nor the sums have to be multiplied by it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from heatproof.errors import MethodError
from heatproof.lrp.affine import Affine
from heatproof.lrp.rules import Passed, Rule, check_number, remembered, shared_out


@dataclass(frozen=True)
class Gamma(Rule):
    """LRP-γ: contributions of the output's own sign count more.

    `R_j = Σ_k a_j (w_jk + γ w_jk⁺) / Σ_j a_j (w_jk + γ w_jk⁺) · R_k` for `a ≥ 0` and `z_k > 0`

    For signed inputs, and for negative outputs, the products `a_j w_jk` of the output's sign are the ones boosted.
    The bias is one of the summands. Used in the lower layers; larger γ suppresses negative relevance.

    Args:
        gamma: ≥ 0; towards infinity the rule becomes z⁺.

    Paper: Montavon et al. 2019, equation 10.4; Andéol et al. 2021 for signed values.
    """

    gamma: float = 0.25
    needs_input = True
    uses_up = True

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma)

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        if layer.rectified and _non_negative(layer):
            return self._positive(layer, gradient)
        # w + γ w^± = (1 + γ/2) (w ± κ |w|): whatever the signs of inputs and outputs, one more sum, of sizes, is all it takes
        a, kappa = layer.input, self.gamma / (2 + self.gamma)
        weight, bias = layer.own_weight, layer.added
        sizes, size = weight.abs(), None if bias is None else bias.abs()

        def whole() -> Tensor:
            z = layer.output
            more = layer.forward(a if _non_negative(layer) else a.abs(), sizes, size).mul_(kappa).copysign_(z)
            return (more.add_(z) if layer.size is None else more.addcdiv_(z, layer.per_channel(layer.size, z))).abs_()

        # as the whole is taken without its sign, what is shared out has that of the output on it; R / z keeps that of g
        aligned, sums, lost = shared_out(layer, gradient, self, whole)
        s = torch.copysign(aligned, gradient)
        absorbed = kappa * layer.absorbed(size, sums)
        if bias is not None:
            absorbed = absorbed + layer.absorbed(bias, layer.sums(s))
        layer.output_read()
        down, more = layer.transposed(s, weight), layer.transposed(aligned, sizes)
        down.add_(more if _non_negative(layer) else torch.where(a < 0, -more, more), alpha=kappa)
        return Passed(down, absorbed, lost, torch.zeros_like(lost))

    def _positive(self, layer: Affine, gradient: Tensor) -> Passed:
        """From positive outputs to non-negative inputs: `(w + γ w⁺) / (1 + γ)` is a leaky ReLU of the weights."""
        slope = 1 / (1 + self.gamma)
        weight = leaky_relu(layer.own_weight, slope)
        bias = None if layer.added is None else leaky_relu(layer.added, slope)
        s, sums, lost = shared_out(layer, gradient, self, lambda: layer.forward(layer.input, weight, bias))
        layer.output_read()
        return Passed(layer.transposed(s, weight), layer.absorbed(bias, sums), lost, torch.zeros_like(lost))


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-αβ: positive and negative contributions go their own ways.

    `R_j = Σ_k (α (a_j w_jk)⁺ / Σ_j (a_j w_jk)⁺ − β (a_j w_jk)⁻ / Σ_j (a_j w_jk)⁻) · R_k`, `α − β = 1`

    Used in the lower layers. α = 1 is z⁺; α = 2, β = 1 shows evidence against as well.

    Args:
        alpha, beta: with `alpha − beta = 1`.

    Paper: Bach et al. 2015, equation 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    needs_input = True
    uses_up = True

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        check_number("beta", self.beta)
        if not math.isclose(self.alpha - self.beta, 1, abs_tol=1e-9):
            raise MethodError(f"alpha={self.alpha!r} and beta={self.beta!r}; expected alpha − beta = 1, or relevance is made up.")

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        parts = [(share, sign) for share, sign in ((self.alpha, 1), (-self.beta, -1)) if share]
        first, *others = [_by_sign(layer, gradient, *part, last=part is parts[-1]) for part in parts]
        for other in others:
            assert first.gradient is not None and other.gradient is not None
            first.gradient.add_(other.gradient)
            first.bias, first.epsilon = first.bias + other.bias, first.epsilon + other.epsilon
        return first


@dataclass(frozen=True)
class ZPlus(Rule):
    """LRP-z⁺: positive contributions only; γ in the limit, αβ with α = 1.

    `R_j = Σ_k (a_j w_jk)⁺ / Σ_j (a_j w_jk)⁺ · R_k`

    Used in the lower convolutions. Its maps are clean and depend little on the upper layers.
    Paper: Montavon et al. 2017, equation 18.
    """

    needs_input = True
    uses_up = True

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        return AlphaBeta(1.0, 0.0)(layer, gradient)


def _by_sign(layer: Affine, gradient: Tensor, share: float, sign: int, last: bool) -> Passed:
    """`share · R` along the contributions of one sign."""
    a, weight, bias = layer.input, layer.own_weight, layer.added
    along, against = ({"min": 0}, {"max": 0})[::sign]
    same, added = weight.clamp(**along), None if bias is None else bias.clamp(**along)
    opposite = None if _non_negative(layer) else weight.clamp(**against)

    def whole() -> Tensor:
        if opposite is None:
            return layer.forward(a, same, added)
        return layer.forward(a.clamp(min=0), same, added).add_(layer.forward(a.clamp(max=0), opposite))

    s, sums, lost = shared_out(layer, gradient if share == 1 else gradient * share, ("sign", sign), whole)
    if last:
        layer.output_read()
    down = layer.transposed(s, same)
    if opposite is not None:
        down = torch.where(a < 0, layer.transposed(s, opposite), down)
    return Passed(down, layer.absorbed(added, sums), lost, torch.zeros_like(lost))


def _non_negative(layer: Affine) -> bool:
    """Whether no input is negative, as behind a ReLU."""
    return remembered(layer, "non-negative", lambda: bool(layer.input.amin() >= 0))
