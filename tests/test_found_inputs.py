"""Inputs that fuzzing found, kept as they are, so that what was mended stays so in every run of the tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from samebits.harness.record_files import RecordWriter, read_run
from samebits.harness.records import Record, RunHeader
from samebits.reports.report import write_report

from .html_pages import listed_cells, parsed
from .samples import HEADER, NO_BASELINE, cell


@pytest.mark.parametrize(
    ("header", "record"),
    [
        (HEADER, cell(seconds=1.7975000000000001e308)),
        (HEADER, cell(error_budget=1.7976931348623157e308)),
        (replace(HEADER, suites=("batch_invariant", "batch_invariant")), cell()),
        (HEADER, cell(suite="worst ULP")),
    ],
    ids=["seconds that round to infinity", "a budget that does", "a suite twice", "a suite named as a column"],
)
def test_odd_records_that_fuzzing_found_are_reported(tmp_path: Path, header: RunHeader, record: Record) -> None:
    with RecordWriter(tmp_path / "run", header) as writer:
        writer.write(record)
    write_report(read_run(tmp_path / "run"), NO_BASELINE, tmp_path / "report")
    page = parsed((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert record.cell_id in listed_cells(page), "its cell is not on the page"
    heads = [head.text for head in page.one(css="heat-map").one("thead").all("th")]
    assert heads.count(record.suite) == 1 + (record.suite == "worst ULP"), f"columns are told as {heads}"
