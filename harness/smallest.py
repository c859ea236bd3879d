"""The smallest comparison found that fails as a cell did: what a record tells, and what is run again."""

from __future__ import annotations

from collections.abc import Callable

from samebits.harness.executor import Executor, reasons_against
from samebits.harness.findings import Findings, Located, find, first_difference
from samebits.harness.full_sizes import FullCase
from samebits.harness.matrix import Cell
from samebits.harness.relations import AnyProblem, Comparison
from samebits.harness.shrink import shrink

# Smaller batches to try for each failure: enough for the pairs of a case's requests, few enough for an interpreter.
_ATTEMPTS = 12
_COSTLY_ATTEMPTS = 4
# Where somebody asks for one cell.
_PATIENT_ATTEMPTS = 100


def failing_comparison(findings: Findings) -> Comparison | None:
    """The comparison that failed as it was found, before anything smaller is tried; None where nothing failed."""
    for problem in (findings.faulty_problem, findings.worst_problem if findings.wrong else None):
        if problem is not None:
            return Comparison((problem,), ())
    return None if findings.first is None else findings.first.comparison


def smallest_failure(cell: Cell, findings: Findings, executor: Executor, *, expected: bool) -> Comparison | None:
    """The smallest comparison found that fails as a cell did; None where nothing failed.

    What is wrong by itself comes before what differs: correctness does, too.

    Args:
        cell: what was checked.
        findings: what it came to.
        executor: runs its implementation.
        expected: whether it was known to fail, as a control is: what is wrong by itself is then taken as it is.
    """
    for problem, fails in (
        (findings.faulty_problem, lambda found: bool(found.faults)),
        (findings.worst_problem if findings.wrong else None, lambda found: found.wrong),
    ):
        if problem is not None:
            attempts = 0 if expected else _attempts(cell, executor)
            return _smallest_problem(cell, problem, findings.worst_request, fails, attempts, executor)
    return None if findings.first is None else smallest_difference(cell, findings.first, executor).comparison


def smallest_difference(cell: Cell, first: Located, executor: Executor, *, patient: bool = False) -> Located:
    """The first difference of the smallest comparison found that shows one.

    Args:
        cell: what was checked.
        first: a difference.
        executor: runs its implementation.
        patient: whether to try more smaller comparisons than a cell of a run is worth.
    """

    def differs(comparison: Comparison) -> bool:
        return first_difference(comparison, executor) is not None

    attempts = _PATIENT_ATTEMPTS if patient else _attempts(cell, executor)
    smallest = shrink(first.comparison, _computable(differs, executor), attempts, first.request_key)
    return first_difference(smallest, executor) or first


def _smallest_problem(
    cell: Cell,
    problem: AnyProblem,
    victim: int | None,
    fails: Callable[[Findings], bool],
    attempts: int,
    executor: Executor,
) -> Comparison:
    def still_fails(comparison: Comparison) -> bool:
        return fails(find([comparison], cell.relation, executor))

    keys = [request.key for request in problem.requests]
    kept = victim if victim in keys else keys[0]
    assert kept is not None
    return shrink(Comparison((problem,), ()), _computable(still_fails, executor), attempts, kept)


def _computable(fails: Callable[[Comparison], bool], executor: Executor) -> Callable[[Comparison], bool]:
    """Whether a comparison fails, where its problems can be computed."""

    def computed(comparison: Comparison) -> bool:
        problems = (*comparison.left, *comparison.right)
        if any(reasons_against(executor.subject, problem) for problem in problems):
            return False
        try:
            return fails(comparison)
        except Exception:
            # A smaller batch that raises is another matter, and must not hide the failure that was found.
            return False

    return computed


def _attempts(cell: Cell, executor: Executor) -> int:
    # At full size each other length is drawn anew, and has a reference of its own.
    costly = executor.subject.costly or isinstance(cell.case, FullCase)
    return _COSTLY_ATTEMPTS if costly else _ATTEMPTS
