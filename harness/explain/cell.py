"""A cell of a run, computed again and explained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samebits.harness.explain.row import OF_A_QUESTION, explained
from samebits.harness.explanation import Explanation
from samebits.harness.findings import find
from samebits.harness.properties.cases import DrawnCase
from samebits.harness.records import UnusableInput, Verdict
from samebits.harness.session import MatrixSession, Options
from samebits.harness.shrink import describe
from samebits.harness.smallest import smallest_difference
from samebits.harness.suite_cells import SUITES


def explain_cell(
    cell_id: str, tier: str, seed: int, load: Sequence[Path], libs: Sequence[Path]
) -> tuple[str, Explanation] | None:
    """Explains the first difference of a cell of a run; None where all bits agree.

    Args:
        cell_id: of the cell.
        tier: of the run.
        seed: of the run.
        load: Python files of further backends, as the run was given them.
        libs: folders of vendors' libraries, as the run was given them.

    Returns:
        The smallest batch found that shows it, and the explanation.

    Raises:
        UnusableInput: there is no such cell, or it cannot run here, or it compares nothing.
    """
    session = MatrixSession(Options(tier=tier, seed=seed, load=tuple(load), libs=tuple(libs), cells=(cell_id,)))
    cell = next(cell for suite in SUITES for cell in session.cells(suite) if cell.cell_id == cell_id)
    if isinstance(cell.case, DrawnCase):
        raise UnusableInput(
            f"{cell_id} draws its batches; the line that its record names as repro explains the one that fails, with "
            "--explain"
        )
    record = session.run(cell)
    if record.verdict in (Verdict.UNAVAILABLE, Verdict.UNSUPPORTED, Verdict.ERROR):
        raise UnusableInput(f"{cell_id} came to {record.verdict}, so there is nothing to explain: {record.reasons[0]}")
    executor = session.executor(cell)
    first = find(cell.comparisons, cell.relation, executor).first
    if first is None:
        return None
    located = smallest_difference(cell, first, executor, patient=True)
    return describe(located.comparison), explained(located, executor, OF_A_QUESTION)
