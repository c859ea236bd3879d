"""`samebits bench`: times what there is to time on this machine, and keeps records of it."""

from __future__ import annotations

import datetime
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from samebits.backends.contract import Implementation
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator, summary_of
from samebits.backends.problem import Problem
from samebits.backends.subject import Subject
from samebits.harness.bench.contenders import Contender, RegisteredContender, yardsticks
from samebits.harness.bench.measuring import measure, untimed
from samebits.harness.bench.problems import BenchProblem, chosen_problems, told_problem
from samebits.harness.bench.rates import measured_rates
from samebits.harness.bench.records import BENCH_FILE, BenchHeader, LeftOut, Measurement, Rate
from samebits.harness.bench.rounds import Budget
from samebits.harness.bench.stopwatch import Stopwatch, stopwatch_for
from samebits.harness.environment import environment
from samebits.harness.record_files import RecordWriter
from samebits.harness.registry import Registry, load_registry
from samebits.reports import text

# A GPU is done with all in four minutes, and two cores in five, of which compilers have no part.
_BUDGETS = {
    False: {"cuda": Budget(rounds=40, least=5, seconds=1.5, warming=0.5), "cpu": Budget(15, 3, 3.0, 0.3)},
    True: {"cuda": Budget(rounds=10, least=3, seconds=0.5, warming=0.2), "cpu": Budget(5, 2, 1.0, 0.1)},
}
_RATE_RUNS = 20
_PROCESSOR_RATE_RUNS = 7


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        problems, dtypes, backends, implementations: names; empty for all.
        quick: whether a few problems and runs are enough.
        rounds: most runs of each call; None for as many as the machine has time for.
        threads: within one operation of a processor; None for one on each processor.
        load: Python files of further backends.
        libs: folders of vendors' libraries.
    """

    problems: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    quick: bool = False
    rounds: int | None = None
    threads: int | None = None
    load: tuple[Path, ...] = ()
    libs: tuple[Path, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Words of the command that narrow the run."""
        named = {
            "--problem": self.problems,
            "--dtype": self.dtypes,
            "--backend": self.backends,
            "--implementation": self.implementations,
        }
        words = [word for option, values in named.items() if values for word in (option, *values)]
        return (*words, *(["--quick"] if self.quick else []))

    @property
    def budget(self) -> Budget:
        """How much time goes into a problem."""
        found = _BUDGETS[self.quick][accelerator().device]
        if self.rounds is None:
            return found
        return Budget(self.rounds, min(found.least, self.rounds), float("inf"), found.warming)


