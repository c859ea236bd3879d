"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from samebits.harness.record_files import unwritable


def replace_file(path: Path, text: str) -> None:
    """Writes a file under another name and moves it into place, so that no reader ever sees a part of it.

    Args:
        path: of the file, which is replaced where it exists; its directory is created where it does not.
        text: its content.

    Raises:
        UnusableInput: it cannot be written; what was there is left as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def check_replaceable(path: Path) -> None:
    """Finds out whether `replace_file` could write a file now, by writing beside it or where its directory would be.

    Raises:
        UnusableInput: it could not.
    """
    existing = next(directory for directory in path.absolute().parents if os.path.exists(directory))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise unwritable(path, error) from error
