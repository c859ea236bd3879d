"""Commands made fit to be published: they name no folder of the machine that ran them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePath

FOLDER = "DIR"


def portable(command: str) -> str:
    """A record's command as another machine can run it.

    Args:
        command: that reproduces a cell.

    Returns:
        The command with `--libs DIR` for any folder of libraries, and the bare name of a file that `--load` runs; as it
        is where it is no command line.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return shlex.join(_portable(words))


def _portable(words: list[str]) -> Iterator[str]:
    option = ""
    for word in words:
        yield {"--libs": FOLDER, "--load": PurePath(word).name}.get(option, word)
        option = word
