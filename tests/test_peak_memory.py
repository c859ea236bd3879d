"""How much an execution holds at once: at full size that decides how many workers a GPU has room for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Circumstances, Geometry, Mask, OtherLayer, Problem, Request
from samebits.harness import circumstances, execution
from samebits.harness.batch import Batch, make_batch
from samebits.harness.bounded_cache import forget_everything
from samebits.harness.other_layer import filled_with

CPU = torch.device("cpu")
PROBLEM = Problem(
    Geometry("small", num_heads=2, num_kv_heads=2, head_dim=64, page_size=16),
    Mask.CAUSAL,
    "bf16",
    (Request(1, 1, 4095), Request(2, 1, 1000)),
)


class ComputesNothing(BundledAttention):
    """Asks for no memory of its own."""

    def run(self, *arguments: Any) -> None:  # noqa: ANN401 -- of which it uses none
        """Leaves the results as they are."""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Batch]]]:
    """The batches that are made, of whose results nothing is computed to compare them with."""
    made: list[weakref.ref[Batch]] = []

    def noted(problem: Problem, device: torch.device) -> Batch:
        batch = make_batch(problem, device)
        made.append(weakref.ref(batch))
        return batch

    monkeypatch.setattr(execution, "make_batch", noted)
    monkeypatch.setattr(execution, "_judge_requests", lambda *_: {})
    forget_everything()
    yield made
    # Judgements that nobody made, too.
    forget_everything()


def peak(action: Callable[[], object]) -> int:
    """Bytes that torch's allocator holds at most for an action, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    held = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("before", "pairs"),
    [
        # Of the batch, of its copy, and of the requests' keys and values.
        (None, 3),
        # Of the other layer and of its requests beside them.
        (OtherLayer.IN_PLACE, 5),
        (OtherLayer.INTERLEAVED, 5),
    ],
)
def test_no_more_caches_are_held_than_are_needed(
    batches: list[weakref.ref[Batch]], monkeypatch: pytest.MonkeyPatch, before: OtherLayer | None, pairs: int
) -> None:
    problem = replace(PROBLEM, circumstances=Circumstances(other_layer=before))
    cache = make_batch(problem, CPU).key_cache.nbytes
    monkeypatch.setattr("samebits.harness.other_layer._EXCHANGED_BYTES", cache // 16)
    forget_everything()
    held = peak(lambda: execution.execute(ComputesNothing(), problem, CPU)) / (2 * cache)
    assert len(batches) == (1 if before is None else 2)
    assert pairs - 0.1 < held < pairs + 0.2, f"as much as {held:.2f} pairs of caches is held at once, and not {pairs}"


def test_batches_are_let_go_before_results_are_judged(
    batches: list[weakref.ref[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def judge(*_: object) -> dict[str, object]:
        held.extend(batch() is not None for batch in batches)
        return {}

    monkeypatch.setattr(execution, "_judge_requests", judge)
    problem = replace(PROBLEM, circumstances=Circumstances(other_layer=OtherLayer.IN_PLACE))
    execution.execute(ComputesNothing(), problem, CPU)
    assert held == [False, False], "a batch is held while references are computed"


def test_memory_is_exchanged_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samebits.harness.other_layer._EXCHANGED_BYTES", 64)
    memory = torch.arange(70.0).view(7, 10)
    own, others = memory.clone(), -memory.clone()
    # A view of the same elements, a number and nothing at all, too.
    number, nothing = torch.tensor(3), torch.empty(0, 4)
    values = [others.clone(), 100 + others[2:4], torch.tensor(5), torch.empty(0, 4)]
    with filled_with(values, [memory, memory[2:4], number, nothing]):
        assert memory[0].equal(others[0])
        assert memory[3].equal(100 + others[3])
        assert number.item() == 5
    assert memory.equal(own), "memory has not its own values again"
    assert number.item() == 3


def test_other_work_is_always_on_one_stream_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []

    def stream(device: torch.device) -> object:
        made.append(device)
        return object()

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    first, second = torch.device("meta", 1), torch.device("meta", 2)
    streams = [circumstances._other_stream(device) for device in (first, second, first)]
    circumstances._other_stream.cache_clear()
    assert made == [first, second], "a workspace would be kept for each stream"
    assert streams[0] is streams[2]
