"""Controls of the run-to-run suite: one correct kernel, and what it must not let in."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.harness.controls.kernels import Call, PlannedBatch
from samebits.harness.controls.schedules import ChunkedKernel, RequestView, Schedule
from samebits.harness.matrix import Flaw, Symptom

_FEW_ROWS = 4


@dataclass(frozen=True)
class Disturbance(Flaw):
    """What decides how many keys a kernel adds up at a time, and must not.

    Attributes:
        chunk: keys per chunk, from the queries, the number of the call, and its number among those with the same plan.
    """

    chunk: Callable[[torch.Tensor, int, int], int]
    symptom: Symptom = field(default=Symptom.BITS, kw_only=True)


def _from_scratch(query: torch.Tensor, call: int, call_of_plan: int) -> int:
    # As a counter that nobody set to 0: what it holds is whatever was there.
    return 32 if torch.empty(1).isnan() else 48


class FirstCallDecides:
    """What is decided by the first call of the process, and for all of them."""

    def __init__(self) -> None:
        self._decided: bool | None = None

    def __call__(self, rows: int) -> bool:
        """Whether that one had few rows."""
        if self._decided is None:
            self._decided = rows < _FEW_ROWS
        return self._decided


_few_rows_at_first = FirstCallDecides()

DISTURBANCES = (
    Disturbance("reads_scratch", "repeated", "scratch is read before it is written", _from_scratch),
    Disturbance(
        "reads_address",
        "repeated",
        "the chunk follows the alignment of the queries",
        lambda query, call, call_of_plan: 32 if query.data_ptr() % 64 == 0 else 48,
    ),
    Disturbance(
        "order_of_arrival",
        "repeated",
        "parts are added in the order in which they happen to arrive",
        lambda query, call, call_of_plan: 32 + 16 * (call % 2),
    ),
    Disturbance(
        "worn_plan",
        "repeated",
        "a plan serves for one call only",
        lambda query, call, call_of_plan: 32 + 16 * call_of_plan,
    ),
    Disturbance(
        "chunk_from_first_call",
        "second_process",
        "the first call of a process decides on the chunk for all",
        lambda query, call, call_of_plan: 32 if _few_rows_at_first(len(query)) else 48,
    ),
    Disturbance(
        "chunk_from_threads",
        "threads",
        "the chunk follows the number of threads",
        lambda query, call, call_of_plan: 16 + 16 * torch.get_num_threads(),
    ),
)


class DisturbedKernel(ChunkedKernel):
    """The correct kernel with chunks that a disturbance decides."""

    flaw: Disturbance

    def __init__(self, flaw: Disturbance) -> None:
        """Takes the disturbance's name."""
        self.flaw, self.name = flaw, flaw.name
        self._chunk = 0
        self._calls = itertools.count()
        self._calls_of_plan = itertools.count()

    def schedule_of(self, view: RequestView) -> Schedule:
        """The chunks that were decided on."""
        return Schedule(chunk=self._chunk)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Begins to count the plan's calls."""
        self._calls_of_plan = itertools.count()
        return super().plan(config, metadata)

    def compute(self, call: Call) -> None:
        """Decides on the chunks, and computes."""
        self._chunk = self.flaw.chunk(call.query, next(self._calls), next(self._calls_of_plan))
        super().compute(call)
