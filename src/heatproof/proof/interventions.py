"""The interventions: what each is called, what it answers, and what it says of a map."""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from heatproof.proof.subject import Subject


@dataclass(frozen=True, eq=False)
class Result:
    """What a test found out about maps.

    Args:
        values: `(B, T, M)`, one number per map.
        higher_is_better: whether a larger number speaks for the map.
        fractions: `(S,)` shares of the image at which the curves were read, or None.
        curves: `(B, T, M, S)`, or None.
        parts: further curves `(B, T, M, S)` by name, where the values come from several.
    """

    values: Float[Tensor, "batch targets maps"]
    higher_is_better: bool
    fractions: Float[Tensor, " steps"] | None = None
    curves: Float[Tensor, "batch targets maps steps"] | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Test(Protocol):
    """A frozen dataclass of options that is called with a subject and many maps of each image and target.

    A map and its null copies go through it side by side, as m = 0 and m ≥ 1, and are treated identically.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number speaks for the map."""
        ...

    def cost(self, subject: Subject, maps: int) -> int:
        """Images that go through the model for `maps` maps of each image and target."""
        ...

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result: ...
