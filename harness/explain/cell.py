"""Why a cell's two sides differ: where first, by how much, and in which order either of them adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem
from samebits.harness.comparison import ulp_counts
from samebits.harness.executor import Executor
from samebits.harness.explain.attention import QueryRow, attention_order
from samebits.harness.explain.drawing import drawn_trees
from samebits.harness.explain.order import Node
from samebits.harness.explain.telling import told_tree
from samebits.harness.findings import Located, common_rows, find
from samebits.harness.matrix import Cell
from samebits.harness.records import UnusableInput, Verdict
from samebits.harness.relations import AnyProblem
from samebits.harness.session import MatrixSession, Options
from samebits.harness.shrink import describe
from samebits.harness.smallest import smallest_difference
from samebits.harness.suite_cells import SUITES


@dataclass(frozen=True)
class Side:
    """One side of a comparison, as far as the row that differs first is concerned.

    Attributes:
        title: the batch.
        tree: over the keys that the row sees; None where it cannot be told.
        reason: why it cannot, in a sentence; empty where it can.
    """

    title: str
    tree: Node | None = None
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """What can be said of a difference.

    Attributes:
        cell_id: of the cell.
        smallest: the smallest batch found that shows it.
        first: its first element.
        ulps: how many elements of that request are how far apart.
        sides: both sides, where it is attention.
    """

    cell_id: str
    smallest: str
    first: str
    ulps: dict[str, int]
    sides: tuple[Side, ...]

    def to_text(self) -> str:
        """For a terminal."""
        width = max(map(len, self.ulps))
        lines = [
            self.cell_id,
            f"Smallest batch that differs: {self.smallest}",
            f"First difference: {self.first}",
            "Units in the last place apart, and elements of that request:",
            *(f"  {distance:>{width}}  {number}" for distance, number in self.ulps.items()),
        ]
        for side in self.sides:
            lines += ["", f"{side.title}: how the values of that row and head are added up", self._told(side)]
        trees = [side.tree for side in self.sides]
        if None not in trees and len(trees) > 1:
            same = len({tree.shape for tree in trees if tree}) == 1
            lines += [
                "",
                "Both add in one order: look for what is rounded or scaled otherwise."
                if same
                else "They add in different orders.",
            ]
        return "\n".join(lines)

    def to_svg(self) -> str:
        """Both trees, one below the other.

        Raises:
            UnusableInput: there are none.
        """
        trees = [(side.title, side.tree) for side in self.sides if side.tree is not None]
        if not trees:
            raise UnusableInput(f"no order of additions is known of {self.cell_id}, so there is nothing to draw")
        return drawn_trees(trees)

    @staticmethod
    def _told(side: Side) -> str:
        return side.reason if side.tree is None else told_tree(side.tree)


def explain_cell(cell_id: str, tier: str, seed: int, load: Sequence[Path], libs: Sequence[Path]) -> Explanation | None:
    """Explains the first difference of a cell of a run; None where all bits agree.

    Args:
        cell_id: of the cell.
        tier: of the run.
        seed: of the run.
        load: Python files of further backends, as the run was given them.
        libs: folders of vendors' libraries, as the run was given them.

    Raises:
        UnusableInput: there is no such cell, or it cannot run here, or it compares nothing.
    """
    session = MatrixSession(Options(tier=tier, seed=seed, load=tuple(load), libs=tuple(libs), cells=(cell_id,)))
    cell = next(cell for suite in SUITES for cell in session.cells(suite) if cell.cell_id == cell_id)
    record = session.run(cell)
    if record.verdict in (Verdict.UNAVAILABLE, Verdict.UNSUPPORTED, Verdict.ERROR):
        raise UnusableInput(f"{cell_id} came to {record.verdict}, so there is nothing to explain: {record.reasons[0]}")
    return explain(cell, session.executor(cell))


def explain(cell: Cell, executor: Executor) -> Explanation | None:
    """Explains the first difference of a cell; None where all bits agree.

    Args:
        cell: of an implementation that is available, without reasons against its problems.
        executor: runs it.
    """
    first = find(cell.comparisons, cell.relation, executor).first
    if first is None:
        return None
    located = smallest_difference(cell, first, executor)
    rows = next(
        rows
        for rows in common_rows(located.comparison, executor)
        if (rows.request_key, rows.first_position, rows.tensor)
        == (located.request_key, located.first_position, located.tensor)
    )
    comparison = located.comparison
    return Explanation(
        cell_id=cell.cell_id,
        smallest=describe(comparison),
        first=str(located),
        ulps=ulp_counts(rows.left, rows.right),
        sides=tuple(_sides(cell, executor, located)),
    )


def _sides(cell: Cell, executor: Executor, located: Located) -> list[Side]:
    implementation = cell.implementation
    if not isinstance(implementation, Implementation):
        return []
    comparison = located.comparison
    position, head = located.first_position + located.difference.first[0], located.difference.first[1]
    sides = []
    for name, problems in (("Left", comparison.left), ("Right", comparison.right)):
        problem, place = _place_of(problems, located.request_key, position, head)
        title = f"{name}, [{' '.join(str(request) for request in problem.requests)}]"
        try:
            tree, _ = attention_order(implementation, problem, place, executor.device)
        except UnusableInput as error:
            sides.append(Side(title, reason=str(error)))
        else:
            sides.append(Side(title, tree))
    return sides


def _place_of(problems: tuple[AnyProblem, ...], key: int, position: int, head: int) -> tuple[Problem, QueryRow]:
    """The step of one side that computes a request's position, and the row that this is there."""
    for problem in problems:
        for request in problem.requests:
            if request.key == key and request.context_len <= position < request.seq_len:
                assert isinstance(problem, Problem), "attention computes attention"
                return problem, QueryRow(key, position - request.context_len, head)
    raise LookupError(f"no step computes position {position} of request r{key}")
