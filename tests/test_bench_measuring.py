"""How a benchmark times: by turns, with cold caches, and nobody who computes something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samebits.backends.cpu import SdpaAttention
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.backends.subject import Claims, GraphSupport
from samebits.backends.token_problem import Linear, RmsNorm, TokenProblem
from samebits.harness.bench import measuring
from samebits.harness.bench.contenders import RegisteredContender, yardsticks
from samebits.harness.bench.inputs import make_inputs
from samebits.harness.bench.isolated import IsolatedBench
from samebits.harness.bench.measuring import DeviceLost, Trying, measure
from samebits.harness.bench.problems import SETS, BenchProblem, chosen_problems, told_problem
from samebits.harness.bench.rates import measured_rates
from samebits.harness.bench.records import Group, Measurement, Role, Timing
from samebits.harness.bench.rounds import Budget, in_turns, warmed_up
from samebits.harness.bench.stopwatch import Call, GpuStopwatch, Lap, ProcessorStopwatch
from samebits.harness.bench.work import work_of
from samebits.harness.isolation.served import Lost
from samebits.harness.records import UnusableInput

from .bench_samples import Clock

CPU = torch.device("cpu")
TINY = BenchProblem(
    "tiny",
    Group.TABLE,
    Problem(
        Geometry("tiny", num_heads=2, num_kv_heads=1, head_dim=16, page_size=16),
        Mask.CAUSAL,
        "fp32",
        (Request(0, 1, context_len=20), Request(1, 3, context_len=30)),
    ),
)
BUDGET = Budget(rounds=6, least=2, seconds=1.0, warming=0.0)


class Timed(SdpaAttention):
    """A right implementation that takes some seconds of a clock, or what is made of one."""

    def __init__(
        self, name: str, clock: Clock, seconds: float, spoil: Callable[[torch.Tensor], object] | None = None
    ) -> None:
        self.name, self._clock, self._seconds, self._spoil = name, clock, seconds, spoil
        self.claims = Claims(cuda_graph=GraphSupport.ALWAYS)

    def run(self, plan: Any, query: Any, key_cache: Any, value_cache: Any, output: Any, lse: Any) -> None:  # noqa: ANN401
        super().run(plan, query, key_cache, value_cache, output, lse)
        self._clock.now += self._seconds
        if self._spoil is not None:
            self._spoil(output)


def raising(error: Exception) -> Callable[[torch.Tensor], object]:
    def spoil(output: torch.Tensor) -> None:
        raise error

    return spoil


def measurements_of(
    *subjects: Timed, clock: Clock, stopwatch: ProcessorStopwatch | None = None
) -> dict[str, Measurement]:
    contenders = [RegisteredContender(subject, "1") for subject in subjects]
    watch = stopwatch or ProcessorStopwatch(evicted=64, clock=clock)
    found = measure(TINY, contenders, watch, CPU, BUDGET)
    return {entry.implementation: entry for entry in found if isinstance(entry, Measurement)}


def test_who_computes_the_problem_is_timed_and_who_does_not_costs_his_own_row() -> None:
    clock = Clock()
    found = measurements_of(
        Timed("raises", clock, 1, raising(ValueError("no such luck"))),
        Timed("slow", clock, 0.5),
        Timed("silent", clock, 1, lambda output: output.fill_(torch.nan)),
        Timed("wrong", clock, 1, lambda output: output.mul_(1.5)),
        # All rows but those that are computed again: only another implementation's output tells.
        Timed("half", clock, 1, lambda output: output[1:3].zero_()),
        Timed("fast", clock, 0.001),
        clock=clock,
    )
    reasons = {name: entry.reason for name, entry in found.items()}
    assert reasons["raises"] == "it raised ValueError: no such luck"
    assert reasons["silent"] == "its output holds 128 numbers that are not finite"
    assert reasons["wrong"].startswith("a row of its output is 50% of its length away from what plain torch computes")
    assert reasons["half"].endswith("away from that of another implementation")
    assert reasons["slow"] == reasons["fast"] == ""
    slow, fast = found["slow"], found["fast"]
    assert slow.eager is not None
    assert slow.eager.median == pytest.approx(0.5)
    assert slow.eager.runs == 2, "a slow call has the least of runs, as its share of the budget is spent"
    assert fast.eager is not None
    assert fast.eager.median == pytest.approx(0.001)
    assert fast.eager.runs == 6
    assert slow.planning is not None
    assert (slow.launching, slow.replayed, slow.not_replayed) == (None, None, ""), "a processor launches nothing"
    assert (slow.batch, slow.query_len, slow.kv_len, slow.told) == (
        *(2, 3, 33),
        "1 x 1 query on 21 keys and 1 x 3 queries on 33 keys, 2 heads over 1 of 16, pages of 16",
    )


class LaunchingStopwatch(ProcessorStopwatch):
    """As of a GPU, whose host takes a tenth of the time."""

    launches = True

    def laps(self, calls: Sequence[Call]) -> list[Lap]:
        return [Lap(lap.seconds, lap.seconds / 10) for lap in super().laps(calls)]


@pytest.mark.parametrize("replays", ["right", "garbage", "nothing", "unclaimed"])
def test_a_graph_is_timed_beside_its_run_where_it_can_be_captured(
    monkeypatch: pytest.MonkeyPatch, replays: str
) -> None:
    clock = Clock()
    subject = Timed("captured", clock, 0.02)
    if replays == "unclaimed":
        subject.claims = Claims(cuda_graph=GraphSupport.UNIFORM_BATCH)

    def captured(action: Callable[[], object], device: torch.device) -> Callable[[], object]:
        if replays == "nothing":
            raise RuntimeError("operation not permitted when stream is capturing")
        replayed = action if replays == "right" else lambda: None

        def replay() -> None:
            replayed()
            clock.now -= 0.01 if replays == "right" else 0

        return replay

    monkeypatch.setattr(measuring, "captured_in_graph", captured)
    stopwatch = LaunchingStopwatch(evicted=64, clock=clock)
    found = measurements_of(subject, clock=clock, stopwatch=stopwatch)["captured"]
    assert found.eager is not None
    assert found.launching is not None
    assert (found.eager.median, found.launching.median) == pytest.approx((0.02, 0.002))
    reasons = {
        "right": "",
        "garbage": "when it is replayed, its output holds 128 numbers that are not finite",
        "nothing": "its capture raised RuntimeError: operation not permitted when stream is capturing",
        "unclaimed": "it claims replay for uniform batch, and this batch needs always",
    }
    assert found.not_replayed == reasons[replays]
    assert (found.replayed is not None) == (replays == "right")
    assert found.replayed is None or found.replayed.median == pytest.approx(0.01)


def test_who_leaves_the_device_unusable_ends_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    stopwatch = ProcessorStopwatch(evicted=64, clock=clock)
    monkeypatch.setattr(
        stopwatch, "synchronize", lambda: raising(RuntimeError("illegal memory access"))(torch.empty(0))
    )
    with pytest.raises(DeviceLost, match="it raised ValueError: misaligned"):
        measurements_of(Timed("raises", clock, 1, raising(ValueError("misaligned"))), clock=clock, stopwatch=stopwatch)


def test_calls_take_turns_so_that_a_machine_that_slows_down_does_so_for_all() -> None:
    clock = Clock()
    order: list[int] = []

    def call(number: int) -> Call:
        def action() -> None:
            order.append(number)
            clock.now += 1 + len(order)

        return Call(action)

    laps = in_turns(ProcessorStopwatch(evicted=64, clock=clock), [call(number) for number in range(3)], [6, 6, 2])
    assert [len(of_call) for of_call in laps] == [6, 6, 2]
    assert [order.index(number) for number in (0, 1)] == [0, 1]
    assert order.count(2) == 2
    first, last = (place for place, number in enumerate(order) if number == 2)
    assert last - first >= len(order) // 3, "the few runs of a slow call are together, not spread"
    medians = [Timing.of([lap.seconds for lap in of_call]).median for of_call in laps]
    assert max(medians) - min(medians) <= 3, f"drift of the machine decided who is faster: {medians}"


def test_a_call_is_warm_when_its_times_are_steady() -> None:
    clock = Clock()
    durations = iter([9.0, 3.0, 1.0, 1.01, 1.0, 77.0])

    def action() -> None:
        clock.now += next(durations)

    call, estimate = warmed_up(ProcessorStopwatch(evicted=64, clock=clock), Call(action), seconds=100.0)
    assert estimate == pytest.approx(1.0)
    assert call.launching == pytest.approx(1.0)
    assert next(durations) == 77.0, "it went on where three runs had agreed, or stopped before"


class Gpu:
    """Of torch.cuda what a stopwatch asks for: work takes its time on a clock, in the order of its launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.evictions = Clock(), 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.clock.now

            def elapsed_time(self, end: Any) -> float:  # noqa: ANN401 -- another of these
                return float(end.at - self.at) * 1000

        def evicting_sum(memory: torch.Tensor, dim: int, out: torch.Tensor) -> None:
            self.evictions += 1
            self.clock.now += 0.1

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch, "sum", evicting_sum)
        monkeypatch.setattr(
            "samebits.harness.bench.stopwatch.evicted_bytes",
            lambda device: 64,
        )


