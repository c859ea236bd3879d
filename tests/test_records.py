"""Records survive the way to their file and back; what is not a record is told in one sentence that names it."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samebits.harness.record_files import RecordWriter, check_results, parse_record, read_run
from samebits.harness.records import (
    RECORDS_FILE,
    Environment,
    Record,
    Run,
    RunEnd,
    RunHeader,
    UnusableInput,
    Verdict,
)

from .record_strategies import JSON_VALUES, of_dataclass
from .samples import HEADER, VARIES, cell, save

RECORD = cell(**(VARIES | {"seconds": 0.25}))


def write_run(directory: Path, *records: Record, finished: bool = True) -> Path:
    return save(directory, *records, finished=finished) / RECORDS_FILE


def complaint(action: Callable[[], object]) -> str:
    """What is said of unusable input; empty where it is usable. Any other exception is a failure of the test."""
    try:
        action()
    except UnusableInput as error:
        return str(error)
    return ""


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = replace(RECORD, cell_id="another", verdict=Verdict.PASS, max_ulp=None, error_budget=None, claimed=None)
    path = write_run(tmp_path / "results", RECORD, other)
    expected = Run(HEADER, (RECORD, other), truncated=False)
    assert read_run(path) == expected, "the file, read by its own name"
    assert read_run(path.parent) == expected, "the file, read by the name of its directory"


def test_each_cell_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, HEADER)
    assert read_run(tmp_path).header == HEADER, "before the first cell finished"
    for count in (1, 2):
        writer.write(replace(RECORD, cell_id=f"cell {count}"))
        run = read_run(tmp_path)
        assert len(run.records) == count, f"{len(run.records)} cells in the file after {count} finished"
        assert run.truncated, "a run that has not finished must not look like one that has"
    writer.close()
    assert not read_run(tmp_path).truncated, "the run finished"


def test_a_run_that_raises_leaves_its_cells_and_looks_cut_off(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RecordWriter(tmp_path, HEADER) as writer:
            writer.write(RECORD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_run(tmp_path) == Run(HEADER, (RECORD,), truncated=True)


def test_a_run_cut_off_anywhere_keeps_its_whole_cells(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", RECORD, replace(RECORD, cell_id="second")).read_bytes()
    first_cell = whole.index(b"\n") + 1
    cut = tmp_path / "records.jsonl"
    breaks = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    lengths = {*range(first_cell, len(whole) - 1, 37), *(place + near for place in breaks for near in (-1, 0, 1))}
    for length in sorted(lengths & set(range(first_cell, len(whole) - 1))):
        cut.write_bytes(whole[:length])
        run = read_run(cut)
        # A line without its break is a whole cell when all of its JSON is there.
        cells = min(2, whole[: length + 1].count(b"\n") - 1)
        assert run.truncated, f"cut at byte {length} of {len(whole)}, and not told"
        assert len(run.records) == cells, f"cut at byte {length}: {len(run.records)} cells, not {cells}"


@pytest.mark.parametrize("budget", [math.inf, -math.inf, math.nan, 0.0, -0.0, 5e-324, 1.7976931348623157e308, None])
def test_budgets_beyond_json_survive(budget: float | None) -> None:
    line = replace(RECORD, error_budget=budget).to_line()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON: {line}"))
    assert repr(parse_record(line).error_budget) == repr(budget)


@given(of_dataclass(Record))
@settings(max_examples=150, deadline=None)
def test_any_record_survives(record: Record) -> None:
    line = record.to_line()
    assert "\n" not in line, "a record is one line"
    assert line.isascii(), "a record passes through every locale"
    assert parse_record(line).to_line() == line, "NaN is no equal of itself, and has a name in JSON"


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_told_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "records.jsonl"
    for content in (data, HEADER.to_line().encode() + b"\n" + data):
        path.write_bytes(content)
        told = complaint(lambda: read_run(path))
        assert "\n" not in told, f"more than one line: {told}"
        assert not told or str(path) in told, f"the file is not named: {told}"


@given(st.sampled_from([field.name for field in fields(Record)] + ["kind"]), JSON_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_field_is_read_or_told_by_its_name(name: str, value: object) -> None:
    values = json.loads(RECORD.to_line()) | {name: value}
    told = complaint(lambda: parse_record(json.dumps(values)))
    assert not told or name in told, f"field {name!r} is not named: {told}"
    assert not told or "must be" in told or "known are" in told, f"what would be accepted is not told: {told}"


def changed(**changes: object) -> Callable[[dict[str, Any]], str]:
    return lambda values: json.dumps(values | changes)


def without(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda values: json.dumps({key: value for key, value in values.items() if key != name})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (changed(kind="run"), "field 'kind' is 'run'; it must be 'cell'"),
        (without("kind"), "field 'kind' is None; it must be 'cell'"),
        (changed(schema_version=3), "field 'schema_version' is 3; it must be 2"),
        (
            changed(schema_version=1),
            "field 'schema_version' is 1; it must be 2, so make the file again: version 1 is an older samebits'",
        ),
        (changed(schema_version=True), "field 'schema_version' is True; it must be 2"),
        (without("schema_version"), "field 'schema_version' is None; it must be 2"),
        (changed(verdict="maybe"), "field 'verdict' is 'maybe'; it must be one of pass, varies, fail, unsupported"),
        (changed(verdict=None), "field 'verdict' is None; it must be one of pass"),
        (changed(tier="weekly"), "field 'tier' is 'weekly'; it must be one of smoke, default, nightly"),
        (changed(cell_id=7), "field 'cell_id' is 7; it must be a string"),
        (changed(seed=True), "field 'seed' is True; it must be a whole number"),
        (changed(seed=1.0), "field 'seed' is 1.0; it must be a whole number"),
        (changed(seed=2**64), "field 'seed' is 18446744073709551616; it must be a whole number of at most 64 bits"),
        (changed(control=0), "field 'control' is 0; it must be true or false"),
        (changed(claimed="yes"), "field 'claimed' is 'yes'; it must be true or false, or null"),
        (changed(max_ulp="3"), "field 'max_ulp' is '3'; it must be a whole number of at most 64 bits, or null"),
        (
            changed(error_budget="much"),
            "field 'error_budget' is 'much'; it must be a number, or one of the strings inf",
        ),
        (changed(error_budget=True), "field 'error_budget' is True; it must be a number"),
        (changed(seconds=10**400), "field 'seconds' is 1000000000"),
        (changed(reasons="one"), "field 'reasons' is 'one'; it must be a list, each entry a string"),
        (changed(reasons=["one", 2]), "field 'reasons[1]' is 2; it must be a string"),
        (changed(configuration={"kv_split": 128}), "field 'configuration.kv_split' is 128; it must be a string"),
        (changed(environment={"device": "cpu"}), "in 'environment', field 'versions' is absent; it must be an object"),
        (
            changed(environment="cpu"),
            "field 'environment' is 'cpu'; it must be an object with device, versions, threads",
        ),
        (changed(colour="red"), "field 'colour' is unknown; known are cell_id, suite"),
        (without("digest"), None),
        (without("dtype"), "field 'dtype' is absent; it must be a string"),
        (
            lambda values: json.dumps(values).replace("0.3", "NaN"),
            "NaN is not JSON; a number that is not finite must be",
        ),
        (lambda values: json.dumps(values).replace("0.3", "1e999"), "field 'error_budget' is inf; it must be a number"),
        (
            lambda values: json.dumps(values)[:-1] + ', "dtype": "fp32"}',
            "field 'dtype' occurs twice; each may occur once",
        ),
        (lambda values: "[" * 100_000, "is not JSON; it must be one JSON object"),
        (lambda values: f'{{"kind": {"9" * 5000}}}', "is not JSON; it must be one JSON object"),
        (lambda values: "[]", "[] is not an object; it must be one JSON object"),
        (lambda values: "", "'' is not JSON; it must be one JSON object"),
        (lambda values: "kind: cell", "'kind: cell' is not JSON; it must be one JSON object"),
    ],
)
def test_a_line_that_is_no_record_is_told(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], str], told: str | None
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{HEADER.to_line()}\n{spoil(json.loads(RECORD.to_line()))}\n")
    if told is None:
        assert read_run(path).records == (replace(RECORD, digest=""),), "a field with a default may be absent"
        return
    with pytest.raises(UnusableInput) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{str(path)!r}, line 2: "), "file and line are named"
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path)), "a long value is shortened"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty; it must hold the records of a run"),
        (b"\n", "line 1: '' is not JSON"),
        (b'{"kind": "run", "run_', "is cut off inside its first line"),
        (b"\xff\xfe\n", "line 1: '\ufffd\ufffd' is not JSON"),
        (b"PK\x03\x04", "is compressed; unpack it first"),
        (RECORD.to_line().encode() + b"\n", "line 1: field 'kind' is 'cell'; it must be 'run'"),
        (replace(HEADER, schema_version=9).to_line().encode(), "line 1: field 'schema_version' is 9; it must be 2"),
        (
            replace(HEADER, tier="all").to_line().encode(),
            "line 1: field 'tier' is 'all'; it must be one of smoke, default",
        ),
        (
            "\n".join([HEADER.to_line(), RECORD.to_line(), RECORD.to_line()]).encode(),
            "line 3: cell_id 'CPU/bundled:position:llama3-8b-causal-mixed:bf16' occurs twice; each may occur once",
        ),
        (
            "\n".join([HEADER.to_line(), RunEnd(cells=2).to_line()]).encode(),
            "line 2: field 'cells' is 2; it must be the number of cells before it, 0",
        ),
        (
            "\n".join([HEADER.to_line(), RunEnd(cells=0).to_line(), RECORD.to_line()]).encode(),
            "line 2: field 'kind' is 'end'; it must be 'cell'",
        ),
    ],
)
def test_a_file_that_is_no_run_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(UnusableInput) as caught:
        read_run(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "a" * 5000, "with\0nul"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusableInput, match=r"cannot read .*; give a directory with records.jsonl, or that file"):
        read_run(tmp_path / name)


def test_records_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    path = write_run(tmp_path, RECORD)
    before = path.read_bytes()
    with pytest.raises(UnusableInput, match="holds the records of another run; give a new directory"):
        RecordWriter(tmp_path, HEADER)
    assert path.read_bytes() == before


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    with pytest.raises(UnusableInput, match="file' is a file; give a directory for the results"):
        RecordWriter(occupied, HEADER)
    with pytest.raises(UnusableInput, match=r"cannot write .*file/below.* \(Not a directory\); give a place"):
        RecordWriter(occupied / "below", HEADER)
    assert occupied.read_text() == "kept"


def test_a_disk_that_fills_up_is_told_when_a_cell_is_written_and_when_the_run_ends(tmp_path: Path) -> None:
    class Full(io.StringIO):
        """Takes what it is given into its memory, and cannot get rid of it."""

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        close = flush

    writer = RecordWriter(tmp_path, HEADER)
    writer._stream.close()
    writer._stream = Full()
    actions: list[Callable[[], None]] = [lambda: writer.write(RECORD), writer.close, lambda: writer.close(False)]
    for action in actions:
        with pytest.raises(UnusableInput) as caught:
            action()
        told = (
            f"cannot write '{tmp_path / 'records.jsonl'}' (No space left on device); give a place that can be written"
        )
        assert str(caught.value) == told
    assert read_run(tmp_path).truncated, "a run whose records could not be written looks finished"


def test_a_place_for_records_is_tried_before_a_run(tmp_path: Path) -> None:
    results = tmp_path / "new" / "results"
    check_results(results)
    assert list(results.iterdir()) == [], "a trial left something behind"
    path = write_run(results, RECORD)
    before = path.read_bytes()
    with pytest.raises(UnusableInput, match="holds the records of another run; give a new directory"):
        check_results(results)
    assert path.read_bytes() == before
    with pytest.raises(UnusableInput, match=r"records.jsonl' is a file; give a directory for the results"):
        check_results(path)


def test_records_are_read_and_reports_imported_without_torch_or_pandas() -> None:
    program = (
        "import sys, samebits.harness.cli, samebits.reports.report\n"
        "print(*[name for name in ('torch', 'triton', 'pandas', 'jinja2') if name in sys.modules])\n"
        "import samebits.reports.page, samebits.reports.summary, samebits.reports.html.page\n"
        "print(*[name for name in ('torch', 'triton') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"imported on the way: {done.stdout.split()}"


def test_the_page_on_records_names_every_field() -> None:
    page = (Path(__file__).parent.parent / "docs" / "records.md").read_text(encoding="utf-8")
    names = [field.name for kind in (Record, RunHeader, RunEnd, Environment) for field in fields(kind)]
    assert not [name for name in names if f"`{name}`" not in page], "fields that docs/records.md does not tell"
    assert not [verdict for verdict in Verdict if f"| `{verdict}` |" not in page], "verdicts that it does not tell"
