"""How many cells a second the suites run: pytest in a process of its own, and the records that it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.bench.records import SuiteRate, SuiteShare
from samebits.harness.record_files import read_run
from samebits.harness.records import Run, UnusableInput

# By device: as many cells of one implementation as a minute has room for twice, where every core has a worker.
_SUITES = {"cpu": ("batch_invariant",), "cuda": ("batch_invariant", "dtype", "semantics", "run_to_run")}
_TIER, _QUICK_TIER = "default", "smoke"
# More share a GPU badly, and each holds memory of it.
_MOST_WORKERS = 16
# Of one run, which takes a tenth of it.
_SECONDS = 300.0
# Pytest's: all passed, or some failed, of which the records tell.
_RAN = (0, 1)
# As the Makefile has them: torch's threads are samebits' to set; those of the libraries below numpy are not.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Of a pytest around this one, whose worker or whose user's choices the inner one is not to take for its own.
_OUTER = "PYTEST_"
# Images of containers set the first. Dozens of processes would then compile each module that they import.
_NO_MODULES_KEPT, _MODULES_KEPT_IN = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"
_LONGEST_OUTPUT = 500

# Runs a command in an environment and returns its exit code, None where it took too long; and what it printed.
Runner = Callable[[Sequence[str], Mapping[str, str]], tuple[int | None, str]]


@dataclass(frozen=True)
class SuiteSelection:
    """The cells whose rate is measured.

    Attributes:
        label: of the implementation.
        suites: their marks.
        tier: of the cells.
        workers: processes that share them.
        runs: how often they run, one after another; the first may have to compile.
    """

    label: str
    suites: tuple[str, ...]
    tier: str
    workers: int
    runs: int

    @classmethod
    def of(cls, label: str, device: str, processors: int, *, quick: bool) -> SuiteSelection:
        """The selection of a machine: always the same one, so that its rates can be compared.

        Args:
            label: of an implementation whose kernels are cheap.
            device: type of device on which that computes.
            processors: that this process may use.
            quick: whether few cells are enough, once.
        """
        workers = min(processors, _MOST_WORKERS)
        return cls(label, _SUITES[device], _QUICK_TIER if quick else _TIER, workers, 1 if quick else 2)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of pytest's command that select the cells."""
        tier = () if self.tier == _TIER else ("--tier", self.tier)
        return ("-n", str(self.workers), "-m", " or ".join(self.suites), "--implementation", self.label, *tier)


def suite_rates(selection: SuiteSelection, run: Runner | None = None) -> Iterator[SuiteRate]:
    """Runs the cells as often as the selection says, and measures each run from the start of its process to its end.

    Args:
        selection: which cells, in how many workers.
        run: runs a command; None for a process.
    """
    with tempfile.TemporaryDirectory(prefix="samebits-bench-") as folder:
        environment = _environment(Path(folder) / "modules")
        for number in range(selection.runs):
            results = Path(folder) / f"run-{number}"
            words = ("--pyargs", "samebits.suites", "-q", "-p", "no:cacheprovider", *selection.words)
            command = [sys.executable, "-m", "pytest", *words, "--results", str(results)]
            began = time.perf_counter()
            code, output = (run or _in_process)(command, environment)
            seconds = time.perf_counter() - began
            yield _rate(selection, number, results, seconds, _complaint(code, output))


def _environment(modules: Path) -> dict[str, str]:
    """The environment of the runs: the user's, and none of a pytest around this one.

    Args:
        modules: where Python keeps what it compiles, where the user has it keep nothing.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OUTER)} | _ENVIRONMENT
    if environment.pop(_NO_MODULES_KEPT, ""):
        environment[_MODULES_KEPT_IN] = str(modules)
    return environment


def _rate(selection: SuiteSelection, number: int, results: Path, seconds: float, complaint: str) -> SuiteRate:
    shares: tuple[SuiteShare, ...] = ()
    if not complaint:
        try:
            shares = _shares(read_run(results))
        except UnusableInput as error:
            complaint = f"it left no records: {error}"
    return SuiteRate(
        label=selection.label,
        words=selection.words,
        workers=selection.workers,
        run=number,
        seconds=seconds,
        suites=shares,
        reason=complaint,
    )


def _shares(run: Run) -> tuple[SuiteShare, ...]:
    suites = dict.fromkeys(record.suite for record in run.records)
    of_suite = {suite: [record for record in run.records if record.suite == suite] for suite in suites}
    return tuple(
        SuiteShare(suite, len(records), sum(record.seconds for record in records))
        for suite, records in of_suite.items()
    )


def _complaint(code: int | None, output: str) -> str:
    """Why a run has no rate, as a sentence; empty where it has."""
    if code in _RAN:
        return ""
    last = " ".join(output.split())[-_LONGEST_OUTPUT:]
    ended = f"it did not end in {_SECONDS:.0f} s" if code is None else f"it ended with exit code {code}"
    return f"{ended}: {last}" if last else ended


def _in_process(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
    # In a session of its own, so that its workers end with it where it takes too long.
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired as late:
        return None, late.stdout.decode(errors="backslashreplace") if isinstance(late.stdout, bytes) else ""
    else:
        return process.returncode, output
    finally:
        # An interrupt, too, must leave nobody behind.
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
