"""`samebits bench`: times what there is to time on this machine, and keeps records of it."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from samebits.harness.bench.isolated import IsolatedBench
from samebits.harness.bench.options import Options
from samebits.harness.bench.problems import HARNESS, told_problem
from samebits.harness.bench.records import BENCH_FILE, BenchHeader, Measurement
from samebits.harness.bench.session import BenchSession
from samebits.harness.bench.suite_rate import suite_rates
from samebits.harness.bench.termination import terminated_as_interrupted
from samebits.harness.record_files import RecordWriter
from samebits.reports import text
from samebits.reports.bench import words


def run_bench(options: Options, directory: Path | None, tell: Callable[[str], None]) -> Path:
    """Times all problems.

    Args:
        options: what the user asked for.
        directory: for the records; None for one of this run.
        tell: is told in a line where the run is.

    Returns:
        The directory of the records.

    Raises:
        UnusableInput: an option cannot be used, or the directory cannot be written, or already holds records of a
            benchmark.
        KeyboardInterrupt: it was interrupted, or ended by SIGTERM; a note says how a page is made of what is done.
    """
    with terminated_as_interrupted():
        session = BenchSession(options)
        header = session.header()
        directory = directory or Path("reports") / "out" / header.run_id
        try:
            _time_all(session, header, directory, tell)
        except KeyboardInterrupt as interrupt:
            report = shlex.join(("samebits", "bench", "--report", str(directory)))
            interrupt.add_note(f"`{report}` makes the page of what is done")
            raise
    return directory


def _time_all(session: BenchSession, header: BenchHeader, directory: Path, tell: Callable[[str], None]) -> None:
    with RecordWriter(directory, header, BENCH_FILE) as writer, contextlib.closing(IsolatedBench(session)) as bench:
        tell("what the machine does at most")
        for rate in bench.rates():
            writer.write(rate)
        for left_out in session.never_timed():
            writer.write(left_out)
        # First, as what the problems compile would be found compiled.
        for suite_rate in suite_rates(session.suites) if session.suites else ():
            writer.write(suite_rate)
            tell(f"the harness: {words.suite_rate(suite_rate)}")
        began = time.monotonic()
        for place, problem in enumerate(session.problems):
            for refused in session.refused(problem):
                writer.write(refused)
            measurements = list(bench.time(place))
            for measurement in measurements:
                writer.write(measurement)
            done, total = place + 1, len(session.problems)
            left = text.duration((time.monotonic() - began) / done * (total - done))
            tell(f"{done} of {total}: {problem.name} {problem.dtype}: {_fastest(measurements)}, about {left} left")


def told_list(options: Options) -> str:
    """The problems that would be timed in lines: name, dtypes, and what is computed.

    Raises:
        UnusableInput: an option cannot be used.
    """
    session = BenchSession(options)
    dtypes: dict[str, list[str]] = {}
    for problem in session.problems:
        dtypes.setdefault(problem.name, []).append(problem.dtype)
    told = {problem.name: told_problem(problem.problem) for problem in session.problems}
    if session.suites is not None:
        told[HARNESS], dtypes[HARNESS] = f"pytest {shlex.join(session.suites.words)}", []
    width = max(map(len, told), default=0)
    return "\n".join(f"{name:{width}}  {', '.join(dtypes[name]):16}  {described}" for name, described in told.items())


def tell_on_stderr(line: str) -> None:
    """Tells where a run is, as the other commands do."""
    print(f"samebits: bench: {line}", file=sys.stderr, flush=True)


def _fastest(measurements: Sequence[Measurement]) -> str:
    """Who is fastest, and how many could not be timed."""
    timed = [(found.eager.median, found.label) for found in measurements if found.eager is not None]
    failed = sum(found.eager is None for found in measurements)
    told = "nobody was timed"
    if timed:
        seconds, label = min(timed)
        told = f"{label} is fastest of {len(timed)}, {words.seconds(seconds)}"
    return told + (f", {failed} failed" if failed else "")
