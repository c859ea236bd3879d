"""Attention one request at a time, by torch's kernels for the CPU: values, masks, and what reaches what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.cpu import SdpaAttention
from samebits.backends.flash_attn import ProcessorFlash
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.batch import Batch, make_batch
from samebits.harness.cases import BATCHES, Case
from samebits.harness.execution import execute
from samebits.harness.geometries import GEOMETRIES

from .attention_runs import compute, same_bits

CPU = torch.device("cpu")
IMPLEMENTATIONS = (SdpaAttention(), ProcessorFlash())
# Small, so that the batches of cases.py stay so; ATen's own edges are crossed by the suites.
TILING = Tiling(query_tile=32, kv_tile=64, kv_split=128)
NO_SINKS = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=64, page_size=16, window=12)
SINKS = dataclasses.replace(NO_SINKS, sinks=True)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.label),
]


def problem_of(geometry: Geometry, mask: Mask, batch: str, dtype: str, data: str = "normal") -> Problem:
    """A batch of cases.py, every other request of which is causal where that is each request's own."""
    problem = Case(geometry, mask, batch, "smoke", (dtype,)).problem(dtype, TILING, seed=0)
    requests = [dataclasses.replace(request, causal=index % 2 == 0) for index, request in enumerate(problem.requests)]
    return dataclasses.replace(problem, data=data, requests=tuple(requests))


def assert_same_requests(left: Problem, right: Problem, implementation: Implementation[Any], what: str) -> None:
    """Both problems give every request that they share the same bits."""
    results = [execute(implementation, problem, CPU).results for problem in (left, right)]
    common = results[0].keys() & results[1].keys()
    assert common, f"{what}: no request is on both sides"
    for key in common:
        one, other = (result[key] for result in results)
        assert same_bits(one.output, other.output), f"{what}: request {key} has other output bits"
        assert one.lse is not None, f"{what}: request {key} has no log-sum-exp"
        assert other.lse is not None, f"{what}: request {key} has no log-sum-exp"
        assert same_bits(one.lse, other.lse), f"{what}: request {key} has other bits in its log-sum-exp"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mask", Mask, ids=str)
def test_output_and_lse_match_the_fp64_reference(implementation: Implementation[Any], mask: Mask, dtype: str) -> None:
    names = ("gpt-oss-20b", "mistral-7b", "phi-3-mini", "granite-3-2b", "qwen2.5-14b")
    for geometry in (GEOMETRIES[name] for name in names):
        if mask is Mask.SLIDING_WINDOW and geometry.window is None:
            continue
        for batch in BATCHES.keys() - {"long"} if geometry.sinks else ("mixed", "edges"):
            execution = execute(implementation, problem_of(geometry, mask, batch, dtype), CPU)
            assert execution.error_budget <= 1, f"{execution.problem}: {execution.worst}"
            assert not execution.faults, f"{execution.problem}: {execution.faults}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("data", ["large_scores", "negative_scores", "ties", "offset_values"])
def test_output_and_lse_match_the_fp64_reference_on_hard_data(
    implementation: Implementation[Any], data: str, dtype: str
) -> None:
    for geometry in (NO_SINKS, SINKS):
        execution = execute(implementation, problem_of(geometry, Mask.CAUSAL, "long", dtype, data), CPU)
        assert execution.error_budget <= 1, f"{execution.problem}: {execution.worst}"


@pytest.mark.parametrize("mask", Mask, ids=str)
def test_row_without_keys_is_zero_and_its_lse_that_of_the_sink(implementation: Implementation[Any], mask: Mask) -> None:
    request = Request(1, 3, 2, 0) if mask is Mask.CROSS else Request(1, 3, -3)
    for geometry in (NO_SINKS, SINKS):
        batch = make_batch(Problem(geometry, mask, "bf16", (request,)), CPU)
        output, lse = compute(implementation, batch)
        assert same_bits(output, torch.zeros_like(output)), f"a row without keys holds {output.tolist()}"
        alone = torch.full((4,), -math.inf) if batch.config.sinks is None else batch.config.sinks
        assert (lse == alone[:, None]).all(), f"the LSE of a row without keys is {lse.tolist()}, of {alone.tolist()}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", Mask, ids=str)
def test_request_keeps_the_bits_of_output_and_lse_in_any_batch(
    implementation: Implementation[Any], mask: Mask, dtype: str
) -> None:
    problem = problem_of(SINKS, mask, "mixed", dtype)
    crowd = (Request(99, 3, 8, 5), *problem.requests[::-1])
    together = problem.with_requests(*crowd).with_layout(page_seed=5, padding_requests=2, padding_tokens=3)
    for request in problem.requests:
        assert_same_requests(problem.with_requests(request), together, implementation, "alone and in a batch")


def test_causal_and_other_requests_of_a_batch_have_the_bits_of_batches_of_their_own(
    implementation: Implementation[Any],
) -> None:
    mixed = problem_of(SINKS, Mask.PER_REQUEST, "mixed", "bf16")
    for causal, mask in ((True, Mask.CAUSAL), (False, Mask.NON_CAUSAL)):
        requests = tuple(request for request in mixed.requests if request.causal is causal)
        uniform = dataclasses.replace(mixed, mask=mask, requests=requests)
        assert_same_requests(uniform, mixed, implementation, f"{mask} requests in a batch that mixes masks")


