"""The processes of this machine, and whose they are, where the system is Linux; none where it is another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process that was there when it was looked at.

    Attributes:
        pid: its number.
        parent: that of the process that it belongs to.
        session: that of the process that began its session.
    """

    pid: int
    parent: int
    session: int


def processes() -> Iterator[Process]:
    """All that can be seen, those that have ended and were not waited for among them."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name, which may hold anything: state, parent, group, session.
            _, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue  # It is gone meanwhile.
        yield Process(int(folder.name), int(parent), int(session))
