"""A benchmark as data: one JSON line for each thing that was timed, between a first and a last one.

As in `harness.records`, nothing here needs torch, so that a page can be made on any machine.
"""

from __future__ import annotations

import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from samebits.harness.record_files import JsonLines
from samebits.harness.records import SCHEMA_VERSION, Environment, RunEnd, to_json

BENCH_FILE = "bench.jsonl"


class Group(StrEnum):
    """Which table of the page a problem belongs to.

    * `TABLE`: attention of one model on the batches that serving has.
    * `OFF_TABLE`: other geometries, lengths and batches, on which nothing was tuned.
    * `PRICE`: decodes of which only the price of invariance is told.
    * `LINEAR`, `NORM`: operations on tokens.
    """

    TABLE = "table"
    OFF_TABLE = "off_table"
    PRICE = "price"
    LINEAR = "linear"
    NORM = "norm"


class Role(StrEnum):
    """What a measurement stands for.

    * `IMPLEMENTATION`: one of the registry's, at one of its settings.
    * `YARDSTICK`: what users would call if they wanted speed alone; it keeps no contract of ours.
    """

    IMPLEMENTATION = "implementation"
    YARDSTICK = "yardstick"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median, lower, upper: the middle run, and the quartiles, between which half of all runs lie.
        runs: how many there were.
    """

    median: float
    lower: float
    upper: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The timing of some runs, one at least."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds))

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a share of the median."""
        return (self.upper - self.lower) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Rate:
    """What the machine does at most, as measured in the same run.

    Attributes:
        name: `read` or `copy`, in bytes a second, or `matrix` and a dtype, in operations a second.
        value: at the median time of its best size.
        what: what was run, in words.
        timing: of that.
    """

    name: str
    value: float
    what: str
    timing: Timing

    def to_line(self) -> str:
        """The rate as one line of JSON, without its line break."""
        return to_json({"kind": "rate", **vars(self)})


@dataclass(frozen=True)
class Measurement:
    """What one implementation, at one of its settings, took for one problem.

    Attributes:
        problem: its name.
        group: the table it belongs to.
        told: the problem in words.
        operation, dtype: of the problem.
        batch, query_len, kv_len: requests, and the most query tokens and keys that one of them has.
        nbytes, flops: what the problem costs at the least, see `harness.bench.work`.
        role: what it stands for.
        backend, implementation, variant, version, configuration: who computed it.
        batch_invariant: whether it claims to be.
        reason: why there are no times, as one sentence; empty where there are.
        eager: times of `run` on the device, with the launches hidden where there are any; None where `reason` says why.
        replayed: of a CUDA graph that captured it; None where none could.
        not_replayed: why not, as one sentence; empty where it was, and on a processor.
        launching: of the host, until `run` returns; None on a processor.
        planning: of `plan`; None for what has no plan.
        first_call: seconds of the first `plan` and `run`, in which kernels are compiled; None where there was none.
    """

    problem: str
    group: Group
    told: str
    operation: str
    dtype: str
    batch: int
    query_len: int
    kv_len: int
    nbytes: int
    flops: int
    role: Role
    backend: str
    implementation: str
    variant: str
    version: str
    batch_invariant: bool
    configuration: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    eager: Timing | None = None
    replayed: Timing | None = None
    not_replayed: str = ""
    launching: Timing | None = None
    planning: Timing | None = None
    first_call: float | None = None

    @property
    def label(self) -> str:
        """`BACKEND/implementation`, with `[variant]` where there is one."""
        return self.library + (f"[{self.variant}]" if self.variant else "")

    @property
    def library(self) -> str:
        """`BACKEND/implementation`, which stands for all of its settings."""
        return f"{self.backend}/{self.implementation}"

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's implementation, with which ours is compared."""
        return self.role is Role.IMPLEMENTATION and self.implementation != "bundled"

    def to_line(self) -> str:
        """The measurement as one line of JSON, without its line break."""
        return to_json({"kind": "measurement", **vars(self)})


@dataclass(frozen=True)
class SuiteShare:
    """What a suite was of a run.

    Attributes:
        suite: its mark.
        cells: how many there were, controls among them.
        seconds: that they took, of all workers together.
    """

    suite: str
    cells: int
    seconds: float

    def __post_init__(self) -> None:
        """Refuses what no suite is of a run: a file may hold anything.

        Raises:
            ValueError: a number is negative, or infinite.
        """
        if self.cells < 0:
            raise ValueError(f"field 'cells' is {self.cells}; it must be at least 0")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"field 'seconds' is {self.seconds}; it must be a finite number of at least 0")


