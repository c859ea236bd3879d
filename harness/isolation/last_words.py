"""How a process ended and what it wrote last, in words."""

from __future__ import annotations

import re
import signal

_KEPT_BYTES = 1 << 16
_LINES = 5
# What faulthandler writes above frames, the innermost of which comes first.
_FRAMES_BEGIN = "Stack (most recent call first):"
_FRAMES = 4
# Of a frame's file, all but its folder and its name: whole, they would bury what a reason says.
_FAR_FOLDERS = re.compile(r'(?<=File ")[^"]*/(?=[^"/]+/[^"/]+")')


class Tail:
    """The end of what is written into a pipe, however much it is."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._kept = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes the next piece."""
        self._kept += data
        if len(self._kept) > _KEPT_BYTES:
            del self._kept[:-_KEPT_BYTES]

    def peek(self) -> str:
        """What is held."""
        return self._kept.decode(errors="replace")

    def take(self) -> str:
        """What is held, which is held no longer."""
        text = self.peek()
        self._kept.clear()
        return text


def ending(exit_code: int) -> str:
    """How a process ended, as a clause without its subject.

    Args:
        exit_code: as `subprocess` has it: minus the number of a signal that ended it.
    """
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"was ended by signal {-exit_code}"
    return f"was ended by {name} ({signal.strsignal(-exit_code)})"


def memory(nbytes: float) -> str:
    """Bytes in words, as fine as it takes to tell what was held from what is allowed."""
    return f"{nbytes / 2**20:,.0f} MiB" if nbytes < 10 * 2**30 else f"{nbytes / 2**30:,.2f} GiB"


def last_words(text: str) -> str:
    """The last lines that a process wrote, in one line.

    Of a dump of Python's frames, which begins with the innermost, it is the beginning that tells where a process was.
    Of the path of a frame's file the last two parts are told; the whole is in what was captured.

    Args:
        text: the end of what it wrote.
    """
    # Not what only underlines a piece of the line above it.
    lines = [line.strip() for line in text.splitlines() if line.strip("\t ^~")]
    dump = lines.index(_FRAMES_BEGIN) if _FRAMES_BEGIN in lines else len(lines)
    told = lines[:dump][-_LINES:] + lines[dump + 1 :][:_FRAMES]
    return " / ".join(_FAR_FOLDERS.sub(".../", line) for line in told) or "it wrote nothing"
