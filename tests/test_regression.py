"""A run is held against the right rows of a baseline, and every kind of change is told for what it is."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from samebits.harness.records import Record, Verdict
from samebits.reports.baseline import Baseline, BaselineRow
from samebits.reports.findings import red_reasons
from samebits.reports.regression import Comparison, Rules, State, compare

from .samples import CPU, GPU, HEADER, UNAVAILABLE, UNSUPPORTED, cell, control, run_of

CELL = cell()
CONTROL = control()
ASKED = ("CPU/bundled", "AITER/triton[kvcache]")


def baseline_of(*records: Record, **header: Any) -> Baseline:  # noqa: ANN401 -- fields of RunHeader
    return Baseline("old.jsonl", tuple(BaselineRow.of(record, replace(HEADER, **header)) for record in records))


def states(comparison: Comparison) -> dict[str, State]:
    return {cell.known.cell_id: cell.state for cell in comparison.cells}


def only(comparison: Comparison) -> tuple[State, str]:
    (cell,) = comparison.cells
    return cell.state, cell.note


@pytest.mark.parametrize(
    ("old", "new", "state", "note"),
    [
        ({}, {}, State.SAME, ""),
        ({}, {"seconds": 9.0, "command": "another", "error_budget": 0.31}, State.SAME, ""),
        ({}, {"digest": "bb"}, State.NEW_BITS, "other bits"),
        ({}, {"digest": "bb", "error_budget": 0.44}, State.NEW_BITS, "other bits"),
        ({}, {"digest": "bb", "error_budget": 0.46}, State.REGRESSED, "error budget 0.3 -> 0.46"),
        ({}, {"digest": "bb", "error_budget": math.inf}, State.REGRESSED, "error budget 0.3 -> inf"),
        ({}, {"digest": "bb", "error_budget": math.nan}, State.REGRESSED, "error budget 0.3 -> nan"),
        ({}, {"digest": "bb", "error_budget": 0.19}, State.BETTER, "error budget 0.3 -> 0.19"),
        ({"error_budget": 0.001}, {"digest": "bb", "error_budget": 0.09}, State.NEW_BITS, "other bits"),
        ({"error_budget": 0.0}, {"digest": "bb", "error_budget": 0.2}, State.REGRESSED, "error budget 0 -> 0.2"),
        ({"error_budget": math.nan}, {"digest": "bb"}, State.BETTER, "error budget nan -> 0.3"),
        ({}, {"verdict": Verdict.VARIES, "digest": "bb"}, State.REGRESSED, "pass -> varies"),
        ({}, {"verdict": Verdict.FAIL}, State.REGRESSED, "pass -> fail"),
        ({}, {"verdict": Verdict.ERROR, "digest": ""}, State.REGRESSED, "pass -> error"),
        ({}, {"verdict": Verdict.KNOWN}, State.REGRESSED, "pass -> known"),
        ({}, UNSUPPORTED, State.REGRESSED, "pass -> unsupported"),
        ({}, UNAVAILABLE, State.REGRESSED, "pass -> unavailable"),
        ({"verdict": Verdict.VARIES}, {}, State.BETTER, "varies -> pass"),
        ({"verdict": Verdict.FAIL}, {"verdict": Verdict.VARIES}, State.BETTER, "fail -> varies"),
        ({"verdict": Verdict.FAIL}, UNSUPPORTED, State.BETTER, "fail -> unsupported"),
        ({"verdict": Verdict.FAIL}, UNAVAILABLE, State.REGRESSED, "fail -> unavailable"),
        ({"verdict": Verdict.FAIL}, {"verdict": Verdict.ERROR}, State.REGRESSED, "fail -> error"),
        (UNAVAILABLE, {}, State.BETTER, "unavailable -> pass"),
        (UNAVAILABLE, {"verdict": Verdict.FAIL}, State.REGRESSED, "unavailable -> fail"),
        (UNSUPPORTED, {"verdict": Verdict.VARIES}, State.BETTER, "unsupported -> varies"),
        (UNSUPPORTED, UNAVAILABLE, State.REGRESSED, "unsupported -> unavailable"),
        (UNAVAILABLE, UNAVAILABLE, State.SAME, ""),
        (UNSUPPORTED, UNSUPPORTED, State.SAME, ""),
    ],
)
def test_a_change_of_a_cell_is_told_for_what_it_is(
    old: dict[str, Any], new: dict[str, Any], state: State, note: str
) -> None:
    comparison = compare(run_of(replace(CELL, **new)), baseline_of(replace(CELL, **old)))
    assert only(comparison) == (state, note)
    assert comparison.regressed is (state is State.REGRESSED)


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ({}, {}, State.SAME),
        ({}, {"digest": "bb", "error_budget": 50.0}, State.NEW_BITS),
        ({}, {"verdict": Verdict.PASS}, State.REGRESSED),
        ({}, {"verdict": Verdict.ERROR}, State.REGRESSED),
        ({"verdict": Verdict.PASS}, {}, State.BETTER),
    ],
)
def test_a_control_regresses_when_it_is_caught_no_more(old: dict[str, Any], new: dict[str, Any], state: State) -> None:
    comparison = compare(run_of(replace(CONTROL, **new)), baseline_of(replace(CONTROL, **old)))
    assert only(comparison)[0] is state


def test_rules_are_data() -> None:
    worse = run_of(replace(CELL, digest="bb", error_budget=0.46))
    assert only(compare(worse, baseline_of(CELL), Rules(budget_factor=2)))[0] is State.NEW_BITS
    gone = run_of(replace(CELL, **UNAVAILABLE))
    failed = baseline_of(replace(CELL, verdict=Verdict.FAIL))
    assert only(compare(gone, failed, Rules(must_stay_available=False)))[0] is State.BETTER


def test_a_change_of_versions_is_told_and_compared_across() -> None:
    upgraded = replace(CPU, versions={"torch": "2.14.0", "triton": "3.7.1", "driver": "1"})
    new = replace(CELL, environment=upgraded, version="0.2.0", digest="bb")
    (cell,) = compare(run_of(new, environment=upgraded), baseline_of(CELL)).cells
    assert cell.state is State.NEW_BITS
    assert cell.versions == {
        "torch": ("2.13.0", "2.14.0"),
        "driver": ("absent", "1"),
        "CPU/bundled": ("0.1.0", "0.2.0"),
    }


def test_the_version_of_a_library_of_the_environment_is_told_once() -> None:
    upgraded = replace(CPU, versions={"torch": "2.14.0", "triton": "3.7.1"})
    old, new = replace(CELL, version="2.13.0"), replace(CELL, version="2.14.0", environment=upgraded)
    comparison = compare(run_of(new, environment=upgraded), baseline_of(old))
    assert comparison.changed_versions == {("torch", "2.13.0", "2.14.0"): 1}


@pytest.mark.parametrize(
    ("old", "state", "note"),
    [
        ({"environment": GPU}, State.NO_BASELINE, ""),
        ({"environment": replace(CPU, threads=2)}, State.NO_BASELINE, ""),
        (
            {"configuration": {"kv_split": "64", "tf32": "off"}},
            State.NO_BASELINE,
            "kernel configuration changed: kv_split 64 -> 128, tf32 off -> absent",
        ),
        ({"cell_id": "another"}, State.NEW, ""),
    ],
)
def test_a_cell_without_its_row_is_never_a_difference(old: dict[str, Any], state: State, note: str) -> None:
    comparison = compare(run_of(CELL, tier="smoke", narrowed=True), baseline_of(replace(CELL, digest="bb", **old)))
    assert only(comparison) == (state, note)
    assert not comparison.regressed


def test_what_cannot_run_is_compared_within_the_machine_of_its_run() -> None:
    """Nothing was computed, so the record of an unavailable implementation names no accelerator."""
    on_gpu = replace(CELL, environment=GPU)
    gone = replace(CELL, **UNAVAILABLE)
    assert only(compare(run_of(gone, environment=GPU), baseline_of(on_gpu, environment=GPU))) == (
        State.REGRESSED,
        "pass -> unavailable",
    )
    assert only(compare(run_of(on_gpu, environment=GPU), baseline_of(gone, environment=GPU)))[0] is State.BETTER
    assert only(compare(run_of(CELL, environment=GPU), baseline_of(gone, environment=GPU)))[0] is State.BETTER
    assert states(compare(run_of(gone), baseline_of(on_gpu, environment=GPU))) == {CELL.cell_id: State.NO_BASELINE}


MISSED = replace(CELL, cell_id="CPU/bundled:padding:llama3-8b-causal-mixed:bf16")


@pytest.mark.parametrize(
    ("row", "header", "missing"),
    [
        ({}, {}, True),
        ({"tier": "default"}, {}, True),
        ({"tier": "nightly"}, {}, False),
        ({"tier": "nightly"}, {"tier": "nightly"}, True),
        ({"dtype": "fp16"}, {}, False),
        ({"suite": "dtype"}, {}, False),
        ({"suite": "dtype"}, {"suites": ("batch_invariant", "dtype")}, True),
        ({"implementation": "torch"}, {}, False),
        ({"implementation": "torch"}, {"asked": ()}, True),
        ({"variant": "num_splits=1"}, {}, False),
        ({"environment": GPU}, {}, False),
        ({"environment": GPU}, {"environment": GPU}, True),
        ({"environment": replace(CPU, threads=2)}, {}, False),
        ({"environment": replace(CPU, versions={})}, {}, True),
        ({"configuration": {}}, {}, True),
        ({"seed": 1}, {}, False),
        ({}, {"narrowed": True}, False),
        ({"control": True, "dtype": "fp16", "implementation": "other", "verdict": Verdict.FAIL}, {}, True),
        ({"control": True, "suite": "dtype", "verdict": Verdict.FAIL}, {}, False),
    ],
)
def test_a_row_that_the_run_should_have_produced_is_missing(
    row: dict[str, Any], header: dict[str, Any], missing: bool
) -> None:
    comparison = compare(run_of(CELL, **({"asked": ASKED} | header)), baseline_of(CELL, replace(MISSED, **row)))
    expected = {CELL.cell_id: State.SAME} | ({MISSED.cell_id: State.MISSING} if missing else {})
    assert states(comparison) == expected
    assert comparison.regressed is missing


def test_of_two_files_of_a_device_the_one_of_the_runs_versions_says_what_is_missing() -> None:
    older = replace(CPU, versions=dict(CPU.versions) | {"torch": "1.0"})
    gone, own = (tuple(baseline_of(*cells).rows) for cells in ((replace(MISSED, environment=older),), (CELL, MISSED)))
    run = run_of(CELL, asked=ASKED)
    both = Baseline("baselines", (*gone, *own[:1]), of_directory=True, files=(gone, own[:1]))
    assert states(compare(run, both)) == {CELL.cell_id: State.SAME}, (
        "another machine's cell of another day was asked for"
    )
    both = Baseline("baselines", (*gone, *own), of_directory=True, files=(gone, own))
    assert states(compare(run, both)) == {CELL.cell_id: State.SAME, MISSED.cell_id: State.MISSING}
    alone = Baseline("baselines", gone, of_directory=True, files=(gone,))
    assert states(compare(run, alone))[MISSED.cell_id] is State.MISSING, "no file is nearer"


def test_a_run_that_was_cut_off_misses_nothing_and_is_no_pass() -> None:
    comparison = compare(replace(run_of(CELL), truncated=True), baseline_of(CELL, MISSED))
    assert states(comparison) == {CELL.cell_id: State.SAME}
    assert comparison.regressed, "the cells that did not run may have regressed"


def test_a_cell_that_moved_to_another_device_is_not_missing() -> None:
    comparison = compare(run_of(replace(CELL, environment=GPU), environment=GPU), baseline_of(CELL, environment=GPU))
    assert states(comparison) == {CELL.cell_id: State.NO_BASELINE}


def test_the_order_of_cells_does_not_depend_on_the_order_they_finished_in() -> None:
    cells = [
        replace(CELL, cell_id=f"{name} {i}", implementation=name) for name in ("torch", "bundled") for i in range(5)
    ]
    shuffled = random.Random(0).sample(cells, len(cells))
    first, second = (compare(run_of(*order), Baseline("none", ())) for order in (cells, shuffled))
    assert first.cells == second.cells
    assert [cell.known.label for cell in first.cells] == ["CPU/bundled"] * 5 + ["CPU/torch"] * 5, "the header's order"


def test_a_backend_that_was_asked_for_and_cannot_run_is_red() -> None:
    gone = replace(CELL, **UNAVAILABLE, reasons=("no such luck",))
    told = "CPU was asked for and cannot run: no such luck"
    assert told in red_reasons(run_of(gone, asked=("CPU",)))
    assert told not in red_reasons(run_of(gone, asked=("AITER",))), "red for a backend that nobody asked for"
    ran = replace(CELL, cell_id="other")
    assert told not in red_reasons(run_of(gone, ran, asked=("CPU",))), "red though an implementation ran"
