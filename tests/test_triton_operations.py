"""What holds of all bundled Triton operations: a token's bits in any batch and any memory, and one kernel for all."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
)
from samebits.backends.problem import Request, Strides
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenLayout,
    TokenOperation,
    TokenProblem,
)
from samebits.backends.triton_attn import implementations
from samebits.backends.triton_operations import (
    TritonCacheWrite,
    TritonLinear,
    TritonMerge,
    TritonRmsNorm,
    TritonRotary,
    operations,
)
from samebits.harness.execution import Execution
from samebits.harness.tokens.execution import execute_tokens
from samebits.kernels.triton import cache_write, linear, merge, rms_norm, rotary

from .token_operations import assert_same_bits, drawn, interpreted_quietly
from .triton_launches import Launch, assert_same_compiled, recording

pytestmark = interpreted_quietly

DEVICE = torch.device(TritonRotary().device)

OPERATIONS: tuple[TokenOperation, ...] = (
    RotaryEmbedding("neox", 6, 2, 32, 32),
    RotaryEmbedding("neox-partial-inverse", 3, 3, 80, 20, inverse=True, cache_dtype="fp32"),
    RotaryEmbedding("gpt-j", 5, 1, 24, 24, interleaved=True, inverse=True),
    RotaryEmbedding("gpt-j-partial", 2, 4, 64, 2, interleaved=True, cache_dtype="fp32"),
    CacheWrite("contiguous", 3, 24),
    CacheWrite("one-slot-pages", 1, 80, page_size=1),
    MergeStates("narrow", 5, 24),
    MergeStates("wide", 2, 128),
    Linear("even", 256, 128),
    Linear("uneven", 131, 70, bias=True),
    Linear("one-feature", 1, 3, bias=True),
    RmsNorm("even", 256),
    RmsNorm("uneven", 131, epsilon=0.1),
    RmsNorm("one", 1),
)
REQUESTS = (Request(1, 5, 3), Request(2, 1, 100), Request(3, 2, 4), Request(4, 70, 30))
LAYOUTS = (
    TokenLayout(),
    TokenLayout(padding_tokens=5, strides=Strides.INTERLEAVED, leading_dimensions=2, page_seed=1),
    TokenLayout(padding_tokens=3, strides=Strides.INTERLEAVED, leading_dimensions=3, poison="large"),
)


def implementation_of(operation: TokenOperation) -> TokenImplementation[Any, Any]:
    return next(each for each in operations() if each.operation == operation.operation)


def execution_of(
    operation: TokenOperation, dtype: str, *requests: Request, layout: TokenLayout = LAYOUTS[0]
) -> Execution:
    problem = TokenProblem(operation, dtype, requests or REQUESTS, layout)
    return execute_tokens(implementation_of(operation), problem, DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "strided", "three-dimensions"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.operation}-{each.name}")
def test_every_operation_is_right_and_writes_its_own_rows_alone(
    operation: TokenOperation, dtype: str, layout: TokenLayout
) -> None:
    execution = execution_of(operation, dtype, layout=layout)
    assert execution.error_budget <= 1.0, f"{execution.problem}: {execution.worst}"
    assert not execution.faults, f"{execution.problem}: {execution.faults}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.operation}-{each.name}")
def test_a_token_alone_has_the_bits_that_it_has_in_a_batch(operation: TokenOperation, dtype: str) -> None:
    batch = execution_of(operation, dtype)
    for request in REQUESTS:
        for number in range(0, request.query_len, 23):
            single = replace(request, query_len=1, context_len=request.context_len + number)
            alone = execution_of(operation, dtype, single, layout=LAYOUTS[1])
            for name, rows in alone.results[request.key].tensors.items():
                expected = batch.results[request.key].tensors[name][number : number + 1]
                assert_same_bits(rows, expected, f"{name} of row {number} of {request}, {operation}")


def launches(num_tokens: int) -> list[Launch]:
    """What each operation gives its kernel, of which every tensor but the layer's has `num_tokens` rows."""
    packed, lse = drawn(num_tokens, 10, 40, device=DEVICE), drawn(4, num_tokens, device=DEVICE)
    rows, weight = drawn(num_tokens, 40, device=DEVICE), drawn(8, 40, device=DEVICE)
    numbers = torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE)
    # More tokens need longer caches.
    pages, cache = drawn(num_tokens + 2, 4, 2, 40, device=DEVICE), drawn(num_tokens + 9, 40, device=DEVICE)
    query, key, value = packed[:, :4], packed[:, 4:6], packed[:, 6:8]
    batches: dict[ModuleType, tuple[TokenImplementation[Any, Any], TokenOperation, TokenTensors]] = {
        rotary: (TritonRotary(), RotaryEmbedding("test", 4, 2, 40, 40), RotaryTensors(query, key, numbers, cache)),
        cache_write: (
            TritonCacheWrite(),
            CacheWrite("test", 2, 40, 4),
            CacheWriteTensors(key, value, pages, pages, numbers),
        ),
        merge: (TritonMerge(), MergeStates("test", 4, 40), MergeTensors(query, lse, query, lse, query, lse)),
        linear: (
            TritonLinear(),
            Linear("test", 40, 8),
            LinearTensors(rows.unsqueeze(0), weight, None, rows.new_empty(1, num_tokens, 8)),
        ),
        rms_norm: (
            TritonRmsNorm(),
            RmsNorm("test", 40),
            RmsNormTensors(query, weight[0], torch.empty(query.shape, device=DEVICE)),
        ),
    }
    found = []
    for kernels, (implementation, operation, tensors) in batches.items():
        with recording("triton_operations", kernels) as launched:
            implementation.run(operation, tensors)
        found += launched
    return found


def test_one_compiled_kernel_serves_every_number_of_tokens() -> None:
    usual, *others = (launches(num_tokens) for num_tokens in (7, 1, 16, 100))
    assert len(usual) == len(operations()), f"{len(usual)} launches of {len(operations())} operations"
    for other in others:
        for one, another in zip(usual, other, strict=True):
            assert_same_compiled(one, another)


def test_the_backend_offers_each_operation_once() -> None:
    found = [each.operation for each in implementations() if each.label == "TRITON_ATTN/bundled"]
    assert found == ["attention", "rope", "cache_write", "merge", "linear", "rms_norm"], f"the backend offers {found}"
    for implementation in operations():
        assert implementation.probe().available, implementation.probe().reason


def test_a_kernel_module_that_does_not_import_is_one_sentence() -> None:
    assert TritonLinear(kernels="samebits.kernels.triton.absent").probe().reason == (
        "importing samebits.kernels.triton.absent raised ModuleNotFoundError: "
        "No module named 'samebits.kernels.triton.absent'"
    )
