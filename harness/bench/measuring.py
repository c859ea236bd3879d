"""One problem timed: everybody who can compute it, by turns, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from samebits.backends.platform import summary_of
from samebits.backends.problem import Problem
from samebits.harness.bench.contenders import Contender, Prepared
from samebits.harness.bench.inputs import Inputs, make_inputs
from samebits.harness.bench.problems import BenchProblem, told_problem
from samebits.harness.bench.records import Measurement, Timing
from samebits.harness.bench.rounds import Budget, in_turns, warmed_up
from samebits.harness.bench.sanity import complaint
from samebits.harness.bench.stopwatch import Action, Call, Lap, Stopwatch
from samebits.harness.bench.work import work_of
from samebits.harness.graphs.capture import captured_in_graph


class DeviceLost(RuntimeError):
    """Nothing can be computed on the device in this process any more; its text is a clause that says why."""


@dataclass(frozen=True)
class Trying:
    """Who is about to be tried.

    Attributes:
        label: of the contender; empty where all take turns.
    """

    label: str


@dataclass
class _Entry:
    """A contender that was found right, and what is timed of it.

    Attributes:
        measurement: all that is known of it but its times.
        calls: its call, and the replay of its graph where there is one.
        estimates: seconds of a run of each.
    """

    measurement: Measurement
    calls: list[Call] = field(default_factory=list)
    estimates: list[float] = field(default_factory=list)


@torch.no_grad()
def measure(
    problem: BenchProblem,
    contenders: Sequence[Contender],
    stopwatch: Stopwatch,
    device: torch.device,
    budget: Budget,
) -> Iterator[Trying | Measurement]:
    """Times a problem.

    Args:
        problem: what is computed.
        contenders: who computes it. One that raises, or computes something else, costs its own row.
        stopwatch: that times it.
        device: where all of them compute.
        budget: how much time goes into it.

    Yields:
        Who is about to be tried, by turns nobody, and then a measurement of each contender, in their order.

    Raises:
        DeviceLost: a contender left the device so that nothing can be computed in this process any more.
    """
    trial = _Trial(make_inputs(problem.problem, device), stopwatch, device, budget)
    entries: list[_Entry] = []
    for contender in contenders:
        measurement = untimed(problem, contender)
        yield Trying(measurement.label)
        try:
            entries.append(trial.admitted(contender, measurement))
        except (Exception, SystemExit) as error:
            reason = f"it raised {summary_of(error)}"
            _require_device(stopwatch, reason)
            entries.append(_Entry(replace(measurement, reason=reason)))
    yield Trying("")
    yield from _timed(entries, stopwatch, budget)


def untimed(problem: BenchProblem, contender: Contender, reason: str = "") -> Measurement:
    """A measurement without its times.

    Args:
        problem: what is computed.
        contender: who computes it.
        reason: why there are no times; empty where they come later.
    """
    of_problem, work = problem.problem, work_of(problem.problem)
    attention = isinstance(of_problem, Problem)
    return Measurement(
        problem=problem.name,
        group=problem.group,
        told=told_problem(of_problem),
        operation="attention" if isinstance(of_problem, Problem) else of_problem.operation.operation,
        dtype=problem.dtype,
        batch=len(of_problem.requests),
        query_len=max(request.query_len for request in of_problem.requests),
        kv_len=max(request.seq_len for request in of_problem.requests) if attention else 0,
        nbytes=work.nbytes,
        flops=work.flops,
        role=contender.role,
        backend=contender.backend,
        implementation=contender.implementation,
        variant=contender.variant,
        version=contender.version,
        batch_invariant=contender.batch_invariant,
        configuration=contender.configuration,
        reason=reason,
    )


def _require_device(stopwatch: Stopwatch, reason: str) -> None:
    """Looks whether the device still answers after a contender raised, which on a GPU may be the end of its context."""
    try:
        stopwatch.synchronize()
    except RuntimeError as error:
        raise DeviceLost(reason) from error


class _Trial:
    """What each contender goes through before it is timed.

    Args:
        inputs: of the problem, which all share.
        stopwatch, device, budget: see `measure`.
    """

    def __init__(self, inputs: Inputs, stopwatch: Stopwatch, device: torch.device, budget: Budget) -> None:
        self._inputs, self._stopwatch, self._device, self._budget = inputs, stopwatch, device, budget
        self._accepted: torch.Tensor | None = None

    def admitted(self, contender: Contender, measurement: Measurement) -> _Entry:
        """Plans, runs once, looks at what came of it, warms up and captures."""
        launches = self._stopwatch.launches
        prepared = contender.prepare(self._inputs)
        first, wrong = self._run_once(contender, prepared, prepared.action)
        if wrong:
            return _Entry(replace(measurement, reason=wrong))
        if self._accepted is None and contender.computes:
            self._accepted = self._inputs.output.clone()
        measurement = replace(
            measurement,
            planning=prepared.planning,
            first_call=max(first.seconds, first.launching),
            not_replayed=prepared.not_replayed if launches else "",
        )
        entry = _Entry(measurement)
        self._add(entry, prepared.action)
        if launches and prepared.for_graph is not None:
            refused = self._add_replay(entry, contender, prepared, prepared.for_graph)
            entry.measurement = replace(measurement, not_replayed=refused)
        return entry

    def _run_once(self, contender: Contender, prepared: Prepared, action: Action) -> tuple[Lap, str]:
        """How long a run took, and what is wrong with its result, as one sentence; empty where nothing is."""
        if not contender.computes:
            return self._stopwatch.laps([Call(action)])[0], ""
        # Nothing of an earlier contender must be left to be taken for its own.
        self._inputs.output.fill_(torch.nan)
        (lap,) = self._stopwatch.laps([Call(action)])
        if prepared.collect is not None:
            prepared.collect()
        return lap, complaint(self._inputs, self._accepted)

    def _add(self, entry: _Entry, action: Action) -> None:
        call, estimate = warmed_up(self._stopwatch, Call(action), self._budget.warming)
        entry.calls.append(call)
        entry.estimates.append(estimate)

    def _add_replay(
        self, entry: _Entry, contender: Contender, prepared: Prepared, for_graph: Callable[[], Action]
    ) -> str:
        """Captures what is timed, and says why that came to nothing, as one sentence; empty where it did not."""
        try:
            replay = captured_in_graph(for_graph(), self._device)
            _, wrong = self._run_once(contender, prepared, replay)
            if wrong:
                return f"when it is replayed, {wrong}"
            self._add(entry, replay)
        except Exception as error:
            reason = f"its capture raised {summary_of(error)}"
            # Or whoever comes next would be blamed.
            _require_device(self._stopwatch, reason)
            return reason
        return ""


def _timed(entries: Sequence[_Entry], stopwatch: Stopwatch, budget: Budget) -> Iterator[Measurement]:
    calls = [call for entry in entries for call in entry.calls]
    estimates = [estimate for entry in entries for estimate in entry.estimates]
    laps = iter(in_turns(stopwatch, calls, budget.runs(estimates)))
    for entry in entries:
        if not entry.calls:
            yield entry.measurement
            continue
        eager = next(laps)
        replayed = next(laps) if len(entry.calls) > 1 else None
        on_host = [lap.launching for lap in eager]
        yield replace(
            entry.measurement,
            eager=Timing.of([lap.seconds for lap in eager]),
            launching=Timing.of(on_host) if stopwatch.launches else None,
            replayed=None if replayed is None else Timing.of([lap.seconds for lap in replayed]),
        )
