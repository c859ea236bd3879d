"""Cells of a session run in another process: whatever a cell does to that process, it alone comes to `error`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace

from samebits.harness.isolation.cell_server import DONE, FOUND, SPOILT, WARNED
from samebits.harness.isolation.last_words import ending
from samebits.harness.isolation.limits import Limits, held_memory
from samebits.harness.isolation.noted_warnings import issue
from samebits.harness.isolation.served import Lost, ServedProcess, Template
from samebits.harness.judgement import cut_short, told_error
from samebits.harness.matrix import Cell
from samebits.harness.record_files import parse_record
from samebits.harness.records import Record, Verdict
from samebits.harness.session import MatrixSession

_MODULE = "samebits.harness.isolation.cell_server"
# At least for a new process until its first cell begins, whatever a cell may take: it imports.
_START_SECONDS = 300.0
# Who hangs or eats all memory in as many cells one after another does so in the next, too; all would take days.
_BREACHES_IN_A_ROW = 3
_NOT_COMPUTED = (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE)


class IsolatedSession:
    """Runs the cells of a session in a process that is replaced when a cell breaks it."""

    def __init__(self, session: MatrixSession, limits: Limits) -> None:
        """Starts nothing yet.

        Args:
            session: whose cells they are.
            limits: of one cell.
        """
        self._session = session
        self._limits = limits
        self._template = Template(_MODULE, session.options)
        self._process: ServedProcess | None = None
        # Ids of the cells that the process has run.
        self._before: list[str] = []
        # How many cells of an implementation broke a limit, one after another.
        self._breaches: dict[tuple[str, str], int] = {}
        # Those that broke the process when they were only asked what they support: nothing more is asked of them.
        self._silent: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Begins to import what cells need, and does not wait for it."""
        self._template.start()

    def run(self, cell: Cell) -> Record:
        """Runs one cell in the other process, which is replaced where it cannot go on."""
        started = time.perf_counter()
        subject = (cell.implementation.operation, cell.implementation.label)
        if self._breaches.get(subject, 0) >= _BREACHES_IN_A_ROW:
            return self._give_up(cell, subject)
        messages: list[bytes] = []
        try:
            warned = self._ask(cell, messages)
            record = _record_in(messages[-1])
        except Lost as lost:
            self._breaches[subject] = self._breaches.get(subject, 0) + 1 if lost.broke_limit else 0
            record = replace(self._of_lost(cell, messages, lost), seconds=time.perf_counter() - started)
        else:
            # Of what was not computed nothing is known that would speak for the next cell.
            if record.verdict not in _NOT_COMPUTED:
                self._breaches[subject] = 0
            record = told_warnings(record, warned.removeprefix(WARNED).decode())
        return record

    def close(self) -> None:
        """Ends the other processes."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._template.close()

    def _give_up(self, cell: Cell, subject: tuple[str, str]) -> Record:
        """The record of a cell that is not computed: an error, unless it is unsupported or unavailable."""
        reason = f"not run: {_BREACHES_IN_A_ROW} cells of {cell.implementation.label} before it broke their limits"
        messages: list[bytes] = []
        if subject not in self._silent:
            try:
                self._ask(cell, messages, given_up=reason)
                return _record_in(messages[-1])
            except Lost:
                self._silent.add(subject)
        return _error(self._session.not_probed(cell), reason)

    def _ask(self, cell: Cell, messages: list[bytes], given_up: str = "") -> bytes:
        """Has the other process run a cell.

        Args:
            cell: what to run.
            messages: takes what that process tells of it, the last of which has the cell's record.
            given_up: why nothing of it is to be computed; empty where it is.

        Returns:
            The message of its warnings; empty where there are none.

        Raises:
            Lost: there is no other process any more.
        """
        process = self._ready()
        is_new, warned = not self._before, b""
        limits = replace(self._limits, seconds=max(self._limits.seconds, _START_SECONDS * is_new))
        try:
            process.send(json.dumps([cell.suite, cell.cell_id, given_up]).encode())
            messages.append(process.receive(limits))
            while not messages[-1].startswith((DONE, SPOILT)):
                message = process.receive(self._limits)
                if message.startswith(WARNED):
                    warned = message
                else:
                    messages.append(message)
        except BaseException as error:
            # An interrupt, too, leaves a process that is busy.
            process.kill()
            self._process = None
            raise error
        finally:
            _pass_on(*process.take_output())
        self._before.append(cell.cell_id)
        if messages[-1].startswith(SPOILT):
            process.kill()
            self._process = None
        return warned

    def _of_lost(self, cell: Cell, messages: list[bytes], lost: Lost) -> Record:
        """The record of a cell whose process did not live to its end: what it had found by then is not lost with it."""
        told = self._told(lost)
        if not messages:
            return _error(self._session.not_probed(cell), told)
        record = _record_in(messages[-1])
        return cut_short(record, told) if messages[-1].startswith(FOUND) else _error(record, told)

    def _ready(self) -> ServedProcess:
        """The other process; another one where there is none, or it is no place for another cell."""
        process = self._process
        if process is not None and process.exit_code is not None:
            told = f"the process of cells {ending(process.exit_code)} when {self._before[-1]} had finished"
            warnings.warn(told, stacklevel=1)
            process.kill()
            process = None
        # So that who leaks memory does not leave what is too little for others.
        if process is not None and held_memory(process.pid) > self._limits.nbytes / 2:
            process.close()
            process = None
        if process is None:
            process = self._process = self._template.fork()
            self._before.clear()
        return process

    def _told(self, lost: Lost) -> str:
        """How the process of a cell ended, and whose doing that may be besides."""
        told = f"its process {lost}"
        if self._before:
            told += f" (after {len(self._before)} other cells in that process, the last of them {self._before[-1]})"
        return told


def told_warnings(record: Record, warned: str) -> Record:
    """A cell's record, when its warnings have been given again here: an error where this process's filters raise one.

    Args:
        record: of a cell.
        warned: its warnings, as a line of JSON; empty where there are none.
    """
    try:
        issue(warned or "[]")
    except Warning as warning:
        return replace(record, verdict=Verdict.ERROR, reasons=(told_error(warning), *record.reasons))
    return record


def _record_in(message: bytes) -> Record:
    return parse_record(message.partition(b" ")[2].decode())


def _error(record: Record, reason: str) -> Record:
    return replace(record, verdict=Verdict.ERROR, reasons=(reason,))


def _pass_on(output: str, errors: str) -> None:
    """Writes what a cell wrote where it would have done so in this process."""
    sys.stdout.write(output)
    sys.stderr.write(errors)
