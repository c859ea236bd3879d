"""Every cell as data for the page's script: columns, in which what repeats is a number that stands for it.

A line of records has 1,100 characters, of which most repeat; here a cell has about 70, so that a page of 14,000 cells
stays near a megabyte. The script puts them together again.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from samebits.harness.records import Record
from samebits.reports import text
from samebits.reports.accumulation_words import short_lines
from samebits.reports.commands import portable
from samebits.reports.html.marks import MARKS, mark_of
from samebits.reports.regression import ComparedCell, Comparison, State

# In JSON these stand in strings alone, and there an escape means the same: no text can end the element that it is in.
_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
# More than are shown.
_SIGNIFICANT_DIGITS = 3
_CHANGED_FIRST = (
    State.REGRESSED,
    State.MISSING,
    State.NEW_BITS,
    State.BETTER,
    State.NEW,
    State.NO_BASELINE,
    State.SAME,
)


class _Interned:
    """Distinct values in order of first mention, each referred to by its place."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}

    def place(self, value: Hashable) -> int:
        return self._places.setdefault(value, len(self._places))

    @property
    def values(self) -> list[Hashable]:
        return list(map(_plain, self._places))


class _Cells:
    """Gathers cells into tables of what repeats, columns of numbers, and what few cells have."""

    def __init__(self) -> None:
        words = ("environments", "kernels", "words", "checks", "dtypes", "outcomes", "reasons", "lines", "commands")
        self.tables = {name: _Interned() for name in (*words, "batches", "drifts", "digests")}
        self.columns: dict[str, list[Any]] = {}
        self.rare: dict[str, dict[int, Any]] = {}
        self.count = 0

    def add(self, cell: ComparedCell, drift: str) -> None:
        known, record = cell.known, cell.record
        relation, case = (record.relation, record.case) if record else parts_of(known.cell_id, known.label)
        check = (known.suite, relation, case, *_problem(record), known.tier)
        told = {
            "kernel": self._place("kernels", self._kernel(cell)),
            "check": self._place("checks", tuple(self._place("words", word) for word in check)),
            "dtype": self._place("dtypes", known.dtype),
            "outcome": self._place("outcomes", _outcome(cell)),
            "reasons": self._place("reasons", record.reasons if record else ()),
            "command": self._place("commands", _command(record)),
            "drift": self._place("drifts", drift),
            "batch": self._place("batches", record.smallest_batch if record else ""),
            "compared": record.compared if record else 0,
            "mismatches": record.mismatches if record else 0,
            "seconds": _short(record.seconds) if record else 0,
            "ulp": known.max_ulp,
            "budget": _short(known.error_budget),
            "digest": self._place("digests", known.digest if record else ""),
        }
        for name, value in told.items():
            self.columns.setdefault(name, []).append(value)
        for name, value in self._rare(cell, relation, case).items():
            if value:
                self.rare.setdefault(name, {})[self.count] = value
        self.count += 1

    def _place(self, table: str, value: Hashable) -> int:
        return self.tables[table].place(value)

    def _kernel(self, cell: ComparedCell) -> Hashable:
        known, environment = cell.known, cell.known.environment
        versions = pairs(environment.versions)
        machine = f"{environment.device}; {text.counted(environment.threads, 'thread')}; {versions}"
        operation = cell.record.operation if cell.record else ""
        configuration = pairs(known.configuration)
        return known.label, known.version, operation, configuration, self._place("environments", machine)

    def _rare(self, cell: ComparedCell, relation: str, case: str) -> dict[str, Any]:
        known, record, row = cell.known, cell.record, cell.row
        parts = (known.label, relation, case, known.dtype, *([f"seed{known.seed}"] if known.seed else []))
        usual = ":".join(map(text.plain, parts))
        changed = row is not None and cell.state is not State.SAME
        return {
            "id": cell_id if (cell_id := text.plain(known.cell_id)) != usual else "",
            "seed": known.seed,
            "repro": text.plain(portable(record.repro)) if record and record.repro else "",
            "why": [self._place("lines", line) for line in short_lines(record.explanation)]
            if record and record.explanation
            else None,
            "resources": _resources(record),
            "before": [row.verdict, _short(row.error_budget), row.max_ulp, row.digest] if row and changed else None,
        }