@pytest.mark.parametrize("mask", [Mask.NON_CAUSAL, Mask.PER_REQUEST, Mask.CROSS], ids=str)
def test_nan_in_a_value_reaches_the_rows_and_the_column_that_see_it(
    implementation: Implementation[Any], mask: Mask
) -> None:
    slot, kv_head, column = 13, 1, 5
    requests = (Request(1, 9, 30, 20), Request(2, 20, 13, 20 if mask is Mask.CROSS else 0, causal=False))
    for geometry in (NO_SINKS, SINKS):
        batch = make_batch(Problem(geometry, mask, "bf16", requests), CPU)
        expected, expected_lse = compute(implementation, batch)
        batch.value_cache[batch.metadata.block_table[1, 0], slot, kv_head, column] = math.nan
        output, lse = compute(implementation, batch)
        sees = torch.zeros(output.shape, dtype=torch.bool)
        sees[9:, 2 * kv_head :, column] = True
        assert torch.equal(output.isnan(), sees), f"NaN at {output.isnan().nonzero().tolist()[:5]} and no other places"
        assert torch.equal(output[~sees], expected[~sees]), "a NaN that an element does not see changed it"
        assert same_bits(lse, expected_lse), "a value changed the log-sum-exp"


@pytest.mark.parametrize("mask", [Mask.SLIDING_WINDOW, Mask.CROSS, Mask.CAUSAL], ids=str)
def test_keys_that_no_query_of_the_request_sees_may_hold_nan(implementation: Implementation[Any], mask: Mask) -> None:
    requests = (Request(1, 1, 290, 7), Request(2, 20, 120, 9), Request(3, 5, -2, 4))
    batch = make_batch(Problem(SINKS, mask, "fp32", requests), CPU)
    expected, expected_lse = compute(implementation, batch)
    for request, table in zip(requests, batch.metadata.block_table, strict=True):
        hidden = {
            Mask.SLIDING_WINDOW: range(request.encoder_len + max(0, request.context_len - 11)),
            Mask.CROSS: range(request.encoder_len, request.num_slots),
            Mask.CAUSAL: range(request.encoder_len),
        }[mask]
        assert hidden, f"this test needs slots of {request} that no query sees"
        for slot in hidden:
            batch.key_cache[table[slot // 16], slot % 16] = math.nan
            batch.value_cache[table[slot // 16], slot % 16] = math.nan
    output, lse = compute(implementation, batch)
    assert same_bits(output, expected), "a key that no query sees reached the output"
    assert same_bits(lse, expected_lse), "a key that no query sees reached the log-sum-exp"


def interleaved(batch: Batch) -> Batch:
    """Keys and values of a page in one allocation, heads before slots; queries sliced out of a packed projection."""
    pages, page_size, heads, head_dim = batch.key_cache.shape
    both = torch.full((pages, heads, page_size, 2, head_dim + 3), math.nan, dtype=batch.query.dtype)
    packed = torch.full((batch.query.shape[0], 8, head_dim), math.nan, dtype=batch.query.dtype)
    return dataclasses.replace(
        batch,
        query=packed[:, 1:5].copy_(batch.query),
        key_cache=both[:, :, :, 0, :head_dim].transpose(1, 2).copy_(batch.key_cache),
        value_cache=both[:, :, :, 1, 3:].transpose(1, 2).copy_(batch.value_cache),
    )


def heads_first(batch: Batch) -> Batch:
    """Storage in which each head's tokens lie side by side."""

    def stored(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return tensor.transpose(0, dim).contiguous().transpose(0, dim)

    return dataclasses.replace(
        batch,
        query=stored(batch.query, 1),
        key_cache=stored(batch.key_cache, 2),
        value_cache=stored(batch.value_cache, 2),
    )


@pytest.mark.parametrize("strided", [interleaved, heads_first])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_strides_do_not_change_bits(
    implementation: Implementation[Any], strided: Callable[[Batch], Batch], dtype: str
) -> None:
    for geometry in (NO_SINKS, SINKS):
        batch = make_batch(problem_of(geometry, Mask.CAUSAL, "mixed", dtype), CPU)
        expected, expected_lse = compute(implementation, batch)
        other = strided(batch)
        lse = torch.full((8, batch.query.shape[0]), math.nan)[::2]
        output = torch.full((batch.query.shape[0], 8, 64), math.nan, dtype=batch.query.dtype)
        plan = implementation.plan(other.config, other.metadata)
        implementation.run(plan, other.query, other.key_cache, other.value_cache, output[:, 2:6], lse)
        assert same_bits(output[:, 2:6], expected), "strided tensors give other output bits than contiguous ones"
        assert same_bits(lse, expected_lse), "strided tensors give another log-sum-exp than contiguous ones"
        assert output[:, [0, 1, 6, 7]].isnan().all(), "something was written beside the output's heads"


def test_softcap_is_refused_by_plan_in_the_words_of_the_reasons(implementation: Implementation[Any]) -> None:
    problem = Problem(dataclasses.replace(NO_SINKS, softcap=30.0), Mask.CAUSAL, "fp32", (Request(1, 1),))
    assert implementation.reasons(problem) == ["softcap 30 is not supported"]
    batch = make_batch(problem, CPU)
    with pytest.raises(ValueError, match=rf"{implementation.label} cannot compute this layer: softcap 30 is not"):
        implementation.plan(batch.config, batch.metadata)
