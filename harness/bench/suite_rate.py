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
from samebits.harness.records import Record, UnusableInput, Verdict

# By device: as many cells of one implementation as a minute has room for twice, where every core has a worker.
_SUITES = {"cpu": ("batch_invariant",), "cuda": ("batch_invariant", "dtype", "semantics", "run_to_run")}
_TIER, _QUICK_TIER = "default", "smoke"
# More share a GPU badly, and each holds memory of it.
_MOST_WORKERS = 16
# Of one run, which takes a tenth of it.
_SECONDS = 300.0
# Pytest's: all passed, or some failed, of which the records tell.
_PASSED, _FAILED = 0, 1
# As the Makefile has them: torch's threads are samebits' to set; those of the libraries below numpy are not.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Of a pytest around this one, whose worker or whose user's choices the inner one is not to take for its own.
_OUTER = "PYTEST_"
# Images of containers set the first. Dozens of processes would then compile each module that they import.
_NO_MODULES_KEPT, _MODULES_KEPT_IN = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"
# Found before any configuration of the user's, and says nothing, so that the cells are the same everywhere.
_CONFIGURATION = "pytest.ini"
_SEARCHED = "PYTHONPATH"
_LONGEST_OUTPUT = 500

# Runs a command in a folder and an environment, and returns its exit code, None where it took too long; and what it
# printed.
Runner = Callable[[Sequence[str], Path, Mapping[str, str]], tuple[int | None, str]]


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
    # What was killed a moment ago may still write into it.
    with tempfile.TemporaryDirectory(prefix="samebits-bench-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        environment = _environment(folder / "modules")
        (folder / _CONFIGURATION).write_text("[pytest]\n")
        for number in range(selection.runs):
            results = folder / f"run-{number}"
            words = ("--pyargs", "samebits.suites", "-q", "-p", "no:cacheprovider", *selection.words)
            configuration = ("-c", str(folder / _CONFIGURATION))
            command = [sys.executable, "-m", "pytest", *configuration, *words, "--results", str(results)]
            began = time.perf_counter()
            code, output = (run or _in_process)(command, folder, environment)
            seconds = time.perf_counter() - began
            yield _rate(selection, number, results, seconds, code, output)


def _environment(modules: Path) -> dict[str, str]:
    """The environment of the runs: the user's, and none of a pytest around this one.

    Args:
        modules: where Python keeps what it compiles, where the user has it keep nothing.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OUTER)} | _ENVIRONMENT
    if environment.pop(_NO_MODULES_KEPT, ""):
        environment[_MODULES_KEPT_IN] = str(modules)
    # The runs have another working directory.
    if searched := environment.get(_SEARCHED):
        environment[_SEARCHED] = os.pathsep.join(map(os.path.abspath, searched.split(os.pathsep)))
    return environment


def _rate(
    selection: SuiteSelection, number: int, results: Path, seconds: float, code: int | None, output: str
) -> SuiteRate:
    complaint = "" if code in (_PASSED, _FAILED) else _ending(code, output)
    records: tuple[Record, ...] = ()
    if not complaint:
        try:
            records = read_run(results).records
        except UnusableInput as error:
            complaint = f"it left no records: {error}"
    red = [record for record in records if record.red]
    if code == _FAILED and not red and not complaint:
        complaint, records = f"no cell of it is red, and {_ending(code, output)}", ()
    errors = sum(record.verdict is Verdict.ERROR for record in red)
    return SuiteRate(
        label=selection.label,
        words=selection.words,
        workers=selection.workers,
        run=number,
        seconds=seconds,
        suites=_shares(records),
        reason=complaint,
        failed=len(red) - errors,
        errors=errors,
    )


def _shares(records: Sequence[Record]) -> tuple[SuiteShare, ...]:
    suites = dict.fromkeys(record.suite for record in records)
    of_suite = {suite: [record for record in records if record.suite == suite] for suite in suites}
    return tuple(
        SuiteShare(suite, len(found), sum(record.seconds for record in found)) for suite, found in of_suite.items()
    )


def _ending(code: int | None, output: str) -> str:
    """How a run ended, as a clause."""
    last = " ".join(output.split())[-_LONGEST_OUTPUT:]
    ended = f"it did not end in {_SECONDS:.0f} s" if code is None else f"it ended with exit code {code}"
    return f"{ended}: {last}" if last else ended


def _in_process(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
    # In a session of its own, so that its workers end with it where it takes too long.
    process = subprocess.Popen(
        command,
        cwd=folder,
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
