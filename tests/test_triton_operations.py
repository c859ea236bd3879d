"""The bundled Triton operations on tokens are right; a token's bits are the same in any batch and any memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

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
)
from samebits.backends.problem import Request
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
    INTERPRETED_LINEAR,
    LinearConfiguration,
    TritonCacheWrite,
    TritonLinear,
    TritonMerge,
    TritonRmsNorm,
    TritonRotary,
    operations,
)
from samebits.harness.allocations import largest_allocation
from samebits.harness.execution import Execution
from samebits.harness.tokens.execution import execute_tokens
from samebits.kernels.triton import cache_write, linear, merge, rms_norm, rotary

# The interpreter's numpy tells of infinities and NaN, which padding and sides that saw no key may hold.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DEVICE = torch.device(TritonRotary().device)
NAN = float("nan")
NEGATIVE_ZERO = -0.0
# Small wherever it runs, so that small layers have several tiles and chunks.
SMALL_LINEAR = LinearConfiguration(16, 32, feature_tile=16, feature_chunk=32, num_warps=4, num_stages=1)

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
    TokenLayout(padding_tokens=5, strided=True, leading_dimensions=2, page_seed=1),
    TokenLayout(padding_tokens=3, strided=True, leading_dimensions=3, poison="large"),
)


def implementation_of(operation: TokenOperation) -> TokenImplementation[Any, Any]:
    return next(each for each in operations() if each.operation == operation.operation)


def execution_of(
    operation: TokenOperation, dtype: str, *requests: Request, layout: TokenLayout = LAYOUTS[0]
) -> Execution:
    problem = TokenProblem(operation, dtype, requests or REQUESTS, layout)
    return execute_tokens(implementation_of(operation), problem, DEVICE)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def inside(values: torch.Tensor, *margins: int) -> torch.Tensor:
    """A copy in a larger tensor of NaN, longer by a margin in each dimension."""
    shape = [size + margin for size, margin in zip(values.shape, margins, strict=True)]
    larger = torch.full(shape, NAN, dtype=values.dtype, device=values.device)
    return larger[tuple(slice(0, size) for size in values.shape)].copy_(values)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} is not {tuple(expected.shape)}"
    differing = (bits(found) != bits(expected)).flatten().nonzero()
    assert not len(differing), f"{what}: {len(differing)} elements differ, the first is {int(differing[0])}"


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


def linear_of(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **settings: int
) -> torch.Tensor:
    output = torch.full((*rows.shape[:-1], weight.shape[0]), NAN, dtype=rows.dtype, device=rows.device)
    problem = Linear("direct", rows.shape[-1], weight.shape[0], bias is not None)
    implementation = TritonLinear(replace(SMALL_LINEAR, **settings))
    implementation.run(problem, LinearTensors(rows, weight, bias, output))
    return output


def norm_of(rows: torch.Tensor, weight: torch.Tensor, lanes: int | None = None) -> torch.Tensor:
    output = torch.full(rows.shape, NAN, dtype=rows.dtype, device=rows.device)
    TritonRmsNorm(lanes).run(RmsNorm("direct", rows.shape[-1], epsilon=0.01), RmsNormTensors(rows, weight, output))
    return output


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotation_is_two_products_and_a_sum_in_float32_and_one_rounding(
    cache_dtype: torch.dtype, interleaved: bool, inverse: bool
) -> None:
    query, key = random(9, 3, 20, dtype=torch.bfloat16), random(9, 1, 20, dtype=torch.bfloat16, seed=1)
    cache = random(50, 12, seed=2).to(cache_dtype)
    positions = torch.tensor([4, 0, 49, 7, 7, 3, 48, 1, 0], device=DEVICE)
    cosine, sine = cache[positions].float().unsqueeze(1).chunk(2, dim=2)
    sine = -sine if inverse else sine
    expected = []
    for heads in (query, key):
        turned = heads.clone()
        places = (slice(0, 12, 2), slice(1, 12, 2)) if interleaved else (slice(0, 6), slice(6, 12))
        first, second = (heads[..., place].float() for place in places)
        turned[..., places[0]] = (first * cosine - second * sine).bfloat16()
        turned[..., places[1]] = (second * cosine + first * sine).bfloat16()
        expected.append(turned)
    operation = RotaryEmbedding("direct", 3, 1, 20, 12, interleaved, inverse)
    TritonRotary().run(operation, RotaryTensors(query, key, positions, cache))
    assert_same_bits(query, expected[0], "queries")
    assert_same_bits(key, expected[1], "keys")


def test_the_last_position_of_a_long_context_has_its_own_row_of_the_cache() -> None:
    cache = torch.zeros(131072, 8, device=DEVICE)
    cache[131071, :4] = 1.0
    query, key = random(1, 2, 8), random(1, 1, 8, seed=1)
    kept = query.clone()
    tensors = RotaryTensors(query, key, torch.tensor([131071], device=DEVICE), cache)
    TritonRotary().run(RotaryEmbedding("far", 2, 1, 8, 8), tensors)
    assert_same_bits(query, kept, "queries turned by an angle of 0")


@pytest.mark.parametrize(
    ("query_dtype", "cache_dtype", "sentence"),
    [
        ("bf16", "fp16", "cos_sin_cache is fp16 beside queries of bf16; it must be of the queries' dtype or fp32"),
        ("fp32", "bf16", "cos_sin_cache is bf16 beside queries of fp32; it must be of the queries' dtype or fp32"),
    ],
)
def test_a_rotary_cache_of_a_third_dtype_is_refused(query_dtype: str, cache_dtype: str, sentence: str) -> None:
    query, key = random(2, 1, 8, dtype=DTYPES[query_dtype]), random(2, 1, 8, dtype=DTYPES[query_dtype])
    before = query.clone()
    cache = random(4, 8, dtype=DTYPES[cache_dtype])
    tensors = RotaryTensors(query, key, torch.zeros(2, dtype=torch.int64, device=DEVICE), cache)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        TritonRotary().run(RotaryEmbedding("refused", 1, 1, 8, 8), tensors)
    assert_same_bits(query, before, "queries beside a refused cache")


def test_the_rotary_cache_is_neither_converted_nor_copied() -> None:
    query, key = random(3, 2, 64, dtype=torch.bfloat16), random(3, 1, 64, dtype=torch.bfloat16, seed=1)
    cache = random(65536, 64)
    tensors = RotaryTensors(query, key, torch.tensor([5, 65535, 0], device=DEVICE), cache)
    operation = RotaryEmbedding("watched", 2, 1, 64, 64)
    converted = largest_allocation(lambda: cache.bfloat16(), DEVICE)
    assert converted >= cache.nbytes // 2, f"the meter reads {converted} bytes where the cache is converted"
    largest = largest_allocation(lambda: TritonRotary().run(operation, tensors), DEVICE)
    assert largest < cache.nbytes // 100, f"run allocated {largest} bytes beside a cache of {cache.nbytes}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_write_keeps_every_bit(dtype: torch.dtype) -> None:
    patterns = torch.arange(-128, 128, dtype=torch.int32 if dtype == torch.float32 else torch.int16)
    # NaNs of many payloads, infinities, zeros of both signs, denormals.
    key = (patterns * (2**23 if dtype == torch.float32 else 2**7) + 1).view(dtype).view(4, 2, 32).to(DEVICE)
    value = patterns.view(dtype).view(4, 2, 32).to(DEVICE)
    key_cache, value_cache = (torch.zeros(3, 4, 2, 32, dtype=dtype, device=DEVICE) for _ in range(2))
    slots = torch.tensor([11, 0, -1, 5], device=DEVICE)
    expected = []
    for rows, cache in ((key, key_cache), (value, value_cache)):
        filled = cache.clone().flatten(0, 1)
        filled[[11, 0, 5]] = rows[[0, 1, 3]]
        expected.append(filled.view(cache.shape))
    tensors = CacheWriteTensors(key, value, key_cache, value_cache, slots)
    TritonCacheWrite().run(CacheWrite("bits", 2, 32, page_size=4), tensors)
    assert_same_bits(key_cache, expected[0], "key_cache")
    assert_same_bits(value_cache, expected[1], "value_cache")


def test_a_cache_write_follows_the_strides_of_each_tensor() -> None:
    packed = random(5, 3 * 2 * 24).view(5, 3, 2, 24)
    key, value = packed[:, 0], random(2, 5, 24, seed=1).transpose(0, 1)
    # Pages of keys and of something else lie in turn, heads before slots; pages of values have a slot more.
    key_cache = torch.full((3, 2, 2, 4, 24), NAN, device=DEVICE)[:, 0].transpose(1, 2)
    value_cache = torch.full((3, 5, 2, 24), NAN, device=DEVICE)[:, :4]
    slots = torch.tensor([3, -1, 8, 9, 0], device=DEVICE)
    tensors = CacheWriteTensors(key, value, key_cache, value_cache, slots)
    TritonCacheWrite().run(CacheWrite("strided", 2, 24, page_size=4), tensors)
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                found = cache[slot // 4, slot % 4]
                assert_same_bits(found, rows[row], f"{name} in slot {slot}")
                found.fill_(NAN)
        whole = cache._base
        assert whole is not None, f"the {name} cache is not a view"
        assert whole.isnan().all(), f"{name}s were written to slots that no token has"


def reserved(elements: int) -> torch.Tensor:
    """As much memory before the middle as after it, of which only what is written takes room."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, 4 * elements, flags=flags), dtype=torch.bfloat16)


