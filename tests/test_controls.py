"""Every check sees what it is there to see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from samebits.backends.platform import accelerator
from samebits.harness.controls.schedules import ChunkedKernel, Schedule, ScheduledKernel, ScheduleFlaw
from samebits.harness.graphs.reasons import device_reasons
from samebits.harness.judgement import told_apart
from samebits.harness.matrix import Cell, Flaw, Selection, Symptom
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry
from samebits.harness.relations import RELATIONS, AnyProblem
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES, batch_invariance_cells

from .judged_cells import record_of, records_of

# What each control that breaks a rule besides values and bits must be reported for.
TRESPASSES = {
    "row_behind_the_last": "run wrote outside the output tensor",
    "lse_before_the_first": "run wrote outside the lse tensor",
    "query_scaled_in_place": "run changed its query, its cache or its metadata",
    "padding_stored": "run changed its query, its cache or its metadata",
    "setting_left_behind": "torch.get_float32_matmul_precision()",
    "setting_left_by_replay": "torch.get_float32_matmul_precision()",
    "stale_pages_cleared": "run changed its query, its cache or its metadata",
    "rows_behind_the_last": "run wrote outside of its output",
    "between_rows": "run wrote outside of its query",
    "normalised_in_place": "run changed one of input, weight",
    "negates_sines": "run changed its cos_sin_cache",
    "any_cache": "run took a cos_sin_cache of",
    "refused_otherwise": "run refused the cache with 'unsupported dtype'",
    "cache_copied": "it converts or copies the cache",
    "cache_converted_in_chunks": "it converts or copies the cache",
    "leaves_threads": "run changed torch.get_num_threads() from",
    "slot_minus_1": "run wrote outside of its key_cache",
    "sign_of_0_lost": "run stored other bits than those of its key",
    "writes_padding": "claims to leave padding rows untouched, but output has other bits in them",
    "plans_anything": "plan took a block table narrower than its longest request",
    "resized_workspace": "it was bound anew, not refilled",
    "reallocated_scratch": "it was bound anew, not refilled",
    "hidden_scratch": "the captured run wrote into memory that it had given back",
    "stale_unread": "lengths is stale after a refill",
    "allocates_by_length": "run allocated" if accelerator().device == "cpu" else "run waits for the host",
}


def control_cells(*suites: str) -> list[Cell]:
    """The controls of some suites; of all where none is named."""
    selection = Selection((), (), "smoke")
    return [cell for suite in suites or SUITES for cell in SUITES[suite](selection) if cell.flaw]


def problems_of(cell: Cell) -> list[AnyProblem]:
    return [problem for comparison in cell.comparisons for problem in comparison.right]


def trespassing_cells() -> list[Cell]:
    return [cell for cell in control_cells() if cell.flaw and cell.flaw.symptom is Symptom.FAULT]


@pytest.fixture(scope="module")
def session_record() -> Callable[[Cell], Record]:
    """Runs each control and its parent once in a session: in any, for controls are the harness's own."""
    session = MatrixSession(Options(backends=("CPU",)))
    done: dict[tuple[str, str], Record] = {}

    def record(cell: Cell) -> Record:
        name = (cell.suite, cell.cell_id)
        if name not in done:
            done[name] = session.run(cell)
        return done[name]

    return record


@pytest.mark.parametrize("tier", ["smoke", "default"])
def test_every_check_of_every_operation_in_every_suite_has_a_control(tier: str) -> None:
    selection = Selection(load_registry().implementations, (), tier)
    checked: set[tuple[str, str, str]] = set()
    guarded: set[tuple[str, str, str]] = set()
    for suite, cells_of in SUITES.items():
        for cell in cells_of(selection):
            if any(device_reasons(problem, accelerator().device) for problem in problems_of(cell)):
                continue  # Nothing here can capture a graph, a control no more than another.
            (guarded if cell.flaw else checked).add((suite, cell.implementation.operation, cell.relation.name))
    assert checked, "nothing is checked"
    assert not checked - guarded, f"checks without a control: {sorted(checked - guarded)}"


def test_every_control_names_the_check_that_must_see_it_and_its_parent() -> None:
    for cell in control_cells():
        assert cell.flaw is not None
        assert cell.flaw.check == cell.relation.name, f"{cell.cell_id} is a control of {cell.flaw.check}"
        assert cell.parent is not None, f"{cell.cell_id} has no parent to be told from"
        assert cell.parent.operation == cell.implementation.operation
        assert cell.parent.label != cell.implementation.label, f"{cell.cell_id} is its own parent"


