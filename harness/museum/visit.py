"""Planted bugs run through the ordinary suites, each beside the implementation that it is a mutant of."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from samebits.harness.matrix import Cell
from samebits.harness.museum.catalogue import Exhibit, Search
from samebits.harness.records import Record, UnusableInput, Verdict
from samebits.harness.session import MatrixSession, Options

# What a correct implementation may come to: what it does not claim, or says that it cannot compute, is no fault.
SOUND = (Verdict.PASS, Verdict.VARIES, Verdict.UNSUPPORTED, Verdict.KNOWN)


@dataclass(frozen=True)
class Finding:
    """What became of a planted bug.

    Attributes:
        exhibit: the bug.
        seen_by: the checks that saw it, by suite.
        seen, ran: cells that saw it, and cells that were computed.
        seconds: that the cells up to the first that saw it took; None where none did.
        parent: how often the parent, in the same cells, came to each verdict.
        faults: cells of the parent that are red, each with its reasons.
    """

    exhibit: Exhibit
    seen_by: Mapping[str, tuple[str, ...]]
    seen: int
    ran: int
    seconds: float | None
    parent: Mapping[Verdict, int]
    faults: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether a user would have seen the bug, and have seen nothing on the kernel without it."""
        return self.seen > 0 and not self.faults


def visit(exhibits: Iterable[Exhibit]) -> Iterator[Finding]:
    """Runs planted bugs, one after another.

    Raises:
        UnusableInput: a bug can no longer be planted, or its suites have no cell of it.
    """
    for exhibit in exhibits:
        pairs = [pair for search in exhibit.searches for pair in _run(exhibit, search)]
        yield _finding(exhibit, pairs)


def _run(exhibit: Exhibit, search: Search) -> Iterator[tuple[Record, Record]]:
    """The records of a mutant in one suite, each with that of its parent in the same cell."""
    labels = (exhibit.label, exhibit.parent)
    session = MatrixSession(Options(implementations=labels, load=(exhibit.path,)))
    cells = [cell for cell in session.cells(search.suite) if cell.flaw is None and is_searched(cell, search)]
    parents = {_name(cell): cell for cell in cells if cell.implementation.label == exhibit.parent}
    mutants = [cell for cell in cells if cell.implementation.label == exhibit.label]
    if not mutants:
        raise UnusableInput(f"{search.suite} has no cell of {exhibit.label} on cases {search.cases!r}")
    for cell in mutants:
        yield session.run(cell), session.run(parents[_name(cell)])


def is_searched(cell: Cell, search: Search) -> bool:
    """Whether a cell of a search's suite is one of its cells."""
    fits = fnmatch.fnmatchcase(cell.case.case_id, search.cases)
    return fits and (not search.dtypes or cell.dtype in search.dtypes)


def _name(cell: Cell) -> tuple[str, str, str, str]:
    """Names a cell but for its implementation."""
    return cell.implementation.operation, cell.relation.name, cell.case.case_id, cell.dtype


def _finding(exhibit: Exhibit, pairs: Iterable[tuple[Record, Record]]) -> Finding:
    seen_by: dict[str, dict[str, None]] = {}
    seconds, first, seen, ran = 0.0, None, 0, 0
    parent: Counter[Verdict] = Counter()
    faults = []
    for record, correct in pairs:
        parent[correct.verdict] += 1
        if correct.verdict not in SOUND:
            faults.append(f"{correct.cell_id} came to {correct.verdict}: {'; '.join(correct.reasons)}")
        seconds += record.seconds
        ran += record.verdict not in (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE)
        if exhibit.is_seen_in(record):
            seen += 1
            first = seconds if first is None else first
            seen_by.setdefault(record.suite, {})[record.relation] = None
    relations = {suite: tuple(names) for suite, names in seen_by.items()}
    return Finding(exhibit, relations, seen, ran, first, parent, tuple(faults))
