"""Rules for the layer that sees the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof.lrp.affine import Affine, per_image
from heatproof.lrp.rules import Passed, Rule, remembered

_TINY = 1e-12
"""Smaller sums of contributions have nothing to share out; what arrives there is booked as absorbed by ε."""


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
        # all channels of a group share alike, so one stands for all
        total = layer.output * gradient
        convolution = layer.kind == "convolution"
        groups = layer.geometry[5] if convolution else 1
        ones = layer.weight.new_ones(groups, 1, *layer.weight.shape[2:])

        def summed(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, -1)).sum(2) if convolution else values.sum(-1, keepdim=True)

        inside = _inside(layer)
        shares = remembered(layer, "shares", lambda: stabilised(layer.forward(summed(inside), ones)))
        down = layer.transposed(summed(total) / shares, ones, groups)
        down = down.repeat_interleave(inside.shape[1] // groups, 1) if groups > 1 else down
        return _from_relevance(layer, total, inside * down)


@dataclass(frozen=True)
class WSquare(PixelRule):
    """LRP-w²: by squared weights, whatever the input.

    `R_j = Σ_k w_jk² / Σ_j w_jk² · R_k`

    Used at the pixels of networks whose inputs have no bounds.
    Paper: Montavon et al. 2017, equation 12.
    """

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        weight, inside = layer.whole_weight.square(), _inside(layer)
        total = layer.output * gradient
        shares = remembered(layer, "shares", lambda: stabilised(layer.forward(inside, weight)))
        return _from_relevance(layer, total, inside * layer.transposed(total / shares, weight))


@dataclass(frozen=True)
class ZBox(PixelRule):
    """LRP-zᴮ: the contributions as seen from the box that pixels live in.

    `R_j = Σ_k (a_j w_jk − l_j w_jk⁺ − h_j w_jk⁻) / Σ_j (same) · R_k`

    Used at the pixels. The bounds come from the model's preprocessing, or from `low=` and `high=`. The bias cancels.
    Paper: Montavon et al. 2017, equation 14.
    """

    def __call__(self, layer: Affine, gradient: Tensor) -> Passed:
        # a w − l w⁺ − h w⁻ = (a − l) w⁺ + (a − h) w⁻
        low, high, _ = layer.pixels
        whole = layer.whole_weight
        positive, negative = whole.clamp(min=0), whole.clamp(max=0)
        above, below = layer.input - low, layer.input - high
        total = layer.output * gradient
        seen = remembered(layer, "box", lambda: stabilised(layer.forward(above, positive).add_(layer.forward(below, negative))))
        first, second = layer.transposed_both(total / seen, positive, negative)
        return _from_relevance(layer, total, (first * above).add_(second * below))


def stabilised(z: Tensor) -> Tensor:
    """`z`, or a tiny number of its sign (`sign(0) = 1`) where there is next to nothing to divide by."""
    return z.abs().clamp_min_(_TINY).copysign_(z)


def _inside(layer: Affine) -> Tensor:
    """0 where the input is padding, of one image: all are padded alike."""
    inside = layer.pixels[2]
    return inside[:1] if len(inside) == layer.batch else inside


def _from_relevance(layer: Affine, total: Tensor, relevance: Tensor) -> Passed:
    lost = per_image(total, layer.batch) - per_image(relevance, layer.batch)
    return Passed(None, torch.zeros_like(lost), lost, torch.zeros_like(lost), relevance)