def cell_data(comparison: Comparison, drifts: Mapping[str, str]) -> str:
    """All cells as JSON that can stand in an element of HTML.

    Args:
        comparison: of the run.
        drifts: when a cell's bits last changed, in a sentence, by its id; empty where no history is told.
    """
    cells = _Cells()
    for cell in in_listed_order(comparison.cells):
        cells.add(cell, drifts.get(cell.known.cell_id, ""))
    data = {
        "count": cells.count,
        "marks": [[mark.name, mark.symbol, mark.tone] for mark in MARKS],
        "tables": {name: table.values for name, table in cells.tables.items()},
        "columns": {name: _packed(column) for name, column in cells.columns.items()},
        "rare": cells.rare,
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPED)


def _packed(column: Sequence[Any]) -> Sequence[Any] | dict[str, list[Any]]:
    """A column as it is, or as each value with how often it follows itself, whichever is shorter."""
    runs = [part for value, run in itertools.groupby(column) for part in (value, sum(1 for _ in run))]
    return {"runs": runs} if len(runs) < len(column) else column


def in_listed_order(cells: Sequence[ComparedCell]) -> list[ComparedCell]:
    """Cells as the page lists them: the worst first, then what changed, then as the run has them."""
    marks = {mark: place for place, mark in enumerate(MARKS)}
    return sorted(cells, key=lambda cell: (marks[mark_of(cell)], _CHANGED_FIRST.index(cell.state)))


def parts_of(cell_id: str, label: str) -> tuple[str, str]:
    """Relation and case by a cell's id alone, which is `LABEL:relation:case:dtype`, or that and `:seedN`.

    A row of a baseline has nothing else of them.
    """
    relation, _, rest = cell_id.removeprefix(f"{label}:").partition(":")
    case, _, _ = re.sub(r":seed\d+$", "", rest).rpartition(":")
    return relation, case


def pairs(values: Mapping[str, str]) -> str:
    """Names and values with commas, in order of the names."""
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _problem(record: Record | None) -> tuple[str, str]:
    return (record.mask, record.geometry) if record else ("", "")


def _resources(record: Record | None) -> str:
    return pairs({name: f"{value:,}" for name, value in record.resources.items()}) if record else ""


def _outcome(cell: ComparedCell) -> Hashable:
    claimed = cell.record.claimed if cell.record else None
    versions = ", ".join(f"{name} {old} → {new}" for name, (old, new) in cell.versions.items())
    return MARKS.index(mark_of(cell)), cell.state.value, claimed, cell.note, versions


def _command(record: Record | None) -> Hashable:
    """The command, and whether the cell's id follows it."""
    if record is None:
        return "", False
    cell_id = shlex.quote(record.cell_id)
    if record.command.endswith(f" {cell_id}"):
        return _portable_options(record.command.removesuffix(cell_id)), True
    return portable(record.command), False


@functools.cache
def _portable_options(options: str) -> str:
    """All of a command but the cell's id: the same for thousands of cells."""
    return portable(options)


def _plain(value: Any) -> Any:  # noqa: ANN401 -- of JSON's types
    """A value with every text in it on one line, and made of characters alone: an address must be able to hold it."""
    if isinstance(value, str):
        return text.plain(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _short(value: float | None) -> float | str | None:
    """A number in as few characters as say it; of what is no number its name, as records have it."""
    if value is None:
        return None
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if not math.isfinite(rounded):
        return value  # The largest numbers that there are have nothing to be rounded up to.
    return int(rounded) if rounded.is_integer() else rounded
