"""The rules. Each says how the relevance of a layer's outputs goes back to its inputs, and what gets lost on the way.

For `z_k = Σ_j a_j w_jk + b_k` and relevance `R_k`, all rules work in gradient form: with `g_k = R_k / z_k` above,
they return `g_j = R_j / a_j` below, because everything else in a network then needs only autograd's own backward.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from heatproof.lrp.affine import Affine, per_image

_TINY = 1e-12
"""Smaller sums of contributions have nothing to share out; what arrives there is booked as absorbed by ε."""


@dataclass
class Passed:
    """What a rule hands down, and what it absorbed of the relevance of each image.

    Args:
        gradient: `R / a` in the shape of the input, or None where the rule gives relevance itself.
        relevance: `R` in the shape of the input, from rules for pixels.
        bias, epsilon, norm: `(B,)` absorbed by biases, by the stabiliser, by the norm's running mean.
    """

    gradient: Tensor | None
    bias: Tensor
    epsilon: Tensor
    norm: Tensor
    relevance: Tensor | None = None


class Rule(ABC):
    """How relevance passes through one weighted layer."""

    needs_input: bool = False
    needs_output: bool = True
    pixels_only: bool = False

    @abstractmethod
    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        """From `g = R / z` at the output to `R / a` at the input."""


@dataclass(frozen=True)
class Zero(Rule):
    """LRP-0: in proportion to the contributions.

    `R_j = Σ_k a_j w_jk / z_k · R_k`

    Used on top, near the score. It is gradient × input on ReLU networks, noise included.
    Paper: Bach et al. 2015; Montavon et al. 2019, equation 10.2.
    """

    needs_output = False

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        return _through(layer, gradient, 0.0)


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-ε: weak and contradictory contributions are absorbed.

    `R_j = Σ_k a_j w_jk / (z_k + ε sign(z_k)) · R_k`, `sign(0) = 1`

    Used in the middle layers; larger ε makes sparser maps.

    Args:
        epsilon: ≥ 0, in units of the layer's output.

    Paper: Bach et al. 2015, equation 58; Montavon et al. 2019, equation 10.3.
    """

    epsilon: float = 1e-6

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        z = layer.output
        # g · z / (z + ε sign z) = g − g · ε / (|z| + ε): the second part is what the stabiliser absorbs
        lost = z.abs().add_(max(self.epsilon, torch.finfo(z.dtype).tiny)).reciprocal_().mul_(self.epsilon).mul_(gradient)
        return _through(layer, gradient - lost, layer.dot(z, lost))


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

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        # everything in units of 1 + γ: then no layer-sized value has to be multiplied by it
        z, bias, gain = layer.output, layer.whole_bias, 1 + self.gamma
        branches = []
        for sign in (1, -1):
            part = (z.clamp(min=0) if sign > 0 else z.clamp(max=0)).mul_(gradient)
            if sign < 0 and not part.any():  # below a ReLU no negative output has relevance
                continue
            added = None if bias is None else (bias + self.gamma * (bias * sign).relu() * sign) / gain
            branches.append(_Branch(part, self._weight(layer, sign), self._weight(layer, -sign), added, (self, sign)))
        if len(branches) == 2:
            # w⁻ = w − w⁺: with non-negative inputs the second sum follows from the first
            branches[1].known = lambda: (
                z.sub(_shaped(layer, bias, z))
                .mul_((1 + gain) / gain)
                .sub_(layer.memory["sum", (self, 1)] - _shaped(layer, branches[0].bias, z))
            )
        return _split(layer, branches, layer.dot(z, gradient))

    def _weight(self, layer: Affine, sign: int) -> Callable[[], Tensor]:
        """`(w + γ w^±) / (1 + γ)`: a leaky ReLU of the weights, in one pass."""
        slope = 1 / (1 + self.gamma)

        def make() -> Tensor:
            weight = layer.whole_weight
            return leaky_relu(weight, slope) if sign > 0 else leaky_relu(-weight, slope).neg_()

        return lambda: _memory(layer, (self, "weight", sign), make)


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

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        z, bias = layer.output, layer.whole_bias
        total = z * gradient

        def weight(sign: int) -> Callable[[], Tensor]:
            clamped = {"min": 0} if sign > 0 else {"max": 0}
            return lambda: _memory(layer, ("sign", sign), lambda: layer.whole_weight.clamp(**clamped))

        branches = []
        for share, sign in ((self.alpha, 1), (-self.beta, -1)):
            if share:
                added = None if bias is None else (bias * sign).relu() * sign
                branches.append(_Branch(share * total, weight(sign), weight(-sign), added, ("sign", sign)))
        return _split(layer, branches, per_image(total, layer.batch))


@dataclass(frozen=True)
class ZPlus(Rule):
    """LRP-z⁺: positive contributions only; γ in the limit, αβ with α = 1.

    `R_j = Σ_k (a_j w_jk)⁺ / Σ_j (a_j w_jk)⁺ · R_k`

    Used in the lower convolutions. Its maps are clean and depend little on the upper layers.
    Paper: Montavon et al. 2017, equation 18.
    """

    needs_input = True

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        return AlphaBeta(1.0, 0.0)(layer, gradient)


class PixelRule(Rule):
    """A rule for the layer that sees the image, which gives relevance to pixels that are zero too."""

    pixels_only = True
    needs_input = True


