"""Does a map add up to what it explains?"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from heatproof.proof.curves import emptied
from heatproof.proof.infill import Infill, infill
from heatproof.proof.interventions import Result
from heatproof.proof.subject import Subject


@dataclass(frozen=True)
class Completeness:
    """How much of the score, or of its change from an empty image, a map and its residual leave unexplained.

    `|Σ_ij map_ij + residual − (s(x) − s₀)| / max(|s(x) − s₀|, ε)`

    Args:
        infill: None for `s₀ = 0`, the promise of every method here that decomposes a score; a name of `INFILLS` or an
            `Infill` for the score of the image with every pixel replaced, the completeness axiom of path methods.

    Returns:
        `values` ≥ 0 without a unit, lower is better, 0 up to rounding for a complete map, 1 for a map of zeros.

    Misleads as a test of truth: a score can be distributed completely and wrongly. A map that was resized, clipped or
    made positive no longer adds up, and rarely claims to.

    Paper: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", proposition 1; Bach et al. 2015, equation 2.
    """

    name: ClassVar[str] = "completeness"
    paper: ClassVar[str] = "Bach et al. 2015; Sundararajan et al. 2017"
    higher_is_better: ClassVar[bool] = False
    infill: str | Infill | None = None

    def __post_init__(self) -> None:
        if self.infill is not None:
            infill(self.infill)

    def cost(self, subject: Subject, maps: int) -> int:
        return 0 if self.infill is None else len(subject.x)

    def __call__(
        self,
        subject: Subject,
        maps: Float[Tensor, "batch targets maps height width"],
        residual: Float[Tensor, "batch targets maps"] | None = None,
    ) -> Result:
        change = subject.scores
        if self.infill is not None:
            change = change - emptied(subject, infill(self.infill).on(subject.x, subject.model.preprocess), "score")
        change = change.cpu().double()[:, :, None]
        gap = maps.double().sum((-2, -1)) + (0.0 if residual is None else residual.double()) - change
        return Result((gap.abs() / change.abs().clamp_min(1e-12)).float(), False)
