"""A run is held against the right rows of a baseline, and every kind of change is told for what it is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samebits.harness.record_files import RecordWriter
from samebits.harness.records import Environment, Record, Run, RunHeader, UnusableInput, Verdict
from samebits.reports.baseline import Baseline, BaselineRow
from samebits.reports.baseline_files import read_baseline, write_baseline
from samebits.reports.findings import red_reasons
from samebits.reports.regression import Comparison, Rules, State, compare

CPU = Environment("cpu x86_64+avx512", {"torch": "2.13.0", "triton": "3.7.1"}, 1)
GPU = Environment("cuda NVIDIA H100", {"torch": "2.13.0", "triton": "3.7.1", "driver": "580"}, 1)
HEADER = RunHeader(
    run_id="20261121T093400Z",
    started="2026-11-21T09:34:00+00:00",
    suites=("batch_invariant",),
    implementations=("CPU/bundled", "AITER/triton[kvcache]"),
    dtypes=("fp32", "bf16"),
    tier="default",
    narrowed=False,
    environment=CPU,
    asked=("CPU/bundled", "AITER/triton[kvcache]"),
)
CELL = Record(
    cell_id="CPU/bundled:position:llama3-8b-causal-mixed:bf16",
    suite="batch_invariant",
    relation="position",
    case="llama3-8b-causal-mixed",
    backend="CPU",
    implementation="bundled",
    variant="",
    version="0.1.0",
    operation="attention",
    dtype="bf16",
    mask="causal",
    geometry="llama3-8b",
    tier="smoke",
    verdict=Verdict.PASS,
    environment=CPU,
    seed=0,
    command="pytest -m batch_invariant --cell CPU/bundled:position:llama3-8b-causal-mixed:bf16",
    claimed=True,
    compared=100,
    max_ulp=0,
    error_budget=0.3,
    digest="aa",
    configuration={"kv_split": "128"},
)
CONTROL = replace(
    CELL,
    cell_id="CONTROL/split_by_position:position:llama3-8b-causal-mixed:fp32",
    backend="CONTROL",
    implementation="split_by_position",
    dtype="fp32",
    verdict=Verdict.FAIL,
    control=True,
    configuration={},
)
# What an implementation that is not available leaves: nothing was computed, and on no device.
ABSENT: dict[str, Any] = {
    "verdict": Verdict.UNAVAILABLE,
    "version": "",
    "max_ulp": None,
    "error_budget": None,
    "digest": "",
    "compared": 0,
}
UNSUPPORTED: dict[str, Any] = ABSENT | {"verdict": Verdict.UNSUPPORTED, "version": "0.1.0"}


def run_of(*records: Record, **header: Any) -> Run:  # noqa: ANN401 -- fields of RunHeader
    return Run(replace(HEADER, **header), records)


def baseline_of(*records: Record, **header: Any) -> Baseline:  # noqa: ANN401 -- fields of RunHeader
    return Baseline("old.jsonl", tuple(BaselineRow.of(record, replace(HEADER, **header)) for record in records))


def in_order(baseline: Baseline) -> list[BaselineRow]:
    return sorted(baseline.rows, key=lambda row: row.key)


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
        ({}, ABSENT, State.REGRESSED, "pass -> unavailable"),
        ({"verdict": Verdict.VARIES}, {}, State.BETTER, "varies -> pass"),
        ({"verdict": Verdict.FAIL}, {"verdict": Verdict.VARIES}, State.BETTER, "fail -> varies"),
        ({"verdict": Verdict.FAIL}, UNSUPPORTED, State.BETTER, "fail -> unsupported"),
        ({"verdict": Verdict.FAIL}, ABSENT, State.REGRESSED, "fail -> unavailable"),
        ({"verdict": Verdict.FAIL}, {"verdict": Verdict.ERROR}, State.REGRESSED, "fail -> error"),
        (ABSENT, {}, State.BETTER, "unavailable -> pass"),
        (ABSENT, {"verdict": Verdict.FAIL}, State.REGRESSED, "unavailable -> fail"),
        (UNSUPPORTED, {"verdict": Verdict.VARIES}, State.BETTER, "unsupported -> varies"),
        (UNSUPPORTED, ABSENT, State.REGRESSED, "unsupported -> unavailable"),
        (ABSENT, ABSENT, State.SAME, ""),
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
    gone = run_of(replace(CELL, **ABSENT))
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
    gone = replace(CELL, **ABSENT)
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
    comparison = compare(run_of(CELL, **header), baseline_of(CELL, replace(MISSED, **row)))
    expected = {CELL.cell_id: State.SAME} | ({MISSED.cell_id: State.MISSING} if missing else {})
    assert states(comparison) == expected
    assert comparison.regressed is missing


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


# Baseline files.


def test_a_baseline_keeps_what_decides_a_comparison(tmp_path: Path) -> None:
    cells = (
        CELL,
        replace(MISSED, error_budget=math.inf, max_ulp=None, seed=3),
        replace(CELL, cell_id="on a GPU", environment=GPU, configuration={}),
        replace(CELL, cell_id="with another kernel", version="0.2.0", configuration={"kv_split": "64"}),
        CONTROL,
        replace(CELL, cell_id="absent", **ABSENT),
    )
    path = tmp_path / "new" / "cpu.jsonl"
    write_baseline(run_of(*cells), path)
    baseline = read_baseline(path)
    assert baseline.name == "cpu.jsonl"
    assert in_order(baseline) == in_order(baseline_of(*cells))
    assert set(states(compare(run_of(*cells), baseline)).values()) == {State.SAME}
    assert list(path.parent.iterdir()) == [path], "nothing is left beside the baseline"


def test_a_baseline_file_does_not_depend_on_the_order_of_cells(tmp_path: Path) -> None:
    cells = [replace(CELL, cell_id=f"cell {i}", environment=(CPU, GPU)[i % 2], version=str(i % 3)) for i in range(12)]
    for name, order in (("one", cells), ("other", cells[::-1])):
        write_baseline(run_of(*order), tmp_path / name)
    assert (tmp_path / "one").read_text() == (tmp_path / "other").read_text()


def test_an_upgrade_that_keeps_all_bits_changes_no_line_of_a_cell(tmp_path: Path) -> None:
    upgraded = replace(CPU, versions={"torch": "2.14.0", "triton": "3.8.0"})
    for name, environment, version in (("old", CPU, "0.1.0"), ("new", upgraded, "0.2.0")):
        cells = [replace(cell, environment=environment, version=version) for cell in (CELL, MISSED, CONTROL)]
        write_baseline(run_of(*cells, environment=environment), tmp_path / name)
    old, new = ((tmp_path / name).read_text().splitlines() for name in ("old", "new"))
    changed = [before for before, after in zip(old, new, strict=True) if before != after]
    assert changed, "the new versions are in the file"
    assert not [line for line in changed if '"kind": "cell"' in line], "lines of cells changed with the versions"


def test_an_update_replaces_what_the_run_covers_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    nightly = replace(CELL, cell_id="of another tier", tier="nightly")
    on_gpu = replace(CELL, environment=GPU)
    gone = MISSED
    reconfigured = replace(CELL, configuration={"kv_split": "64"}, digest="bb")
    write_baseline(run_of(CELL, nightly, gone, tier="nightly"), path)
    write_baseline(run_of(on_gpu, environment=GPU), path)
    write_baseline(run_of(reconfigured), path)
    assert in_order(read_baseline(path)) == in_order(baseline_of(nightly, reconfigured, on_gpu))


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (
            run_of(replace(CELL, verdict=Verdict.FAIL)),
            r"is red, first at 'CPU/bundled:.*' \(fail\); a baseline",
        ),
        (run_of(replace(CELL, verdict=Verdict.ERROR)), r"is red, first at 'CPU/bundled:position:.*' \(error\)"),
        (
            run_of(CELL, replace(CONTROL, verdict=Verdict.PASS)),
            r"is red, first at 'CONTROL/split.*' \(pass\)",
        ),
        (run_of(CELL, narrowed=True), "was narrowed to single cells; a baseline must be of whole suites"),
        (replace(run_of(CELL), truncated=True), "was cut off; a baseline must be of a run that finished"),
        (run_of(), "has no cells; a baseline must be of a run that has some"),
    ],
)
def test_only_a_sound_run_becomes_a_baseline(tmp_path: Path, run: Run, told: str) -> None:
    path = tmp_path / "cpu.jsonl"
    with pytest.raises(UnusableInput, match=f"run '20261121T093400Z' {told}"):
        write_baseline(run, path)
    assert not path.exists()


def test_nothing_but_a_baseline_is_overwritten_by_one(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, HEADER) as writer:
        writer.write(CELL)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path, told in ((writer.path, "is no baseline and is not overwritten"), (notes, "line 1: 'mine' is not JSON")):
        before = path.read_bytes()
        with pytest.raises(UnusableInput, match=told):
            write_baseline(run_of(CELL), path)
        assert path.read_bytes() == before, f"{path} was changed"
    with pytest.raises(UnusableInput, match=r"cannot read .*Is a directory"):
        write_baseline(run_of(CELL), tmp_path)
    with pytest.raises(UnusableInput, match=r"cannot write .*notes.txt/cpu.jsonl.*give a place that can be written"):
        write_baseline(run_of(CELL), notes / "cpu.jsonl")


def spoilt(find: str, put: str) -> Callable[[str], str]:
    def spoil(content: str) -> str:
        assert find in content, f"{find!r} is not in the file: {content}"
        return content.replace(find, put, 1)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda content: "", "is empty; it must hold a baseline, or the records of a run"),
        (lambda content: "<html>\n", "line 1: '<html>' is not JSON"),
        (lambda content: content[:-20], "is cut off inside its last line"),
        (
            lambda content: content[: content.rindex("\n", 0, -1) + 1],
            "holds 1 cells, but its header says 2",
        ),
        (spoilt('"schema_version": 1', '"schema_version": 2'), "line 1: field 'schema_version' is 2; it must be 1"),
        (
            spoilt('"kind": "baseline"', '"kind": "shopping"'),
            "field 'kind' is 'shopping'; it must be 'baseline'",
        ),
        (spoilt('"verdict": "pass"', '"verdict": "fine"'), "line 4: field 'verdict' is 'fine'; it must be one of pass"),
        (spoilt('"tier": "smoke"', '"tier": "weekly"'), "line 4: field 'tier' is 'weekly'; it must be one of smoke"),
        (spoilt('"max_ulp": 0', '"max_ulp": "none"'), "line 4: field 'max_ulp' is 'none'; it must be a whole number"),
        (
            spoilt('"kernel": "CPU/bundled"', '"kernel": "x"'),
            "line 4: kernel 'x' is unknown; it must be named",
        ),
        (
            spoilt('"environment": "cpu', '"environment": "gpu'),
            "environment 'gpu x86_64+avx512, 1 thread' is unknown",
        ),
        (
            spoilt(":padding:", ":position:"),
            "line 5: cell_id 'CPU/bundled:position:llama3-8b-causal-mixed:bf16'",
        ),
        (lambda content: content.replace('"kind": "kernel"', '"kind": "colonel"'), "line 3: field 'kind' is 'colonel'"),
        (
            lambda content: "\n".join([*content.splitlines()[:3], *content.splitlines()[2:]]),
            "line 4: name 'CPU/bundled' occurs twice; each may occur once",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_told(tmp_path: Path, spoil: Callable[[str], str], told: str) -> None:
    path = tmp_path / "cpu.jsonl"
    write_baseline(run_of(CELL, MISSED), path)
    path.write_text(spoil(path.read_text()))
    for named in (path, tmp_path):
        with pytest.raises(UnusableInput) as caught:
            read_baseline(named)
        assert told in str(caught.value)
        assert str(path) in str(caught.value), "the file is named, in a directory too"


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_baseline_or_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cpu.jsonl"
    for head in (b"", b'{"kind": "baseline", "note": "", "cells": 0, "schema_version": 1}\n'):
        path.write_bytes(head + data)
        try:
            read_baseline(path)
        except UnusableInput as error:
            told = str(error)
        else:
            told = ""
        assert "\n" not in told, f"more than one line: {told}"


def test_the_records_of_a_run_serve_as_a_baseline(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, HEADER) as writer:
        writer.write(CELL)
    assert read_baseline(writer.path).name == HEADER.run_id
    assert states(compare(run_of(CELL), read_baseline(writer.path))) == {CELL.cell_id: State.SAME}
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(UnusableInput, match="is of a run that was cut off; it must be of one that finished"):
        read_baseline(writer.path)


def test_a_directory_of_baselines_is_searched_by_device_and_versions(tmp_path: Path) -> None:
    older = replace(CPU, versions={"torch": "2.11.0", "triton": "3.6.0"})
    for name, environment, digest in (("a", older, "old"), ("b", CPU, "aa"), ("c", GPU, "gpu")):
        write_baseline(run_of(replace(CELL, environment=environment, digest=digest)), tmp_path / f"{name}.jsonl")
    (tmp_path / "README.md").write_text("not a baseline")
    baseline = read_baseline(tmp_path)
    assert len(baseline.rows) == 3
    assert only(compare(run_of(CELL), baseline))[0] is State.SAME, "the row of the same versions was not chosen"
    other = replace(CPU, device="cpu aarch64")
    assert only(compare(run_of(replace(CELL, environment=other)), baseline))[0] is State.NO_BASELINE
    (tmp_path / "empty").mkdir()
    assert read_baseline(tmp_path / "empty").rows == ()


def test_a_baseline_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    write_baseline(run_of(CELL), path)
    before = path.read_text()
    with path.open() as reader:
        write_baseline(run_of(CELL, MISSED), path)
        assert reader.read() == before, "the file was changed under its reader"
    assert path.read_text() != before


def test_a_backend_that_was_asked_for_and_cannot_run_is_red() -> None:
    gone = replace(CELL, **ABSENT, reasons=("no such luck",))
    told = "CPU was asked for and cannot run: no such luck"
    assert told in red_reasons(run_of(gone, asked=("CPU",)))
    assert told not in red_reasons(run_of(gone, asked=("AITER",))), "red for a backend that nobody asked for"
    ran = replace(CELL, cell_id="other")
    assert told not in red_reasons(run_of(gone, ran, asked=("CPU",))), "red though an implementation ran"
