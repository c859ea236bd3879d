"""Several runs told as a history: when bits last changed and with which versions, and how budget and time went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.cli import main
from samebits.harness.records import Environment, Record, Run
from samebits.reports.history import History, grouped_drifts
from samebits.reports.html.page import html_page
from samebits.reports.regression import compare

from .html_pages import data_of, parsed
from .samples import CPU, DID_NOT_RUN, GPU, NO_BASELINE, UNSUPPORTED, cell, control, run_of, save

NEWER = replace(CPU, versions=dict(CPU.versions) | {"torch": "2.14.0"})
ID = cell().cell_id


def run_at(day: int, *records: Record, environment: Environment = CPU, **header: Any) -> Run:  # noqa: ANN401 -- fields of RunHeader
    moved = [replace(record, environment=environment) for record in records]
    started = f"2026-11-{day:02}T09:00:00+00:00"
    return run_of(*moved, **({"run_id": f"r{day}", "started": started, "environment": environment} | header))


def test_a_change_of_bits_is_told_with_the_runs_and_the_versions_around_it() -> None:
    runs = [run_at(1, cell()), run_at(2, cell()), run_at(3, cell(digest="bb"), environment=NEWER)]
    history = History.of(run_at(4, cell(digest="bb"), environment=NEWER), reversed(runs))
    drift = history.drifts[ID]
    assert [run.header.run_id for run in history.runs] == ["r1", "r2", "r3", "r4"], "not in the order of their time"
    assert (drift.before and drift.before.run_id, drift.since.run_id, drift.times) == ("r2", "r3", 1)
    assert drift.told == "between 2026-11-02 09:00 and 2026-11-03 09:00: torch 2.13.0 → 2.14.0"
    assert history.moved == (0, 0, 1, 0)
    assert history.told == "History: of 1 cell with bits, 1 changed them over 4 runs, none of them in this one."


def test_bits_that_come_and_go_without_a_change_of_versions_are_told_as_such() -> None:
    runs = [run_at(day, cell(digest="ab"[day % 2])) for day in (1, 2, 3)]
    assert History.of(runs[-1], runs).drifts[ID].told == (
        "between 2026-11-02 09:00 and 2026-11-03 09:00: no version and no setting changed; 2 times in 3 runs"
    )
    still = [run_at(day, cell()) for day in (1, 2, 3)]
    assert History.of(still[-1], still).drifts[ID].told == "in none of 3 runs since 2026-11-01 09:00"


def test_settings_of_a_kernel_count_as_a_cause_and_a_library_is_named_by_its_label() -> None:
    changed = cell(digest="bb", configuration={"kv_split": "64"}, version="0.2.0")
    drift = History.of(run_at(2, changed), [run_at(1, cell())]).drifts[ID]
    assert drift.cause == "CPU/bundled 0.1.0 → 0.2.0, kv_split 128 → 64"


def test_other_devices_later_runs_and_the_run_itself_are_no_history() -> None:
    last = run_at(5, cell(digest="bb"), control(digest="c"), cell(relation="decode", **UNSUPPORTED))
    others = [last, run_at(6, cell(digest="cc")), run_at(1, cell(digest="dd"), environment=GPU)]
    history = History.of(last, others)
    assert (len(history.runs), history.left_out) == (1, 2)
    assert history.told.endswith(" 2 runs left out: of other devices, or later than this one."), history.told
    assert history.drifts[ID].told == "", "there is no earlier run to tell of"
    assert list(history.drifts) == [ID], "what has no bits, or is a control, has no history"


def test_a_run_that_lacks_a_cell_is_passed_over() -> None:
    runs = [run_at(1, cell(digest="bb")), run_at(2, cell(relation="decode"))]
    drift = History.of(run_at(3, cell()), runs).drifts[ID]
    assert (drift.before and drift.before.run_id, drift.runs) == ("r1", 2)


def test_trends_are_over_the_cells_that_all_runs_have() -> None:
    first = run_at(1, cell(error_budget=0.2, seconds=1.0), cell(relation="decode", error_budget=5.0, seconds=50.0))
    second = run_at(2, cell(error_budget=0.4, seconds=3.0), cell("FLASH_ATTN/torch"))
    (trend,) = History.of(second, [first]).trends
    assert (trend.label, trend.cells, [run.run_id for run in trend.runs]) == ("CPU/bundled", 1, ["r1", "r2"])
    assert [(point.worst, point.seconds) for point in trend.points] == [(0.2, 1.0), (0.4, 3.0)]


def test_the_page_tells_the_history_and_each_cell_its_own() -> None:
    last = run_at(3, cell(digest="bb"), cell(relation="decode", **DID_NOT_RUN), environment=NEWER)
    earlier = [run_at(1, cell()), run_at(2, cell())]
    history = History.of(last, earlier)
    page = parsed(html_page(compare(last, NO_BASELINE), history))
    section = page.one("section", id="history")
    assert "torch 2.13.0 → 2.14.0" in section.text
    assert len(section.all("svg", css="trend")) == 3
    assert [drift.record.cell_id for drift, cells in grouped_drifts(history) if cells == 1] == [ID]
    data = data_of(page)
    told = [data["tables"]["drifts"][place] for place in data["columns"]["drift"]]
    assert sorted(told) == ["", history.drifts[ID].told]
    assert "#history" in [link.attributes["href"] for link in page.one("nav").all("a")]


def test_the_command_takes_earlier_runs_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day, digest in ((1, "aa"), (2, "bb")):
        started = f"2026-11-{day:02}T09:00:00+00:00"
        save(tmp_path / str(day), cell(digest=digest), control(), run_id=f"r{day}", started=started)
    command = ["report", str(tmp_path / "2"), "--baseline", str(tmp_path), "--history"]
    assert main([*command, str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert "History: of 1 cell with bits, 1 changed them over 2 runs, 1 of them in this one." in capsys.readouterr().out
    assert 'id="history"' in (tmp_path / "2" / "index.html").read_text(encoding="utf-8")
    assert main([*command, str(tmp_path / "none")]) == 2
    assert "cannot read" in capsys.readouterr().err
