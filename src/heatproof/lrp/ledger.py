"""The ledger: a row for every operation, and the rows as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from heatproof.lrp.affine import Affine

COLUMNS = ("bias", "epsilon", "norm", "softmax")


@dataclass(eq=False)
class Row:
    """One operation in the ledger: what arrived from above, and what it absorbed, for each image."""

    place: str
    op: str
    rule: str = "autograd"
    arrived: Tensor | None = None
    absorbed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class LayerRow(Row):
    """A weighted layer in the ledger, and the row of the same with its batch norm.

    `reads` and `relus` count what took its output, and what of it hands nothing down to negative values.
    """

    layer: Affine
    merged: "LayerRow | None" = None
    reads: int = 0
    relus: int = 0

    @property
    def rectified(self) -> bool:
        """Whether no negative output can get relevance."""
        return 0 < self.reads == self.relus


def table(taken: Sequence[tuple], first: int, target: int) -> list[dict[str, Any]]:
    """Rows as dictionaries, one per operation that relevance reached, image and target.

    Args:
        taken: place, operation, rule, what arrived and what was absorbed of every row.
        first: number of the first image.
        target: number of the target.
    """
    rows = []
    for place, op, rule, arrived, absorbed in taken:
        amounts = {column: absorbed.get(column) for column in (*COLUMNS, *(c for c in absorbed if c not in COLUMNS))}
        if arrived is None and not absorbed:
            continue
        lost = sum(absorbed.values())
        arrived = lost if arrived is None else arrived
        for i in range(len(arrived)):
            values = {column: 0.0 if amount is None else float(amount[i]) for column, amount in amounts.items()}
            came = float(arrived[i])
            rows.append(
                {"image": first + i, "target": target, "place": place, "op": op, "rule": rule, "relevance_in": came,
                 "relevance_out": came - sum(values.values()), **values}
            )  # fmt: skip
    return rows
