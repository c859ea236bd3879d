"""A run held against a baseline: what became of every cell, by rules that are data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from samebits.harness.records import Record, Run, Verdict
from samebits.reports.baseline import Baseline, BaselineRow, Scope, changed_versions, changes


class State(StrEnum):
    """What became of a cell since the baseline.

    * `SAME`: the verdict, and every bit.
    * `NEW_BITS`: other bits, neither better nor worse.
    * `BETTER`: a better verdict, or other bits that use much less of the error budget.
    * `REGRESSED`: a worse verdict, or other bits that use much more of the error budget.
    * `NEW`: the baseline covers this device, and does not know the cell.
    * `MISSING`: the baseline knows the cell, the run should have produced it, and did not.
    * `NO_BASELINE`: nothing to compare with for this device, number of threads or kernel configuration.
    """

    SAME = "same"
    NEW_BITS = "new bits"
    BETTER = "better"
    REGRESSED = "regressed"
    NEW = "new"
    MISSING = "missing"
    NO_BASELINE = "no baseline"


class Result(Protocol):
    """What the rules look at of a cell: attributes of a record, of a row of a baseline, or of the like."""

    @property
    def control(self) -> bool:
        """As in a record."""

    @property
    def verdict(self) -> Verdict:
        """As in a record."""

    @property
    def error_budget(self) -> float | None:
        """As in a record."""

    @property
    def digest(self) -> str:
        """As in a record."""


@dataclass(frozen=True)
class Rules:
    """What counts as a change for better or worse.

    Attributes:
        order: verdicts from the best to the worst. An implementation that says it cannot compute a problem is better
            than one that fails as is known, and both are better than one that cannot run.
        must_stay_available: whether a cell that ran, to whatever end, is worse when it can no longer run.
        budget_factor: other bits are worse or better when the error budget used grows or shrinks by more than this.
        budget_floor: changes below this share of the error budget are noise.
    """

    order: tuple[Verdict, ...] = (
        Verdict.PASS,
        Verdict.VARIES,
        Verdict.UNSUPPORTED,
        Verdict.KNOWN,
        Verdict.UNAVAILABLE,
        Verdict.FAIL,
        Verdict.ERROR,
    )
    must_stay_available: bool = True
    budget_factor: float = 1.5
    budget_floor: float = 0.1

    def state(self, old: Result, new: Result) -> State:
        """What became of a cell that both sides have."""
        before, after = self._rank(old), self._rank(new)
        lost = new.verdict is Verdict.UNAVAILABLE is not old.verdict
        if after > before or (lost and self.must_stay_available):
            return State.REGRESSED
        if after < before:
            return State.BETTER
        if old.digest == new.digest:
            return State.SAME
        if not new.control:
            if self._much_more(old.error_budget, new.error_budget):
                return State.REGRESSED
            if self._much_more(new.error_budget, old.error_budget):
                return State.BETTER
        return State.NEW_BITS

    def _rank(self, row: Result) -> int:
        """Place in the order; of a control there are two, caught and not, and it is caught by failing."""
        return int(row.verdict is not Verdict.FAIL) if row.control else self.order.index(row.verdict)

    def _much_more(self, small: float | None, large: float | None) -> bool:
        if small is None or large is None or math.isnan(small):
            return False
        return math.isnan(large) or (large > self.budget_floor and large > self.budget_factor * small)


RULES = Rules()


@dataclass(frozen=True)
class ComparedCell:
    """A cell and what became of it.

    Attributes:
        record: of the run; None where the cell is missing.
        row: of the baseline; None where there is none to compare with.
        state: what became of it.
        note: what changed, in a few words; empty where nothing did.
        versions: old and new of those that changed, by name.
    """

    record: Record | None
    row: BaselineRow | None
    state: State
    note: str
    versions: Mapping[str, tuple[str, str]]

    @property
    def known(self) -> Record | BaselineRow:
        """The record, or the baseline's row of a missing cell: what both have can be read from it."""
        known = self.record or self.row
        assert known is not None, "a compared cell comes from a record or from a row"
        return known


@dataclass(frozen=True)
class Comparison:
    """A run and what became of its cells.

    Attributes:
        run: the run.
        baseline: name of what it was compared with.
        cells: implementations in the run's order, then cells by id; controls and missing cells among them.
    """

    run: Run
    baseline: str
    cells: tuple[ComparedCell, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The run's records in the order of the cells, which is the same however the run was spread over processes."""
        return tuple(cell.record for cell in self.cells if cell.record is not None)

    @property
    def counts(self) -> Mapping[State, int]:
        """Cells by state."""
        counted = Counter(cell.state for cell in self.cells)
        return {state: counted[state] for state in State}

    @property
    def regressed(self) -> bool:
        """Whether a cell regressed or is missing, or may have: nothing is known of what a run that was cut off left."""
        return self.run.truncated or self._worse

    @property
    def undecided(self) -> bool:
        """Whether nothing regressed in what a run that was cut off did."""
        return self.run.truncated and not self._worse

    @property
    def _worse(self) -> bool:
        return any(cell.state in (State.REGRESSED, State.MISSING) for cell in self.cells)

    @property
    def changed_versions(self) -> Mapping[tuple[str, str, str], int]:
        """How many cells were compared across a change of version, by name, old and new version."""
        return Counter((name, old, new) for cell in self.cells for name, (old, new) in sorted(cell.versions.items()))


def compare(run: Run, baseline: Baseline, rules: Rules = RULES) -> Comparison:
    """Compares each cell of a run with its row of a baseline, and finds the rows that no cell produced.

    Args:
        run: to compare.
        baseline: to compare with. Rows for other devices or numbers of threads are left alone.
        rules: what counts as a change for better or worse.
    """
    places = {row.place for row in baseline.rows}
    cells = [_compared(record, run, baseline, places, rules) for record in run.records]
    scope = Scope.of(run)
    missing = {row.cell_id: row for row in baseline.rows_to_ask_for(run.header) if scope.misses(row)}
    cells += [ComparedCell(None, row, State.MISSING, f"was {row.verdict}", {}) for row in missing.values()]
    labels = {label: place for place, label in enumerate(run.header.implementations)}
    cells.sort(key=lambda cell: (labels.get(cell.known.label, len(labels)), cell.known.label, cell.known.cell_id))
    return Comparison(run, baseline.name, tuple(cells))


def _compared(record: Record, run: Run, baseline: Baseline, places: set[tuple[str, int]], rules: Rules) -> ComparedCell:
    new = BaselineRow.of(record, run.header)
    old = baseline.row_for(record, run.header)
    if old is None:
        elsewhere = [row for row in baseline.rows_of(record.cell_id) if row.place == new.place]
        if elsewhere:
            return ComparedCell(record, None, State.NO_BASELINE, _configuration_change(elsewhere[0], new), {})
        return ComparedCell(record, None, State.NEW if new.place in places else State.NO_BASELINE, "", {})
    state = rules.state(old, new)
    return ComparedCell(record, old, state, _note(old, new, state), changed_versions(old, new))


def _configuration_change(old: BaselineRow, new: BaselineRow) -> str:
    changed = changes(old.configuration, new.configuration)
    told = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in changed.items())
    return f"kernel configuration changed: {told}"


def _note(old: BaselineRow, new: BaselineRow, state: State) -> str:
    if state is State.SAME:
        return ""
    if old.verdict is not new.verdict:
        return f"{old.verdict} -> {new.verdict}"
    if old.error_budget is None or new.error_budget is None or state is State.NEW_BITS:
        return "other bits"
    return f"error budget {old.error_budget:.3g} -> {new.error_budget:.3g}"
