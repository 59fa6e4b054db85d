"""What the model makes of the image seen through the map: average drop, increase and win."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.errors import InputError
from heatproof.proof.infill import Infill, Picture, infill
from heatproof.proof.interventions import Result
from heatproof.proof.maps import says_nothing
from heatproof.proof.subject import Subject


@dataclass(frozen=True)
class _Through(ABC):
    infill: str | Infill = "zero"
    read: str = "probability"

    def __post_init__(self) -> None:
        if not isinstance(infill(self.infill), Picture):
            raise InputError(f"infill={self.infill!r} cannot be mixed in by degrees; expected zero, black, mean, blur or noise.")

    def cost(self, subject: Subject, maps: int) -> int:
        return subject.targets.numel() * maps

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        other = infill(self.infill)
        assert isinstance(other, Picture)
        behind = other.picture(subject.x, subject.model.preprocess).to(subject.x).expand_as(subject.x)
        flat, (_, targets, count) = maps.flatten(0, 2), maps.shape[:3]

        def make(part: slice) -> tuple[Tensor, Tensor]:
            rows = torch.arange(part.start, part.stop, device=subject.x.device) // (targets * count)
            mask = _stretched(flat[part]).to(subject.x)[:, None]
            return torch.lerp(behind[rows], subject.x[rows], mask), rows

        through = subject.stream(len(flat), make, self.read).view(-1, targets, count, targets)
        through = through.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        return self._result(subject.clean(self.read)[:, :, None], through)

    @abstractmethod
    def _result(self, whole: Tensor, through: Tensor) -> Result: ...


@dataclass(frozen=True)
class AverageDrop(_Through):
    """Share of the target's probability that is lost when only what the map shows is left.

    `max(0, p(x) − p(x ⊙ map)) / p(x)`, the map stretched to [0, 1]

    Args:
        infill: what shows where the map is 0: zero, black, mean, blur or noise.
        read: `"probability"`, `"score"` or `"top-1"`.

    Returns:
        `values` from 0 to 1, lower is better. Papers average them over images and multiply by 100.

    Misleads in favour of maps that show nearly everything: a constant 1 with one pixel of 0 drops nothing.

    Paper: Chattopadhay et al. 2018, "Grad-CAM++" (its objective evaluation).
    """

    name: ClassVar[str] = "average-drop"
    paper: ClassVar[str] = "Chattopadhay et al. 2018"
    higher_is_better: ClassVar[bool] = False

    def _result(self, whole: Tensor, through: Tensor) -> Result:
        return Result((whole - through).clamp_min(0) / whole.abs().clamp_min(1e-12), False)


@dataclass(frozen=True)
class AverageIncrease(_Through):
    """Whether the target's probability rises when only what the map shows is left.

    `1 if p(x ⊙ map) > p(x) else 0`, the map stretched to [0, 1]

    Args:
        infill: what shows where the map is 0: zero, black, mean, blur or noise.
        read: `"probability"`, `"score"` or `"top-1"`.

    Returns:
        `values` 0 or 1, higher is better. Papers average them over images and multiply by 100.

    Misleads like average drop: maps that leave out only a little distracting background win.

    Paper: Chattopadhay et al. 2018, "Grad-CAM++" (its objective evaluation).
    """

    name: ClassVar[str] = "average-increase"
    paper: ClassVar[str] = "Chattopadhay et al. 2018"
    higher_is_better: ClassVar[bool] = True

    def _result(self, whole: Tensor, through: Tensor) -> Result:
        return Result((through > whole).to(whole), True)


def win(drops: Float[Tensor, "*images"], others: Float[Tensor, "*images"]) -> float:
    """Share of the images for which one method's average drop is smaller than another's; equal ones count for neither.

    Paper: Chattopadhay et al. 2018, "Grad-CAM++" (its objective evaluation).
    """
    return float((drops < others).float().mean())


def _stretched(maps: Tensor) -> Tensor:
    """From 0 to 1; a constant map shows nothing."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    nothing = says_nothing(maps)[..., None, None]
    return torch.where(nothing, 0.0, (maps - low) / torch.where(nothing, 1.0, high - low))
