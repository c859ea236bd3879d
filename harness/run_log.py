"""A run's records and report: kept by the one process that owns the run, as cells finish and at its end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from _pytest.mark.expression import Expression

from samebits.harness.record_files import RecordWriter, parse_record, read_run
from samebits.harness.records import UnusableInput
from samebits.reports.report import Report, check_baseline, write_baseline, write_report

if TYPE_CHECKING:
    from samebits.harness.session import MatrixSession

T = TypeVar("T")

SUITE_MARKS = {
    "batch_invariant": "a request keeps its bits whatever its batch, neighbours, pages and schedule",
    "dtype": "every number is as right as arithmetic in its dtype allows",
    "semantics": "each mask and each option of attention means what it should",
    "run_to_run": "the same call gives the same bits, again and again",
    "rope": "rotary embedding is right, invariant, and keeps the rules of its cache",
}
# How a test hands its record over: as a property of its report, which xdist carries from a worker to the controller.
RECORD_PROPERTY = "samebits_record"
# What a shell expects of input that cannot be used.
EXIT_UNUSABLE = 2
_ENDED_EARLY = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


def or_exit(action: Callable[[], T]) -> T:
    """Does something, or ends the run with one sentence and exit code 2 when its input is unusable."""
    try:
        return action()
    except UnusableInput as error:
        pytest.exit(str(error), returncode=EXIT_UNUSABLE)


class RunLog:
    """Writes records as cells finish, and the report when the run ends. It does nothing in a run without cells.

    Args:
        config: of the pytest run.
        session: the matrix of this process, made when first called.
    """

    def __init__(self, config: pytest.Config, session: Callable[[], MatrixSession]) -> None:
        self._config = config
        self._session = session
        self._writer: RecordWriter | None = None
        self._report: Report | None = None
        self._complaint = ""
        self._written: set[str] = set()

    def check(self) -> None:
        """Finds out before anything runs whether the options can be used.

        Raises:
            UnusableInput: an option cannot be used.
        """
        session = self._session()
        check_baseline(self._path("baseline"), session.devices)
        if self._path("results") is not None:
            self._open()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes the record of a finished cell, or of one that took its process with it."""
        handed_over = [str(value) for name, value in report.user_properties if name == RECORD_PROPERTY]
        if handed_over and report.when == "call":
            or_exit(functools.partial(self._write, handed_over[0]))
        elif report.failed and not handed_over:
            # A worker that died, or a test that failed outside of its cell: the cell leaves a row all the same.
            crashed = self._session().crashed(report.nodeid, str(report.longrepr))
            if crashed is not None:
                or_exit(functools.partial(self._write, crashed.to_line()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compares and reports; a regression fails a run whose tests all passed."""
        if self._writer is None:
            return
        early = session.shouldfail or session.shouldstop or session.exitstatus in _ENDED_EARLY
        self._writer.close(finished=not early)
        try:
            run = read_run(self._writer.path)
            self._report = write_report(run, self._path("baseline"), self._writer.path.parent)
            if self._report.red and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            update = self._path("update_baseline")
            if update is not None:
                write_baseline(run, update)
        except UnusableInput as error:
            self._complaint = f"samebits: {error}"
            session.exitstatus = EXIT_UNUSABLE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the table, and where the files are."""
        if self._report is not None:
            terminalreporter.ensure_newline()
            terminalreporter.write_line(self._report.summary)
            terminalreporter.write_line("")
            for path in (*self._report.paths, self._writer.path if self._writer else None):
                terminalreporter.write_line(f"written: {_shortest(path)}" if path else "")
        if self._complaint:
            terminalreporter.write_line(self._complaint, red=True)

    def _write(self, line: str) -> None:
        """Writes a cell's first record; a cell that a dead worker hands on to the next has one already."""
        record = parse_record(line)
        if record.cell_id not in self._written:
            self._written.add(record.cell_id)
            self._open().write(record)

    def _open(self) -> RecordWriter:
        if self._writer is None:
            header = self._session().header(self._suites(), self._is_narrowed())
            directory = self._path("results") or self._config.invocation_params.dir / "reports" / "out" / header.run_id
            self._writer = RecordWriter(directory, header)
        return self._writer

    def _suites(self) -> tuple[str, ...]:
        """The suites that the mark expression lets through."""
        expression = self._config.option.markexpr
        if not expression:
            return tuple(SUITE_MARKS)
        compiled = Expression.compile(expression)
        return tuple(mark for mark in SUITE_MARKS if compiled.evaluate(_names(mark)))

    def _is_narrowed(self) -> bool:
        """Whether single tests were selected, so that the cells that did not run mean nothing."""
        option = self._config.option
        chosen = (option.keyword, option.deselect, getattr(option, "lf", False), option.samebits_cell)
        return any(chosen) or any("::" in argument for argument in self._config.args)

    def _path(self, option: str) -> Path | None:
        value = getattr(self._config.option, f"samebits_{option}")
        return None if value is None else self._config.invocation_params.dir / value


def _names(mark: str) -> Callable[..., bool]:
    """Answers a mark expression for a test that has this one mark."""
    return lambda name, /, **_: name == mark


def _shortest(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