def test_on_a_gpu_events_time_the_call_alone_and_its_launch_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    stopwatch = GpuStopwatch(CPU)
    assert stopwatch.eviction_seconds == pytest.approx(0.1)
    before = gpu.evictions

    def action() -> None:
        gpu.clock.now += 0.25

    laps = stopwatch.laps([Call(action), Call(action, launching=0.3)])
    assert [lap.seconds for lap in laps] == pytest.approx([0.25, 0.25])
    assert gpu.evictions - before == 1 + 5, "1.5 times the launch, in evictions of 0.1 s, and one at least"


def test_what_the_machine_does_is_measured_where_it_computes() -> None:
    rates = {rate.name: rate for rate in measured_rates(ProcessorStopwatch(evicted=64), CPU, ["bf16"], 2, 1 << 12)}
    assert set(rates) == {"read", "copy", "matrix bf16"}
    for rate in rates.values():
        assert rate.value > 0, f"{rate.name} is {rate.value}"
        assert rate.timing.runs == 2


def test_limits_are_those_that_are_known_of_an_h100() -> None:
    known = {"D1": 177, "D8": 177, "D64": 355, "D256": 355, "P1": 809, "P16": 202, "E4": 796, "MIX": 355}
    found = {}
    for problem in chosen_problems("cuda", list(known), ["bf16"]):
        work = work_of(problem.problem)
        found[problem.name] = 1e6 * max(work.nbytes / 3.02e12, work.flops / 680e12)
    # Queries and outputs, which are counted here, were not there.
    assert found == pytest.approx(known, rel=0.04)


