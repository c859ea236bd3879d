"""What a suite says of an implementation, found out in this process: its cells, their records, and which are red."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from samebits.backends.subject import Subject
from samebits.harness.executor import Executor
from samebits.harness.judgement import judge
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.suite_cells import SUITES


def cells_of(suite: str, *subjects: Subject, tier: str = "default", dtypes: tuple[str, ...] = ()) -> list[Cell]:
    """The cells of some implementations in a suite, and of no control."""
    return [cell for cell in SUITES[suite](Selection(subjects, dtypes, tier)) if cell.implementation in subjects]


def records_of(cells: Iterable[Cell]) -> list[Record]:
    """Judges cells one after another, with one executor for each implementation, as a session does."""
    executors: dict[Subject, Executor] = {}
    records = []
    for cell in cells:
        subject = cell.implementation
        availability = subject.probe()
        if subject not in executors:
            executors[subject] = Executor(subject, torch.device(availability.device))
        records.append(judge(cell, availability, executors[subject], "command"))
    return records


def record_of(cell: Cell) -> Record:
    """Judges a cell."""
    (record,) = records_of([cell])
    return record


def records_of_check(suite: str, subject: Subject, check: str, case: str = "") -> dict[str, Record]:
    """One check of an implementation in the default tier, on cases in whose names `case` occurs: by case and dtype."""
    cells = [cell for cell in cells_of(suite, subject) if cell.relation.name == check and case in cell.case.case_id]
    assert cells, f"{suite} has no cell of {check} on a case of {case!r}"
    return {f"{record.case}:{record.dtype}": record for record in records_of(cells)}


def red(records: Mapping[str, Record]) -> set[str]:
    """The names of those that failed."""
    return {name for name, record in records.items() if record.verdict is Verdict.FAIL}
