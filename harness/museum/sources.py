"""Bundled sources with a bug planted in them: a copy in which one piece of text takes the place of another.

Each piece must occur once, so that a source that has changed is told, and nobody takes a copy without the bug for one
that has it. Copies last as long as this process.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_COPIES = tempfile.TemporaryDirectory(prefix="samebits-museum-")
# What is planted: a piece of the source, and what takes its place.
Replacement = tuple[str, str]


class SourceChanged(ValueError):
    """A source no longer holds what a bug takes the place of; the message is one sentence."""


def planted_library(directory: Path, kernel: str, *replacements: Replacement) -> Path:
    """Copies a C++ kernel and the headers beside it, and plants a bug in them.

    Args:
        directory: of the sources.
        kernel: file name of the one source to compile.
        replacements: to be made in the kernel or in a header.

    Returns:
        The directory of the copies.

    Raises:
        SourceChanged: a piece does not occur once in all of them.
    """
    copies = Path(tempfile.mkdtemp(dir=_COPIES.name))
    for source in (directory / kernel, *directory.glob("*.h")):
        shutil.copy(source, copies)
    _plant(sorted(copies.iterdir()), directory.name, replacements)
    return copies


def planted_module(module: str, name: str, *replacements: Replacement) -> str:
    """Copies a Python module under another name, by which it can be imported, and plants a bug in it.

    Args:
        module: that is copied; its source is a file.
        name: of the copy, the same for the same replacements.
        replacements: to be made in it.

    Returns:
        The name.

    Raises:
        SourceChanged: a piece does not occur in it once.
    """
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None:
        raise SourceChanged(f"there is no source of the module {module!r} to plant a bug in")
    copy = Path(_COPIES.name) / f"{name}.py"
    shutil.copy(specification.origin, copy)
    _plant([copy], module, replacements)
    if _COPIES.name not in sys.path:
        sys.path.append(_COPIES.name)
    importlib.invalidate_caches()
    return name


def _plant(files: Sequence[Path], origin: str, replacements: Sequence[Replacement]) -> None:
    for original, planted in replacements:
        texts = {file: file.read_text(encoding="utf-8") for file in files}
        count = sum(text.count(original) for text in texts.values())
        if count != 1:
            told = " ".join(original.split())
            raise SourceChanged(f"{told!r}, which a bug takes the place of, occurs {count} times in {origin}, not once")
        for file, text in texts.items():
            if original in text:
                file.write_text(text.replace(original, planted), encoding="utf-8")