class BenchSession:
    """What is timed on this machine, and by whom.

    Args:
        options: what the user asked for.

    Attributes:
        problems: in the order of the tables.
    """

    def __init__(self, options: Options) -> None:
        """Checks the options against what there is.

        Raises:
            UnusableInput: a name is unknown, a file cannot be loaded, or a folder of libraries is damaged.
        """
        self.options = options
        platform = accelerator()
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        self._registry: Registry = load_registry(options.load, options.libs)
        self._selected = self._registry.select(options.backends, options.implementations)
        self._device = torch.device(platform.device)
        self.problems = chosen_problems(platform.kind, options.problems, options.dtypes, quick=options.quick)

    def run(self, directory: Path | None, tell: Callable[[str], None]) -> Path:
        """Times all problems.

        Args:
            directory: for the records; None for one of this run.
            tell: is told in a line where the run is.

        Returns:
            The directory of the records.

        Raises:
            UnusableInput: the directory cannot be written, or already holds records of a benchmark.
        """
        stopwatch = stopwatch_for(self._device)
        header = self._header(stopwatch)
        directory = directory or Path("reports") / "out" / header.run_id
        with RecordWriter(directory, header, BENCH_FILE) as writer:
            tell("what the machine does at most")
            for rate in self._rates(stopwatch):
                writer.write(rate)
            for left_out in self._never_timed():
                writer.write(left_out)
            began = time.monotonic()
            for number, problem in enumerate(self.problems, start=1):
                measurements: list[Measurement] = []
                for entry in self._measured(problem, stopwatch):
                    writer.write(entry)
                    measurements += [entry] if isinstance(entry, Measurement) else []
                _give_back_memory(self._device)
                left = (time.monotonic() - began) / number * (len(self.problems) - number)
                tell(
                    f"{number} of {len(self.problems)}: {problem.name} {problem.dtype}: {_fastest(measurements)}, "
                    f"about {text.duration(left)} left"
                )
        return directory

    def _header(self, stopwatch: Stopwatch) -> BenchHeader:
        now = datetime.datetime.now(datetime.UTC)
        return BenchHeader(
            run_id=now.strftime("%Y%m%dT%H%M%S.%fZ"),
            started=now.isoformat(timespec="seconds"),
            environment=environment(self._device.type),
            problems=tuple(f"{problem.name} {problem.dtype}" for problem in self.problems),
            asked=self.options.asked,
            rounds=self.options.budget.rounds,
            evicted=stopwatch.evicted,
        )

    def _rates(self, stopwatch: Stopwatch) -> Iterator[Rate]:
        dtypes = tuple(dict.fromkeys(problem.dtype for problem in self.problems))
        runs = _PROCESSOR_RATE_RUNS if self._device.type == "cpu" else _RATE_RUNS
        return measured_rates(stopwatch, self._device, dtypes, runs)

    def _never_timed(self) -> Iterator[LeftOut]:
        """Implementations that are timed on nothing at all, with the reason."""
        operations = {_operation(problem) for problem in self.problems}
        for subject in self._selected:
            if subject.operation in operations:
                reason = self._absence(subject)
                if reason:
                    yield LeftOut(subject.label, subject.operation, reason)

    def _absence(self, subject: Subject) -> str:
        """Why an implementation is timed on nothing, as one sentence; empty where it may be."""
        availability = self._registry.availability(subject)
        if not availability.available:
            return availability.reason
        if availability.device != self._device.type:
            return f"it computes on {availability.device}, and what is timed here computes on {self._device.type}"
        return "its kernels are interpreted here, which says nothing of their speed" if subject.interpreted else ""

    def _measured(self, problem: BenchProblem, stopwatch: Stopwatch) -> Iterator[Measurement | LeftOut]:
        contenders: list[Contender] = []
        for subject in self._selected:
            if subject.operation != _operation(problem) or self._absence(subject):
                continue
            reasons = _reasons(subject, problem)
            if reasons:
                yield LeftOut(subject.label, subject.operation, "; ".join(reasons), problem.name, problem.dtype)
            else:
                contenders.append(RegisteredContender(subject, self._registry.availability(subject).version))
        contenders += yardsticks(problem)
        try:
            yield from measure(problem, contenders, stopwatch, self._device, self.options.budget)
        except Exception as error:
            # Of inputs that do not fit, or of a run that went well before.
            reason = f"timing the problem raised {summary_of(error)}"
            yield from (untimed(problem, contender, reason) for contender in contenders)


def told_list(problems: Sequence[BenchProblem]) -> str:
    """The problems in lines: name, dtypes, and what is computed."""
    dtypes: dict[str, list[str]] = {}
    for problem in problems:
        dtypes.setdefault(problem.name, []).append(problem.dtype)
    told = {problem.name: told_problem(problem.problem) for problem in problems}
    width = max(map(len, told))
    return "\n".join(f"{name:{width}}  {', '.join(dtypes[name]):16}  {words}" for name, words in told.items())


def tell_on_stderr(line: str) -> None:
    """Tells where a run is, as the other commands do."""
    print(f"samebits: bench: {line}", file=sys.stderr, flush=True)


def _operation(problem: BenchProblem) -> str:
    return "attention" if isinstance(problem.problem, Problem) else problem.problem.operation.operation


def _reasons(subject: Subject, problem: BenchProblem) -> list[str]:
    if isinstance(problem.problem, Problem):
        assert isinstance(subject, Implementation), "of attention"
        return subject.reasons(problem.problem)
    assert isinstance(subject, TokenImplementation), "of an operation on tokens"
    return subject.reasons(problem.problem)


def _give_back_memory(device: torch.device) -> None:
    """Gives back what a problem no longer holds: gigabytes of tensors, copies of them, and graphs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fastest(measurements: Sequence[Measurement]) -> str:
    """Who is fastest, and how many could not be timed."""
    timed = [(found.eager.median, found.label) for found in measurements if found.eager is not None]
    failed = sum(found.eager is None for found in measurements)
    told = "nobody was timed"
    if timed:
        seconds, label = min(timed)
        told = f"{label} is fastest of {len(timed)}, {seconds * 1e6:,.0f} us"
    return told + (f", {failed} failed" if failed else "")
