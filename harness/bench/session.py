"""What is timed on this machine, and by whom: problems and contenders, in this process."""

from __future__ import annotations

import datetime
import gc
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import replace

import torch

from samebits.backends import contract
from samebits.backends.contract import Implementation
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator, summary_of
from samebits.backends.problem import Problem
from samebits.backends.subject import Subject
from samebits.harness.bench.contenders import Contender, RegisteredContender, yardsticks
from samebits.harness.bench.measuring import DeviceLost, Trying, measure, untimed
from samebits.harness.bench.options import Options
from samebits.harness.bench.problems import HARNESS, BenchProblem, chosen_problems
from samebits.harness.bench.rates import measured_rates
from samebits.harness.bench.records import BenchHeader, LeftOut, Measurement, Rate
from samebits.harness.bench.rounds import Budget
from samebits.harness.bench.stopwatch import Stopwatch, evicted_bytes, stopwatch_for
from samebits.harness.bench.suite_rate import SuiteSelection
from samebits.harness.environment import environment
from samebits.harness.records import UnusableInput
from samebits.harness.registry import load_registry

# What calls take; compilers and the making of inputs come on top.
_BUDGETS = {
    "cuda": Budget(rounds=40, least=5, seconds=1.5, warming=0.5),
    "cpu": Budget(rounds=11, least=3, seconds=2.5, warming=0.2),
}
# Of that, what a quick run has.
_QUICK_SHARE = 4
_RATE_RUNS = {"cuda": 20, "cpu": 7}

Entry = Measurement | LeftOut