def far_apart(rows: torch.Tensor, stride: int) -> torch.Tensor:
    """The same rows so far apart that an offset of 32 bits does not reach the last, and would wrap around to zeros."""
    memory = reserved(rows.shape[0] * stride)
    assert (rows.shape[0] - 1) * stride >= 1 << 31, f"the furthest row is {(rows.shape[0] - 1) * stride} away"
    inner = rows.stride()[1:]
    return memory.as_strided(rows.shape, (stride, *inner), rows.shape[0] * stride).copy_(rows)


on_the_host = pytest.mark.skipif(DEVICE.type != "cpu", reason="the memory of this test is reserved on the host")


@on_the_host
def test_offsets_of_the_cache_have_64_bits() -> None:
    key, value = random(5, 2, 16, dtype=torch.bfloat16), random(5, 2, 16, dtype=torch.bfloat16, seed=1)
    empty = torch.zeros(5, 4, 2, 16, dtype=torch.bfloat16)
    key_cache, value_cache = (far_apart(empty, 1 << 29) for _ in range(2))
    slots = torch.tensor([19, 16, 0, -1, 7])
    tensors = CacheWriteTensors(key, value, key_cache, value_cache, slots)
    TritonCacheWrite().run(CacheWrite("far", 2, 16, page_size=4), tensors)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert_same_bits(key_cache[slot // 4, slot % 4], key[row], f"key of slot {slot}")
            assert_same_bits(value_cache[slot // 4, slot % 4], value[row], f"value of slot {slot}")


@on_the_host
def test_offsets_of_rows_have_64_bits() -> None:
    rows, weight = random(3, 40, dtype=torch.bfloat16), random(24, 40, dtype=torch.bfloat16, seed=1)
    distant = far_apart(rows, 1 << 30)
    assert_same_bits(linear_of(distant, weight), linear_of(rows, weight), "linear of rows beyond 2**31 elements")
    assert_same_bits(norm_of(distant, weight[0]), norm_of(rows, weight[0]), "norm of rows beyond 2**31 elements")
    heads = rows.view(3, 2, 20)
    expected, found = heads.clone(), far_apart(heads, 1 << 30)
    cache = random(8, 20, seed=2)
    for query in (expected, found):
        tensors = RotaryTensors(query, query[:0].new_empty(3, 1, 20), torch.arange(3), cache)
        TritonRotary().run(RotaryEmbedding("far", 2, 1, 20, 20), tensors)
    assert_same_bits(found, expected, "queries beyond 2**31 elements")


def merged(
    prefix: tuple[torch.Tensor, torch.Tensor], suffix: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    output, lse = torch.full_like(prefix[0], NAN), torch.full_like(prefix[1], NAN)
    num_heads, head_dim = output.shape[1:]
    TritonMerge().run(MergeStates("direct", num_heads, head_dim), MergeTensors(*prefix, *suffix, output, lse))
    return output, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dead", [NAN, float("inf"), 1e30])
def test_a_side_that_saw_no_key_leaves_the_bits_of_the_other(dead: float, dtype: torch.dtype) -> None:
    output, lse = random(6, 3, 20, dtype=dtype), random(3, 6, seed=1)
    output[0], output[1, 0, :2], lse[0, 2] = NEGATIVE_ZERO, torch.tensor([1e-40, float("inf")]), NEGATIVE_ZERO
    nothing = torch.full_like(output, dead), torch.full_like(lse, -torch.inf)
    for name, sides in (("suffix", ((output, lse), nothing)), ("prefix", (nothing, (output, lse)))):
        found = merged(*sides)
        assert_same_bits(found[0], output, f"output beside an empty {name}")
        assert_same_bits(found[1], lse, f"log-sum-exp beside an empty {name}")
    found = merged(nothing, nothing)
    assert_same_bits(found[0], torch.zeros_like(output), "output of two sides that saw nothing")
    assert_same_bits(found[1], nothing[1], "log-sum-exp of two sides that saw nothing")


def test_merging_the_other_way_round_gives_the_same_bits() -> None:
    left = random(40, 3, 20, dtype=torch.bfloat16), random(3, 40, seed=1) * 5
    right = random(40, 3, 20, dtype=torch.bfloat16, seed=2), random(3, 40, seed=3) * 5
    for found, expected in zip(merged(left, right), merged(right, left), strict=True):
        assert_same_bits(found, expected, "suffix and prefix exchanged")


def test_a_merge_follows_the_strides_of_each_tensor() -> None:
    prefix, suffix = random(7, 3, 20), random(7, 3, 20, seed=1)
    prefix_lse, suffix_lse = random(3, 7, seed=2), random(3, 7, seed=3)
    expected = merged((prefix, prefix_lse), (suffix, suffix_lse))
    tensors = MergeTensors(
        prefix_output=inside(prefix, 0, 2, 4),
        prefix_lse=inside(prefix_lse, 0, 5),
        suffix_output=inside(suffix, 0, 1, 0),
        suffix_lse=inside(suffix_lse, 0, 2),
        output=inside(torch.zeros_like(prefix), 0, 0, 3),
        lse=inside(torch.zeros_like(prefix_lse), 0, 9),
    )
    TritonMerge().run(MergeStates("strided", 3, 20), tensors)
    for name, found, wanted in (("output", tensors.output, expected[0]), ("lse", tensors.lse, expected[1])):
        assert_same_bits(found, wanted, name)
        found.fill_(NAN)
        assert found._base is not None, f"{name} is not a view"
        assert found._base.isnan().all(), f"run wrote outside of its {name}"


def test_a_nan_in_a_live_side_is_not_lost() -> None:
    left = random(4, 1, 16), torch.zeros(1, 4, device=DEVICE)
    right = random(4, 1, 16, seed=1), torch.zeros(1, 4, device=DEVICE)
    left[0][1, 0, 3], right[1][0, 2] = NAN, NAN
    output, lse = merged(left, right)
    expected = torch.zeros(4, 1, 16, dtype=torch.bool)
    expected[1, 0, 3], expected[2] = True, True
    assert torch.equal(output.isnan().cpu(), expected), "NaN must be where a live side or a log-sum-exp has it"
    assert lse.isnan().cpu().tolist() == [[False, False, True, False]], f"the log-sum-exps are {lse}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_shape_of_a_linears_tile_changes_a_bit(dtype: torch.dtype) -> None:
    rows, weight, bias = random(70, 150, dtype=dtype), random(90, 150, dtype=dtype, seed=1), random(90, dtype=dtype)
    expected = linear_of(rows, weight, bias)
    for shape in ({"block_rows": 64}, {"block_rows": 128}, {"block_columns": 16}, {"block_columns": 128}):
        assert_same_bits(linear_of(rows, weight, bias, **shape), expected, f"tiles of {shape}")


def test_a_linear_adds_chunks_that_start_from_zero_in_ascending_order() -> None:
    """So that programs which share a row's chunks, and merge what they come to, may take the place of one."""
    rows, weight = random(5, 150), random(20, 150, seed=1)
    total = torch.zeros(5, 20, device=DEVICE)
    for start in range(0, 150, SMALL_LINEAR.feature_chunk):
        chunk = slice(start, start + SMALL_LINEAR.feature_chunk)
        total = total + linear_of(rows[:, chunk].contiguous(), weight[:, chunk].contiguous())
    assert_same_bits(linear_of(rows, weight), total, "the sum of 5 chunks")


def test_a_linear_adds_its_bias_before_the_rounding() -> None:
    # 256 + 1 is not representable in bfloat16, and 257 + 1 is 258 if it was not rounded to 256 before.
    rows = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16, device=DEVICE)
    weight, bias = torch.ones(1, 2, dtype=torch.bfloat16, device=DEVICE), rows[0, 1:]
    assert linear_of(rows, weight, bias).item() == 258.0, "the product was rounded before the bias was added"


@pytest.mark.parametrize("apply", [linear_of, norm_of], ids=["linear", "rms_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_leading_dimensions_of_any_strides_give_the_same_bits(
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    rows, weight = random(24, 45, dtype=dtype), random(30, 45, dtype=dtype, seed=1)
    weight = weight if apply is linear_of else weight[0].contiguous()
    expected = apply(rows, weight)
    # Starts at an odd element, and rows are an odd number of elements apart: nothing can be loaded in one piece.
    odd = inside(torch.nn.functional.pad(rows, (1, 0)), 0, 3)[:, 1:]
    views = {
        "one apart": odd,
        "two": rows.view(4, 6, 45),
        "two apart": odd.view(4, 6, 45),
        "three": rows.view(2, 3, 4, 45),
        "three of which one is 1": rows.view(3, 1, 8, 45),
        "three apart": inside(rows.view(4, 3, 2, 45), 0, 1, 3, 2),
        "three transposed": rows.view(2, 3, 4, 45).permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    }
    for name, view in views.items():
        assert_same_bits(apply(view, weight).flatten(0, -2), expected, f"{name}: strides {view.stride()}")
    repeated = apply(rows[:1].expand(7, -1), weight)
    assert_same_bits(repeated, expected[:1].expand(7, -1), "one row seen 7 times")


def test_rows_that_need_four_dimensions_are_refused() -> None:
    rows = random(3, 4, 5, 6, 10)[:2, :2, :2, :2]
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2, 2, 10\).*at most 3 dimensions of even spacing"):
        norm_of(rows, random(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [150, 16, 9])
def test_a_norm_adds_squares_by_lane_and_lanes_by_pairs(size: int, dtype: torch.dtype) -> None:
    rows, weight = random(100, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    lanes = 16
    wide = torch.nn.functional.pad(rows.float(), (0, -size % lanes))
    sums = torch.zeros(100, lanes, device=DEVICE)
    for start in range(0, size, lanes):
        sums = sums + wide[:, start : start + lanes] * wide[:, start : start + lanes]
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    factor = 1.0 / torch.sqrt(sums / size + 0.01)
    expected = (rows.float() * factor * weight.float()).to(dtype)
    assert_same_bits(norm_of(rows, weight, lanes), expected, f"rows of {size} by {lanes} lanes")


def test_no_tokens_are_no_work_and_no_error() -> None:
    cache = torch.full((2, 4, 1, 8), NAN, device=DEVICE)
    heads, positions, lse = random(0, 1, 8), torch.empty(0, dtype=torch.int64, device=DEVICE), random(1, 0)
    TritonRotary().run(RotaryEmbedding("none", 1, 1, 8, 8), RotaryTensors(heads, heads, positions, random(4, 8)))
    TritonCacheWrite().run(CacheWrite("none", 1, 8, 4), CacheWriteTensors(heads, heads, cache, cache, positions))
    TritonMerge().run(MergeStates("none", 1, 8), MergeTensors(heads, lse, heads, lse, heads, lse))
    linear_of(random(3, 0, 8), random(5, 8))
    norm_of(random(0, 2, 8), random(8))
    assert cache.isnan().all(), "a cache was written without tokens"


def launches(num_tokens: int) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What each operation gives its kernel, of which every tensor but the layer's has `num_tokens` rows."""
    recorded: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **constants: recorded.append((self.name, arguments, constants))

    packed, lse = random(num_tokens, 10, 40), random(4, num_tokens)
    rows, cache = random(num_tokens, 40), random(8, 40)
    positions = torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE)
    pages = random(9, 4, 2, 40)
    query, key, value = packed[:, :4], packed[:, 4:6], packed[:, 6:8]
    batches: list[tuple[Any, Any, Any, ModuleType]] = [
        (TritonRotary(), RotaryEmbedding("packed", 4, 2, 40, 40), RotaryTensors(query, key, positions, cache), rotary),
        (TritonCacheWrite(), None, CacheWriteTensors(key, value, pages, pages, positions), cache_write),
        (TritonMerge(), None, MergeTensors(query, lse, query, lse, query, lse), merge),
        (TritonLinear(), None, LinearTensors(rows.unsqueeze(0), random(8, 40), None, random(num_tokens, 8)), linear),
        (TritonRmsNorm(), RmsNorm("heads", 40), RmsNormTensors(query, random(40), torch.empty_like(query)), rms_norm),
    ]
    for implementation, operation, tensors, module in batches:
        kernels = SimpleNamespace(**{name: Kernel(name) for name in vars(module) if name.endswith("_kernel")})
        with mock.patch("samebits.backends.triton_operations.load_kernels", return_value=kernels):
            implementation.run(operation, tensors)
        name, arguments, constants = recorded.pop()
        yield getattr(module, name), arguments, constants


def test_one_compiled_kernel_serves_every_number_of_tokens() -> None:
    """Triton compiles anew for other constants, and for other integers where they are 1 or divisible by 16."""
    for usual, *others in zip(*(launches(num_tokens) for num_tokens in (7, 1, 16, 100)), strict=True):
        kernel, arguments, constants = usual
        for _, other_arguments, other_constants in others:
            assert other_constants == constants, f"{kernel.__name__} has other constants for other numbers of tokens"
            for parameter, one, other in zip(kernel.params, arguments, other_arguments, strict=False):
                follows_tokens = isinstance(one, int) and one != other
                assert not follows_tokens or parameter.do_not_specialize, (
                    f"{kernel.__name__} is compiled for the value of {parameter.name}, which is {one} and {other}"
                )


def test_the_backend_offers_each_operation_once() -> None:
    found = [(each.operation, each.label) for each in implementations()]
    names = ("attention", "rope", "cache_write", "merge", "linear", "rms_norm")
    assert found == [(name, "TRITON_ATTN/bundled") for name in names], f"the backend offers {found}"
    for implementation in operations():
        assert implementation.probe().available, implementation.probe().reason


def test_a_kernel_module_that_does_not_import_is_one_sentence() -> None:
    assert TritonLinear(kernels="samebits.kernels.triton.absent").probe().reason == (
        "importing samebits.kernels.triton.absent raised ModuleNotFoundError: "
        "No module named 'samebits.kernels.triton.absent'"
    )


def test_a_configuration_whose_tiles_do_not_fill_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="feature_chunk=100, which is not a multiple of feature_tile=64"):
        replace(INTERPRETED_LINEAR, feature_chunk=100)
