"""Where a run of minutes is, told in lines: in a terminal every few seconds, in a log every minute.

Lines stand between pytest's own, whatever those look like: a line that is drawn again and again would not get on with
its dots, with `-v`, or with other plugins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence

import pytest

from samebits.harness.node_ids import cell_id_of, names_cell
from samebits.harness.records import Record
from samebits.harness.run_log import RECORD_PROPERTY
from samebits.reports import text

# Who watches wants to see that it goes on; who reads a log wants to see where it stopped.
_TERMINAL_SECONDS, _LOG_SECONDS = 10.0, 60.0
# Of `-qq`. With `-q` the matrix is usually run.
_SILENT = -2


class Progress:
    """Tells how far the cells of a run are, in the process that prints. It does nothing in a run without cells."""

    def __init__(
        self,
        config: pytest.Config,
        clock: Callable[[], float] = time.monotonic,
        done_before: Callable[[], Sequence[Record]] = tuple,
    ) -> None:
        """Has seen no cell yet.

        Args:
            config: of the pytest run.
            clock: seconds since some moment.
            done_before: cells that others had finished, of a run that is resumed.
        """
        self._config = config
        self._clock = clock
        self._done_before = done_before
        self._cells: set[str] = set()
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._began = self._told = clock()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes the cells that will run in this process."""
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        """Notes the cells that will run in the workers, each of which collects them all."""
        self._expect(ids)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a cell that finished, or failed to; behind what pytest itself prints of it."""
        if report.nodeid not in self._cells or not (report.failed or report.when == "call"):
            return
        self._done.add(report.nodeid)
        if report.failed:
            self._failed.add(report.nodeid)
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or self._config.option.verbose <= _SILENT or len(self._done) == len(self._cells):
            return
        now, place = self._clock(), _place(report)
        if place and now - self._told >= (_TERMINAL_SECONDS if terminal.isatty else _LOG_SECONDS):
            self._told = now
            _tell(terminal, f"samebits: {place}: {self._numbers(now)}")

    def _expect(self, node_ids: Iterable[str]) -> None:
        self._cells |= {node_id for node_id in node_ids if names_cell(cell_id_of(node_id))}
        self._began = self._told = self._clock()

    def _numbers(self, now: float) -> str:
        done, total = len(self._done), len(self._cells)
        left = (now - self._began) / done * (total - done)
        told = f"{done:,} of {total:,} cells, {len(self._failed):,} failed, about {text.duration(left)} left"
        before = self._done_before()
        if not before:
            return told
        red = sum(record.red for record in before)
        return f"{told}; resumed: {len(before):,} of {len(before) + total:,} done before, {red:,} failed"


def _tell(terminal: pytest.TerminalReporter, line: str) -> None:
    terminal.ensure_newline()
    # With -q it does not know of the dots that are there.
    if terminal._tw.width_of_current_line:
        terminal.write("\n")
    terminal.write_line(line)
    terminal.flush()


def _place(report: pytest.TestReport) -> str:
    """Suite, backend and implementation of a cell; empty for a test of another project, and where no record came."""
    for name, value in report.user_properties:
        if name == RECORD_PROPERTY:
            record = json.loads(str(value))
            return f"{record['suite']} {record['backend']}/{record['implementation']}"
    return ""
