"""One problem through one implementation: poisoned, guarded, and judged against the reference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem, Request
from samebits.harness.batch import Batch, GuardedTensor, guarded, make_batch
from samebits.harness.comparison import ulp_distance
from samebits.harness.reference import RequestReference, budget_used, request_reference


@dataclass(frozen=True)
class RequestResult:
    """What one request came to.

    Attributes:
        output: `[query_len, num_heads, head_dim]` in the problem's dtype.
        lse: float32 `[num_heads, query_len]`, or None where the implementation returns none.
    """

    output: torch.Tensor
    lse: torch.Tensor | None


@dataclass(frozen=True)
class Execution:
    """A problem computed once.

    Attributes:
        problem: what was computed.
        results: by request key.
        error_budget: share of the error bound used at the worst element of all requests.
        worst: where that is, in words.
        max_ulp: largest distance from the rounded reference in units in the last place, among the elements of each row
            that are no smaller than its root mean square.
        faults: what went wrong apart from the values: overwritten canaries, changed inputs.
        digest: of all output bits of the requests, in their order.
    """

    problem: Problem
    results: Mapping[int, RequestResult]
    error_budget: float
    worst: str
    max_ulp: int
    digest: str
    faults: tuple[str, ...] = field(default=())


@torch.no_grad()
def execute(implementation: Implementation[Any], problem: Problem, device: torch.device) -> Execution:
    """Runs a problem through an implementation and judges every request.

    Args:
        implementation: available here, and without reasons against the problem.
        problem: what to compute.
        device: where the implementation computes.
    """
    batch = make_batch(problem, device)
    geometry = problem.geometry
    poison = problem.layout.poison
    num_tokens = batch.metadata.num_tokens
    output = guarded((num_tokens, geometry.num_heads, geometry.head_dim), batch.config.dtype, device, poison)
    lse = None
    if implementation.support.lse:
        lse = guarded((geometry.num_heads, num_tokens), torch.float32, device, poison)
    inputs = _digest_inputs(batch)
    plan = implementation.plan(batch.config, batch.metadata)
    implementation.run(
        plan, batch.query, batch.key_cache, batch.value_cache, output.tensor, None if lse is None else lse.tensor
    )
    results = _collect(batch, output, lse)
    judgements = [_judge(problem, request, results[request.key], device) for request in problem.requests]
    worst = max(judgements, key=lambda judgement: judgement.error_budget)
    faults = [
        f"run wrote outside the {name} tensor"
        for name, buffer in (("output", output), ("lse", lse))
        if buffer is not None and not buffer.intact()
    ]
    if _digest_inputs(batch) != inputs:
        faults.append("run changed its query, its cache or its metadata")
    return Execution(
        problem=problem,
        results=results,
        error_budget=worst.error_budget,
        worst=worst.worst,
        max_ulp=max(judgement.max_ulp for judgement in judgements),
        digest=_digest(*(tensor for result in results.values() for tensor in (result.output, result.lse))),
        faults=tuple(faults),
    )


class Executor:
    """Runs problems through one implementation, each only once.

    Many cells share a problem, above all each request alone; what a deterministic run gave once need not be computed
    again. Run-to-run determinism is a suite of its own and does not use this.
    """

    def __init__(self, implementation: Implementation[Any], device: torch.device, capacity: int = 256) -> None:
        self.implementation = implementation
        self.device = device
        self._capacity = capacity
        self._done: dict[Problem, Execution] = {}

    def __call__(self, problem: Problem) -> Execution:
        """The execution of `problem`, computed now or earlier."""
        execution = self._done.pop(problem, None)
        if execution is None:
            execution = execute(self.implementation, problem, self.device)
            if len(self._done) >= self._capacity:
                del self._done[next(iter(self._done))]
        self._done[problem] = execution
        return execution


def _collect(batch: Batch, output: GuardedTensor, lse: GuardedTensor | None) -> dict[int, RequestResult]:
    return {
        request.key: RequestResult(
            output=output.tensor[rows].clone(), lse=None if lse is None else lse.tensor[:, rows].clone()
        )
        for request, rows in zip(batch.problem.requests, batch.query_rows, strict=True)
    }


@dataclass(frozen=True)
class _Judgement:
    """One request against its reference: the budget its worst element uses, where that is, and the distance in ULP."""

    error_budget: float = 0.0
    worst: str = ""
    max_ulp: int = 0


def _judge(problem: Problem, request: Request, result: RequestResult, device: torch.device) -> _Judgement:
    if not request.query_len:
        return _Judgement()
    reference: RequestReference = request_reference(problem, request, device)
    used = budget_used(result.output, reference.output, reference.output_bound)
    budget, index = used.flatten().max(dim=0)
    row, head, element = (int(i) for i in torch.unravel_index(index, used.shape))
    magnitude = reference.output.abs()
    root_mean_square = magnitude.square().mean(dim=2, keepdim=True).sqrt()
    judgement = _Judgement(
        error_budget=float(budget),
        worst=(
            f"request {request}, query {row}, head {head}, element {element}: "
            f"{result.output[row, head, element].item()!r} "
            f"where the reference is {reference.output[row, head, element]:.9g} "
            f"within {reference.output_bound[row, head, element]:.3g} before rounding"
        ),
        max_ulp=ulp_distance(result.output, reference.output, magnitude >= root_mean_square),
    )
    if result.lse is None:
        return judgement
    lse_used = budget_used(result.lse, reference.lse, reference.lse_bound)
    lse_budget, index = lse_used.flatten().max(dim=0)
    if lse_budget <= budget:
        return judgement
    head, row = (int(i) for i in torch.unravel_index(index, lse_used.shape))
    return replace(
        judgement,
        error_budget=float(lse_budget),
        worst=(
            f"request {request}, log-sum-exp of query {row}, head {head}: {result.lse[head, row].item()!r} "
            f"where the reference is {reference.lse[head, row]:.9g} within {reference.lse_bound[head, row]:.3g}"
        ),
    )


def _digest_inputs(batch: Batch) -> str:
    metadata = batch.metadata
    return _digest(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        metadata.query_start_loc,
        metadata.seq_lens,
        metadata.block_table,
        metadata.slot_mapping,
        metadata.encoder_seq_lens,
    )


def _digest(*tensors: torch.Tensor | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
