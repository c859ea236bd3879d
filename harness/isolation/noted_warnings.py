"""Warnings of a cell, carried from the process that it runs in to the one that tells of them."""

from __future__ import annotations

import builtins
import contextlib
import json
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TextIO

# A kernel may warn of every row. What is told of more would be read by nobody.
_MOST = 100


@dataclass(frozen=True)
class NotedWarning:
    """A warning as it was given.

    Attributes:
        category: name of its class.
        message: its text.
        filename, line_number: where it was given.
    """

    category: str
    message: str
    filename: str
    line_number: int


@contextlib.contextmanager
def noted_warnings() -> Iterator[Collection[NotedWarning]]:
    """Notes each warning that is given meanwhile, once for each place; they are printed as well.

    So that they are among the last lines of a process that dies.
    """
    noted: dict[NotedWarning, None] = {}
    with warnings.catch_warnings():
        # As pytest has it, which tells those, too.
        for category in (DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("default", category)
        show = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if len(noted) < _MOST:
                noted[NotedWarning(category.__name__, str(message), filename, lineno)] = None
            show(message, category, filename, lineno, file, line)

        warnings.showwarning = note
        yield noted.keys()


def to_line(noted: Collection[NotedWarning]) -> str:
    """Warnings as one line of JSON, which `issue` reads."""
    return json.dumps([list(vars(each).values()) for each in noted])


def issue(line: str) -> None:
    """Gives warnings again in this process, whose filters decide what becomes of them."""
    for each in json.loads(line):
        noted = NotedWarning(*each)
        category, message = getattr(builtins, noted.category, None), noted.message
        if not (isinstance(category, type) and issubclass(category, Warning)):
            # A library's own class is not imported here, so its name is told.
            category, message = UserWarning, f"{noted.category}: {message}"
        warnings.warn_explicit(message, category, noted.filename, noted.line_number)