class BenchSession:
    """What is timed on this machine.

    Attributes:
        options: what the user asked for.
        problems: in the order of the tables.
        suites: the cells by which the harness itself is timed; None where it is not.
    """

    def __init__(self, options: Options) -> None:
        """Checks the options against what there is.

        Raises:
            UnusableInput: a name is unknown, a file cannot be loaded, a folder of libraries is damaged, or the harness
                is to be timed and has no implementation for this machine.
        """
        self.options = options
        platform = accelerator()
        names = [name for name in options.problems if name != HARNESS]
        self.problems: tuple[BenchProblem, ...] = ()
        if names or not options.problems:
            self.problems = chosen_problems(platform.kind, names, options.dtypes, quick=options.quick)
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        self._registry = load_registry(options.load, options.libs)
        self._selected = self._registry.select(options.backends, options.implementations)
        self._device = torch.device(platform.device)
        self.suites = self._suites() if HARNESS in options.problems or not options.problems else None
        self._stopwatch: Stopwatch | None = None

    def _suites(self) -> SuiteSelection | None:
        """The cells of our own implementation for this device, whose kernels are cheap; None where it has none."""
        for subject in self._selected:
            if _is_our_attention(subject) and not self._absence(subject):
                processors = len(os.sched_getaffinity(0))
                return SuiteSelection.of(subject.label, self._device.type, processors, quick=self.options.quick)
        if HARNESS in self.options.problems:
            raise UnusableInput(
                f"{HARNESS} is timed on bundled attention for {self._device.type}, and none that can run is selected"
            )
        return None

    @property
    def budget(self) -> Budget:
        """How much time goes into a problem."""
        found, asked = _BUDGETS[self._device.type], self.options.rounds
        if self.options.quick:
            found = Budget(found.rounds // _QUICK_SHARE, 2, found.seconds / _QUICK_SHARE, found.warming / _QUICK_SHARE)
        return found if asked is None else replace(found, rounds=asked, least=asked, seconds=math.inf)

    def header(self) -> BenchHeader:
        """The first line of the records."""
        now = datetime.datetime.now(datetime.UTC)
        return BenchHeader(
            run_id=now.strftime("%Y%m%dT%H%M%S.%fZ"),
            started=now.isoformat(timespec="seconds"),
            environment=environment(self._device.type),
            problems=tuple(f"{problem.name} {problem.dtype}" for problem in self.problems),
            asked=self.options.asked,
            rounds=self.budget.rounds,
            evicted=evicted_bytes(self._device),
        )

    def rates(self) -> Iterator[Rate]:
        """What the machine does at most."""
        dtypes = tuple(dict.fromkeys(problem.dtype for problem in self.problems))
        yield from measured_rates(self._watch(), self._device, dtypes, _RATE_RUNS[self._device.type])
        _give_back_memory(self._device)

    def never_timed(self) -> Iterator[LeftOut]:
        """Implementations that are timed on nothing at all, with the reason."""
        operations = {_operation(problem) for problem in self.problems}
        for subject in self._selected:
            reason = self._absence(subject) if subject.operation in operations else ""
            if reason:
                yield LeftOut(subject.label, subject.operation, reason)

    def refused(self, problem: BenchProblem) -> Iterator[LeftOut]:
        """Implementations that say they cannot compute a problem."""
        for subject in self._candidates(problem):
            reasons = _reasons(subject, problem)
            if reasons:
                yield LeftOut(subject.label, subject.operation, "; ".join(reasons), problem.name, problem.dtype)

    def contenders(self, problem: BenchProblem) -> list[Contender]:
        """Who computes a problem."""
        registered = [
            RegisteredContender(subject, self._registry.availability(subject).version)
            for subject in self._candidates(problem)
            if not _reasons(subject, problem)
        ]
        return [*registered, *yardsticks(problem)]

    def time(self, problem: BenchProblem, without: Collection[str] = ()) -> Iterator[Trying | Measurement]:
        """Times a problem.

        Args:
            problem: one of `problems`.
            without: labels of contenders that are not to be tried.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        contenders = [contender for contender in self.contenders(problem) if contender.label not in without]
        try:
            yield from measure(problem, contenders, self._watch(), self._device, self.budget)
        except DeviceLost:
            raise
        except Exception as error:
            # Of inputs that do not fit, or of a run that went well before.
            reason = f"timing the problem raised {summary_of(error)}"
            yield from (untimed(problem, contender, reason) for contender in contenders)
        _give_back_memory(self._device)

    def _watch(self) -> Stopwatch:
        self._stopwatch = self._stopwatch or stopwatch_for(self._device)
        return self._stopwatch

    def _candidates(self, problem: BenchProblem) -> list[Subject]:
        operation = _operation(problem)
        return [subject for subject in self._selected if subject.operation == operation and not self._absence(subject)]

    def _absence(self, subject: Subject) -> str:
        """Why an implementation is timed on nothing, as one sentence; empty where it may be."""
        availability = self._registry.availability(subject)
        if not availability.available:
            return availability.reason
        if availability.device != self._device.type:
            return f"it computes on {availability.device}, and what is timed here computes on {self._device.type}"
        return "its kernels are interpreted here, which says nothing of their speed" if subject.interpreted else ""


def _is_our_attention(subject: Subject) -> bool:
    """Whether it is bundled with samebits. Pytest would not know one of a file that is loaded, whatever its name."""
    ours = type(subject).__module__.startswith(f"{contract.__package__}.")
    return ours and (subject.operation, subject.name) == ("attention", "bundled")


def _operation(problem: BenchProblem) -> str:
    of_problem = problem.problem
    return "attention" if isinstance(of_problem, Problem) else of_problem.operation.operation


def _reasons(subject: Subject, problem: BenchProblem) -> list[str]:
    of_problem = problem.problem
    if isinstance(of_problem, Problem):
        assert isinstance(subject, Implementation), "of attention"
        return subject.reasons(of_problem)
    assert isinstance(subject, TokenImplementation), "of an operation on tokens"
    return subject.reasons(of_problem)


def _give_back_memory(device: torch.device) -> None:
    """Gives back what nobody holds any more: gigabytes of tensors, copies of them, and graphs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
