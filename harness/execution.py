"""One problem through one implementation: poisoned, guarded, and judged against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import OtherLayer, Problem
from samebits.harness.accuracy import Judgement, judge_tensors
from samebits.harness.batch import Batch, GuardedTensor, guarded, make_batch, poison_value
from samebits.harness.circumstances import in_circumstances
from samebits.harness.comparison import same_bits
from samebits.harness.digest import digest_of_bits
from samebits.harness.global_state import restoring_global_state
from samebits.harness.judged_bits import judged_once
from samebits.harness.other_layer import filled_with, other_layer, tensors_of
from samebits.harness.reference import request_reference
from samebits.harness.relations import AnyProblem


@dataclass(frozen=True)
class RequestResult:
    """What one request came to.

    Attributes:
        tensors: by name, a row for each of the request's tokens first. Attention has `output`, `[query_len, num_heads,
            head_dim]` in the problem's dtype, and `lse`, float32 `[query_len, num_heads]`, where it returns one.
    """

    tensors: Mapping[str, torch.Tensor]

    @property
    def output(self) -> torch.Tensor:
        """Of attention: `[query_len, num_heads, head_dim]` in the problem's dtype."""
        return self.tensors["output"]

    @property
    def lse(self) -> torch.Tensor | None:
        """Of attention: float32 `[num_heads, query_len]`, or None where the implementation returns none."""
        return self.tensors["lse"].transpose(0, 1) if "lse" in self.tensors else None


@dataclass(frozen=True)
class Execution:
    """A problem computed once.

    Attributes:
        problem: what was computed.
        results: by request key.
        judgements: by name of a tensor, of all requests.
        digest: of all result bits of the requests, in their order.
        faults: what went wrong apart from the values: overwritten canaries, changed inputs, changed settings of the
            process.
    """

    problem: AnyProblem
    results: Mapping[int, RequestResult]
    judgements: Mapping[str, Judgement]
    digest: str
    faults: tuple[str, ...] = field(default=())

    def judged(self, tensors: Iterable[str]) -> Judgement:
        """The worst of some tensors; one that was not computed is not wrong."""
        found = [self.judgements[tensor] for tensor in tensors if tensor in self.judgements]
        return max(found, key=lambda judgement: judgement.error_budget, default=Judgement())

    @property
    def nbytes(self) -> int:
        """Bytes of all results."""
        return sum(tensor.nbytes for result in self.results.values() for tensor in result.tensors.values())

    @property
    def error_budget(self) -> float:
        """Share of the error bound used at the worst element of all tensors."""
        return self.judged(self.judgements).error_budget

    @property
    def worst(self) -> str:
        """Where the worst element of all tensors is, in words."""
        return self.judged(self.judgements).worst


@torch.no_grad()
def execute(implementation: Implementation[Any], problem: Problem, device: torch.device) -> Execution:
    """Runs a problem through an implementation of attention and judges every request.

    Args:
        implementation: available here, and without reasons against the problem.
        problem: what to compute.
        device: where the implementation computes.
    """
    # Nothing that was computed on is held any more while references are computed.
    results, faults = _computed(implementation, problem, device)
    return judged_execution(problem, results, device, faults)


def _computed(
    implementation: Implementation[Any], problem: Problem, device: torch.device
) -> tuple[dict[int, RequestResult], list[str]]:
    """Runs a problem through an implementation.

    Where another layer comes before, this holds five pairs of caches, which at full size decides how many workers a GPU
    has room for: those of the call, those of the other layer, what the call's held before, and the keys and values of
    either layer, which are kept for the next call.

    Returns:
        Results by request key, and what went wrong apart from the values.
    """
    call = _new_call(implementation, problem, device)
    batch = call.batch
    before = None
    if problem.circumstances.other_layer is not None:
        before = _new_call(implementation, other_layer(problem), device)
    # After the other layer, for which keys of its requests are held twice until they are in their pages.
    before_run = [tensor.clone() for tensor in _inputs(batch)]
    faults: list[str] = []
    with in_circumstances(problem.circumstances, problem.layout.poison, device):
        _compute(implementation, call, before, faults)
    results = _collect(batch, call.output, call.lse)
    faults += [f"run wrote outside the {name} tensor" for name, written in call.written.items() if not written.intact()]
    if not all(map(same_bits, _inputs(batch), before_run)):
        faults.append("run changed its query, its cache or its metadata")
    return results, faults


@dataclass(frozen=True)
class _Call:
    """A batch, and the tensors that its results go to; without `lse` where none is returned."""

    batch: Batch
    output: GuardedTensor
    lse: GuardedTensor | None

    @property
    def read(self) -> list[torch.Tensor]:
        """All tensors that an implementation is given to read."""
        batch = self.batch
        return [batch.query, batch.key_cache, batch.value_cache, *tensors_of(batch.config, batch.metadata)]

    @property
    def written(self) -> dict[str, GuardedTensor]:
        """By name, the tensors that it is given to write."""
        return {"output": self.output} | ({} if self.lse is None else {"lse": self.lse})


def _new_call(implementation: Implementation[Any], problem: Problem, device: torch.device) -> _Call:
    batch = make_batch(problem, device)
    layout, num_heads, num_tokens = problem.layout, problem.geometry.num_heads, batch.metadata.num_tokens
    shape = (num_tokens, num_heads, problem.geometry.head_dim)
    output = guarded(shape, batch.config.dtype, device, layout.poison, layout.strides)
    lse = None
    if implementation.support.lse and not problem.circumstances.output_only:
        lse = guarded((num_heads, num_tokens), torch.float32, device, layout.poison, layout.strides)
    return _Call(batch, output, lse)


def _compute(implementation: Implementation[Any], call: _Call, before: _Call | None, faults: list[str]) -> None:
    """Plans and runs a call, and another layer's before it where the circumstances say so."""
    circumstances = call.batch.problem.circumstances
    if before is not None and circumstances.other_layer is OtherLayer.IN_PLACE:
        with filled_with(before.read, call.read):
            _run(implementation, _plan(implementation, call, faults), call, faults)
    plan = _plan(implementation, call, faults)
    if before is not None and circumstances.other_layer is OtherLayer.INTERLEAVED:
        _run(implementation, _plan(implementation, before, faults), before, faults)
    for _ in range(circumstances.calls):
        _run(implementation, plan, call, faults)


def _plan(implementation: Implementation[Any], call: _Call, faults: list[str]) -> Any:  # noqa: ANN401 -- it knows its plans
    config = call.batch.config
    with restoring_global_state("plan", config.device, faults):
        return implementation.plan(config, call.batch.metadata)


def _run(implementation: Implementation[Any], plan: Any, call: _Call, faults: list[str]) -> None:  # noqa: ANN401 -- its plan
    batch = call.batch
    for written in call.written.values():
        written.tensor.fill_(poison_value(batch.problem.layout.poison))
    with restoring_global_state("run", batch.config.device, faults):
        implementation.run(
            plan,
            batch.query,
            batch.key_cache,
            batch.value_cache,
            call.output.tensor,
            None if call.lse is None else call.lse.tensor,
        )


def _collect(batch: Batch, output: GuardedTensor, lse: GuardedTensor | None) -> dict[int, RequestResult]:
    """Copies of the results, each request's a view of one copy of all: a crowd's would be hundreds."""
    copies = {"output": output.tensor.clone()} | ({} if lse is None else {"lse": lse.tensor.clone().transpose(0, 1)})
    return {
        request.key: RequestResult({name: copy[rows] for name, copy in copies.items()})
        for request, rows in zip(batch.problem.requests, batch.query_rows, strict=True)
    }


def judged_execution(
    problem: Problem, results: Mapping[int, RequestResult], device: torch.device, faults: Iterable[str]
) -> Execution:
    """Holds what was computed against the reference.

    Args:
        problem: what was computed.
        results: by request key.
        device: where they are.
        faults: what went wrong apart from the values.
    """
    return with_judgements(problem, results, faults, lambda: _judge_requests(problem, results, device))


def with_judgements(
    problem: AnyProblem,
    results: Mapping[int, RequestResult],
    faults: Iterable[str],
    judge: Callable[[], Mapping[str, Judgement]],
) -> Execution:
    """An execution whose bits are judged, if they have not been before.

    Args:
        problem: what was computed.
        results: by request key.
        faults: what went wrong apart from the values.
        judge: holds the results against the reference.
    """
    digest = digest_of_bits(tensor for result in results.values() for tensor in result.tensors.values())
    names = tuple(dict.fromkeys(name for result in results.values() for name in result.tensors))
    return Execution(
        problem=problem,
        results=results,
        judgements=judged_once(problem, names, digest, judge),
        digest=digest,
        faults=tuple(dict.fromkeys(faults)),
    )


def _judge_requests(
    problem: Problem, results: Mapping[int, RequestResult], device: torch.device
) -> dict[str, Judgement]:
    """The worst request of each tensor."""
    references = [request_reference(problem, request, device) for request in problem.requests]
    tensors = [results[request.key].tensors for request in problem.requests]
    expected = [
        {
            "output": (reference.output, reference.output_bound),
            "lse": (_told_infinity(reference.lse.transpose(0, 1), found), reference.lse_bound.transpose(0, 1)),
        }
        for reference, found in zip(references, tensors, strict=True)
    ]
    return judge_tensors(problem.requests, tensors, expected)


def _told_infinity(lse: torch.Tensor, found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The log-sum-exp of a row with an infinite score, and of an output that is NaN: `+inf`, or NaN where that is told.

    Either tells that the row is spoiled. Which comes of it is a matter of the order of operations.
    """
    return torch.where(lse.isposinf() & found["lse"].isnan(), torch.nan, lse) if "lse" in found else lse


def _inputs(batch: Batch) -> list[torch.Tensor]:
    """All that an implementation is given to read, and what lies between."""
    return [*batch.memory(), *tensors_of(batch.config, batch.metadata)]
