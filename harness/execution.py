"""One problem through one implementation: poisoned, guarded, and judged against the reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem, Request
from samebits.harness.batch import Batch, GuardedTensor, guarded, make_batch, poison_value
from samebits.harness.circumstances import in_circumstances
from samebits.harness.comparison import ulp_distance
from samebits.harness.reference import budget_used, request_reference
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
class Judgement:
    """One tensor of an execution against the reference.

    Attributes:
        error_budget: share of the error bound used at the worst element.
        worst: where that is, in words.
        max_ulp: largest distance from the rounded reference in units in the last place, among the elements of each row
            that are no smaller than its root mean square.
    """

    error_budget: float = 0.0
    worst: str = ""
    max_ulp: int = 0


@dataclass(frozen=True)
class Execution:
    """A problem computed once.

    Attributes:
        problem: what was computed.
        results: by request key.
        judgements: by name of a tensor, of all requests.
        digest: of all result bits of the requests, in their order.
        faults: what went wrong apart from the values: overwritten canaries, changed inputs.
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
    batch = make_batch(problem, device)
    geometry = problem.geometry
    poison = problem.layout.poison
    num_tokens = batch.metadata.num_tokens
    output = guarded((num_tokens, geometry.num_heads, geometry.head_dim), batch.config.dtype, device, poison)
    lse = None
    if implementation.support.lse:
        lse = guarded((geometry.num_heads, num_tokens), torch.float32, device, poison)
    inputs = _digest_inputs(batch)
    with in_circumstances(problem.circumstances, poison, device):
        plan = implementation.plan(batch.config, batch.metadata)
        for _ in range(problem.circumstances.calls):
            for written in (output, lse):
                if written is not None:
                    written.tensor.fill_(poison_value(poison))
            implementation.run(
                plan,
                batch.query,
                batch.key_cache,
                batch.value_cache,
                output.tensor,
                None if lse is None else lse.tensor,
            )
    results = _collect(batch, output, lse)
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
        judgements=_judgements(problem, results, device),
        digest=digest_of_results(results),
        faults=tuple(faults),
    )


def digest_of_results(results: Mapping[int, RequestResult]) -> str:
    """Digest of all bits of some results, in their order."""
    return digest_of(*(tensor for result in results.values() for tensor in result.tensors.values()))


def digest_of(*tensors: torch.Tensor | None) -> str:
    """Digest of the bytes of some tensors; None stands for one that is not there."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            # A transposed tensor of one element counts as contiguous whatever its strides; a copy of it has none.
            copy = tensor.cpu().clone(memory_format=torch.contiguous_format)
            digest.update(copy.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def judge_rows(
    request: Request, tensor: str, actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor
) -> Judgement:
    """One tensor of one request against its reference.

    Args:
        request: whose it is.
        tensor: its name.
        actual: rows of the request's tokens first.
        expected: float64 reference, same shape.
        bound: float64, same shape: the error allowed before the last rounding.
    """
    if not actual.numel():
        return Judgement()
    used = budget_used(actual, expected, bound)
    budget, flat = used.flatten().max(dim=0)
    index = tuple(int(i) for i in torch.unravel_index(flat, used.shape))
    magnitude = expected.abs()
    root_mean_square = magnitude.square().mean(dim=-1, keepdim=True).sqrt()
    return Judgement(
        error_budget=float(budget),
        worst=(
            f"request {request}, {described_place(tensor, index)}: {actual[index].item()!r} where the reference is "
            f"{expected[index]:.9g} within {bound[index]:.3g} before rounding"
        ),
        max_ulp=ulp_distance(actual, expected, magnitude >= root_mean_square),
    )


def described_place(tensor: str, index: tuple[int, ...]) -> str:
    """Names an element of a request's result: its row, its head where there are heads, its place in the head."""
    row, *inner = index
    names = ("head", "element")[-len(inner) :] if tensor != "lse" else ("head",)
    place = ", ".join([f"row {row}", *(f"{name} {i}" for name, i in zip(names, inner, strict=True))])
    return f"log-sum-exp of {place}" if tensor == "lse" else f"{tensor} of {place}"


def _collect(batch: Batch, output: GuardedTensor, lse: GuardedTensor | None) -> dict[int, RequestResult]:
    results = {}
    for request, rows in zip(batch.problem.requests, batch.query_rows, strict=True):
        tensors = {"output": output.tensor[rows].clone()}
        if lse is not None:
            tensors["lse"] = lse.tensor[:, rows].transpose(0, 1).clone()
        results[request.key] = RequestResult(tensors)
    return results


def _judgements(problem: Problem, results: Mapping[int, RequestResult], device: torch.device) -> dict[str, Judgement]:
    """The worst request of each tensor."""
    worst: dict[str, Judgement] = {}
    for request in problem.requests:
        reference = request_reference(problem, request, device)
        expected = {
            "output": (reference.output, reference.output_bound),
            "lse": (reference.lse.transpose(0, 1), reference.lse_bound.transpose(0, 1)),
        }
        for tensor, actual in results[request.key].tensors.items():
            keep_worst(worst, tensor, judge_rows(request, tensor, actual, *expected[tensor]))
    return worst


def keep_worst(worst: dict[str, Judgement], tensor: str, judgement: Judgement) -> None:
    """Adds a request's judgement to those of its batch."""
    if tensor not in worst or judgement.error_budget > worst[tensor].error_budget:
        max_ulp = max(judgement.max_ulp, worst[tensor].max_ulp if tensor in worst else 0)
        worst[tensor] = Judgement(judgement.error_budget, judgement.worst, max_ulp)
    elif judgement.max_ulp > worst[tensor].max_ulp:
        worst[tensor] = Judgement(worst[tensor].error_budget, worst[tensor].worst, judgement.max_ulp)


def _digest_inputs(batch: Batch) -> str:
    metadata = batch.metadata
    return digest_of(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        metadata.query_start_loc,
        metadata.seq_lens,
        metadata.block_table,
        metadata.slot_mapping,
        metadata.encoder_seq_lens,
        metadata.causal_requests,
        batch.config.sinks,
    )
