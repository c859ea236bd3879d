"""The semantics suite sees every misreading that it has a control for, and passes a plain correct reading."""

from __future__ import annotations

import pytest

from samebits.harness.controls.readings import MISREADINGS, PlainKernel
from samebits.harness.controls.refusals import PlannedKernel
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Verdict
from samebits.harness.semantics import MEANINGS, Meaning
from samebits.harness.suite_cells import semantics_cells

from .judged_cells import record_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")


@pytest.mark.parametrize("misreading", MISREADINGS, ids=lambda misreading: misreading.name)
def test_the_misreading_is_caught_on_other_data(misreading: object) -> None:
    cells = semantics_cells(Selection((), (), "smoke", seed=1))
    (cell,) = [cell for cell in cells if cell.flaw is misreading]
    record = record_of(cell)
    assert record.verdict is Verdict.FAIL, f"{cell.cell_id} used {record.error_budget} of its budget and was not caught"


@pytest.mark.parametrize("meaning", MEANINGS.values(), ids=MEANINGS.keys())
def test_a_plain_reading_passes(meaning: Meaning) -> None:
    plain = PlannedKernel()
    for case in meaning.cases:
        cell = Cell("semantics", plain, meaning.check, case, "fp32", "smoke", seed=0)
        record = record_of(cell)
        assert record.verdict is Verdict.PASS, f"{cell.cell_id}: {record.reasons}"
        assert record.error_budget is not None
        assert record.error_budget < 0.5, f"{cell.cell_id} used {record.error_budget} of its budget in float64"


def test_a_cell_of_several_meanings_is_told_by_its_case() -> None:
    cells = [cell.cell_id for cell in semantics_cells(Selection((PlainKernel(),), (), "nightly"))]
    assert len(set(cells)) == len(cells), "two cells have one id"
