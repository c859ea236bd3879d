"""What libraries print while they are imported or run, kept out of what a command prints for machines."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def told_on_stderr() -> Iterator[None]:
    """Has all that anybody prints meanwhile go to stderr, be it from Python or past it, as libraries in C do."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            kept = os.dup(_STDOUT)
        except OSError:
            yield  # There is no stdout that anything could get into.
            return
        try:
            with contextlib.suppress(OSError):  # There is no stderr.
                os.dup2(_STDERR, _STDOUT)
            yield
        finally:
            # C writes what it has buffered when the process ends, and then it would be among what is meant for stdout.
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, _STDOUT)
            os.close(kept)
