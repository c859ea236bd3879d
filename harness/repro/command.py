"""`samebits repro`: one comparison of one implementation again, apart from its cell and from pytest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samebits.backends.subject import Subject
from samebits.harness.cases import GivenCase
from samebits.harness.declarations import CONTROL_BACKEND
from samebits.harness.explain.row import OF_A_QUESTION, explained
from samebits.harness.explanation import Explanation
from samebits.harness.findings import ComputationFailed, Findings, find
from samebits.harness.judgement import computing_reasons, told_error
from samebits.harness.matrix import Cell
from samebits.harness.records import UnusableInput
from samebits.harness.relations import Comparison
from samebits.harness.repro.grammar import parsed
from samebits.harness.repro.settings import operation_of
from samebits.harness.session import MatrixSession, Options
from samebits.harness.shrink import describe
from samebits.harness.suite_cells import SUITES


@dataclass(frozen=True)
class Replay:
    """What a comparison came to when it was run again.

    Attributes:
        label: of the implementation.
        relation: name of the relation.
        comparison: what was run.
        findings: what it came to; None where the implementation raised something.
        raised: what it raised; empty where it did not.
        explanation: of its first difference, where it was asked for and there is one.
    """

    label: str
    relation: str
    comparison: Comparison
    findings: Findings | None
    raised: str = ""
    explanation: Explanation | None = None

    @property
    def fails(self) -> bool:
        """Whether anything is wrong, or any bit differs, whatever is claimed."""
        found = self.findings
        return found is None or found.first is not None or found.wrong or bool(found.faults)

    def to_text(self) -> str:
        """For a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.label}, {self.relation}: {describe(self.comparison)}"
        if self.findings is None:
            yield f"raised: {self.raised}"
            return
        found = self.findings
        if found.first is not None:
            apart = f"at most {found.max_ulp} ULP apart"
            yield f"bits: {found.mismatches} of {found.compared} elements differ, {apart}; first {found.first}"
        elif self.comparison.right:
            yield f"bits: {found.compared} elements compared, and all agree"
        if found.worst:
            excess = "too much, " if found.wrong else ""
            yield f"error budget: {found.error_budget:.3g} used, {excess}at {found.worst}"
        yield from (f"fault: {fault}" for fault in found.faults)
        yield "it fails" if self.fails else "it passes"


def replay(
    label: str,
    relation: str,
    text: str,
    load: Sequence[Path],
    libs: Sequence[Path],
    threads: int = 1,
    *,
    explain: bool = False,
) -> Replay:
    """Runs a comparison again.

    Args:
        label: of the implementation; a control's, too.
        relation: name of the relation that the comparison is of.
        text: the comparison; see `samebits.harness.repro.grammar`.
        load: Python files of further backends.
        libs: folders of vendors' libraries.
        threads: intra-operation threads.
        explain: whether to say why its sides differ, where they do.

    Raises:
        UnusableInput: the text is no comparison, its sides have nothing in common, something of that name is unknown,
            or the implementation cannot compute it here.
    """
    comparison = parsed(text)
    problem = comparison.left[0]
    session = MatrixSession(Options(load=tuple(load), libs=tuple(libs), threads=threads))
    # What there is of implementations and relations is what the suites have cells of.
    cells = [cell for suite in SUITES.values() for cell in suite(session.selection)]
    operation = operation_of(problem)
    subject = _subject(cells, label, operation)
    relations = {cell.relation.name: cell.relation for cell in cells if cell.implementation.operation == operation}
    if relation not in relations:
        raise UnusableInput(f"unknown relation {relation!r} of {operation}; known are {', '.join(relations)}")
    asked = replace(relations[relation], compare=lambda problem, tiling: (comparison,))
    cell = Cell("repro", subject, asked, GivenCase(problem), problem.dtype, "default", problem.seed)
    availability = session.availability(subject)
    reasons = (availability.reason,) if availability.reason else computing_reasons(cell, availability)
    if reasons:
        raise UnusableInput(f"{label} cannot compute this here: {'; '.join(reasons)}")
    executor = session.executor(cell)
    try:
        findings = find(cell.comparisons, asked, executor)
    except ComputationFailed as error:
        return Replay(label, relation, comparison, None, told_error(error.__cause__ or error))
    if comparison.right and not findings.compared:
        raise UnusableInput("both sides have no position of one request in common; they must share one to be compared")
    explanation = None
    if explain and findings.first is not None:
        explanation = explained(findings.first, executor, OF_A_QUESTION)
    return Replay(label, relation, comparison, findings, explanation=explanation)


def _subject(cells: Sequence[Cell], label: str, operation: str) -> Subject:
    """The implementation of a label that computes an operation."""
    subjects: dict[str, Subject] = {}
    for cell in cells:
        for subject in (cell.implementation, cell.parent):
            if subject is not None and subject.operation == operation:
                subjects.setdefault(subject.label, subject)
    if label not in subjects:
        known = ", ".join(name for name in subjects if not name.startswith(f"{CONTROL_BACKEND}/"))
        raise UnusableInput(f"unknown implementation {label!r} of {operation}; known are {known}, and the controls")
    return subjects[label]