def test_operations_on_tokens_cost_their_tensors_and_their_products() -> None:
    tokens = (Request(0, 3),)
    linear = work_of(TokenProblem(Linear("l", in_features=5, out_features=7), "bf16", tokens))
    assert (linear.nbytes, linear.flops) == (2 * (3 * 5 + 5 * 7 + 3 * 7), 2 * 3 * 5 * 7)
    norm = work_of(TokenProblem(RmsNorm("n", 5), "fp32", tokens))
    assert (norm.nbytes, norm.flops) == (4 * 7 * 5, 0)


@pytest.mark.parametrize("kind", SETS)
def test_problems_are_named_once_and_begin_rows_of_the_block_table_evenly(kind: str) -> None:
    problems = chosen_problems(kind)
    names = [(problem.name, problem.dtype) for problem in problems]
    assert len(set(names)) == len(names)
    quick = chosen_problems(kind, quick=True)
    assert {problem.dtype for problem in quick} == {"bf16"}
    assert {problem.name for problem in quick} < {problem.name for problem in problems}
    assert all(problem.dtype == "fp16" for problem in chosen_problems(kind, dtypes=["fp16"]))


def test_inputs_have_tables_of_even_rows_and_the_pages_of_the_problem() -> None:
    (problem,) = chosen_problems("cpu", ["P16-256"], ["bf16"])
    assert isinstance(problem.problem, Problem)
    few = problem.problem.with_requests(*problem.problem.requests[:2])
    inputs = make_inputs(few, CPU)
    assert isinstance(inputs.output, torch.Tensor)
    metadata = inputs.batch.metadata  # type: ignore[union-attr]
    assert metadata.block_table.stride(0) % 16 == 0
    keys = inputs.batch.key_cache.flatten(0, 1)[inputs.slots[0]]  # type: ignore[union-attr]
    assert len(keys.flatten(1).unique(dim=0)) == len(keys), "two tokens hold the same numbers"


