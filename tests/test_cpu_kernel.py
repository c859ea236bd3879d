"""The CPU backend: the C++ attention kernel's values and its bits."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samebits.backends.contract import Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request
from samebits.harness.batch import make_batch
from samebits.harness.execution import execute
from samebits.harness.reference import visible_keys
from samebits.kernels.cpu import attention, build

from .attention_runs import compute, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
MASKS = tuple(Mask)
# head_dim, page_size and group of each pair differ, so that few runs cross many edges of each.
SHAPES = ((64, 1, 4), (80, 16, 3), (96, 16, 5), (128, 64, 1), (250, 16, 7))


@pytest.fixture(scope="module")
def kernel() -> BundledAttention:
    implementation = BundledAttention()
    availability = implementation.probe()
    assert availability.available, f"CPU/bundled is unavailable: {availability.reason}"
    return implementation


def geometry(
    head_dim: int = 64,
    page_size: int = 16,
    group: int = 2,
    kv_heads: int = 2,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
) -> Geometry:
    return Geometry("test", kv_heads * group, kv_heads, head_dim, page_size, window, softcap, sinks=sinks)


def edge_requests(mask: Mask) -> tuple[Request, ...]:
    """Requests over chunks, tiles and nothing: no keys, one key, more queries than keys, encoders of 0 and more."""
    if mask is Mask.CROSS:
        return (Request(1, 5, 0, 290), Request(2, 1, 20, 0), Request(3, 40, 7, 33), Request(4, 1, 0, 1))
    if mask is Mask.NON_CAUSAL:
        return (Request(1, 5, 290), Request(2, 16, 0, 17), Request(3, 3, -3), Request(4, 1), Request(5, 7, -3))
    return (
        Request(1, 1, 290),
        Request(2, 140, 0, 5),
        Request(3, 8, 120, 9, causal=False),
        Request(4, 1),
        Request(5, 4, -4),
        Request(6, 9, -3, causal=False),
        Request(7, 0, 5, 10),
    )


def rows_by_position(implementation: Implementation[Any], *problems: Problem) -> dict[tuple[int, int], bytes]:
    """Bytes of output and LSE of every query row, by request key and decoder position."""
    rows: dict[tuple[int, int], bytes] = {}
    for problem in problems:
        results = execute(implementation, problem, CPU).results
        for request in problem.requests:
            result = results[request.key]
            for row in range(request.query_len):
                lse = b"" if result.lse is None else result.lse[:, row].contiguous().numpy().tobytes()
                output = result.output[row].contiguous().view(torch.uint8).numpy().tobytes()
                rows[request.key, request.context_len + row] = output + lse
    return rows


def assert_same_rows(left: dict[tuple[int, int], bytes], right: dict[tuple[int, int], bytes], what: str) -> None:
    common = left.keys() & right.keys()
    assert common, f"{what}: no row is on both sides"
    different = sorted(key for key in common if left[key] != right[key])
    assert not different, f"{what}: (request, position) {different[:5]} of {len(common)} rows have other bits"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_kernel_matches_fp64_reference_at_every_edge(kernel: BundledAttention, mask: Mask, dtype: str) -> None:
    layout = Layout(padding_requests=2, padding_tokens=3, extra_table_columns=2)
    for head_dim, page_size, group in SHAPES:
        for softcap, sinks in itertools.product((None, 20.0), (False, True)):
            shape = geometry(head_dim, page_size, group, kv_heads=1, window=40, softcap=softcap, sinks=sinks)
            problem = Problem(shape, mask, dtype, edge_requests(mask), layout)
            execution = execute(kernel, problem, CPU)
            assert execution.error_budget <= 1, f"{problem}: {execution.worst}"
            assert not execution.faults, f"{problem}: {execution.faults}"


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_row_without_keys_is_zero_and_its_lse_that_of_the_sink(kernel: BundledAttention, mask: Mask) -> None:
    request = Request(1, 3, 2, 0) if mask is Mask.CROSS else Request(1, 3, -3)
    for sinks in (False, True):
        batch = make_batch(Problem(geometry(window=8, sinks=sinks), mask, "bf16", (request,)), CPU)
        output, lse = compute(kernel, batch)
        assert same_bits(output, torch.zeros_like(output)), f"a row without keys holds {output.tolist()}"
        alone = torch.full((4,), -math.inf) if batch.config.sinks is None else batch.config.sinks
        assert (lse == alone[:, None]).all(), f"the LSE of a row without keys is {lse.tolist()}, of {alone.tolist()}"


def test_sink_of_minus_infinity_changes_nothing(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(), Mask.CAUSAL, "bf16", edge_requests(Mask.CAUSAL)), CPU)
    expected, expected_lse = compute(kernel, batch)
    config = dataclasses.replace(batch.config, sinks=torch.full((4,), -math.inf))
    output, lse = compute(kernel, dataclasses.replace(batch, config=config))
    assert torch.equal(output, expected), "outputs have other values beside a sink of no weight"
    assert torch.equal(lse, expected_lse), "log-sum-exps have other values beside a sink of no weight"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_causal_and_other_requests_of_a_batch_have_the_bits_of_batches_of_their_own(
    kernel: BundledAttention, dtype: str
) -> None:
    mixed = Problem(geometry(sinks=True), Mask.PER_REQUEST, dtype, edge_requests(Mask.PER_REQUEST))
    for causal, mask in ((True, Mask.CAUSAL), (False, Mask.NON_CAUSAL)):
        requests = tuple(request for request in mixed.requests if request.causal is causal)
        uniform = rows_by_position(kernel, dataclasses.replace(mixed, mask=mask, requests=requests))
        assert_same_rows(uniform, rows_by_position(kernel, mixed), f"{mask} requests in a batch that mixes masks")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_bits_do_not_depend_on_thread_count_or_on_splitting(mask: Mask, dtype: str) -> None:
    lengths = ((1, 2000), (40, 900), (1, 5), (3, 1200))
    if mask is Mask.CROSS:
        requests = [Request(key, query_len, 20, encoder_len) for key, (query_len, encoder_len) in enumerate(lengths)]
    else:
        requests = [Request(key, query_len, context_len, 3) for key, (query_len, context_len) in enumerate(lengths)]
    batch = make_batch(Problem(geometry(window=1900, sinks=True), mask, dtype, tuple(requests)), CPU)
    results = {}
    kernel = BundledAttention(shared_by=1)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        num_merges = len(kernel.plan(batch.config, batch.metadata).merges)
        assert (num_merges > 0) == (num_threads > 1), f"{num_threads} threads cut {num_merges} tiles over their keys"
        results[num_threads] = compute(kernel, batch)
    for num_threads in (2, 3):
        for name, one, several in zip(("output", "LSE"), results[1], results[num_threads], strict=True):
            assert same_bits(one, several), f"{name} has other bits on {num_threads} threads than on 1"


def test_thread_count_at_run_need_not_be_that_of_plan(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(group=8), Mask.CAUSAL, "bf16", (Request(1, 1, 3000),)), CPU)
    expected, _ = compute(kernel, batch)
    torch.set_num_threads(4)
    plan = kernel.plan(batch.config, batch.metadata)
    assert len(plan.merges), "this test needs a batch that is cut for 4 threads"
    plan.partials.fill_(math.nan)
    torch.set_num_threads(1)
    output = torch.empty_like(expected)
    kernel.run(plan, batch.query, batch.key_cache, batch.value_cache, output, None)
    assert same_bits(output, expected), "a batch planned for 4 threads has other bits on 1"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_request_keeps_its_bits_in_any_batch_on_any_page(kernel: BundledAttention, mask: Mask, dtype: str) -> None:
    problem = Problem(geometry(80, 16, 3, window=40, sinks=True), mask, dtype, edge_requests(mask))
    together = rows_by_position(kernel, problem.with_layout(page_seed=5, padding_requests=3, extra_table_columns=9))
    alone = rows_by_position(kernel, *(problem.with_requests(request) for request in problem.requests))
    assert_same_rows(alone, together, f"{mask} {dtype}, alone and in a batch")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS], ids=str)
def test_schedule_of_a_request_does_not_change_its_bits(kernel: BundledAttention, mask: Mask, dtype: str) -> None:
    length, encoder_len = 300, 150 if mask is Mask.CROSS else 7
    problem = Problem(geometry(window=150, sinks=True), mask, dtype, (Request(1, length, 0, encoder_len),))

    def step(start: int, stop: int) -> Problem:
        return problem.with_requests(Request(1, stop - start, start, encoder_len))

    one_shot = rows_by_position(kernel, problem)
    for size in (17, 128):
        steps = [step(start, min(start + size, length)) for start in range(0, length, size)]
        assert_same_rows(one_shot, rows_by_position(kernel, *steps), f"one shot and chunks of {size}")
    decoded = [step(position, position + 1) for position in (0, 1, 15, 16, 127, 128, 129, 255, 256, 257, 299)]
    assert_same_rows(one_shot, rows_by_position(kernel, *decoded), "a row of a prefill and the same row decoded")


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_unread_memory_may_hold_anything(kernel: BundledAttention, mask: Mask) -> None:
    problem = Problem(geometry(80, 64, 3, window=40), mask, "bf16", edge_requests(mask))
    nan, large = (rows_by_position(kernel, problem.with_layout(poison=poison)) for poison in ("nan", "large"))
    assert_same_rows(nan, large, "unread memory full of NaN and of large values")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_key_that_only_other_rows_of_the_tile_see_does_not_reach_a_row(
    kernel: BundledAttention, value: float, dtype: str
) -> None:
    window, length, hidden = 12, 24, 9
    problem = Problem(geometry(window=window), Mask.SLIDING_WINDOW, dtype, (Request(1, length),))
    batch = make_batch(problem, CPU)
    expected, expected_lse = compute(kernel, batch)
    page, offset = divmod(int(batch.metadata.slot_mapping[hidden]), problem.geometry.page_size)
    batch.key_cache[page, offset] = value
    batch.value_cache[page, offset] = value
    output, lse = compute(kernel, batch)
    sees = [hidden <= position < hidden + window for position in range(length)]
    for position in range(length):
        unchanged = same_bits(output[position], expected[position]) and same_bits(
            lse[:, position], expected_lse[:, position]
        )
        assert unchanged != sees[position], f"position {position} {'ignores' if sees[position] else 'sees'} {value}"
    integer, quiet = (torch.int32, 0x7FC00000) if dtype == "fp32" else (torch.int16, 0x7FC0)
    seen_bits = set(output[sees].view(integer)[output[sees].isnan()].tolist())
    assert seen_bits == {quiet}, f"NaN results hold the bits {[hex(bits) for bits in seen_bits]}"


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_nan_in_a_value_reaches_the_rows_and_the_column_that_see_it(kernel: BundledAttention, mask: Mask) -> None:
    encoder_len, slot, kv_head, column = 30, 27 if mask is Mask.CROSS else 37, 1, 5
    victim, other = Request(1, 20, 3, encoder_len, causal=False), Request(2, 9, 30)
    problem = Problem(geometry(window=12), mask, "bf16", (other, victim))
    batch = make_batch(problem, CPU)
    expected, expected_lse = compute(kernel, batch)
    page, offset = int(batch.metadata.block_table[1, slot // 16]), slot % 16
    batch.value_cache[page, offset, kv_head, column] = math.nan
    output, lse = compute(kernel, batch)
    key = slot if mask is Mask.CROSS else slot - encoder_len
    sees = torch.zeros(output.shape, dtype=torch.bool)
    sees[9:, 2:, column] = visible_keys(problem, victim, CPU)[:, key, None]
    assert sees.any(), "this test needs a row that sees the key"
    assert torch.equal(output.isnan(), sees), f"NaN at {output.isnan().nonzero().tolist()[:5]} and no other places"
    assert torch.equal(output[~sees], expected[~sees]), "a NaN that an element does not see changed it"
    assert same_bits(lse, expected_lse), "a value changed the log-sum-exp"


def test_keys_that_no_query_of_the_request_sees_may_hold_nan(kernel: BundledAttention) -> None:
    shape = geometry(window=40)
    requests = (Request(1, 1, 290, 7), Request(2, 20, 120, 9))
    for mask, hidden in ((Mask.SLIDING_WINDOW, (258, 90)), (Mask.CROSS, (7, 9))):
        batch = make_batch(Problem(shape, mask, "fp32", requests), CPU)
        expected, expected_lse = compute(kernel, batch)
        for request, table, edge in zip(requests, batch.metadata.block_table, hidden, strict=True):
            slots = range(edge) if mask is Mask.SLIDING_WINDOW else range(edge, request.num_slots)
            for slot in slots:
                batch.key_cache[table[slot // 16], slot % 16] = math.nan
                batch.value_cache[table[slot // 16], slot % 16] = math.nan
        output, lse = compute(kernel, batch)
        assert same_bits(output, expected), f"{mask}: a key that no query sees reached the output"
        assert same_bits(lse, expected_lse), f"{mask}: a key that no query sees reached the log-sum-exp"


def test_strides_of_caches_and_output_do_not_change_bits(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(), Mask.CAUSAL, "bf16", edge_requests(Mask.CAUSAL)), CPU)
    expected, _ = compute(kernel, batch)
    num_pages, page_size, num_kv_heads, head_dim = batch.key_cache.shape
    interleaved = torch.full((num_pages, num_kv_heads, page_size, 2, head_dim + 3), math.nan, dtype=torch.bfloat16)
    key_cache = interleaved[:, :, :, 0, :head_dim].transpose(1, 2).copy_(batch.key_cache)
    value_cache = interleaved[:, :, :, 1, 1 : head_dim + 1].transpose(1, 2).copy_(batch.value_cache)
    wide = torch.full((batch.query.shape[1], batch.query.shape[0], 2 * head_dim), math.nan, dtype=torch.bfloat16)
    query = wide[..., :head_dim].transpose(0, 1).copy_(batch.query)
    output = wide[..., head_dim:].transpose(0, 1)
    plan = kernel.plan(batch.config, batch.metadata)
    kernel.run(plan, query, key_cache, value_cache, output, None)
    assert same_bits(output, expected), "strided tensors give other bits than contiguous ones"


def test_rows_of_a_packed_projection_have_the_bits_of_contiguous_ones(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(96), Mask.CAUSAL, "bf16", edge_requests(Mask.CAUSAL)), CPU)
    expected, expected_lse = compute(kernel, batch)
    packed = torch.full((2, batch.query.shape[0], 8, 96), math.nan, dtype=torch.bfloat16)
    query, output = packed[:, :, 1:5]
    query.copy_(batch.query)
    caches = torch.full((batch.key_cache.shape[0], 2, 16, 2, 96), math.nan, dtype=torch.bfloat16)
    key_cache, value_cache = (
        caches[:, index].copy_(cache) for index, cache in enumerate((batch.key_cache, batch.value_cache))
    )
    lse = torch.full((8, batch.query.shape[0]), math.nan)[::2]
    kernel.run(kernel.plan(batch.config, batch.metadata), query, key_cache, value_cache, output, lse)
    assert same_bits(output, expected), "queries sliced out of a packed projection give other bits"
    assert same_bits(lse, expected_lse), "log-sum-exps in every second row of a tensor hold other bits"
    beside = packed[:, :, [0, 5, 6, 7]]
    assert beside.isnan().all(), "the kernel wrote beside the output's heads"


def test_bits_do_not_depend_on_the_instruction_set_without_matrix_unit() -> None:
    plain_flags = (*(flag for flag in build.FLAGS if not flag.startswith(("-march", "-O"))), "-O1")
    kernel, plain = BundledAttention(amx=False), BundledAttention(amx=False)
    plain._loaded = build.load_library(flags=plain_flags)
    for dtype in ("fp32", "bf16", "fp16"):
        shape = geometry(80, softcap=5.0, window=150, sinks=True)
        problem = Problem(shape, Mask.SLIDING_WINDOW, dtype, edge_requests(Mask.CAUSAL))
        native, other = (rows_by_position(implementation, problem) for implementation in (kernel, plain))
        assert_same_rows(native, other, f"{dtype}, compiled for this {platform.machine()} and for any")


def test_bits_do_not_depend_on_the_callers_subnormal_mode(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(), Mask.CAUSAL, "fp32", (Request(1, 4, 300),)), CPU)
    batch.value_cache.mul_(1e-40)
    expected, _ = compute(kernel, batch)
    assert expected.count_nonzero(), "this test needs results below the smallest normal number"
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        output, _ = compute(kernel, batch)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(output, expected), "a caller that flushes subnormal numbers gets other bits"


def test_bits_do_not_depend_on_whether_the_output_is_written_past_the_caches(
    kernel: BundledAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    for head_dim, dtype in ((64, "fp32"), (64, "bf16"), (80, "bf16"), (80, "fp16")):
        problem = Problem(geometry(head_dim, group=3), Mask.CAUSAL, dtype, edge_requests(Mask.CAUSAL))
        monkeypatch.setattr(attention, "_STREAMED_BYTES", 1 << 40)
        cached = rows_by_position(kernel, problem)
        monkeypatch.setattr(attention, "_STREAMED_BYTES", 0)
        assert_same_rows(rows_by_position(kernel, problem), cached, f"{dtype} heads of {head_dim} past the caches")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_keys_of_equal_huge_scores_weigh_alike(kernel: BundledAttention, dtype: str) -> None:
    # Rounded apart from the others, the largest score of 2**35 would be off by thousands, and a weight by 2 to that.
    problem = Problem(geometry(kv_heads=1), Mask.CAUSAL, dtype, (Request(1, 1, 40),))
    batch = make_batch(problem, CPU)
    batch.query.zero_()
    batch.key_cache.zero_()
    batch.query[..., 0] = 1.0
    for score in (2.9e9, 1.3e10, -7.1e10):
        batch.key_cache[..., 0] = score / batch.config.scale
        output, lse = compute(kernel, batch)
        slots = torch.arange(41)
        pages = batch.metadata.block_table[0].long()[slots // batch.config.page_size]
        mean = batch.value_cache[pages, slots % batch.config.page_size, 0].double().mean(0)
        torch.testing.assert_close(output[0, 0].double(), mean, rtol=0, atol=0.02, msg=f"scores of {score}")
        assert lse.isfinite().all(), f"scores of {score}: {lse}"


def test_python_mirrors_the_interface_of_the_kernel() -> None:
    interface = (ctypes.c_int64 * 4)()
    build.load_library().samebits_interface(interface)
    mirrored = [ctypes.sizeof(attention.AttentionCall), attention.ROW_TILE, attention.ROW_BLOCK, attention.LANES]
    assert list(interface) == mirrored, f"C++ has {list(interface)}, Python {mirrored}"


def test_exponential_and_tanh_are_within_their_documented_error(tmp_path: Path) -> None:
    (tmp_path / "attention.cpp").write_text(
        f'#include "{build.SOURCE_DIRECTORY / "exponential.h"}"\n'
        "using namespace samebits;\n"
        'extern "C" __attribute__((visibility("default"))) void apply(int which, float* x, long count) {\n'
        "    for (long i = 0; i < count; i += kLanes)\n"
        "        store(x + i, which ? tanh(load(x + i)) : exp_of_nonpositive(load(x + i)));\n"
        "}\n"
    )
    apply = build.load_library(tmp_path).apply
    exponents = -np.concatenate([np.geomspace(1e-30, 104, 200_000), np.linspace(0, 104, 200_000)]).astype(np.float32)
    for which, exact, argument, documented in ((0, np.exp, exponents, 1.04), (1, np.tanh, exponents, 2.5)):
        result = argument.copy()
        apply(which, result.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(result.size))
        expected = exact(argument.astype(np.float64))
        unit = np.maximum(np.exp2(np.floor(np.log2(np.abs(expected).clip(1e-50))) - 23), 2.0**-149)
        worst = float((np.abs(result - expected) / unit).max())
        assert worst <= documented, f"{exact.__name__} is {worst:.3f} units in the last place off"
    special = np.full(16, -math.inf, dtype=np.float32)
    special[1], special[2], special[3] = math.nan, 0.0, -1e30
    apply(0, special.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(16))
    assert special[0] == 0, f"exp(-inf) is {special[0]}"
    assert math.isnan(special[1]), f"exp(NaN) is {special[1]}"
    assert special[2] == 1, f"exp(0) is {special[2]}"
    assert special[3] == 0, f"exp(-1e30) is {special[3]}"


def test_chunk_size_decides_bits_and_is_recorded(kernel: BundledAttention) -> None:
    other = BundledAttention(chunk_size=64)
    assert other.label == "CPU/bundled[chunk_size=64]"
    assert (other.configuration["chunk_size"], other.tiling.kv_split) == ("64", 64)
    problem = Problem(geometry(), Mask.CAUSAL, "fp32", (Request(1, 1, 400),))
    assert rows_by_position(kernel, problem) != rows_by_position(other, problem), "chunks of 64 and 128 give equal bits"


def test_one_thread_merges_the_parts_of_long_requests_too(kernel: BundledAttention) -> None:
    batch = make_batch(Problem(geometry(), Mask.CAUSAL, "bf16", (Request(1, 1, 2000), Request(2, 40, 860))), CPU)
    torch.set_num_threads(1)
    assert len(kernel.plan(batch.config, batch.metadata).merges), "the matrix never runs the merge of split requests"
