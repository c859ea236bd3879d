"""Every relation sees what it is there to see, and nothing else."""

from __future__ import annotations

import pytest
import torch

from samebits.backends.contract import Availability
from samebits.harness.controls.schedules import FLAWS, ChunkedKernel, Flaw
from samebits.harness.executor import Executor
from samebits.harness.judgement import judge
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.relations import RELATIONS
from samebits.harness.suite_cells import batch_invariance_cells

CPU = torch.device("cpu")


def judged(cell: Cell, executor: Executor | None = None) -> Record:
    return judge(cell, Availability(), executor or Executor(cell.implementation, CPU), "command")


def cells_of(kernel: ChunkedKernel) -> list[Cell]:
    selection = Selection((kernel,), ("fp32",), "smoke")
    return [cell for cell in batch_invariance_cells(selection) if cell.implementation is kernel]


def control_cells() -> list[Cell]:
    cells = batch_invariance_cells(Selection((), (), "smoke"))
    return [cell for cell in cells if cell.flaw and isinstance(cell.implementation, ChunkedKernel)]


def test_every_relation_has_a_control() -> None:
    assert {flaw.relation for flaw in FLAWS} == set(RELATIONS), "a relation has no control, or a control no relation"


@pytest.mark.parametrize("cell", control_cells(), ids=lambda cell: cell.flaw.name)
def test_the_control_is_caught(cell: Cell) -> None:
    record = judged(cell)
    assert record.verdict is Verdict.FAIL, f"{cell.cell_id} was not caught: {record.reasons}"
    assert not record.red


def test_the_correct_parent_of_all_controls_passes_every_relation() -> None:
    kernel = ChunkedKernel()
    executor = Executor(kernel, CPU)
    records = [judged(cell, executor) for cell in cells_of(kernel)]
    failed = {r.cell_id: r.reasons for r in records if r.verdict not in (Verdict.PASS, Verdict.UNSUPPORTED)}
    assert not failed, f"the correct kernel does not pass: {failed}"
    assert {r.relation for r in records if r.verdict is Verdict.PASS} == set(RELATIONS)


def test_a_control_that_holds_is_red() -> None:
    harmless = Flaw("harmless", "position", "changes nothing", lambda view: ChunkedKernel().schedule_of(view))
    cell = next(cell for cell in control_cells() if cell.relation.name == "position")
    kernel = ChunkedKernel(harmless)
    record = judged(Cell(cell.suite, kernel, cell.relation, cell.case, cell.dtype, cell.tier, 0, harmless))
    assert record.verdict is Verdict.PASS
    assert record.red, "a control that was not caught does not turn the run red"


def test_the_smallest_batch_names_few_requests() -> None:
    cell = next(cell for cell in control_cells() if cell.flaw and cell.flaw.name == "split_by_position")
    record = judged(cell)
    assert record.smallest_batch.count("r") <= 4, f"not small: {record.smallest_batch}"
    assert " against " in record.smallest_batch
