"""Where a run is, told at sensible intervals and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from samebits.harness.progress import Progress
from samebits.harness.records import Record
from samebits.harness.run_log import RECORD_PROPERTY

from .samples import FAILS, cell

RECORD = '{"suite": "dtype", "backend": "CPU", "implementation": "torch"}'


@dataclass
class Terminal:
    """What a terminal's reporter is asked to write."""

    isatty: bool
    lines: list[str] = field(default_factory=list)
    _tw: Any = field(default_factory=lambda: SimpleNamespace(width_of_current_line=0))

    def ensure_newline(self) -> None: ...

    def flush(self) -> None: ...

    def write_line(self, line: str) -> None:
        self.lines.append(line)


def lines_of(
    terminal: Terminal | None,
    seconds: float,
    cells: int = 100,
    *,
    verbose: int = 0,
    ours: bool = True,
    before: tuple[Record, ...] = (),
) -> None:
    """Runs cells that take some seconds each and fail every tenth time."""
    clock = iter(seconds * step for step in range(2 * cells + 9))
    config: Any = SimpleNamespace(
        option=SimpleNamespace(verbose=verbose), pluginmanager=SimpleNamespace(get_plugin=lambda _: terminal)
    )
    progress = Progress(config, lambda: next(clock), lambda: before)
    node_ids = [
        f"suites/test_dtype.py::test_dtype[CPU/torch:large_values:case-{number}:fp32]" for number in range(cells)
    ]
    progress.pytest_xdist_node_collection_finished(node_ids)
    for number, node_id in enumerate(node_ids):
        for when in ("setup", "call", "teardown"):
            failed = number % 10 == 9 and when == "call"
            told: Any = SimpleNamespace(
                nodeid=node_id, when=when, failed=failed, user_properties=[(RECORD_PROPERTY, RECORD)] * ours
            )
            progress.pytest_runtest_logreport(told)


def test_a_terminal_is_told_more_often_than_a_log() -> None:
    terminal, log = Terminal(isatty=True), Terminal(isatty=False)
    lines_of(terminal, 5.0)
    lines_of(log, 5.0)
    assert terminal.lines[:2] == [
        "samebits: dtype CPU/torch: 2 of 100 cells, 0 failed, about 8:10 left",
        "samebits: dtype CPU/torch: 4 of 100 cells, 0 failed, about 8:00 left",
    ]
    assert log.lines[:1] == ["samebits: dtype CPU/torch: 12 of 100 cells, 1 failed, about 7:20 left"]
    assert len(terminal.lines) == 49
    assert len(log.lines) == 8


def test_a_resumed_run_tells_what_was_done_before() -> None:
    terminal = Terminal(isatty=True)
    before = (*(cell(relation=f"relation_{number}") for number in range(1_199)), cell(relation="decode", **FAILS))
    lines_of(terminal, 5.0, before=before)
    assert terminal.lines[0] == (
        "samebits: dtype CPU/torch: 2 of 100 cells, 0 failed, about 8:10 left; "
        "resumed: 1,200 of 1,300 done before, 1 failed"
    )


def test_hours_are_told_as_such() -> None:
    log = Terminal(isatty=False)
    lines_of(log, 100.0, cells=2_000)
    assert log.lines[0] == "samebits: dtype CPU/torch: 1 of 2,000 cells, 0 failed, about 55:31:40 left"


@pytest.mark.parametrize(
    "silent", [{"seconds": 0.01}, {"seconds": 100.0, "verbose": -2}, {"seconds": 100.0, "ours": False}], ids=str
)
def test_short_runs_silent_ones_and_those_of_others_are_not_told(silent: dict[str, Any]) -> None:
    terminal = Terminal(isatty=True)
    lines_of(terminal, **silent)
    assert terminal.lines == []


def test_a_run_without_a_terminal_goes_on() -> None:
    lines_of(None, 100.0)
