"""The reference is right, and its bound lets correct arithmetic pass and wrong arithmetic not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.problem import DATA_NAMES, Geometry, Mask, Problem, Request
from samebits.harness import key_blocks, reference
from samebits.harness.batch import request_keys_values, request_queries, sinks_of
from samebits.harness.bounded_cache import BoundedCache, forget_everything
from samebits.harness.reference import budget_used, request_reference, visible_keys

CPU = torch.device("cpu")
GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=64, window=5, softcap=3.0)


def attend_one_row_at_a_time(problem: Problem, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition of attention, written with loops and math alone, in float64."""
    geometry = problem.geometry
    queries = request_queries(problem, request).double()
    keys, values = (tensor.double() for tensor in request_keys_values(problem, request))
    first = 0 if problem.mask is Mask.CROSS else request.encoder_len
    output = torch.zeros(request.query_len, geometry.num_heads, geometry.head_dim, dtype=torch.float64)
    lse = torch.full((geometry.num_heads, request.query_len), -math.inf, dtype=torch.float64)
    for row in range(request.query_len):
        position = request.context_len + row
        for head in range(geometry.num_heads):
            weights = {}
            for j in range(problem.kv_len(request)):
                seen = {
                    Mask.CAUSAL: j <= position,
                    Mask.NON_CAUSAL: True,
                    Mask.SLIDING_WINDOW: position - 5 < j <= position,
                    Mask.CROSS: True,
                    Mask.PER_REQUEST: j <= position or not request.causal,
                }[problem.mask]
                if seen:
                    dot = float(queries[row, head] @ keys[first + j, head // geometry.group_size])
                    weights[j] = math.exp(3.0 * math.tanh(dot * 64**-0.5 / 3.0))
            sink = math.exp(float(sinks_of(problem)[head])) if geometry.sinks else 0.0
            if weights or geometry.sinks:
                total = sum(weights.values()) + sink
                lse[head, row] = math.log(total)
                for j, weight in weights.items():
                    output[row, head] += weight / total * values[first + j, head // geometry.group_size]
    return output, lse


REQUESTS = (Request(1, 3, 9), Request(2, 4, -2), Request(3, 6, 0, 7), Request(4, 1, -1), Request(5, 3, 2, causal=False))


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_reference_follows_the_definition_of_attention(mask: Mask, request_: Request, sinks: bool) -> None:
    problem = Problem(replace(GEOMETRY, sinks=sinks), mask, "bf16", (request_,))
    reference = request_reference(problem, request_, CPU)
    output, lse = attend_one_row_at_a_time(problem, request_)
    torch.testing.assert_close(reference.output, output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference.lse, lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("data", DATA_NAMES)
def test_blocks_of_queries_and_keys_come_to_what_one_block_does(
    data: str, mask: Mask, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = replace(GEOMETRY, sinks=sinks, window=11)
    blocks = []
    for request in (*REQUESTS, Request(6, 0, 5), Request(7, 23, 40, encoder_len=60)):
        problem = Problem(geometry, mask, "fp16", (request,), data=data)
        with monkeypatch.context() as patched:
            patched.setattr(reference, "_KEPT", BoundedCache(0, 0, lambda kept: 0))
            whole = request_reference(problem, request, CPU)
            patched.setattr(key_blocks, "BLOCK_ELEMENTS", 1300)
            divided = request_reference(problem, request, CPU)
            rows = key_blocks.row_ranges(problem, request)
            blocks += [len(key_blocks.key_ranges(problem, request, some)) for some in rows]
        for name, value in vars(whole).items():
            # Some bounds are what is left of a large cancellation, as where one key has all the weight.
            largest = float(whole.output.nan_to_num(posinf=0.0).abs().max()) if value.numel() else 0.0
            absolute = 1e-12 * max(1.0, largest)
            torch.testing.assert_close(
                getattr(divided, name), value, rtol=1e-12, atol=absolute, equal_nan=True, msg=f"{name} of {request}"
            )
    assert len(blocks) > len(REQUESTS) + 2, "no queries were divided"
    assert max(blocks) > 1, "no keys were divided"


@pytest.mark.parametrize(("mask", "row"), [(Mask.CAUSAL, 9), (Mask.SLIDING_WINDOW, 5)])
def test_a_query_sees_as_many_keys_as_its_mask_says(mask: Mask, row: int) -> None:
    request = Request(1, 1, 8)
    visible = visible_keys(Problem(GEOMETRY, mask, "fp32", (request,)), request, CPU)
    assert int(visible.sum()) == row
    assert bool(visible[0, -1]), "the query does not see its own key"


def attention(
    problem: Problem,
    request: Request,
    *,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul,
    round_weights: bool = True,
    accumulate: torch.dtype = torch.float32,
    tile: int = 32,
) -> torch.Tensor:
    """Online softmax in float32 over tiles, as kernels do it, with its arithmetic open to damage."""
    dtype = DTYPES[problem.dtype]
    group = problem.geometry.group_size
    query = request_queries(problem, request).float().transpose(0, 1)
    key, value = (
        tensor.float().transpose(0, 1).repeat_interleave(group, dim=0)
        for tensor in request_keys_values(problem, request)
    )
    visible = visible_keys(problem, request, CPU)
    maximum = torch.full(query.shape[:2], -math.inf)
    total = torch.zeros(query.shape[:2])
    result = torch.zeros_like(query)
    for start in range(0, key.shape[1], tile):
        part = slice(start, start + tile)
        scores = product(query, key[:, part].transpose(1, 2)) * problem.geometry.softmax_scale
        scores = scores.masked_fill(~visible[:, part], -math.inf)
        new = torch.maximum(maximum, scores.amax(dim=2))
        weights = torch.exp(scores - new.unsqueeze(2))
        alpha = torch.exp(maximum - new)
        total = total * alpha + weights.sum(dim=2)
        rounded = weights.to(dtype).float() if round_weights else weights
        result = (result * alpha.unsqueeze(2) + product(rounded, value[:, part])).to(accumulate).float()
        maximum = new
    return (result / total.unsqueeze(2)).to(dtype).transpose(0, 1)


def tf32_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product of factors cut to the 10 bits of TF32."""
    cut = [((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for tensor in (left, right)]
    return cut[0] @ cut[1]


LONG = Request(1, 4, 1500)
PLAIN = Geometry("plain", num_heads=4, num_kv_heads=2, head_dim=64)


def worst(problem: Problem, output: torch.Tensor) -> float:
    reference = request_reference(problem, problem.requests[0], CPU)
    return float(budget_used(output, reference.output, reference.output_bound).max())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tile", [16, 64, 512])
@pytest.mark.parametrize("seed", range(3))
def test_correct_arithmetic_stays_inside_the_bound(dtype: str, tile: int, seed: int) -> None:
    problem = Problem(PLAIN, Mask.CAUSAL, dtype, (LONG,), seed=seed)
    used = worst(problem, attention(problem, LONG, tile=tile))
    assert used < 1.0, f"correct {dtype} arithmetic with tiles of {tile} keys used {used:.3g} of its budget"


def test_tf32_products_exceed_the_bound_of_fp32() -> None:
    problem = Problem(PLAIN, Mask.CAUSAL, "fp32", (LONG,))
    used = worst(problem, attention(problem, LONG, product=tf32_product))
    assert used > 10.0, f"TF32 used only {used:.3g} of the budget of float32"


def test_a_bf16_accumulator_exceeds_the_bound_of_bf16() -> None:
    problem = Problem(PLAIN, Mask.CAUSAL, "bf16", (LONG,))
    used = worst(problem, attention(problem, LONG, accumulate=torch.bfloat16, tile=16))
    assert used > 1.0, f"a bfloat16 accumulator used only {used:.3g} of the budget"


def test_a_result_that_is_not_finite_uses_an_infinite_budget() -> None:
    expected, bound = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    used = budget_used(torch.tensor([math.nan, math.inf, 1.0]), expected, bound)
    assert used.tolist() == [math.inf, math.inf, 0.0]


def test_a_row_without_keys_must_be_zero() -> None:
    request = Request(1, 2, -2)
    reference = request_reference(Problem(PLAIN, Mask.CAUSAL, "fp32", (request,)), request, CPU)
    used = budget_used(torch.full((2, 4, 64), 1e-30), reference.output, reference.output_bound)
    assert bool(used.isinf().all()), "a value other than 0 passed for a row that sees no key"
    assert bool((reference.lse == -math.inf).all())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_zero_in_place_of_a_small_value_is_wrong(dtype: str) -> None:
    problem = Problem(PLAIN, Mask.CAUSAL, dtype, (LONG,))
    output = attention(problem, LONG)
    small = output.abs() < 0.1 * output.float().std()
    used = worst(problem, output.masked_fill(small, 0.0))
    assert used > 1.0, f"a kernel that zeroes small outputs used only {used:.3g} of its budget"


def test_a_nan_reaches_only_the_queries_that_see_it() -> None:
    request = Request(1, 3, 9)
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", (request,), data="hidden_nan")
    reference = request_reference(problem, request, CPU)
    assert bool(reference.output[:-1].isfinite().all()), "a query that does not see the last key is touched by its NaN"
    assert bool(reference.output[-1].isnan().all())
    assert bool(reference.output_bound[:-1].isfinite().all())


def test_a_number_where_there_should_be_none_uses_everything() -> None:
    expected, bound = torch.tensor([math.nan, math.nan, math.inf, 1.0], dtype=torch.float64), torch.ones(4)
    actual = torch.tensor([math.nan, 1.0, math.inf, math.nan])
    assert budget_used(actual, expected, bound.double()).tolist() == [0.0, math.inf, 0.0, math.inf]


@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("encoder_len", [0, 5])
def test_a_chunk_has_the_reference_that_it_has_without_its_prefill(mask: Mask, encoder_len: int) -> None:
    problem = Problem(GEOMETRY, mask, "bf16", (Request(1, 12, 0, encoder_len),))
    (whole,) = problem.requests
    chunks = [replace(whole, query_len=stop - start, context_len=start) for start, stop in ((0, 5), (5, 12), (7, 8))]
    forget_everything()
    alone = []
    for chunk in chunks:
        alone.append(request_reference(problem, chunk, CPU))
        forget_everything()
    request_reference(problem, whole, CPU)
    for chunk, expected in zip(chunks, alone, strict=True):
        found = request_reference(problem, chunk, CPU)
        for name in ("output", "output_bound", "lse", "lse_bound"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.shape == theirs.shape, f"{name} of {chunk} has the shape {tuple(ours.shape)}"
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=f"{name} of {chunk} under {mask}")
