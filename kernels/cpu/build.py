"""Compiles the C++ kernels on first use into one shared library, and keeps it in a per-user cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE_DIRECTORY = Path(__file__).parent
# The order of additions is written down in the sources: -ffast-math would change it, and contraction of a product and
# a sum into one operation would be the compiler's choice, made anew for each copy of a loop.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
)


class BuildError(RuntimeError):
    """The kernels could not be compiled or loaded; the message is one sentence."""


def load_library(source_directory: Path = SOURCE_DIRECTORY, flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """Loads the kernels, compiled if this machine has not compiled these sources before.

    Args:
        source_directory: holds the sources, each compiled by itself, and their headers.
        flags: of the compiler.

    Raises:
        BuildError: without a compiler, or when compiling or loading fails.
    """
    library = _compiled(source_directory, flags)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"the compiled kernel cannot be loaded: {_one_line(str(error))}") from None


def compiler_command() -> list[str]:
    """The C++ compiler and its first arguments: `$CXX`, or `g++`.

    Raises:
        BuildError: there is none.
    """
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler {command[0]!r} on PATH; install g++, or set CXX to a compiler")
    return command


@functools.cache
def predefined_macros(compiler: tuple[str, ...], flags: tuple[str, ...] = FLAGS) -> str:
    """What a compiler defines under some flags, a line for each: under `-march=native`, what this processor has.

    Raises:
        BuildError: the compiler fails.
    """
    return _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])


def cache_directory() -> Path:
    """Where compiled libraries are kept: `$XDG_CACHE_HOME/samebits`, or `~/.cache/samebits`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samebits"


def _compiled(source_directory: Path, flags: tuple[str, ...]) -> Path:
    compiler = compiler_command()
    digest = hashlib.sha256()
    # The macros that a compiler predefines name its version and, under -march=native, what this processor has.
    for part in (*compiler, *flags, predefined_macros(tuple(compiler), flags)):
        digest.update(part.encode() + b"\0")
    sources = sorted(source_directory.glob("*.cpp"))
    for source in (*sources, *sorted(source_directory.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    library = cache_directory() / f"kernels-{digest.hexdigest()[:20]}.so"
    if not library.exists():
        _compile(compiler, flags, sources, library)
    return library


def _compile(compiler: list[str], flags: tuple[str, ...], sources: list[Path], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # Processes may compile at the same time: each writes a file of its own, and a rename is atomic.
        with tempfile.TemporaryDirectory(dir=library.parent) as directory:
            unfinished = Path(directory) / library.name
            _run([*compiler, *flags, "-shared", "-o", str(unfinished), *map(str, sources)])
            unfinished.replace(library)
    except OSError as error:
        raise BuildError(
            f"the kernel cache {library.parent} cannot be written ({error.strerror}); "
            "set XDG_CACHE_HOME to a directory that can"
        ) from None


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode == 0:
        return finished.stdout
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    first_error = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
    raise BuildError(f"the compiler {command[0]} failed with status {finished.returncode}: {_one_line(first_error)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
