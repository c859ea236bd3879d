"""A `run` captured: by a CUDA graph, or without one by its plan and its arguments as they are at that time."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.graph_use import GraphMode
from samebits.backends.plan_tensors import attributes_of
from samebits.harness.comparison import same_bits
from samebits.harness.graphs.buffers import Arguments

Launch = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where a tensor was when a graph was captured.

    Attributes:
        address: of its first element.
        shape, stride: of the tensor.
        nbytes: of the memory that it is a view of.
    """

    address: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Place:
        """Where a tensor is now."""
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.untyped_storage().nbytes())

    def __str__(self) -> str:
        return f"{list(self.shape)} by {list(self.stride)}"


@dataclass(frozen=True)
class CapturedRun:
    """A captured `run` with its plan.

    Attributes:
        arguments: what it was captured with.
        plan: the implementation's, which `refill` brings up to date.
        places: where the buffers of the plan were.
        scratch: names of those that the run writes.
        launch: computes what the buffers hold, as the capture would.
    """

    arguments: Arguments
    plan: Any
    places: Mapping[str, Place]
    scratch: frozenset[str]
    launch: Launch

    def moved(self, buffers: Mapping[str, torch.Tensor]) -> list[str]:
        """Buffers of the plan that are elsewhere by now: the graph still reads where they were.

        Args:
            buffers: of the plan, now.
        """
        found = []
        for name, was in self.places.items():
            now = Place.of(buffers[name]) if name in buffers else None
            if now != was:
                found.append(
                    f"{name} was {was} at capture and is {now or 'gone'} elsewhere: it was bound anew, not refilled"
                )
        return found


def capture(implementation: Implementation[Any], plan: object, arguments: Arguments, mode: GraphMode) -> CapturedRun:
    """Runs a plan once, so that all is compiled, and then captures its `run`.

    Args:
        implementation: whose plan.
        plan: from `plan_for_graph`.
        arguments: what `run` is given.
        mode: `CAPTURED` for a CUDA graph; else the plan and the arguments are remembered.
    """
    buffers = implementation.buffers(plan)
    places = {name: Place.of(tensor) for name, tensor in buffers.items()}
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    if mode is GraphMode.CAPTURED:
        launch = captured_in_graph(lambda: run(implementation, plan, arguments), arguments.query.device)
    else:
        # The plan as it is now, and what the implementation keeps: a number that changes later, or a tensor that
        # another takes the place of, is not seen.
        remembered, keeper = remembered_plan(plan), copy.copy(implementation)
        run(keeper, remembered, arguments)
        launch = lambda: run(keeper, remembered, arguments)  # noqa: E731 -- the counterpart of the graph's
    scratch = frozenset(name for name, tensor in buffers.items() if not same_bits(before[name], tensor))
    return CapturedRun(arguments, plan, places, scratch, launch)


def run(implementation: Implementation[Any], plan: object, arguments: Arguments, *, with_lse: bool = True) -> None:
    """Runs a plan on its arguments.

    Args:
        implementation: whose plan.
        plan: of any kind.
        arguments: tensors of the sizes that were planned.
        with_lse: whether to ask for the log-sum-exp, where there is one.
    """
    implementation.run(
        plan,
        arguments.query,
        arguments.key_cache,
        arguments.value_cache,
        arguments.output,
        arguments.lse if with_lse else None,
    )


@dataclass(frozen=True)
class _Replay:
    """Replays a graph, and holds on to what was captured: a graph reads memory that it does not keep itself."""

    graph: torch.cuda.CUDAGraph
    action: Callable[[], object]

    def __call__(self) -> None:
        self.graph.replay()


def captured_in_graph(action: Callable[[], object], device: torch.device) -> Launch:
    """Warms an action up on a stream of its own, captures it, and returns what replays it on the current stream.

    Args:
        action: launches only.
        device: a CUDA device.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        # Once to compile, and once as a replay will find everything.
        action()
        action()
        stream.synchronize()
        # Not by `torch.cuda.graph`, which empties the allocator's caches at every capture.
        with _no_collection():
            graph.capture_begin()
            try:
                action()
            except Exception:
                # What failed is to be told, and not that nothing was captured.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
    torch.cuda.synchronize(device)
    return _Replay(graph, action)


def give_back_graphs(mode: GraphMode) -> None:
    """Gives back the memory of graphs that are gone, which no other allocation can use.

    Args:
        mode: in which a batch was computed; there are no graphs but in `CAPTURED`.
    """
    if mode is GraphMode.CAPTURED:
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the collector from freeing another graph or stream, which must not happen while one is captured."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def remembered_plan(part: Any) -> Any:  # noqa: ANN401 -- a plan is of any type
    """A copy of a plan, and of what it is made of, down to its tensors, which are the very same ones."""
    return _remembered(part, {})


def _remembered(part: Any, known: dict[int, Any]) -> Any:  # noqa: ANN401 -- a plan is of any type
    """The copy of a part, which is that made before where a part leads back to it."""
    if isinstance(part, Mapping):
        return {name: _remembered(inner, known) for name, inner in part.items()}
    if isinstance(part, (list, tuple)) and type(part) in (list, tuple):
        return type(part)(_remembered(inner, known) for inner in part)
    attributes = attributes_of(part)
    if not attributes:
        return part
    if id(part) not in known:
        known[id(part)] = copy.copy(part)
        for name, inner in attributes.items():
            # Frozen ones are made by `copy` alone.
            object.__setattr__(known[id(part)], name, _remembered(inner, known))
    return known[id(part)]
