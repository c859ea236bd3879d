"""What a server of cells does: finds cells by name in a session of its own, and runs them. See `isolated_session`."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace

import torch

from samebits.harness.isolation.forked import Answer, Send
from samebits.harness.isolation.noted_warnings import noted_warnings, to_line
from samebits.harness.matrix import Cell
from samebits.harness.records import Record, Verdict
from samebits.harness.session import MatrixSession, Options

# First words of its messages: the record of a cell that is about to run; that of one that did not hold, as long as its
# batch is still made smaller; that of one that ran; and that of one after which this process is not fit for others.
# Before the last two, the warnings of the cell, where there are any.
BEGUN, FOUND, WARNED, DONE, SPOILT = b"begun", b"found", b"warned", b"done", b"spoilt"


def make_server(options: Options) -> Answer:
    """Answers the names of cells with their records.

    Args:
        options: of the asking process's session, from which both make the same cells.
    """
    return _CellServer(MatrixSession(options)).answer


class _CellServer:
    def __init__(self, session: MatrixSession) -> None:
        self._session = session
        self._cells: dict[str, dict[str, Cell]] = {}
        self._streams = _open_streams()

    def answer(self, question: bytes, send: Send) -> None:
        """Runs a cell, and tells before each step what the cell's record is if that is the end.

        Args:
            question: names of a suite and of a cell of it, and why the cell is not to be computed, as JSON; an empty
                reason where it is.
            send: takes each message.
        """
        suite, cell_id, given_up = json.loads(question)
        cell = self._cell(suite, cell_id)
        send(_message(BEGUN, self._session.not_run(cell)))
        if given_up:
            send(_message(DONE, self._session.give_up(cell, given_up)))
            return
        with noted_warnings() as noted:
            record = self._session.run(cell, lambda found: send(_message(FOUND, found)))
        if noted:
            send(WARNED + b" " + to_line(noted).encode())
        lost = _lost_device()
        if lost and record.verdict in (Verdict.PASS, Verdict.VARIES):
            record = replace(record, verdict=Verdict.ERROR, reasons=(f"left its device unusable: {lost}",))
        word = SPOILT if lost or _open_streams() != self._streams else DONE
        send(_message(word, record))

    def _cell(self, suite: str, cell_id: str) -> Cell:
        if suite not in self._cells:
            self._cells[suite] = {cell.cell_id: cell for cell in self._session.cells(suite)}
            # There are thousands, which the garbage collector need not look at again and again.
            gc.freeze()
        return self._cells[suite][cell_id]


def _message(word: bytes, record: Record) -> bytes:
    return word + b" " + record.to_line().encode()


def _lost_device() -> str:
    """What CUDA says of a context that nothing can be computed in any more; empty where all is well."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return ""


def _open_streams() -> list[tuple[int, int] | None]:
    """Which files stdout and stderr are; None for one that is closed."""
    found: list[tuple[int, int] | None] = []
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            status = os.fstat(number)
        except OSError:
            found.append(None)
            continue
        found.append(None if stream is None or stream.closed else (status.st_dev, status.st_ino))
    return found
