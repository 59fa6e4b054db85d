"""What counts as right on each constructed network: one number per map, and the least that is right."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.models.planted.constructed import Case

_MOST = 0.5
"""Share of a map's positive values that has to lie on the evidence for it to count as found."""


def _share(heat: Float[Tensor, "height width"], mask: Tensor) -> float:
    positive = heat.clamp_min(0) if float(heat.min()) < 0 or float(heat.min()) == float(heat.max()) else heat - heat.min()
    total = float(positive.sum())
    return float(positive[mask].sum()) / total if total > 0 else 0.0


def _saturated(heat: Float[Tensor, "height width"], case: Case) -> float:
    return _share(heat, case.evidence)


def _spurious(heat: Float[Tensor, "height width"], case: Case) -> float:
    """1 if the square outshines the pixel, else 0."""
    return float(heat[case.evidence].mean() > heat[case.others["spurious"]].max())


def _redundant(heat: Float[Tensor, "height width"], case: Case) -> float:
    """The lesser square's part of twice what the map has on the evidence, times that share: 1 if both halves are all."""
    shares = [_share(heat, case.others[colour]) for colour in ("red", "green")]
    return 2 * min(shares)


def _suppressor(heat: Float[Tensor, "height width"], case: Case) -> float:
    return _share(heat, case.evidence) - _share(heat, case.others["suppressor"])


def _additive(heat: Float[Tensor, "height width"], case: Case) -> float:
    assert case.worth is not None
    if float(heat.std()) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([heat.flatten(), case.worth.flatten()]))[0, 1])


JUDGES: dict[str, Callable[[Tensor, Case], float]] = {
    "saturated": _saturated,
    "spurious": _spurious,
    "redundant": _redundant,
    "suppressor": _suppressor,
    "additive": _additive,
}

SAID = {
    "saturated": ("{:.0%} of the map lies on evidence that has no gradient", _MOST),
    "spurious": ("in {:.0%} of the layouts the evidence outshines a pixel that is steep and idle", 1.0),
    "redundant": ("of two squares that are each enough, the lesser has {:.2f} of its half", _MOST),
    "suppressor": ("the evidence has {:.2f} more of the map than pixels that only cancel noise", _MOST),
    "additive": ("correlation {:.2f} with what every pixel is worth", 0.9),
}
"""What is told of each case, and the least value that is right."""