@dataclass(frozen=True)
class Flat(PixelRule):
    """LRP-flat: equally to everything in the receptive field.

    `R_j = Σ_k 1 / Σ_j 1 · R_k`

    Used at the pixels, where single values say little.
    Paper: Lapuschkin et al. 2019, supplement.
    """

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        return _by_weights(layer, gradient, torch.ones_like(layer.weight))


@dataclass(frozen=True)
class WSquare(PixelRule):
    """LRP-w²: by squared weights, whatever the input.

    `R_j = Σ_k w_jk² / Σ_j w_jk² · R_k`

    Used at the pixels of networks whose inputs have no bounds.
    Paper: Montavon et al. 2017, equation 12.
    """

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        return _by_weights(layer, gradient, layer.whole_weight.square())


@dataclass(frozen=True)
class ZBox(PixelRule):
    """LRP-zᴮ: the contributions as seen from the box that pixels live in.

    `R_j = Σ_k (a_j w_jk − l_j w_jk⁺ − h_j w_jk⁻) / Σ_j (same) · R_k`

    Used at the pixels. The bounds come from the model's preprocessing, or from `low=` and `high=`. The bias cancels.
    Paper: Montavon et al. 2017, equation 14.
    """

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        low, high, _ = layer.pixels
        whole = layer.whole_weight
        parts = ((layer.input, whole), (-low, whole.clamp(min=0)), (-high, whole.clamp(max=0)))
        total = layer.output * gradient
        seen = _memory(layer, "box", lambda: sum(layer.forward(values, weight) for values, weight in parts))
        s = total / stabilised(seen)
        relevance = sum(values * layer.transposed(s, weight) for values, weight in parts)
        return _from_relevance(layer, total, relevance)


@dataclass
class _Branch:
    """Part of the relevance, and the weights that it follows to positive and to negative inputs."""

    relevance: Tensor
    positive: Callable[[], Tensor]
    negative: Callable[[], Tensor]
    bias: Tensor | None
    key: object
    known: Callable[[], Tensor] | None = None


def _split(layer: Affine, branches: list[_Branch], arrived: Tensor) -> Passed:
    """Send each branch back along its own weights: `R_j = Σ_k a_j w_jk / Σ_j a_j w_jk · R_k` with `w` by the sign of `a_j`."""
    a = layer.input
    one_signed = _memory(layer, "one-signed", lambda: bool(a.amin() >= 0))
    gradient, bias, kept = 0, 0, 0
    for branch in branches:

        def summed(branch: _Branch = branch) -> Tensor:
            if one_signed and branch.known:
                z = branch.known()
            elif one_signed:
                z = layer.forward(a, branch.positive())
            else:
                z = layer.forward(a.clamp(min=0), branch.positive()) + layer.forward(a.clamp(max=0), branch.negative())
            return z if branch.bias is None else z.add_(layer.per_channel(branch.bias, z))

        z = _memory(layer, ("sum", branch.key), summed)
        # where a sum is zero there is nothing to share out: what arrives is booked as absorbed by the stabiliser
        s = (branch.relevance / z).nan_to_num_(0.0, 0.0, 0.0)
        bias = bias + (0 if branch.bias is None else layer.absorbed(branch.bias, layer.sums(s)))
        kept = kept + layer.dot(z, s)
        back = layer.transposed(s, branch.positive())
        gradient = gradient + (back if one_signed else torch.where(a < 0, layer.transposed(s, branch.negative()), back))
    if not branches:
        gradient, kept = torch.zeros_like(a), torch.zeros_like(arrived)
    nothing = torch.zeros_like(arrived)
    return Passed(gradient, nothing + bias, arrived - kept, nothing)


def _shaped(layer: Affine, bias: Tensor | None, z: Tensor) -> Tensor | float:
    return 0.0 if bias is None else layer.per_channel(bias, z)


def _through(layer: Affine, s: Tensor, lost: Tensor | float) -> Passed:
    own, norm = layer.own_bias, layer.norm_shift
    sums = s.new_zeros(layer.batch, 1, dtype=torch.float64) if own is None and norm is None else layer.sums(s)
    nothing = layer.absorbed(None, sums)
    return Passed(layer.back(s), layer.absorbed(own, sums), nothing + lost, layer.absorbed(norm, sums))


def _by_weights(layer: Affine, gradient: Tensor, weight: Tensor) -> Passed:
    total = layer.output * gradient
    inside = layer.pixels[2]
    if len(inside) == layer.batch:
        inside = inside[:1]  # images are all padded alike
    shares = _memory(layer, "shares", lambda: layer.forward(inside, weight))
    return _from_relevance(layer, total, inside * layer.transposed(total / stabilised(shares), weight))


def _from_relevance(layer: Affine, total: Tensor, relevance: Tensor) -> Passed:
    lost = per_image(total, layer.batch) - per_image(relevance, layer.batch)
    return Passed(None, torch.zeros_like(lost), lost, torch.zeros_like(lost), relevance)


def _memory(layer: Affine, key: object, make: Callable[[], Any]) -> Any:
    """What does not depend on the target is computed at the first backward and kept for the others."""
    if key not in layer.memory:
        layer.memory[key] = make()
    return layer.memory[key]


def stabilised(z: Tensor) -> Tensor:
    """`z`, or a tiny number of its sign (`sign(0) = 1`) where there is next to nothing to divide by."""
    return z.abs().clamp_min_(_TINY).copysign_(z)
