"""A drawn cell made into a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from samebits.backends.contract import Availability, Implementation
from samebits.backends.problem import Problem
from samebits.harness.executor import Executor, reasons_against
from samebits.harness.findings import Findings
from samebits.harness.judgement import TakeFound, judge_examined
from samebits.harness.matrix import Cell
from samebits.harness.properties.batches import Range, batches, data_of
from samebits.harness.properties.cases import DrawnCase
from samebits.harness.properties.draws import Draws
from samebits.harness.properties.gaps import in_known_gap
from samebits.harness.properties.search import merged, search
from samebits.harness.records import Record
from samebits.harness.relations import AnyProblem, Comparison


def judge_drawn(
    cell: Cell,
    availability: Availability,
    executor: Executor,
    command: str,
    options: Sequence[str],
    draws: Draws,
    take_found: TakeFound | None = None,
) -> Record:
    """Draws the batches of a cell, runs them, and says what they came to.

    Args:
        cell: whose case is a `DrawnCase`.
        availability: of its implementation.
        executor: runs its implementation.
        command: reproduces the cell alone.
        options: words by which `samebits repro` loads what this session loaded.
        draws: how batches are drawn. Those of controls are always the same.
        take_found: is given the record of a cell that fails, before its batch is made smaller; None for nobody.
    """
    case = cell.case
    assert isinstance(case, DrawnCase), "a drawn cell has a drawn case"
    how = Draws() if cell.flaw or cell.parent else draws

    def examine(hand_on: Callable[[Findings], None]) -> Findings | tuple[str, ...]:
        claimed = cell.relation.claim is not None and bool(getattr(executor.subject.claims, cell.relation.claim))
        searched = search(
            drawn_comparisons(cell, availability.device),
            cell.relation,
            executor,
            case.limits,
            how.of(cell),
            fails_by_bits=claimed or cell.flaw is not None,
            take_first_failure=hand_on,
        )
        if searched.failure is not None:
            if searched.failure.findings is None:
                raise searched.failure.raised  # type: ignore[misc]
            return searched.failure.findings
        if not searched.findings:
            return (f"it supports none of the batches that were drawn for {cell.relation.name}",)
        return merged(searched.findings)

    def as_drawn(record: Record) -> Record:
        configuration = {**record.configuration, **how.configuration(case.limits.examples)}
        # What was drawn for one night is no other's.
        digest = record.digest if how.seed is None else ""
        return replace(record, configuration=configuration, digest=digest)

    take = None if take_found is None else lambda found: take_found(as_drawn(found))
    return as_drawn(judge_examined(cell, availability, executor, command, options, examine, take))


@st.composite
def drawn_comparisons(draw: st.DrawFn, cell: Cell, device: str) -> Comparison:
    """Comparisons of a cell's relation, of batches that its implementation supports and is not known to fail on.

    Args:
        draw: of Hypothesis.
        cell: of attention.
        device: that its implementation computes on.
    """
    implementation, relation, case = cell.implementation, cell.relation, cell.case
    assert isinstance(implementation, Implementation)
    assert isinstance(case, DrawnCase)
    bounds = case.bounds
    drawn_from = Range(implementation, cell.dtype, cell.seed, bounds, data_of(relation.claim is not None, case.finite))

    def fits(problem: AnyProblem) -> bool:
        return (
            isinstance(problem, Problem)
            and bounds.hold(problem)
            and any(request.query_len for request in problem.requests)
            and not in_known_gap(implementation, problem, relation.name, device)
            and not reasons_against(implementation, problem)
        )

    problem = draw(batches(drawn_from))
    made = [
        comparison
        for comparison in relation.compare(problem, implementation.tiling)
        if comparison.left != comparison.right and all(map(fits, (*comparison.left, *comparison.right)))
    ]
    assume(made)
    return draw(st.sampled_from(made))