def test_no_two_flaws_share_a_name() -> None:
    flaws: dict[tuple[str, str], Flaw] = {}
    for cell in control_cells():
        assert cell.flaw is not None
        name = (cell.implementation.operation, cell.implementation.label)
        assert flaws.setdefault(name, cell.flaw) is cell.flaw, f"two flaws of {name[0]} are called {name[1]}"


@pytest.mark.usefixtures("no_smallest_batch")
@pytest.mark.parametrize("cell", control_cells(), ids=lambda cell: f"{cell.suite}:{cell.flaw.name}")
def test_the_control_is_caught_and_its_parent_passes(cell: Cell, session_record: Callable[[Cell], Record]) -> None:
    record = session_record(cell)
    assert record.verdict is Verdict.FAIL, f"{cell.cell_id} was not caught: {record.reasons}"
    assert not record.red
    assert cell.parent is not None
    assert record.reasons[-1] == f"{cell.parent.label} passes"


@pytest.mark.usefixtures("no_smallest_batch")
@pytest.mark.parametrize("cell", trespassing_cells(), ids=lambda cell: cell.flaw.name)
def test_what_breaks_another_rule_is_reported_for_that_rule_alone(
    cell: Cell, session_record: Callable[[Cell], Record]
) -> None:
    record = session_record(cell)
    assert cell.flaw is not None
    told = TRESPASSES[cell.flaw.name]
    assert any(told in reason for reason in record.reasons), f"{cell.cell_id} is told of {record.reasons}"
    assert (record.verdict, record.mismatches) == (Verdict.FAIL, 0), f"{cell.cell_id}: {record.reasons}"
    assert record.error_budget is not None
    assert record.error_budget <= 1.0, f"{cell.cell_id} is wrong, not only trespassing"


def test_the_correct_kernel_passes_every_relation_of_attention() -> None:
    kernel = ChunkedKernel()
    cells = batch_invariance_cells(Selection((kernel,), ("fp32",), "smoke"))
    records = records_of(cell for cell in cells if cell.implementation is kernel)
    failed = {r.cell_id: r.reasons for r in records if r.verdict not in (Verdict.PASS, Verdict.UNSUPPORTED)}
    assert not failed, f"the correct kernel does not pass: {failed}"
    assert {r.relation for r in records if r.operation == "attention" and r.verdict is Verdict.PASS} == set(RELATIONS)


@pytest.mark.parametrize("symptom", Symptom)
def test_a_control_that_holds_is_red(symptom: Symptom) -> None:
    harmless = ScheduleFlaw("harmless", "position", "changes nothing", lambda view: Schedule(), symptom=symptom)
    cell = next(cell for cell in control_cells("batch_invariant") if cell.relation.name == "position")
    record = record_of(replace(cell, implementation=ScheduledKernel(harmless), flaw=harmless))
    assert record.verdict is Verdict.PASS
    assert record.red, "a control that was not caught does not turn the run red"


@pytest.mark.parametrize("symptom", Symptom)
def test_a_control_is_caught_by_its_own_symptom_alone(symptom: Symptom) -> None:
    for cell in control_cells("batch_invariant"):
        if cell.flaw is None or cell.flaw.name not in ("split_by_position", "wrong_scale", "row_behind_the_last"):
            continue
        record = record_of(replace(cell, flaw=replace(cell.flaw, symptom=symptom)))
        assert record.red is (symptom is not cell.flaw.symptom), f"{cell.cell_id} as one of {symptom}: {record.reasons}"


def test_a_control_that_fails_as_its_parent_does_is_red() -> None:
    cell = next(cell for cell in control_cells("dtype") if cell.flaw and cell.flaw.name == "tf32")
    control = record_of(cell)
    assert cell.of_parent is not None
    parent = record_of(cell.of_parent)
    told = told_apart(control, parent)
    assert not told.red
    assert told.reasons[-1] == "CONTROL/correct_arithmetic passes"
    blind = told_apart(control, replace(parent, verdict=Verdict.FAIL, reasons=("2 of the error budget used",)))
    assert blind.red, "a check that fails right and wrong alike counts as guarded"
    assert blind.reasons[0] == (
        "control not told from CONTROL/correct_arithmetic, which is right and comes to fail: 2 of the error budget used"
    )


def test_the_smallest_batch_names_few_requests() -> None:
    cell = next(cell for cell in control_cells() if cell.flaw and cell.flaw.name == "split_by_position")
    record = record_of(cell)
    assert record.smallest_batch.count("r") <= 4, f"not small: {record.smallest_batch}"
    assert " against " in record.smallest_batch
