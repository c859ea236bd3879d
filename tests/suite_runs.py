"""Suites run as users run them: pytest in a process of its own, and the records that it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from samebits.harness.record_files import read_run
from samebits.harness.records import Record

ROOT = Path(__file__).parent.parent
PLANTED = Path(__file__).parent / "planted"
# To read the baselines that come with samebits takes as long as a small run. It is there as long as this process.
_EMPTY = tempfile.TemporaryDirectory(prefix="samebits-no-baselines-")
NO_BASELINES = Path(_EMPTY.name)
# What Python is told to run.
PYTEST = ("-m", "pytest")
IN_PROCESS = ("--no-isolation",)
# Hypothesis is imported, and all garbage is collected twice, at the end of every run that has their plugins.
_NOT_NEEDED = ("cacheprovider", "hypothesispytest", "unraisableexception")
WITHOUT_PLUGINS = tuple(word for plugin in _NOT_NEEDED for word in ("-p", f"no:{plugin}"))


@dataclass(frozen=True)
class SuiteRun:
    """What a run of a suite left.

    Attributes:
        exit_code: pytest's.
        records: of every cell that is no control.
        output: what was printed.
    """

    exit_code: int
    records: tuple[Record, ...]
    output: str

    def of(self, label: str) -> list[Record]:
        """The records of an implementation."""
        return [record for record in self.records if record.label == label]


def python_path(*first: Path) -> str:
    """`PYTHONPATH` of a process that finds modules in some folders, and then where this process finds them."""
    return os.pathsep.join(filter(None, (*map(str, first), os.environ.get("PYTHONPATH"))))


def run_pytest(
    *arguments: object,
    cwd: Path = ROOT,
    python: Sequence[object] = PYTEST,
    environment: Mapping[str, object] = MappingProxyType({}),
    prepare: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a process of its own.

    Args:
        arguments: of pytest.
        cwd: where it is started.
        python: what Python is told to run as pytest.
        environment: variables besides those of this process.
        prepare: is called in the process before it begins.
    """
    return subprocess.run(
        [sys.executable, *map(str, python), *WITHOUT_PLUGINS, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
    )


def run_suite(
    suite: str,
    results: Path,
    *arguments: object,
    cwd: Path = ROOT,
    python: Sequence[object] = PYTEST,
    environment: Mapping[str, object] = MappingProxyType({}),
    isolated: bool = False,
) -> SuiteRun:
    """Runs a suite, all of it or what further arguments leave of it, and compares it with no baseline.

    Args:
        suite: its mark.
        results: where its records go.
        arguments: further ones of pytest.
        cwd, python, environment: as of `run_pytest`.
        isolated: whether cells run in a process of their own, which imports torch once more.
    """
    options = ("-m", suite, "--baseline", NO_BASELINES, "--results", results)
    place = () if isolated else IN_PROCESS
    done = run_pytest(*options, *place, *arguments, cwd=cwd, python=python, environment=environment)
    output = done.stdout + done.stderr
    assert done.returncode in (0, 1), f"pytest ended with {done.returncode}:\n{output}"
    records = tuple(record for record in read_run(results).records if not record.control)
    return SuiteRun(done.returncode, records, output)
