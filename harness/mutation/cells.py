"""The cells that tell of a mutant, the cheapest of each case first, and what the unchanged kernel comes to in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from samebits.backends.problem import Problem
from samebits.harness.matrix import Cell
from samebits.harness.mutation.sources import Group
from samebits.harness.records import Record, Verdict
from samebits.harness.relations import AnyProblem
from samebits.harness.repeats import SECOND_PROCESS
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES

CellName = tuple[str, str]


def name_of(cell: Cell) -> CellName:
    """Names a cell in all processes: its suite and its id."""
    return cell.suite, cell.cell_id


def session_of(group: Group) -> MatrixSession:
    """The matrix of one implementation, as users have it.

    Raises:
        UnusableInput: it is not registered.
    """
    return MatrixSession(Options(implementations=(group.label,)))


def cells_of(session: MatrixSession, group: Group) -> list[Cell]:
    """The cells of a group in all suites, without controls.

    Nor are there those of a second process: what takes the place of a source does so in this process alone.
    """
    every = (cell for suite in SUITES for cell in session.cells(suite))
    ours = (cell for cell in every if cell.flaw is None and cell.implementation.operation == group.operation)
    return [
        cell for cell in ours if cell.implementation.label == group.label and cell.relation.name != SECOND_PROCESS.name
    ]


def cheapest_first(cells: Iterable[Cell]) -> list[Cell]:
    """The cheapest cell of each case of each suite, by cost, then the second cheapest of each, and so on.

    So a mutant meets every kind of problem before it meets any of them in a large batch.
    """
    by_cost = sorted(((_cost(cell), place, cell) for place, cell in enumerate(cells)), key=lambda entry: entry[:2])
    rounds: dict[tuple[str, str], int] = {}
    order = []
    for cost, place, cell in by_cost:
        case = (cell.suite, cell.case.case_id)
        rounds[case] = rounds.get(case, 0) + 1
        order.append(((rounds[case], cost, place), cell))
    return [cell for _, cell in sorted(order, key=lambda entry: entry[0])]


def _cost(cell: Cell) -> int:
    """About how much a cell computes: products of elements, or tokens."""
    problems = dict.fromkeys(itertools.chain.from_iterable((*pair.left, *pair.right) for pair in cell.comparisons))
    return sum(_work(problem) * problem.circumstances.calls for problem in problems)


def _work(problem: AnyProblem) -> int:
    of_each = problem.geometry.num_heads * problem.geometry.head_dim if isinstance(problem, Problem) else 1
    return (1 + problem.work) * of_each


def starts_threads(cell: Cell) -> bool:
    """Whether a cell is computed on several threads, after which a process can no longer be forked safely."""
    problems = itertools.chain.from_iterable((*pair.left, *pair.right) for pair in cell.comparisons)
    return any(problem.circumstances.threads not in (None, 1) for problem in problems)


@dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        verdict, digest, error_budget, control: of its record.
        told: reasons of its verdict, as one sentence.
        red: whether it makes a run fail.
        seconds: that it took.
    """

    verdict: Verdict
    digest: str
    error_budget: float | None
    control: bool
    told: str
    red: bool
    seconds: float

    @classmethod
    def of(cls, record: Record) -> Outcome:
        """What a record tells."""
        return cls(
            verdict=record.verdict,
            digest=record.digest,
            error_budget=record.error_budget,
            control=record.control,
            told="; ".join(record.reasons),
            red=record.red,
            seconds=record.seconds,
        )


def outcomes(session: MatrixSession, cells: Iterable[Cell]) -> dict[CellName, Outcome]:
    """Runs cells in this process."""
    return {name_of(cell): Outcome.of(session.run(cell)) for cell in cells}
