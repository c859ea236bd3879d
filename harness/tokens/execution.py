"""One problem of an operation on tokens through one implementation: poisoned, guarded, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.operations import TokenImplementation, TokenTensors
from samebits.backends.problem import DTYPE_NAMES, OtherLayer
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenOperation,
    TokenProblem,
)
from samebits.harness.accuracy import Judgement, judge_tensors
from samebits.harness.allocations import total_allocated
from samebits.harness.circumstances import in_circumstances
from samebits.harness.comparison import same_bits
from samebits.harness.execution import Execution, RequestResult, with_judgements
from samebits.harness.global_state import restoring_global_state
from samebits.harness.other_layer import filled_with, other_layer, tensors_of
from samebits.harness.strides import whole_memory
from samebits.harness.tokens.cache_write import PreparedCacheWrite
from samebits.harness.tokens.linear import PreparedLinear
from samebits.harness.tokens.merge import PreparedMerge
from samebits.harness.tokens.prepared import Prepared
from samebits.harness.tokens.rms_norm import PreparedRmsNorm
from samebits.harness.tokens.rotary import PreparedRotary

_PREPARED: Mapping[type[TokenOperation], Callable[[TokenProblem, Any, torch.device], Prepared[Any]]] = {
    RotaryEmbedding: PreparedRotary,
    CacheWrite: PreparedCacheWrite,
    MergeStates: PreparedMerge,
    Linear: PreparedLinear,
    RmsNorm: PreparedRmsNorm,
}


_SMALLEST_ELEMENT_BYTES = 2


@torch.no_grad()
def execute_tokens(
    implementation: TokenImplementation[Any, Any], problem: TokenProblem, device: torch.device
) -> Execution:
    """Runs a problem through an implementation and judges every request.

    Args:
        implementation: of the problem's operation, available here, and without reasons against the problem.
        problem: what to compute.
        device: where the implementation computes.
    """
    prepared = prepare(problem, device)
    faults: list[str] = []
    if problem.must_be_refused:
        with restoring_global_state("run", device, faults):
            faults += _faults_of_refusal(implementation, problem, prepared.tensors)
        return Execution(problem, {}, {}, "", tuple(faults))
    before_run = [memory.clone() for memory in _read_memory(prepared)]
    before = None if problem.circumstances.other_layer is None else prepare(other_layer(problem), device)
    circumstances = in_circumstances(problem.circumstances, problem.layout.poison, device)
    with circumstances, restoring_global_state("run", device, faults):
        if before is not None:
            _run_before(implementation, problem, before.tensors, prepared.tensors)
        if problem.layout.watched:
            faults += _watched(implementation, problem, prepared)
        else:
            implementation.run(problem.operation, prepared.tensors)
    results = {key: RequestResult(tensors) for key, tensors in prepared.results().items()}
    faults += [f"run wrote outside of its {name}" for name, placed in prepared.written.items() if not placed.intact()]
    faults += prepared.faults()
    if not all(map(same_bits, _read_memory(prepared), before_run)):
        faults.append(f"run changed one of {', '.join(prepared.read)}")
    return with_judgements(problem, results, faults, lambda: _judged(prepared, problem, results))


def _judged(
    prepared: Prepared[Any], problem: TokenProblem, results: Mapping[int, RequestResult]
) -> dict[str, Judgement]:
    """The worst request of each tensor."""
    expected = [
        {name: (wanted.values, wanted.bound) for name, wanted in prepared.expected(request).items()}
        for request in problem.requests
    ]
    tensors = [results[request.key].tensors for request in problem.requests]
    return judge_tensors(problem.requests, tensors, expected)


def prepare(problem: TokenProblem, device: torch.device) -> Prepared[Any]:
    """Makes the tensors of a problem, on the device where an implementation computes."""
    return _PREPARED[type(problem.operation)](problem, problem.operation, device)


def _run_before(
    implementation: TokenImplementation[Any, Any], problem: TokenProblem, others: TokenTensors, tensors: TokenTensors
) -> None:
    """Computes another layer's tensors: where they are, or in the memory of those that count."""
    if problem.circumstances.other_layer is OtherLayer.INTERLEAVED:
        implementation.run(problem.operation, others)
        return
    with filled_with(tensors_of(others), tensors_of(tensors)):
        implementation.run(problem.operation, tensors)


def _read_memory(prepared: Prepared[Any]) -> list[torch.Tensor]:
    """What may not be written, and all else in its memory."""
    return [whole_memory(tensor) for tensor in prepared.read.values()]


def _watched(
    implementation: TokenImplementation[Any, Any], problem: TokenProblem, prepared: Prepared[Any]
) -> list[str]:
    """Runs while a rotary cache is watched.

    What is allocated may not hold its cosines or its sines, in any dtype. And one token needs a row of it: who touches
    half of it converts or copies it, in memory that torch does not know of.
    """
    assert isinstance(prepared, PreparedRotary), "only the rotary cache is watched"
    tensors, memory = prepared.tensors, prepared.cache_memory
    if memory is not None:
        memory.forget()
    allocated = total_allocated(lambda: implementation.run(problem.operation, tensors), tensors.query.device)
    touched = 0 if memory is None else memory.touched_bytes()
    cache = tensors.cos_sin_cache
    done = {
        f"allocated {allocated}": allocated >= cache.numel() // 2 * _SMALLEST_ELEMENT_BYTES,
        f"touched {touched}": touched >= cache.nbytes // 2,
    }
    told = [what for what, too_much in done.items() if too_much]
    if not told:
        return []
    return [f"run {' and '.join(told)} bytes where cos_sin_cache has {cache.nbytes}: it converts or copies the cache"]


def _faults_of_refusal(
    implementation: TokenImplementation[Any, Any], problem: TokenProblem, tensors: TokenTensors
) -> tuple[str, ...]:
    """What is wrong with the answer to a rotary cache of a dtype that no rule allows."""
    operation = problem.operation
    assert isinstance(operation, RotaryEmbedding), "only a rotary embedding is refused"
    wanted = (
        f"cos_sin_cache is {operation.cache_dtype} beside queries of {problem.dtype}; "
        "it must be of the queries' dtype or fp32"
    )
    try:
        implementation.run(operation, tensors)
    except ValueError as error:
        return () if str(error) == wanted else (f"run refused the cache with {str(error)!r} and not {wanted!r}",)
    return (f"run took a cos_sin_cache of {operation.cache_dtype} beside queries of {problem.dtype}",)


def outlawed(problem: TokenProblem) -> TokenProblem:
    """The problem with a rotary cache of a dtype that no rule allows."""
    operation = problem.operation
    assert isinstance(operation, RotaryEmbedding), "only a rotary embedding has a cache"
    third = next(dtype for dtype in reversed(DTYPE_NAMES) if dtype not in ("fp32", problem.dtype))
    return replace(problem, operation=replace(operation, cache_dtype=third))