def test_a_problem_of_another_machine_can_be_named_and_an_unknown_one_is_told() -> None:
    (problem,) = chosen_problems("cpu", ["hd64-decode"], ["fp32"])
    assert told_problem(problem.problem) == "64 x 1 query on 4096 keys, 32 heads over 8 of 64, pages of 16"
    with pytest.raises(UnusableInput, match="unknown problem 'D9'; known are D1"):
        chosen_problems("cpu", ["D9"])
    with pytest.raises(UnusableInput, match="unknown dtype 'fp8'; known are bf16, fp16, fp32"):
        chosen_problems("cpu", dtypes=["fp8"])


@pytest.mark.parametrize(
    "problem",
    [
        BenchProblem("linear", Group.LINEAR, TokenProblem(Linear("l", 32, 48), "bf16", (Request(0, 5),))),
        BenchProblem("norm", Group.NORM, TokenProblem(RmsNorm("n", 32), "bf16", (Request(0, 5),))),
    ],
)
def test_operations_are_held_against_plain_calls(problem: BenchProblem) -> None:
    stopwatch = ProcessorStopwatch(evicted=64)
    found = [
        entry
        for entry in measure(problem, list(yardsticks(problem)), stopwatch, CPU, BUDGET)
        if isinstance(entry, Measurement)
    ]
    assert [(entry.role, entry.reason) for entry in found] == [(Role.YARDSTICK, "")]
    assert found[0].label in ("torch/linear", "torch/copy")
    assert not found[0].is_peer


class Answers:
    """In place of another process: what it says, question after question, until it is lost."""

    def __init__(self, *answers: Sequence[object]) -> None:
        self._answers, self.without = iter(answers), []  # type: ignore[var-annotated]

    def __call__(self, question: Any) -> Iterator[object]:  # noqa: ANN401 -- a question
        self.without.append(question.without)
        for message in next(self._answers):
            if isinstance(message, Exception):
                raise message
            yield message


CRASH = Lost("was ended by SIGSEGV", "it wrote nothing")


@pytest.mark.parametrize(
    ("answers", "without", "reasons"),
    [
        ([["A", "B", "", "a", "b"]], [()], ["", ""]),
        # Again without who broke the process, so that the others are timed.
        ([["A", CRASH], ["B", "", "b"]], [(), ("X/A",)], ["its process was ended by SIGSEGV: it wrote nothing", ""]),
        # By turns, nobody knows whose doing it was.
        ([["A", "B", "", CRASH]], [()], ["its process was ended by SIGSEGV: it wrote nothing"] * 2),
    ],
)
def test_who_breaks_the_process_costs_his_own_row(
    answers: list[list[object]], without: list[tuple[str, ...]], reasons: list[str]
) -> None:
    clock = Clock()
    timed = {name: Timed(name, clock, 0.1) for name in "AB"}
    for subject in timed.values():
        subject.backend = "X"
    contenders = [RegisteredContender(subject, "1") for subject in timed.values()]
    rows = {name.lower(): measuring.untimed(TINY, contender) for name, contender in zip(timed, contenders, strict=True)}
    said = [
        [
            message
            if isinstance(message, Exception)
            else rows[str(message)]
            if str(message) in rows
            else Trying(f"X/{message}" if message else "")
            for message in answer
        ]
        for answer in answers
    ]
    bench = IsolatedBench.__new__(IsolatedBench)
    bench._session = SimpleNamespace(problems=[TINY], contenders=lambda problem: contenders)  # type: ignore[assignment]
    bench._ask = asked = Answers(*said)  # type: ignore[method-assign]
    assert [entry.reason for entry in bench.time(0)] == reasons
    assert asked.without == without
