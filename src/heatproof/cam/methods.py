"""The CAM family without extra forwards. All share one formula; each method is its weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.cam import weights
from heatproof.cam.saliency import saliency
from heatproof.errors import MethodError
from heatproof.methods import Maps
from heatproof.models.tape import Head, Tape


@dataclass(frozen=True)
class LayerMethod(ABC):
    """`Sal[i,j] = Σ_{k,l} w_{k,l} Ã^{k,l}_{ij}`, clipped at zero where the method is not signed.

    Args:
        layer: a name from `named_modules()`, a module, or a list of them; None for the last spatial features.
    """

    layer: Any = None
    signed: ClassVar[bool] = False

    @abstractmethod
    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        """Weights `(B, T, K, 1|h, 1|w)` and feature maps `(B, 1|T, K, h, w)` of each layer."""

    def __call__(self, tape: Tape) -> Maps:
        total = saliency(self.layers(tape))
        return Maps(total if self.signed else total.relu())


class GradientMethod(LayerMethod):
    """A method whose weights are a function of activations and gradients."""

    weights: ClassVar[Any]

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        for activation, gradient in zip(tape.activations, tape.gradients, strict=True):
            yield type(self).weights(activation, gradient), activation[:, None]


@dataclass(frozen=True)
class GradCAM(GradientMethod):
    """Channels weighted by their mean gradient, positive part.

    `Sal = ReLU(Σ_k w_k A^k)`, `w_k = mean_ij ∂s/∂A^k_ij`

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads above the last layers, where averaging the gradient mixes places that act differently.

    Paper: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """

    weights: ClassVar = staticmethod(weights.gradcam)


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientMethod):
    """Channels weighted by their positive gradients, each damped by how much evidence its channel has already.

    `Sal = ReLU(Σ_k w_k A^k)`, `w_k = Σ_ij ReLU(g_kij) / (2 + g_kij Σ_ab A^k_ab)`

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads by dropping evidence against the target: on a network with global average pooling it is CAM without the
    negative weights.

    Paper: Chattopadhay et al. 2018, "Grad-CAM++", equations 10 and 19, for the score `exp(s)`.
    """

    weights: ClassVar = staticmethod(weights.gradcam_plus_plus)


@dataclass(frozen=True)
class XGradCAM(GradientMethod):
    """Channels weighted by their gradient averaged where they are active.

    `Sal = ReLU(Σ_k w_k A^k)`, `w_k = Σ_ij g_kij A^k_ij / Σ_ij A^k_ij`

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads on signed activations, where a channel's sum can vanish while its values do not.

    Paper: Fu et al. 2020, "Axiom-based Grad-CAM", equation 8.
    """

    weights: ClassVar = staticmethod(weights.xgradcam)


@dataclass(frozen=True)
class HiResCAM(GradientMethod):
    """Each activation times its own gradient.

    `Sal = Σ_k g^k ⊙ A^k`

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` signed; where one linear layer follows, it sums to the score less the bias.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads where a nonlinear head follows: then it is a first-order view like gradient × input.

    Paper: Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM", equation 2.
    """

    signed: ClassVar[bool] = True
    weights: ClassVar = staticmethod(weights.hirescam)


@dataclass(frozen=True)
class LayerCAM(GradientMethod):
    """Each activation times the positive part of its own gradient: sharp in early layers too.

    `Sal = ReLU(Σ_k ReLU(g^k) ⊙ A^k)`

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads by showing evidence for the target only: what speaks against it is cut twice.

    Paper: Jiang et al. 2021, "LayerCAM", equations 3 and 4.
    """

    weights: ClassVar = staticmethod(weights.layercam)


@dataclass(frozen=True)
class EigenCAM(LayerMethod):
    """What the layer varies in most, whatever the target.

    `Sal = Σ_k v_k (A^k − mean A^k)`, `v` the first right singular vector of the centred `hw × K` activations

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` signed, the same for every target. The sign is chosen so that the map agrees with the
        mean activation.

    Raises:
        ModelError: the layer is no map.

    Misleads as an explanation of a class: no score enters it.

    Paper: Muhammad & Yeasin 2020, "Eigen-CAM", section III.
    """

    signed: ClassVar[bool] = True

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        for activation in tape.activations:
            vector, centred = _component(activation[:, None], activation)
            yield vector.expand(-1, tape.targets.shape[1], -1, -1, -1), centred


@dataclass(frozen=True)
class EigenGradCAM(LayerMethod):
    """What activation times gradient varies in most.

    `Sal = Σ_k v_k (M^k − mean M^k)`, `M = g ⊙ A`, `v` the first right singular vector of the centred `hw × K` matrix

    Args:
        layer: where to read; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` signed. The sign is chosen so that the map agrees with the mean activation.

    Raises:
        ModelError: the layer is no map, or no gradient reaches it.

    Misleads where the strongest variation is not what the score depends on.

    Paper: Muhammad & Yeasin 2020, "Eigen-CAM", with `g ⊙ A` in place of `A`, as in Gildenblat's pytorch-grad-cam.
    """

    signed: ClassVar[bool] = True

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        for activation, gradient in zip(tape.activations, tape.gradients, strict=True):
            yield _component(gradient * activation[:, None], activation)


def _component(features: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
    vector, centred = weights.first_component(features)
    mean = activation.mean(1)[:, None, None]
    agreement = (vector * centred * (mean - mean.mean((-2, -1), keepdim=True))).sum((2, 3, 4), keepdim=True)
    return vector * torch.where(agreement < 0, -1.0, 1.0), centred


@dataclass(frozen=True)
class CAM(LayerMethod):
    """The final linear layer applied at every place instead of on average.

    `Sal = Σ_k w_k A^k`, where `s = Σ_k w_k mean_ij A^k_ij + b`

    Args:
        layer: the features that are averaged; None for the last spatial features.

    Returns:
        `raw` `(B, T, h, w)` signed; its mean is the score less the bias.

    Raises:
        MethodError: the network is not global average pooling followed by one linear layer. That is checked on the
            numbers of this very forward: the head's input must be the features' mean, its output the scores.

    Misleads little where it applies: it is exact in the last layer, and as coarse as it.

    Paper: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", equation 2.
    """

    signed: ClassVar[bool] = True

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        features, head = _pooled_features(tape)
        rows = head[tape.targets]
        yield rows[..., None, None], features[:, None]


def _pooled_features(tape: Tape) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "classes channels"]]:
    """The features that are averaged, and the matrix that follows."""
    if len(tape.sites) == 1:
        activation = tape.activations[0]
        # the last ReLU can be a function, of which no module tells
        for features in (activation, activation.relu()):
            pooled = features.mean((-2, -1))
            if _close(pooled, tape.scores):  # a 1×1 convolution made the class maps before the pooling
                return features, torch.eye(pooled.shape[1], device=pooled.device, dtype=pooled.dtype)
            if tape.head is not None and _is_linear_head(tape.head, pooled, tape.scores):
                return features, tape.head.weight.flatten(1).to(pooled)
    names = ", ".join(repr(site.name) for site in tape.sites)
    raise MethodError(
        f"cam needs one layer whose average enters one last linear layer, and {names} of this network is not that. "
        "Use hirescam, which equals cam where cam applies, or gradcam."
    )


def _is_linear_head(head: Head, pooled: Tensor, scores: Tensor) -> bool:
    return _close(head.input.flatten(1), pooled) and _close(head.output.flatten(1), scores)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    # a module in half precision, or autocast, has seven bits of mantissa where it ran
    rough = any(x.dtype in (torch.bfloat16, torch.float16) for x in (first, second))
    first, second = first.float(), second.float()
    return bool((first - second).abs().max() <= (2e-2 if rough else 1e-3) * second.abs().max().clamp_min(1e-12))