@dataclass(frozen=True)
class SuiteRate:
    """How fast the harness ran cells of one implementation.

    Attributes:
        label: of the implementation.
        words: of pytest's command, which select the cells.
        workers: processes that shared them.
        run: number of the run, from 0: what is compiled and kept on disk is compiled in the first, if ever.
        seconds: from the start of pytest until its end, its report among them.
        suites: what they were made of; empty where `reason` says why.
        reason: why there is no rate, as a clause; empty where there is.
        failed: cells that failed, controls that were not caught among them.
        errors: cells that raised.
    """

    label: str
    words: tuple[str, ...]
    workers: int
    run: int
    seconds: float
    suites: tuple[SuiteShare, ...] = ()
    reason: str = ""
    failed: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        """Refuses what no run can be: a file may hold anything.

        Raises:
            ValueError: a number is out of its bounds.
        """
        if self.run not in (0, 1):
            raise ValueError(f"field 'run' is {self.run}; it must be 0, of the first run, or 1, of the one behind it")
        if self.workers < 1:
            raise ValueError(f"field 'workers' is {self.workers}; it must be at least 1")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"field 'seconds' is {self.seconds}; it must be a finite number above 0")
        if min(self.failed, self.errors) < 0 or self.failed + self.errors > self.cells:
            raise ValueError(
                f"{self.failed} of {self.cells} cells failed and {self.errors} raised; both must be at least 0, and "
                "together at most as many as there are cells"
            )

    @property
    def told_red(self) -> str:
        """How many cells failed and raised, as a clause; empty where none did."""
        counts = ((self.failed, "failed"), (self.errors, "raised"))
        return " and ".join(f"{number:,} {what}" for number, what in counts if number)

    @property
    def cells(self) -> int:
        """How many there were, controls among them."""
        return sum(suite.cells for suite in self.suites)

    @property
    def rate(self) -> float | None:
        """Cells a second, of the whole run; None where there is none."""
        return self.cells / self.seconds if self.cells else None

    @property
    def told_words(self) -> str:
        """The words as they are typed."""
        return shlex.join(self.words)

    @property
    def share_in_cells(self) -> float:
        """Which share of the workers' time cells took. The rest starts processes, collects, waits, and reports."""
        return sum(suite.seconds for suite in self.suites) / (self.seconds * self.workers)

    def to_line(self) -> str:
        """The rate as one line of JSON, without its line break."""
        return to_json({"kind": "suite_rate", **vars(self)})


@dataclass(frozen=True)
class LeftOut:
    """What was asked for and not timed.

    Attributes:
        label: of an implementation.
        operation: of it.
        reason: why, as one sentence.
        problem, dtype: what it was not timed on; empty for all.
    """

    label: str
    operation: str
    reason: str
    problem: str = ""
    dtype: str = ""

    def to_line(self) -> str:
        """What was left out as one line of JSON, without its line break."""
        return to_json({"kind": "left_out", **vars(self)})


@dataclass(frozen=True)
class BenchHeader:
    """What a benchmark set out to do: the first line of its records.

    Attributes:
        run_id: name of the run.
        started: time of its start, ISO 8601 in UTC.
        environment: of what is timed.
        problems: names of the problems, each with its dtype, in the order of the tables.
        asked: words of the command that narrowed the run; empty for a whole one.
        rounds: most runs of each call.
        evicted: bytes that are read before each run, so that no cache holds its inputs.
        schema_version: of the file.
    """

    run_id: str
    started: str
    environment: Environment
    problems: tuple[str, ...]
    asked: tuple[str, ...]
    rounds: int
    evicted: int
    schema_version: int = SCHEMA_VERSION

    def to_line(self) -> str:
        """The header as one line of JSON, without its line break."""
        return to_json({"kind": "bench", **vars(self)})


@dataclass(frozen=True)
class Bench:
    """A benchmark as it was recorded.

    Attributes:
        header: what it set out to do.
        rates: what the machine does at most, by name.
        measurements: in the order in which they were made.
        left_out: what was not timed.
        suite_rates: of the harness itself, in the order of the runs.
        truncated: whether it was cut off.
    """

    header: BenchHeader
    rates: Mapping[str, Rate]
    measurements: tuple[Measurement, ...]
    left_out: tuple[LeftOut, ...]
    suite_rates: tuple[SuiteRate, ...] = ()
    truncated: bool = False

    def bandwidth(self, group: Group) -> float | None:
        """Bytes a second that memory moves at most: copied for a norm, which writes as much as it reads.

        For the others the faster of reading and copying. None where it was not measured.
        """
        names = ("copy",) if group is Group.NORM else ("read", "copy")
        return max((self.rates[name].value for name in names if name in self.rates), default=None)

    @property
    def failed(self) -> tuple[Measurement, ...]:
        """What should have been timed and was not, because it raised or computed something else."""
        return tuple(measurement for measurement in self.measurements if measurement.eager is None)

    @property
    def failures(self) -> tuple[str, ...]:
        """All that went wrong, a line each: who failed, on what, and why."""
        rows = (f"{row.label} {row.problem} {row.dtype}: {row.reason}" for row in self.failed)
        runs = ((run, run.reason or _told_red(run)) for run in self.suite_rates)
        return (*rows, *(f"pytest {run.told_words}: {told}" for run, told in runs if told))


def _told_red(run: SuiteRate) -> str:
    return f"of {run.cells:,} cells {run.told_red}" if run.told_red else ""


def read_bench(path: Path) -> Bench:
    """Reads the records of a benchmark.

    Args:
        path: the file, or the directory that holds it as `bench.jsonl`.

    Raises:
        UnusableInput: there is no such file, or a line of it is not what a benchmark writes.
    """
    file = path / BENCH_FILE if os.path.isdir(path) else path
    lines = JsonLines.read(file, "the records of a benchmark", f"a directory with {BENCH_FILE}, or that file")
    header = lines.header("bench", BenchHeader)
    rates: dict[str, Rate] = {}
    measurements: list[Measurement] = []
    left_out: list[LeftOut] = []
    suite_rates: list[SuiteRate] = []
    finished = False
    for line in lines.body():
        if finished:
            raise line.unusable("it stands behind the end, which must be the last line")
        kind = line.values.get("kind")
        if kind == "rate":
            rate = line.decode("rate", Rate)
            rates[rate.name] = rate
        elif kind == "suite_rate":
            suite_rates.append(line.decode("suite_rate", SuiteRate))
        elif kind == "left_out":
            left_out.append(line.decode("left_out", LeftOut))
        elif kind == "end":
            line.decode("end", RunEnd)
            finished = True
        else:
            measurements.append(line.decode("measurement", Measurement))
    truncated = not finished or lines.truncated
    return Bench(header, rates, tuple(measurements), tuple(left_out), tuple(suite_rates), truncated=truncated)
