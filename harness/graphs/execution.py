"""One problem of attention at padded sizes: planned or captured once, replayed, and judged as any other execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.graph_use import GraphHistory, GraphMode, GraphUse
from samebits.backends.problem import Problem
from samebits.backends.subject import PaddingRows
from samebits.harness.allocations import total_allocated
from samebits.harness.batch import Batch, make_batch
from samebits.harness.circumstances import in_circumstances
from samebits.harness.comparison import bits_of, same_bits
from samebits.harness.execution import Execution, RequestResult, judged_execution
from samebits.harness.global_state import restoring_global_state
from samebits.harness.graphs.audit import stale_buffers
from samebits.harness.graphs.buffers import SIZES_BEYOND, Arguments, Capacity, PersistentBuffers
from samebits.harness.graphs.capture import CapturedRun, capture, give_back_graphs, run
from samebits.harness.graphs.freed_memory import FreedMemory
from samebits.harness.graphs.states import other_state
from samebits.harness.graphs.waiting import waits_for_host

_REPEATS = 3


@torch.no_grad()
def execute_graph(implementation: Implementation[Any], problem: Problem, device: torch.device) -> Execution:
    """Runs a problem at the padded sizes of its circumstances, and judges every request.

    Args:
        implementation: available here, and without reasons against the problem.
        problem: what to compute; its circumstances have a `graph`.
        device: where the implementation computes.
    """
    use = problem.circumstances.graph
    assert use is not None, "a problem without padded sizes is computed by itself"
    execution = _executed(implementation, problem, use, device)
    give_back_graphs(use.mode)
    return execution


def _executed(implementation: Implementation[Any], problem: Problem, use: GraphUse, device: torch.device) -> Execution:
    with in_circumstances(problem.circumstances, problem.layout.poison, device):
        protocol = _Protocol(implementation, problem, use, device)
        if use.mode is GraphMode.EAGER:
            protocol.compute_eagerly(protocol.batch, use)
        else:
            _HISTORIES[use.history](protocol)
        results = protocol.results()
    return judged_execution(problem, results, device, protocol.faults)


class _Protocol:
    """What one execution goes through.

    Attributes:
        batch: of the problem that counts.
        use: its padded sizes.
        faults: what went wrong apart from the values.
    """

    def __init__(
        self, implementation: Implementation[Any], problem: Problem, use: GraphUse, device: torch.device
    ) -> None:
        self._implementation, self._problem, self._device = implementation, problem, device
        self.use = use
        self.batch = make_batch(problem, device)
        self._capacity = Capacity.of(problem, use)
        self.buffers = self._new_buffers()
        self.faults: list[str] = []
        self._salt = 0

    def other_batch(self, share: float = 1.0, *, times: int = 1) -> Batch:
        """Another batch for the sizes of the use.

        Args:
            share: how many of the requests it has, padding the rest.
            times: by how much the sizes are larger.
        """
        self._salt += 1
        num_requests = max(1, int(share * times * self.use.num_requests))
        num_tokens = max(num_requests, int(share * times * self.use.num_tokens))
        state = other_state(self._problem, self.use, self._salt, num_requests, num_tokens)
        return make_batch(state, self._device)

    def compute_eagerly(self, batch: Batch, use: GraphUse, times: int = 1) -> None:
        """Plans a batch anew in the buffers as they are, and runs it."""
        self.buffers.fill(batch)
        arguments = self.buffers.arguments(times * use.num_requests, times * use.num_tokens, use)
        with self._restoring("plan"):
            plan = self._implementation.plan(self.batch.config, arguments.metadata)
        self.buffers.poison_results()
        self._watched_for_changes(lambda: run(self._implementation, plan, arguments))

    def capture(self, times: int = 1) -> CapturedRun:
        """Captures a run on a batch that fills its sizes."""
        self.buffers.fill(self.other_batch(times=times))
        arguments = self.buffers.arguments(times * self.use.num_requests, times * self.use.num_tokens, self.use)
        plan = self._plan_for_graph(self.buffers, arguments)
        with self._restoring("run"):
            return capture(self._implementation, plan, arguments, self.use.mode)

    def refill(self, captured: CapturedRun, batch: Batch) -> None:
        """Brings the buffers and the plan up to date."""
        self.buffers.fill(batch)
        with self._restoring("refill"):
            self._implementation.refill(self.batch.config, captured.plan, captured.arguments.metadata)
        self.faults += captured.moved(self._implementation.buffers(captured.plan))

    def replay(self, captured: CapturedRun, batch: Batch) -> None:
        """Refills, poisons the results, and replays."""
        self.refill(captured, batch)
        self.launch(captured)

    def launch(self, captured: CapturedRun) -> None:
        """Poisons the results, and replays what the buffers hold."""
        self.buffers.poison_results()
        self._watched_for_changes(captured.launch)

    def launch_elsewhere(self, captured: CapturedRun) -> None:
        """As `launch`, on another stream where there are streams."""
        if self._device.type != "cuda":
            self.launch(captured)
            return
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
            self.launch(captured)
        torch.cuda.synchronize(self._device)

    def freed_memory(self, captured: CapturedRun) -> FreedMemory:
        """Takes memory that nobody holds, above all of the sizes that the captured run uses."""
        return FreedMemory(self._device, [place.nbytes for place in captured.places.values()])

    def audit(self, captured: CapturedRun) -> None:
        """Compares the buffers of a plan that was refilled with those of one made anew, but for scratch."""
        fresh = self._new_buffers()
        fresh.fill(self.batch)
        arguments = fresh.arguments(self.use.num_requests, self.use.num_tokens, self.use)
        plan = self._plan_for_graph(fresh, arguments)
        anew = self._implementation.buffers(plan)
        held = {name: tensor.clone() for name, tensor in self._implementation.buffers(captured.plan).items()}
        self.launch(captured)
        now = self._implementation.buffers(captured.plan)
        written = {name for name in held if name in now and not same_bits(held[name], now[name])}
        self.faults += stale_buffers(held, anew, captured.scratch | written)

    def waits(self) -> bool:
        """Whether a run waits for the host, on a GPU."""
        if self._device.type != "cuda":
            return False
        self.buffers.fill(self.other_batch())
        arguments = self.buffers.arguments(self.use.num_requests, self.use.num_tokens, self.use)
        plan = self._plan_for_graph(self.buffers, arguments)
        with self._restoring("run"):
            run(self._implementation, plan, arguments)
            found = waits_for_host(lambda: run(self._implementation, plan, arguments))
        self.faults += found
        return bool(found)

    def watch(self, captured: CapturedRun) -> None:
        """Watches what a run allocates, for two batches of other lengths."""
        # On a processor without the log-sum-exp, which some compute on the host there.
        on_device = self._device.type != "cpu"
        allocated = []
        for batch in (self.other_batch(), self.batch):
            self.refill(captured, batch)
            with self._restoring("run"):
                allocated.append(
                    total_allocated(
                        lambda: run(self._implementation, captured.plan, captured.arguments, with_lse=on_device),
                        self._device,
                    )
                )
        if allocated[0] != allocated[1]:
            self.faults.append(
                f"run allocated {allocated[0]} bytes for one batch and {allocated[1]} for another of its padded sizes"
            )

    def output_bits(self) -> torch.Tensor:
        """A copy of the output."""
        return self.buffers.output.tensor.clone()

    def check_padding(self, captured: CapturedRun) -> None:
        """Looks at the rows of the results that belong to no request."""
        promised = self._implementation.claims.padding_rows
        real = self.batch.query_rows[-1].stop
        results = {"output": captured.arguments.output}
        if captured.arguments.lse is not None:
            results["lse"] = captured.arguments.lse.transpose(0, 1)
        for name, tensor in results.items():
            rows = tensor[real:]
            poison = torch.full_like(rows, self.buffers.poison)
            changed = bits_of(rows) != bits_of(poison)
            if promised is PaddingRows.UNTOUCHED and changed.any():
                self.faults.append(f"claims to leave padding rows untouched, but {name} has other bits in them")
            # A log-sum-exp of no key is -inf.
            wrong = rows.isnan() if name == "lse" else ~rows.isfinite()
            if promised is PaddingRows.FINITE and (changed & wrong).any():
                self.faults.append(f"claims that padding rows stay finite, but {name} is not in them")

    def results(self) -> dict[int, RequestResult]:
        """What came of each request."""
        self.faults += self.buffers.faults()
        found = {}
        for request, rows in zip(self._problem.requests, self.batch.query_rows, strict=True):
            tensors = {"output": self.buffers.output.tensor[rows].clone()}
            if self.buffers.lse is not None:
                tensors["lse"] = self.buffers.lse.tensor[:, rows].transpose(0, 1).clone()
            found[request.key] = RequestResult(tensors)
        return found

    def _new_buffers(self) -> PersistentBuffers:
        with_lse = self._implementation.support.lse
        return PersistentBuffers(self.batch.config, self._capacity, self._problem.layout.poison, with_lse=with_lse)

    def _watched_for_changes(self, action: Callable[[], None]) -> None:
        inputs = self.buffers.inputs()
        before = {name: tensor.clone() for name, tensor in inputs.items()}
        with self._restoring("run"):
            action()
        changed = [name for name, tensor in inputs.items() if not same_bits(before[name], tensor)]
        if changed:
            self.faults.append(f"run changed {', '.join(changed)}")

    def _plan_for_graph(self, buffers: PersistentBuffers, arguments: Arguments) -> Any:  # noqa: ANN401 -- it knows its plans
        with self._restoring("plan_for_graph"):
            return self._implementation.plan_for_graph(self.batch.config, arguments.metadata, buffers.num_pages)

    def _restoring(self, step: str) -> AbstractContextManager[None]:
        """Sets back what a step of the implementation leaves changed in this process, and tells it as a fault."""
        return restoring_global_state(step, self._device, self.faults)


def _replayed(protocol: _Protocol) -> None:
    captured = protocol.capture()
    protocol.replay(captured, protocol.other_batch(share=0.5))
    protocol.replay(captured, protocol.batch)
    protocol.check_padding(captured)


def _repeated(protocol: _Protocol) -> None:
    captured = protocol.capture()
    protocol.replay(captured, protocol.batch)
    first = protocol.output_bits()
    for repeat in range(1, _REPEATS):
        (protocol.launch_elsewhere if repeat == 1 else protocol.launch)(captured)
        if not same_bits(first, protocol.output_bits()):
            protocol.faults.append(f"replay {repeat + 1} of one batch has other bits than the first")


def _outgrown(protocol: _Protocol) -> None:
    captured = protocol.capture()
    protocol.compute_eagerly(protocol.other_batch(times=SIZES_BEYOND), protocol.use, times=SIZES_BEYOND)
    protocol.refill(captured, protocol.batch)
    freed = protocol.freed_memory(captured)
    protocol.launch(captured)
    protocol.faults += freed.faults()


def _interleaved(protocol: _Protocol) -> None:
    first, second = protocol.capture(), protocol.capture(times=SIZES_BEYOND)
    protocol.replay(first, protocol.other_batch())
    protocol.replay(second, protocol.other_batch(share=0.75, times=SIZES_BEYOND))
    protocol.replay(first, protocol.batch)


def _evicted(protocol: _Protocol) -> None:
    captured = protocol.capture()
    protocol.refill(captured, protocol.batch)
    freed = protocol.freed_memory(captured)
    protocol.launch(captured)
    protocol.faults += freed.faults()


def _audited(protocol: _Protocol) -> None:
    captured = protocol.capture()
    protocol.refill(captured, protocol.batch)
    protocol.audit(captured)


def _watched(protocol: _Protocol) -> None:
    if protocol.waits():
        # No graph can capture it, and a failed capture would be told in other words.
        protocol.compute_eagerly(protocol.batch, protocol.use)
        return
    captured = protocol.capture()
    protocol.watch(captured)
    protocol.replay(captured, protocol.batch)


_HISTORIES: Mapping[GraphHistory, Callable[[_Protocol], None]] = {
    GraphHistory.REPLAYED: _replayed,
    GraphHistory.REPEATED: _repeated,
    GraphHistory.OUTGROWN: _outgrown,
    GraphHistory.INTERLEAVED: _interleaved,
    GraphHistory.EVICTED: _evicted,
    GraphHistory.AUDITED: _audited,
    GraphHistory.WATCHED: _watched,
}
