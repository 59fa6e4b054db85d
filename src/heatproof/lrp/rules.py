"""The rules. Each says how the relevance of a layer's outputs goes back to its inputs, and what gets lost on the way.

For `z_k = Σ_j a_j w_jk + b_k` and relevance `R_k`, all rules work in gradient form: with `g_k = R_k / z_k` above,
they return `g_j = R_j / a_j` below, because everything else in a network then needs only autograd's own backward.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import MethodError
from heatproof.lrp.affine import Affine, per_image


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


def check_number(name: str, value: Any) -> None:
    """Raise a `MethodError` unless a rule's number is finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise MethodError(f"{name}={value!r}; expected a number of at least 0.")


class Rule(ABC):
    """How relevance passes through one weighted layer.

    Class attributes say what it reads: `needs_input`, `needs_output`, whether it is for `pixels_only`, and with `uses_up`
    that for the last target it may work in the memory of what was kept.
    """

    uses_up: bool = False
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
    uses_up = True

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon)

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        if self.epsilon == 0:
            return _through(layer, gradient, 0.0)
        # g · z / (z + ε sign z) = g − ε · g / (|z| + ε): the second part is what the stabiliser absorbs
        quotient = layer.output.abs().add_(self.epsilon)
        torch.div(gradient, quotient, out=quotient)
        lost = layer.dot(layer.output, quotient) * self.epsilon
        layer.output_read()
        return _through(layer, torch.sub(gradient, quotient, alpha=self.epsilon, out=quotient), lost)


def _through(layer: Affine, s: Tensor, lost: Tensor | float) -> Passed:
    own, norm = layer.own_bias, layer.norm_shift
    sums = s.new_zeros(layer.batch, 1, dtype=torch.float64) if own is None and norm is None else layer.sums(s)
    nothing = layer.absorbed(None, sums)
    return Passed(layer.back(s), layer.absorbed(own, sums), nothing + lost, layer.absorbed(norm, sums))


def shared_out(layer: Affine, gradient: Tensor, key: object, whole: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`s = R / whole`, its sums over each channel, and what is lost where a sum of contributions is zero.

    There is nothing to share out there: what arrives is booked as absorbed by the stabiliser.
    """
    share = remembered(layer, key, lambda: torch.div(layer.output, amounts := whole(), out=amounts))
    # a fresh tensor costs more than what is computed in it: the last target uses up what was kept for it
    s = layer.memory.pop(key).mul_(gradient) if layer.final else share * gradient
    sums = layer.sums(s)
    if bool(sums.isfinite().all()):  # far cheaper than looking at each value
        return s, sums, sums.new_zeros(layer.batch)
    empty = ~s.isfinite()
    lost = per_image((layer.output * gradient).masked_fill_(~empty, 0), layer.batch)
    s.masked_fill_(empty, 0)
    return s, layer.sums(s), lost


def remembered(layer: Affine, key: object, make: Callable[[], Any]) -> Any:
    """What does not depend on the target is computed at the first backward and kept for the others."""
    if key not in layer.memory:
        layer.memory[key] = make()
    return layer.memory[key]
