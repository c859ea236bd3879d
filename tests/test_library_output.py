"""What a library prints or warns of: never among what machines read, and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings

import pytest

from samebits.harness.isolation.isolated_session import told_warnings
from samebits.harness.isolation.noted_warnings import NotedWarning, issue, noted_warnings, to_line
from samebits.harness.records import Verdict

from .samples import FAILS, cell

# Stands for a command that imports a library which is loud.
LOUD = """
    import ctypes, os, sys
    from samebits.harness.library_output import told_on_stderr
    with told_on_stderr():
        print("loud in Python")
        os.write(1, b"loud past Python\\n")
        ctypes.CDLL(None).printf(b"loud in C, and kept until the end\\n")
    print("{}")
"""


def run_python(program: str, *closed: int) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process with some of its streams closed."""

    def close() -> None:
        for number in closed:
            os.close(number)

    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, preexec_fn=close, capture_output=True, text=True, check=True)


def test_what_a_library_prints_is_not_among_what_machines_read() -> None:
    done = run_python(LOUD)
    assert done.stdout == "{}\n"
    for line in ("in Python", "past Python", "in C, and kept until the end"):
        assert f"loud {line}" in done.stderr, f"what was printed {line} is lost"


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)], ids=str)
def test_a_stream_that_is_closed_is_no_matter(closed: tuple[int, ...]) -> None:
    program = """
        from samebits.harness.library_output import told_on_stderr
        import os
        with told_on_stderr():
            print("somebody's")
        try:
            os.write(1, b"ours")
        except OSError:
            pass
    """
    assert run_python(program, *closed).stdout == ("" if 1 in closed else "ours")


def test_a_warning_that_the_user_made_an_error_is_the_cells() -> None:
    line = to_line([NotedWarning("UserWarning", "beware", "kernel.py", 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        told = told_warnings(cell(**FAILS), line)
    assert (told.verdict, told.reasons[0]) == (Verdict.ERROR, "UserWarning: beware")
    assert told.reasons[1:] == FAILS["reasons"], "what was found besides is lost"
    assert told_warnings(cell(), "") == cell()


def test_a_warning_is_carried_to_another_process_once_for_each_place() -> None:
    class OfALibrary(UserWarning):
        """Of a class that the other process does not know."""

    with warnings.catch_warnings(record=True) as printed, noted_warnings() as noted:
        for number in range(300):
            warnings.warn_explicit("often", UserWarning, "kernel.py", 3)
            warnings.warn_explicit(f"{number}", DeprecationWarning, "kernel.py", 4)
        warnings.warn_explicit("never", OfALibrary, "kernel.py", 5)
    line = to_line(noted)
    assert len(noted) == 100, "a kernel that warns of every row is told of without end"
    assert len(printed) == 601, "what is noted is not printed any more, and a process that dies leaves no word of it"
    with warnings.catch_warnings(record=True), noted_warnings() as few:
        warnings.warn_explicit("own", OfALibrary, "kernel.py", 6)
    for told in (line, to_line(few)):
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            issue(told)
        first = again[0]
        expected = (
            ("often", UserWarning, "kernel.py", 3) if told == line else ("OfALibrary: own", UserWarning, "kernel.py", 6)
        )
        assert (str(first.message), first.category, first.filename, first.lineno) == expected
