"""What the command line says: lines and a progress bar on stderr, tables and JSON on stdout."""

import json
import math
import sys
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PATIENCE = 2.0
"""Seconds before a progress bar appears."""

_WIDE = 160
"""Columns of a table that goes to a file or pipe."""


@runtime_checkable
class _Scored(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def error(self) -> str | None: ...


Row = TypeVar("Row", bound=_Scored)
"""What came of one image: its name, and why it failed if it did."""


def one_line(value: Any) -> str:
    """Text without line breaks, control characters or bytes that no terminal can show."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else "�" for c in text)


class Voice:
    """Speaks on stderr, one line at a time, and shows a bar there once a piece of work has taken two seconds."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._lock = threading.Lock()
        self._over = False

    def say(self, text: Any) -> None:
        """Print one line."""
        self.console.print(Text(f"heatproof: {one_line(text)}"), soft_wrap=True)

    def __enter__(self) -> "Voice":
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True
        if self.console.is_terminal:  # a log file wants no bar
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=self.console, transient=True)
            self._task = self._bar.add_task("starting", total=None)
            self._timer.start()
        return self

    def work(self, description: str, total: int | None = None) -> None:
        """Name the piece of work that begins, and its number of steps where it is known."""
        if self._bar is not None:
            self._bar.update(self._task, description=one_line(description), total=total, completed=0)

    def step(self, count: int = 1) -> None:
        """So many steps are done."""
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def collect(self, rows: Iterable[Row], failed: dict[str, str]) -> list[Row]:
        """Rows as they come, a step for each; what went wrong is said at once, and noted in `failed` by name."""
        found = []
        for row in rows:
            found.append(row)
            if row.error is not None:
                self.say(row.error)
                failed[row.name] = row.error
            self.step()
        return found

    def _show(self) -> None:
        with self._lock:
            if self._bar is not None and not self._over:
                self._bar.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._bar is not None and self._bar.live.is_started:
                self._bar.stop()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows on stdout; numbers are aligned right. Long cells are folded, never cut."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _WIDE))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        number = any(isinstance(row[n], float) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else one_line(value)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON cannot hold become null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
