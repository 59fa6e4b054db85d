"""What a number of forwards per map buys: copies for the p-value, copies of the same texture, and the single tests."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from heatproof.errors import InputError, MethodError, nearest
from heatproof.proof.completeness import Completeness
from heatproof.proof.curves import Deletion, Insertion, PixelFlipping, Road
from heatproof.proof.faithfulness import Infidelity, SensitivityN
from heatproof.proof.interventions import Test
from heatproof.proof.masking import AverageDrop, AverageIncrease
from heatproof.proof.stability import MaxSensitivity
from heatproof.proof.subject import Subject
from heatproof.proof.tokens import TokenDropping
from heatproof.proof.trial import FORWARDS

BUDGET = 400
"""Forwards per map, everything included."""

FEWEST = 19
"""Copies without which p cannot reach 0.05."""

_LEAST_SAMPLES = 8
"""Of a test whose number of samples follows the budget: a correlation of fewer pairs is noise."""

_FEWEST_POINTS, _FEWEST_SHARES = 3, 5
"""Of a curve of steps or regions, its ends not counted; and of one of shares in both orders."""

_FREE_COPIES = 2 * FEWEST + 1
"""Copies for a test that asks no more forwards of them: they still take memory."""

DEFAULT_TESTS = ("deletion", "insertion")

TESTS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Deletion,
        Insertion,
        Road,
        PixelFlipping,
        Infidelity,
        SensitivityN,
        AverageDrop,
        AverageIncrease,
        TokenDropping,
    )
}
"""The tests that `prove()` runs by name."""

_WITHOUT_COPIES = {
    Completeness.name: "elsewhere in the image it adds up to the same. heatproof.proof.completeness has it.",
    MaxSensitivity.name: "it makes new maps of noisy images. heatproof.proof.stability has it.",
}


@dataclass(frozen=True)
class Plan:
    """How a budget is spent on each map.

    Args:
        budget: forwards per map.
        copies: K, placements of the map elsewhere.
        textures: maps of the same spectrum.
        per_test: forwards for each single test.
    """

    budget: int
    copies: int
    textures: int
    per_test: int


def plan(budget: int | None, tests: int, rivals: int) -> Plan:
    """The copies that p cannot do without; of the rest two fifths for the tests, a quarter for textures, and more copies.

    The tests, and the textures, come to `FEWEST` copies each at the default budget: then every p can reach 0.05.

    Args:
        budget: forwards per map, None for `BUDGET`.
        tests: how many single tests are run.
        rivals: how many maps are measured beside it.

    Raises:
        InputError: too few forwards for `FEWEST` copies.
    """
    asked = BUDGET if budget is None else budget
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"budget={budget!r}; expected a whole number of forwards per map, or None for {BUDGET}.")

    def spend(total: int) -> Plan:
        # the image itself twice (here and for its target), the image with everything removed, the map, and its rivals
        free = max(0, total - 3 - FORWARDS * (1 + rivals))
        rest = max(0, free - FORWARDS * FEWEST)
        for_tests = 2 * rest // 5 if tests else 0
        textures = max(2, rest // (4 * FORWARDS))
        return Plan(total, (free - for_tests) // FORWARDS - textures, textures, for_tests // max(1, tests))

    found = spend(asked)
    if found.copies < FEWEST:
        enough = next(total for total in range(asked, asked + 10**4) if spend(total).copies >= FEWEST)
        raise InputError(
            f"budget={asked} forwards per map leave {max(0, found.copies)} copies to compare with, and p cannot reach 0.05; "
            f"expected {enough} or more."
        )
    return found


def by_name(tests: Any) -> dict[str, tuple[Test, bool]]:
    """Tests by their names, and whether their options may be fitted to the budget: those of a test that came as a name.

    Raises:
        MethodError: no such test.
    """
    several = isinstance(tests, Iterable) and not isinstance(tests, str)
    asked = DEFAULT_TESTS if tests is None else tests if several else [tests]
    found: dict[str, tuple[Test, bool]] = {}
    for one in asked:
        if isinstance(one, str):
            if one in _WITHOUT_COPIES:
                raise MethodError(f"{one!r} is no test of one map among its copies: {_WITHOUT_COPIES[one]}")
            if one not in TESTS:
                raise MethodError(f"there is no test {one!r}.{nearest(one, TESTS)} Known: {', '.join(TESTS)}.")
            found[one] = (TESTS[one](), True)
        elif isinstance(one, Test) and not isinstance(one, type):
            found[one.name] = (one, False)
        else:
            raise MethodError(
                f"a test came as {type(one).__name__}; expected a name of {', '.join(TESTS)}, or a test with options."
            )
    return found


def fitted(test: Test, elastic: bool, subject: Subject, forwards: int, most: int) -> tuple[Test, int]:
    """A test that costs about so many forwards per map, and how many copies of the map it can afford.

    A curve gets its fewest points first, then copies until p can reach 0.05, then more of both: a curve needs points, and its
    band needs curves. Where all maps share their forwards, because the test removes the same regions whatever they say,
    copies cost nothing, and the forwards buy samples.

    Args:
        test: as it was asked for.
        elastic: whether its number of steps, regions, shares, samples or repeats may follow the budget.
        subject: what it is run on.
        forwards: what there is to spend.
        most: copies it may have at most.

    Returns:
        The test, and 0 to `most` copies. It is run on the map itself in any case.
    """
    each = subject.targets.numel()
    if test.cost(subject, 2) == test.cost(subject, 1):
        if elastic and hasattr(test, "samples"):
            affordable = test.samples * forwards * each // max(1, test.cost(subject, 1))
            test = _changed(test, samples=max(_LEAST_SAMPLES, affordable))
        return test, min(most, _FREE_COPIES)
    if elastic:
        test = _sparser(test, forwards, subject.size)
    alone = test.cost(subject, 1)
    return test, max(0, min(most, (forwards * each - alone) // max(1, test.cost(subject, 2) - alone)))


def _sparser(test: Test, forwards: int, size: tuple[int, int]) -> Test:
    """A curve with as many points as leave forwards for its copies."""
    if isinstance(test, PixelFlipping):
        # fewer and larger squares: they cover as much of the image as those that were asked for
        asked, regions = test.length(size), _points(forwards, _FEWEST_POINTS)
        side = max(test.side, round(test.side * math.sqrt(asked / regions)))
        return replace(test, repeats=1, regions=min(regions, asked), side=side)
    if isinstance(test, Deletion | Insertion):
        return replace(test, steps=min(test.steps, 1 + _points(forwards, _FEWEST_POINTS)))
    if isinstance(test, Road | TokenDropping):  # in both orders, so each share costs two
        return replace(test, fractions=_thinned(test.fractions, max(2, _points(forwards // 2, _FEWEST_SHARES))))
    return test


def _points(forwards: int, fewest: int) -> int:
    """Points of a curve: the fewest, or those that leave `FEWEST` copies, but never more points than curves."""
    return max(1, min(math.isqrt(forwards), max(fewest, forwards // (1 + FEWEST))))


def _changed(test: Test, **options: Any) -> Test:
    changed: Any = test  # a dataclass, which no protocol can say
    return replace(changed, **options)


def _thinned(fractions: tuple[float, ...], count: int) -> tuple[float, ...]:
    """So many of them, evenly spread, the first and the last included; all where there are no more."""
    last = len(fractions) - 1
    return fractions if count > last else tuple(fractions[round(n * last / (count - 1))] for n in range(count))
