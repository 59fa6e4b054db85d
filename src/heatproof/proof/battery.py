"""Every intervention that cross-examines a map, by its name; the documentation's table is made from here."""

from collections.abc import Sequence

from heatproof.errors import MethodError, nearest
from heatproof.proof.completeness import Completeness
from heatproof.proof.curves import Deletion, Insertion, PixelFlipping, Road
from heatproof.proof.faithfulness import Infidelity, SensitivityN
from heatproof.proof.interventions import Test
from heatproof.proof.masking import AverageDrop, AverageIncrease
from heatproof.proof.stability import MaxSensitivity
from heatproof.proof.tokens import TokenDropping

_KINDS: tuple[type[Test], ...] = (
    Deletion,
    Insertion,
    Road,
    PixelFlipping,
    TokenDropping,
    AverageDrop,
    AverageIncrease,
    Infidelity,
    SensitivityN,
    Completeness,
)

TESTS: dict[str, type[Test]] = {kind.name: kind for kind in _KINDS}
"""Tests of maps: name → frozen dataclass of its options, whose defaults are the paper's where it states them."""

OF_METHODS: dict[str, type[MaxSensitivity]] = {MaxSensitivity.name: MaxSensitivity}
"""Tests that have to call the method again, and so take a function instead of maps."""


def build(tests: Sequence[str | Test]) -> dict[str, Test]:
    """Tests by their names, with their default options where only a name is given.

    Raises:
        MethodError: there is no test of that name.
    """
    built = {}
    for one in tests:
        if isinstance(one, str):
            if one not in TESTS:
                raise MethodError(f"there is no test {one!r}.{nearest(one, TESTS)} Known: {', '.join(TESTS)}.")
            one = TESTS[one]()
        built[one.name] = one
    return built


def markdown() -> str:
    """The tests as a table in Markdown."""
    lines = ["| test | asks | better | paper |", "| --- | --- | --- | --- |"]
    for name, kind in (TESTS | OF_METHODS).items():
        better = "higher" if kind.higher_is_better is True else "lower"
        lines.append(f"| `{name}` | {(kind.__doc__ or '').strip().splitlines()[0]} | {better} | {kind.paper} |")
    return "\n".join(lines)
