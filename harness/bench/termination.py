"""SIGTERM as an interrupt: whoever is told to end, as by a scheduler, leaves nothing behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came. As an interrupt of the keyboard it passes whoever takes errors for a kernel's, and pytest, too."""


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Has SIGTERM raise `Terminated` meanwhile, so that what was begun is ended and removed; for the main thread.

    Raises:
        Terminated: SIGTERM came.
    """
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _raise(number: int, frame: FrameType | None) -> None:
    # Who tidies up is not interrupted by the same again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated("ended by SIGTERM")
