"""A method's card: what an audit found out, like the label on a tin."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from heatproof.proof.bootstrap import Mean


@dataclass(frozen=True)
class CaseResult:
    """What a method made of one constructed network.

    Args:
        passed: whether the map says what is true; None where the method does not apply.
        value: the number that decides, averaged over layouts.
        sentence: what it is, in words.
    """

    passed: bool | None
    value: float
    sentence: str


@dataclass(frozen=True)
class Card:
    """A method's card.

    Args:
        method: its name.
        family: its family.
        model: the planted model that it was tried on.
        scenes: how many scenes.
        cases: by name of the constructed network.
        localisation: `pointing`, `energy` and `iou` on the scenes' objects, with 95 % intervals; and the same of a spot
            in the middle, as `center pointing` and so on.
        honest: Spearman correlation over scenes between the share of the map on the object and the object's share of
            what the model really uses, found by taking the object away and by changing the context.
        supported: share of the maps that `prove()` supports at p ≤ 0.05.
        kept: how much of the map's rank order is left when the model forgets everything.
        depends_on_model: whether that is less than half; None for methods that need no model.
        residual: share of the score that is not on the map but in its residual, median; None for methods that do not decompose.
        unbalanced: largest |parts + residual − score| / |score|; likewise.
        cost: time of one map in forwards of the same model, the median of repeats.
        deterministic: whether two runs gave the same map bit for bit.
        notes: what could not be measured, and why.
    """

    method: str
    family: str
    model: str
    scenes: int
    cases: dict[str, CaseResult] = field(default_factory=dict)
    localisation: dict[str, Mean] = field(default_factory=dict)
    honest: float | None = None
    supported: float | None = None
    kept: Mean | None = None
    depends_on_model: bool | None = None
    residual: float | None = None
    unbalanced: float | None = None
    cost: float = math.nan
    deterministic: bool = False
    notes: tuple[str, ...] = ()

    @property
    def finds(self) -> list[str]:
        """Constructed cases that it gets right."""
        return [name for name, case in self.cases.items() if case.passed]

    @property
    def misses(self) -> list[str]:
        """Constructed cases that it gets wrong."""
        return [name for name, case in self.cases.items() if case.passed is False]

    @property
    def sentences(self) -> list[str]:
        """The card in plain words."""
        said = [f"{self.method} ({self.family}), tried on {self.model}."]
        said += [f"{'Right' if one.passed else 'Wrong'}: {one.sentence}" for one in self.cases.values() if one.passed is not None]
        if self.localisation:
            energy, centre = self.localisation["energy"], self.localisation["center energy"]
            said.append(f"{energy.value:.0%} of the map lies on the planted object (a spot in the middle: {centre.value:.0%}).")
        if self.honest is not None:
            said.append(
                f"Its share on the object follows what the model really uses with a rank correlation of {self.honest:.2f}."
            )
        if self.supported is not None:
            said.append(f"Interventions support {self.supported:.0%} of its maps.")
        if self.kept is not None:
            verdict = "depends on the model" if self.depends_on_model else "does not depend on the model, or not surely"
            said.append(f"With everything randomised {self.kept.value:.2f} of its rank order is left: it {verdict}.")
        if self.residual is not None:
            said.append(f"{self.residual:.1%} of the score is not on the map but in its residual.")
        repeat = "The same map every time" if self.deterministic else "Another map each time"
        said.append(f"{repeat}, at the cost of {self.cost:.1f} forwards.")
        return said

    def record(self) -> dict[str, Any]:
        """The card as one flat row of plain values, as the table shows it."""
        shown = {name: self.localisation[name].value for name in ("pointing", "energy", "iou") if name in self.localisation}
        right, tried = len(self.finds), len(self.finds) + len(self.misses)
        return {
            "method": self.method,
            "family": self.family,
            "cases": f"{right}/{tried}" if tried else None,
            "misses": ", ".join(self.misses) or None,
            **{name: shown.get(name) for name in ("pointing", "energy", "iou")},
            "honest": self.honest,
            "supported": self.supported,
            "kept": None if self.kept is None else self.kept.value,
            "residual": self.residual,
            "forwards": self.cost,
        }

    def to_json(self) -> str:
        """Everything as one JSON document."""
        document = asdict(self) | {
            "finds": self.finds,
            "misses": self.misses,
            "sentences": self.sentences,
        }
        return json.dumps(_plain(document))

    def __repr__(self) -> str:
        return "\n".join(self.sentences + [f"note: {note}" for note in self.notes])


def markdown(cards: Sequence[Card]) -> str:
    """Cards as a table in Markdown."""
    records = [card.record() for card in cards]
    heads = list(records[0])
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for record in records:
        cells = ["–" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in record.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
