"""The page and the table that a run leaves hold every cell, and no text of a record ends a line, a cell or a table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.harness.records import Record
from samebits.reports import text
from samebits.reports.report import Report, write_report

from .samples import FAILS, GREEN, NO_BASELINE, REGRESSED, UNSUPPORTED, VARIES, cell, control, run_of


def report_of(directory: Path, *records: Record) -> Report:
    return write_report(run_of(*records), NO_BASELINE, directory)


def test_nothing_of_the_report_depends_on_the_order_cells_finished_in(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    summaries = [report_of(first, *REGRESSED).summary, report_of(second, *REGRESSED[::-1]).summary]
    assert summaries[0] == summaries[1]
    for name in ("regression.md", "regression.csv", "implementations.md", "index.html"):
        assert (first / name).read_text() == (second / name).read_text(), f"{name} differs"


HOSTILE = "=1+1|`rm`<script>alert(1)</script>\x1b[31m\nnext\r\u2028line\udc80 &lt; [link](x) **bold** _it_"


@pytest.mark.parametrize("name", ["regression.md", "implementations.md"])
def test_the_page_shows_foreign_text_as_it_is(tmp_path: Path, name: str) -> None:
    foreign = dict.fromkeys(("smallest_batch", "command", "version", "mask", "relation"), HOSTILE)
    cells = [
        cell("CPU/bundled", **(FAILS | {"reasons": (HOSTILE,)} | foreign)),
        cell("AITER/triton", reasons=(HOSTILE,), **(UNSUPPORTED | {"version": HOSTILE})),
        control(),
    ]
    report = report_of(tmp_path, *cells)
    page = (tmp_path / name).read_text(encoding="utf-8")
    assert "\x1b" not in page + report.summary, "an escape sequence reached the terminal or the page"
    outside_code = re.sub(r"(`+)[^`].*?\1(?!`)", "", page.replace("\\`", ""))
    assert "<script" not in outside_code, "HTML of a message reached the page"
    widths: dict[int, int] = {}
    for block, rows in enumerate(re.findall(r"(?:^\|.*\n?)+", page, flags=re.MULTILINE)):
        for row in rows.splitlines():
            columns = len(re.findall(r"(?<!\\)\|", row))
            assert widths.setdefault(block, columns) == columns, f"a cell broke its table: {row}"


def test_the_table_holds_one_line_per_cell_and_no_formula(tmp_path: Path) -> None:
    cells = [cell("CPU/bundled", reasons=(HOSTILE, '"quoted", with commas'), command=HOSTILE), *GREEN[3:]]
    path = report_of(tmp_path, *cells).paths[1]
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + len(cells)
    assert len(lines) == len(cells)
    assert not [value for line in lines for value in line.values() if value.startswith(("=", "+", "-", "@"))]
    by_id = {line["cell_id"]: line for line in lines}
    told = by_id[cells[0].cell_id]
    assert (told["state"], told["verdict"], told["compared"], told["error_budget"]) == (
        "no baseline",
        "pass",
        "100",
        "0.3",
    )
    assert told["reasons"].endswith('; "quoted", with commas')
    assert by_id[GREEN[-1].cell_id]["error_budget"] == "", "nothing was computed"


@given(st.text(st.characters(codec=None)))
@settings(max_examples=200, deadline=None)
def test_any_text_stays_within_its_line_and_its_cell(value: str) -> None:
    for shown in (text.plain(value), text.markdown(value), text.markdown_code(value), text.csv_cell(value)):
        assert shown.isprintable(), f"{shown!r} holds a control character"
    assert not re.search(r"(?<!\\)(\\\\)*\|", text.markdown(value)), "a pipe that ends a cell"
    assert "<" not in text.markdown(value), "the beginning of a tag"


def test_the_page_fits_a_comment_whatever_a_run_comes_to(tmp_path: Path) -> None:
    """What changed and what failed come first; the tables are folded, and what is left out is told."""
    long = "x" * 3000
    cells = [
        cell("CPU/bundled", f"relation_{number}", cell_id=f"{number}:{long}", **(FAILS | {"reasons": (f"why {long}",)}))
        for number in range(300)
    ]
    varying = [cell("FLASH_ATTN/torch", f"relation_{number}", **VARIES) for number in range(300)]
    page = report_of(tmp_path, *cells, *varying, control()).paths[0].read_text(encoding="utf-8")
    assert len(page) <= 65_536, "GitHub refuses a longer comment"
    assert page.index("# samebits: run") < page.index("## What failed")
    assert page.count("<details>") == page.count("</details>"), "a fold is left open"
    assert "And 260 more groups, in the other files." in page
    assert page.splitlines()[-1].startswith("Left out, to fit a comment: of ")
    small = report_of(tmp_path, *REGRESSED).paths[0].read_text(encoding="utf-8")
    assert "Left out" not in small
    assert small.index("## What failed") < small.index("<details><summary>Implementations</summary>")
