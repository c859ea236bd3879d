"""A function called in a process of its own, which may hang, crash, or write where it likes."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from samebits.harness.isolation.last_words import ending
from samebits.harness.isolation.parent_death import end_with_parent

_GRACE_SECONDS = 5
# Seconds by the clock for each that a process may compute: the machine may have other work.
_WAITED = 30


class Crashed(RuntimeError):
    """The process ended without an answer; the message says how."""


class Hung(RuntimeError):
    """The process computed, or waited, for longer than it may."""


@dataclass(frozen=True)
class Working:
    """Said before something is begun.

    Attributes:
        on: what it is.
        seconds: that it may compute. A loaded machine changes nothing of them.
    """

    on: str
    seconds: float


@dataclass(frozen=True)
class _Raised:
    """Said last by a process whose work raised."""

    told: str


Say = Callable[[object], None]


def answers(work: Callable[[Say], None], seconds: float, memory: int | None = None) -> Iterator[Any]:
    """Calls a function in a forked process, and yields what it says, but for what it says of its own progress.

    The process starts with all that this one has loaded and computed. It must therefore be started while this one has a
    single thread.

    Args:
        work: called there with a function by which it says what can be pickled.
        seconds: that it may compute before it says the first thing.
        memory: bytes that it may map on top of what this process has; None for any number.

    Raises:
        Crashed: `work` raised, or the process ended before it had returned; the message names what it was working on.
        Hung: it computed, or said nothing, for longer than it may.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(work, sender, seconds, memory, os.getpid())
    )
    process.start()
    sender.close()
    working = Working("starting", seconds)
    try:
        while True:
            if not receiver.poll(_WAITED * working.seconds):
                raise Hung(f"{working.on}: waits")
            try:
                said = receiver.recv()
            except EOFError:
                process.join(_GRACE_SECONDS)
                if process.exitcode == -signal.SIGXCPU:
                    raise Hung(f"{working.on}: no end") from None
                how = "did not end" if process.exitcode is None else ending(process.exitcode)
                raise Crashed(f"{working.on}: {how}") from None
            if said is None:
                return
            if isinstance(said, _Raised):
                raise Crashed(f"{working.on}: {said.told}")
            if isinstance(said, Working):
                working = said
            else:
                yield said
    finally:
        receiver.close()
        process.kill()
        process.join()


def _work(work: Callable[[Say], None], sender: Connection, seconds: float, memory: int | None, parent: int) -> None:
    def say(what: object) -> None:
        if isinstance(what, Working):
            _limit_computing(what.seconds)
        sender.send(what)

    # It may wait for minutes, and nobody would wait for it any more.
    end_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_computing(seconds)
    if memory is not None:
        # Where the system does not say how much is mapped, nothing is limited.
        with contextlib.suppress(OSError):
            mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    # What a broken kernel makes numpy or a compiler say is no part of the findings.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    last = None
    try:
        work(say)
    except BaseException as error:
        last = _Raised("".join(traceback.format_exception_only(error)).strip())
    sender.send(last)
    # Nothing of the process that was forked is to be tidied up here.
    os._exit(0)


def _limit_computing(seconds: float) -> None:
    """Ends this process when it has computed for so long from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime + seconds), most))
