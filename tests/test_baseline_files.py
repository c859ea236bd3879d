"""Baseline files: only sound runs are written, whole or not at all, and what is no baseline is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samebits.harness.record_files import RecordWriter
from samebits.harness.records import Record, Run, UnusableInput, Verdict
from samebits.reports.baseline import Baseline, BaselineRow
from samebits.reports.baseline_files import check_update, read_baseline, write_baseline
from samebits.reports.regression import Comparison, State, compare

from .samples import CPU, GPU, HEADER, UNAVAILABLE, cell, control, run_of

CELL = cell()
MISSED = replace(CELL, cell_id="CPU/bundled:padding:llama3-8b-causal-mixed:bf16")
CONTROL = control()


def baseline_of(*records: Record, **header: Any) -> Baseline:  # noqa: ANN401 -- fields of RunHeader
    return Baseline("old.jsonl", tuple(BaselineRow.of(record, replace(HEADER, **header)) for record in records))


def in_order(baseline: Baseline) -> list[BaselineRow]:
    return sorted(baseline.rows, key=lambda row: row.key)


def states(comparison: Comparison) -> set[State]:
    return {compared.state for compared in comparison.cells}


def test_a_baseline_keeps_what_decides_a_comparison(tmp_path: Path) -> None:
    cells = (
        CELL,
        replace(MISSED, error_budget=math.inf, max_ulp=None, seed=3),
        replace(CELL, cell_id="on a GPU", environment=GPU, configuration={}),
        replace(CELL, cell_id="with another kernel", version="0.2.0", configuration={"kv_split": "64"}),
        CONTROL,
        replace(CELL, cell_id="absent", **UNAVAILABLE),
    )
    path = tmp_path / "new" / "cpu.jsonl"
    write_baseline(run_of(*cells), path)
    baseline = read_baseline(path)
    assert baseline.name == "cpu.jsonl"
    assert in_order(baseline) == in_order(baseline_of(*cells))
    assert states(compare(run_of(*cells), baseline)) == {State.SAME}
    assert list(path.parent.iterdir()) == [path], "nothing is left beside the baseline"


def test_a_baseline_file_does_not_depend_on_the_order_of_cells(tmp_path: Path) -> None:
    cells = [replace(CELL, cell_id=f"cell {i}", environment=(CPU, GPU)[i % 2], version=str(i % 3)) for i in range(12)]
    for name, order in (("one", cells), ("other", cells[::-1])):
        write_baseline(run_of(CONTROL, *order), tmp_path / name)
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
    reconfigured = replace(CELL, configuration={"kv_split": "64"}, digest="bb")
    write_baseline(run_of(CONTROL, CELL, nightly, MISSED, tier="nightly"), path)
    write_baseline(run_of(CONTROL, on_gpu, environment=GPU), path)
    write_baseline(run_of(CONTROL, reconfigured), path)
    assert in_order(read_baseline(path)) == in_order(baseline_of(CONTROL, nightly, reconfigured, on_gpu))


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
            r"is red, first at 'CONTROL/breaks.*' \(pass\)",
        ),
        (run_of(CELL, narrowed=True), "was narrowed to single cells; a baseline must be of whole suites"),
        (replace(run_of(CELL), truncated=True), "was cut off; a baseline must be of a run that finished"),
        (run_of(), "has no cells; a baseline must be of a run that has some"),
        (run_of(CELL), "is red: no control for position; a baseline must be of a run that is not"),
        (
            run_of(CONTROL, replace(CELL, **UNAVAILABLE, reasons=("no such luck",)), asked=("CPU",)),
            "is red: CPU was asked for and cannot run: no such luck; a baseline must be of a run that is not",
        ),
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
            write_baseline(run_of(CONTROL, CELL), path)
        assert path.read_bytes() == before, f"{path} was changed"
    with pytest.raises(UnusableInput, match="is a directory; a baseline is written into a file"):
        write_baseline(run_of(CONTROL, CELL), tmp_path)
    with pytest.raises(UnusableInput, match=r"cannot write .*notes.txt/cpu.jsonl.*give a place that can be written"):
        write_baseline(run_of(CONTROL, CELL), notes / "cpu.jsonl")


def test_a_place_for_a_baseline_is_tried_before_a_run(tmp_path: Path) -> None:
    writable = tmp_path / "new" / "cpu.jsonl"
    check_update(writable)
    assert list(tmp_path.iterdir()) == [], "a trial left something behind"
    write_baseline(run_of(CONTROL, CELL), writable)
    check_update(writable)
    (tmp_path / "notes.txt").write_text("mine")
    for path, told in (
        (tmp_path, "is a directory; a baseline is written into a file"),
        (tmp_path / "notes.txt", "line 1: 'mine' is not JSON"),
        (tmp_path / "notes.txt" / "cpu.jsonl", r"cannot write .*notes.txt/cpu.jsonl.*give a place that can be written"),
    ):
        with pytest.raises(UnusableInput, match=told):
            check_update(path)


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
            "holds 2 cells, but its header says 3",
        ),
        (spoilt('"schema_version": 2', '"schema_version": 1'), "it must be 2, so make the file again"),
        (
            spoilt('"kind": "baseline"', '"kind": "shopping"'),
            "field 'kind' is 'shopping'; it must be 'baseline'",
        ),
        (spoilt('"verdict": "pass"', '"verdict": "fine"'), "line 6: field 'verdict' is 'fine'; it must be one of pass"),
        (spoilt('"tier": "smoke"', '"tier": "weekly"'), "line 5: field 'tier' is 'weekly'; it must be one of smoke"),
        (spoilt('"max_ulp": 0', '"max_ulp": "none"'), "line 5: field 'max_ulp' is 'none'; it must be a whole number"),
        (
            spoilt('"kernel": "CPU/bundled"', '"kernel": "x"'),
            "line 6: kernel 'x' is unknown; it must be named",
        ),
        (
            spoilt('"environment": "cpu', '"environment": "gpu'),
            "environment 'gpu x86_64+avx512, 1 thread' is unknown",
        ),
        (
            spoilt(":padding:", ":position:"),
            "line 7: cell_id 'CPU/bundled:position:llama3-8b-causal-mixed:bf16'",
        ),
        (lambda content: content.replace('"kind": "kernel"', '"kind": "colonel"'), "line 3: field 'kind' is 'colonel'"),
        (
            lambda content: "\n".join([*content.splitlines()[:3], *content.splitlines()[2:]]),
            "line 4: name 'CONTROL/breaks_position' occurs twice; each may occur once",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_told(tmp_path: Path, spoil: Callable[[str], str], told: str) -> None:
    path = tmp_path / "cpu.jsonl"
    write_baseline(run_of(CONTROL, CELL, MISSED), path)
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
    for head in (b"", b'{"kind": "baseline", "note": "", "cells": 0, "schema_version": 2}\n'):
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
    assert states(compare(run_of(CELL), read_baseline(writer.path))) == {State.SAME}
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(UnusableInput, match="is of a run that was cut off; it must be of one that finished"):
        read_baseline(writer.path)


def test_a_directory_of_baselines_is_searched_by_device_and_versions(tmp_path: Path) -> None:
    older = replace(CPU, versions={"torch": "2.11.0", "triton": "3.6.0"})
    for name, environment, digest in (("a", older, "old"), ("b", CPU, "aa"), ("c", GPU, "gpu")):
        write_baseline(
            run_of(CONTROL, replace(CELL, environment=environment, digest=digest)), tmp_path / f"{name}.jsonl"
        )
    (tmp_path / "README.md").write_text("not a baseline")
    baseline = read_baseline(tmp_path)
    assert len(baseline.rows) == 6
    assert states(compare(run_of(CELL, narrowed=True), baseline)) == {State.SAME}, (
        "the row of the same versions was not chosen"
    )
    elsewhere = replace(CELL, environment=replace(CPU, device="cpu aarch64"))
    assert states(compare(run_of(elsewhere, narrowed=True), baseline)) == {State.NO_BASELINE}
    (tmp_path / "empty").mkdir()
    assert read_baseline(tmp_path / "empty").rows == ()


def test_a_baseline_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    write_baseline(run_of(CONTROL, CELL), path)
    before = path.read_text()
    with path.open() as reader:
        write_baseline(run_of(CONTROL, CELL, MISSED), path)
        assert reader.read() == before, "the file was changed under its reader"
    assert path.read_text() != before
