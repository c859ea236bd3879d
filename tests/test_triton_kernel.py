"""The bundled Triton kernel is right, and a request's bits are the same in any batch, by any number of programs."""

from __future__ import annotations

import functools
import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request
from samebits.backends.triton_attn import INTERPRETED, KernelConfiguration, TritonAttention, TritonPlan
from samebits.harness.batch import Batch, make_batch, sinks_of
from samebits.harness.execution import Execution, execute
from samebits.harness.placement import NULL_PAGE
from samebits.harness.reference import visible_keys

GEOMETRY = Geometry("grouped", num_heads=4, num_kv_heads=2, head_dim=32, page_size=16, window=37)

# Beside a request of three chunks: edges of pages, tiles and chunks, no keys, and more queries than keys.
MIXED = (
    Request(1, 1, 130),
    Request(2, 20, 60, causal=False),
    Request(3, 17, 0, encoder_len=9),
    Request(4, 1, -1),
    Request(5, 7, -4, encoder_len=16),
    Request(8, 5, -2, causal=False),
    Request(6, 0, 5),
    Request(7, 2, 62),
)


def triton(num_segments: int | None = None, **settings: int) -> TritonAttention:
    """The kernel with small tiles wherever it runs, so that short requests cross them."""
    return TritonAttention(replace(INTERPRETED, **settings), num_segments=num_segments)


@functools.cache
def run(problem: Problem, num_segments: int | None = None, **settings: int) -> Execution:
    implementation = triton(num_segments, **settings)
    return execute(implementation, problem, torch.device(implementation.device))


def problem(
    *requests: Request,
    mask: Mask = Mask.CAUSAL,
    dtype: str = "fp32",
    geometry: Geometry = GEOMETRY,
    layout: Layout = Layout(),  # noqa: B008 -- frozen
) -> Problem:
    if mask is Mask.CROSS:
        requests = tuple(replace(r, context_len=2, encoder_len=r.seq_len) for r in requests)
    return Problem(geometry, mask, dtype, requests, layout)


def assert_right(execution: Execution) -> None:
    assert execution.error_budget <= 1.0, f"{execution.problem}: {execution.worst}"
    assert not execution.faults, f"{execution.problem}: {execution.faults}"


def rows(execution: Execution, key: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of some query rows of a request, as bits."""
    result = execution.results[key]
    assert result.lse is not None
    output = result.output[first : first + count].contiguous()
    return output.view(torch.uint8), result.lse[:, first : first + count].contiguous().view(torch.int32)


def assert_same_rows(one: Execution, other: Execution, key: int, place: tuple[int, int], count: int) -> None:
    for left, right in zip(rows(one, key, place[0], count), rows(other, key, place[1], count), strict=True):
        assert torch.equal(left, right), (
            f"{count} rows of r{key}, from {place[0]} of {one.problem} and {place[1]} of {other.problem}, differ"
        )


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mask", Mask, ids=str)
def test_every_mask_is_right_and_programs_that_share_a_request_change_no_bit(mask: Mask, dtype: str) -> None:
    layout = Layout(padding_requests=2, padding_tokens=3, extra_table_columns=2, max_seq_len_slack=100)
    batch = problem(*MIXED, mask=mask, dtype=dtype, layout=layout)
    alone = run(batch, num_segments=1)
    assert_right(alone)
    for num_segments in (2, 5):
        shared = run(batch, num_segments=num_segments)
        assert shared.digest == alone.digest, f"{num_segments} segments: {batch}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        *({"num_heads": 2 * group, "num_kv_heads": 2} for group in range(1, 9)),
        {"num_heads": 40, "num_kv_heads": 1, "head_dim": 16},
        {"num_heads": 3, "num_kv_heads": 3, "head_dim": 80},
        {"head_dim": 96, "page_size": 64},
        {"head_dim": 8, "page_size": 1},
        {"head_dim": 256, "softcap": 20.0},
        {"softcap": 1.5, "scale": 0.7},
        {"head_dim": 64, "scale": 1 / 64},
        {"num_heads": 16, "sinks": True, "softcap": 1.5, "scale": 0.7},
    ],
    ids=str,
)
def test_every_geometry_is_right(changes: dict[str, Any], dtype: str) -> None:
    geometry = replace(GEOMETRY, **changes)
    batch = problem(Request(1, 1, 97), Request(2, 9, 30), Request(3, 1, 0), dtype=dtype, geometry=geometry)
    execution = run(batch, num_segments=1)
    assert_right(execution)
    assert run(batch, num_segments=2).digest == execution.digest, f"2 segments: {batch}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", Mask, ids=str)
def test_a_request_alone_has_the_bits_that_it_has_in_a_batch(mask: Mask, dtype: str) -> None:
    base = problem(*MIXED, mask=mask, dtype=dtype)
    batch = run(base)
    for request in base.requests:
        single = run(base.with_requests(request).with_layout(page_seed=5, poison="large"))
        assert_same_rows(batch, single, request.key, (0, 0), request.query_len)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW], ids=str)
def test_prefill_in_chunks_and_decode_have_the_bits_of_prefill_at_once(mask: Mask, dtype: str, sinks: bool) -> None:
    geometry = replace(GEOMETRY, sinks=sinks)
    whole = run(problem(Request(1, 140), mask=mask, dtype=dtype, geometry=geometry))
    assert_right(whole)
    for start, end in ((0, 31), (31, 64), (64, 139), (139, 140), (70, 71)):
        part = run(problem(Request(1, end - start, start), mask=mask, dtype=dtype, geometry=geometry))
        assert_same_rows(whole, part, 1, (start, 0), end - start)


def test_a_request_has_the_bits_of_its_own_mask_where_causality_is_per_request() -> None:
    mixed = run(problem(*MIXED, mask=Mask.PER_REQUEST))
    for mask, causal in ((Mask.CAUSAL, True), (Mask.NON_CAUSAL, False)):
        uniform = run(problem(*MIXED, mask=mask))
        for request in MIXED:
            if request.causal == causal:
                assert_same_rows(mixed, uniform, request.key, (0, 0), request.query_len)


@pytest.mark.parametrize(("mask", "dtype"), list(zip(Mask, ["fp32", "fp16", "bf16", "bf16", "fp32"], strict=True)))
def test_sinks_are_right_under_every_mask_and_merged_once_by_any_number_of_programs(mask: Mask, dtype: str) -> None:
    batch = problem(*MIXED, mask=mask, dtype=dtype, geometry=replace(GEOMETRY, sinks=True))
    alone = run(batch, num_segments=1)
    assert_right(alone)
    assert run(batch, num_segments=3).digest == alone.digest, f"3 segments: {batch}"


def test_a_row_that_sees_no_key_has_its_sink_for_a_log_sum_exp() -> None:
    batch = problem(Request(1, 7, -4), Request(2, 1, -1), geometry=replace(GEOMETRY, num_heads=32, sinks=True))
    execution = run(batch)
    for key, blind in ((1, 4), (2, 1)):
        result = execution.results[key]
        assert result.lse is not None
        expected = sinks_of(batch).unsqueeze(1).expand(-1, blind)
        assert torch.equal(result.lse[:, :blind].cpu(), expected), f"rows of r{key} without a key, not their sink"
        assert not result.output[:blind].any(), f"rows of r{key} without a key have an output"


def test_a_sink_without_weight_changes_no_bit_and_sinks_may_be_a_view() -> None:
    plain = make_batch(problem(*MIXED), torch.device(triton().device))
    wide = torch.full((plain.query.shape[1], 3), float("nan"), device=plain.query.device)
    for value, same in ((float("-inf"), True), (1.0, False)):
        wide[:, 1] = value
        batch = replace(plain, config=replace(plain.config, sinks=wide[:, 1]))
        assert torch.equal(compact_output(batch), compact_output(plain)) == same, f"sinks of {value}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_that_share_a_tile_do_not_change_each_other(dtype: str) -> None:
    batch = problem(Request(1, 50, 40), mask=Mask.SLIDING_WINDOW, dtype=dtype)
    usual = run(batch)
    for block_rows in (16, 64):
        assert run(batch, block_rows=block_rows).digest == usual.digest, f"tiles of {block_rows} rows: {batch}"


def test_a_program_finds_its_request_among_more_than_one_search_looks_at() -> None:
    crowd = [Request(key, 0, 3) for key in range(10, 140)]
    execution = run(problem(Request(1, 17, 20), *crowd, Request(2, 18, 30)))
    assert_right(execution)


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_partials_hold_what_was_written_and_nothing_else(poison: float) -> None:
    class Poisoned(TritonAttention):
        def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
            plan = super().plan(config, metadata)
            assert plan.partials is not None, "three segments need partials"
            for partial in plan.partials:
                partial.fill_(poison)
            return plan

    for mask in Mask:
        batch = problem(*MIXED, mask=mask)
        implementation = Poisoned(INTERPRETED, num_segments=3)
        execution = execute(implementation, batch, torch.device(implementation.device))
        assert_right(execution)
        assert execution.digest == run(batch).digest, f"partials poisoned with {poison}: {batch}"


def launch(batch: Batch, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, output: torch.Tensor) -> None:
    implementation = triton()
    implementation.run(implementation.plan(batch.config, batch.metadata), query, keys, values, output, None)


def compact_output(batch: Batch) -> torch.Tensor:
    output = torch.empty_like(batch.query)
    launch(batch, batch.query, batch.key_cache, batch.value_cache, output)
    return output


def test_tensors_of_any_strides_give_the_same_bits() -> None:
    batch = make_batch(problem(Request(1, 20, 50), Request(2, 1, 66)), torch.device(triton().device))
    expected = compact_output(batch)
    num_tokens, num_heads, head_dim = batch.query.shape
    fused = torch.full((num_tokens, num_heads + 2, head_dim + 5), float("nan"), device=batch.query.device)
    query = fused[:, 1 : num_heads + 1, 2 : head_dim + 2].copy_(batch.query)
    key_cache = batch.key_cache.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    value_cache = batch.value_cache.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    # Larger than the output, so that a kernel that takes the query's strides for the output's does not crash.
    heads_first = torch.full((4 * num_heads, num_tokens, head_dim + 3), float("nan"), device=query.device)
    output = heads_first.permute(1, 0, 2)[:, :num_heads, :head_dim]
    launch(batch, query, key_cache, value_cache, output)
    assert torch.equal(output, expected), "views of other strides gave other values"
    output.fill_(float("nan"))
    assert heads_first.isnan().all(), "run wrote between the rows of its output"


@pytest.mark.parametrize(("page_stride", "slot_stride"), [(1 << 30, 64), (64, 1 << 28)], ids=["pages", "slots"])
def test_offsets_into_the_cache_have_64_bits(page_stride: int, slot_stride: int) -> None:
    if triton().device != "cpu":
        pytest.skip("the cache of this test is reserved memory of the host")
    batch = make_batch(problem(Request(1, 3, 30), dtype="bf16"), torch.device("cpu"))
    num_pages, page_size = batch.key_cache.shape[:2]
    reach = num_pages * page_stride + page_size * slot_stride
    # As much before the cache as in it: an offset that wraps around reads zeros there and does not crash.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = torch.frombuffer(mmap.mmap(-1, 4 * reach, flags=flags), dtype=torch.bfloat16)
    keys, values = (
        memory.as_strided(cache.shape, (page_stride, slot_stride, *cache.stride()[2:]), reach + offset).copy_(cache)
        for cache, offset in ((batch.key_cache, 0), (batch.value_cache, 1 << 20))
    )
    furthest = int(batch.metadata.block_table.max()) * page_stride + (page_size - 1) * slot_stride
    assert furthest >= 1 << 31, f"the furthest offset, {furthest}, fits 32 bits"
    output = torch.empty_like(batch.query)
    launch(batch, batch.query, keys, values, output)
    assert torch.equal(output, compact_output(batch)), "keys beyond 2**31 elements gave other values"


def test_run_reads_lengths_on_the_device() -> None:
    """A captured graph replays `run` over metadata refilled since: all but upper bounds is read anew."""
    device = torch.device(triton().device)
    per_request = Mask.PER_REQUEST
    captured = make_batch(problem(Request(1, 20, 110), Request(2, 2, 0), Request(3, 0, 0), mask=per_request), device)
    then = (Request(4, 1, 40), Request(5, 1, 127), Request(6, 20, 13, causal=False))
    later = make_batch(problem(*then, mask=per_request), device)
    for num_segments in (1, 3):
        metadata = replace(captured.metadata, block_table=torch.zeros_like(later.metadata.block_table))
        implementation = triton(num_segments)
        plan = implementation.plan(captured.config, metadata)
        for name in ("query_start_loc", "seq_lens", "block_table", "causal_requests"):
            getattr(metadata, name).copy_(getattr(later.metadata, name))
        output = torch.empty_like(later.query)
        implementation.run(plan, later.query, later.key_cache, later.value_cache, output, None)
        assert torch.equal(output, compact_output(later)), f"{num_segments} segments replayed other lengths"


def test_a_nan_that_is_seen_is_not_lost() -> None:
    batch = make_batch(problem(Request(1, 70), geometry=replace(GEOMETRY, softcap=5.0)), torch.device(triton().device))
    slot = int(batch.metadata.slot_mapping[40])
    batch.key_cache.view(-1, *batch.key_cache.shape[2:])[slot] = float("nan")
    for implementation in (triton(1), triton(2)):
        output = torch.zeros_like(batch.query)
        lse = torch.zeros(output.shape[1], output.shape[0], device=output.device)
        plan = implementation.plan(batch.config, batch.metadata)
        implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
        seen = torch.arange(70, device=output.device) >= 40
        assert torch.equal(output.isnan().all(-1).all(-1), seen), "a key of NaN must show in the rows that see it"
        assert torch.equal(output.isnan().any(-1).any(-1), seen), "a key of NaN must not show in rows before it"
        assert torch.equal(lse.isnan().all(0), seen), (
            "a key of NaN must show in the log-sum-exp of the rows that see it"
        )


def request_slots(batch: Batch, index: int, tokens: range) -> torch.Tensor:
    """Cache slots of some tokens of a request, encoder tokens first."""
    token = torch.arange(tokens.start, tokens.stop, device=batch.query.device)
    page_size = batch.config.page_size
    return batch.metadata.block_table[index].long()[token // page_size] * page_size + token % page_size


@pytest.mark.parametrize("num_segments", [1, 3])
@pytest.mark.parametrize("mask", Mask, ids=str)
def test_values_that_are_not_finite_reach_the_rows_and_the_column_that_see_them(mask: Mask, num_segments: int) -> None:
    # A tile of rows holds 16 tokens, which see key 64 all or none: what a neighbour in the tile sees is not ignored.
    requests = (Request(1, 48, 48), Request(2, 48, 48, causal=False))
    place, window = 64, 16
    batch = make_batch(
        problem(*requests, mask=mask, geometry=replace(GEOMETRY, window=window)), torch.device(triton().device)
    )
    expected = compact_output(batch)
    values = batch.value_cache.view(-1, *batch.value_cache.shape[2:])
    for head, column, value in ((0, 3, float("nan")), (1, 5, float("inf")), (1, 8, float("-inf"))):
        group = slice(head * batch.config.group_size, (head + 1) * batch.config.group_size)
        for index, (request, rows) in enumerate(zip(batch.problem.requests, batch.query_rows, strict=True)):
            values[request_slots(batch, index, range(place, place + 1)), head, column] = value
            seen = visible_keys(batch.problem, request, batch.query.device)[:, place]
            expected[rows, group, column] = expected[rows, group, column].masked_fill(seen[:, None], value)
    implementation = triton(num_segments)
    output = torch.zeros_like(batch.query)
    plan = implementation.plan(batch.config, batch.metadata)
    implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, None)
    assert torch.equal(output.isnan(), expected.isnan()), "NaN is not where a value of NaN was seen, and there alone"
    same = (output == expected) | expected.isnan()
    assert same.all(), f"{(~same).sum()} elements are neither what they were nor the infinity that they see"


@pytest.mark.parametrize("num_segments", [1, 3])
@pytest.mark.parametrize(
    ("mask", "request_", "unread"),
    [
        # 140 - 37 keys lie left of the one window, and 100 - 36 left of the first of forty.
        (Mask.SLIDING_WINDOW, Request(1, 1, 139), range(103)),
        (Mask.SLIDING_WINDOW, Request(1, 40, 100), range(64)),
        (Mask.SLIDING_WINDOW, Request(1, 40, 100, encoder_len=9), range(73)),
        (Mask.CROSS, Request(1, 20, 30, encoder_len=21), range(21, 71)),
        (Mask.CAUSAL, Request(1, 20, 30, encoder_len=21), range(21)),
    ],
    ids=["decode", "block", "behind_encoder", "cross", "self"],
)
def test_keys_that_no_query_of_a_request_sees_may_hold_anything(
    mask: Mask, request_: Request, unread: range, num_segments: int
) -> None:
    batch = make_batch(Problem(GEOMETRY, mask, "fp32", (request_, Request(2, 3))), torch.device(triton().device))
    implementation = triton(num_segments)
    plan = implementation.plan(batch.config, batch.metadata)

    def compute() -> torch.Tensor:
        output = torch.zeros_like(batch.query)
        lse = torch.zeros(output.shape[1], output.shape[0], device=output.device)
        implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
        return torch.cat([output.flatten(), lse.flatten()])

    clean = compute()
    slots = request_slots(batch, 0, unread)
    for value in (float("nan"), float("inf")):
        for cache in (batch.key_cache, batch.value_cache):
            cache.view(-1, *cache.shape[2:])[slots] = value
        assert torch.equal(compute(), clean), f"{value} in slots {unread} of {request_} shows under {mask}"
    if mask is Mask.SLIDING_WINDOW:
        # An engine gives pages that have left the window back: the table then names the null page.
        batch.metadata.block_table[0, : len(unread) // batch.config.page_size] = NULL_PAGE
        assert torch.equal(compute(), clean), f"pages given back left of the window show: {request_}"


def test_what_is_not_supported_is_refused_before_it_is_computed() -> None:
    batch = make_batch(problem(Request(1, 3, 5)), torch.device(triton().device))
    with pytest.raises(
        ValueError, match="TRITON_ATTN/bundled cannot compute this layer: head_dim 512 is not supported"
    ):
        triton().plan(replace(batch.config, head_dim=512), batch.metadata)
    apart = torch.zeros(*batch.query.shape[:2], 2 * batch.query.shape[2], device=batch.query.device)[..., ::2]
    with pytest.raises(ValueError, match="output has a last stride of 2; it must be 1"):
        launch(batch, batch.query, batch.key_cache, batch.value_cache, apart)
    with pytest.raises(ValueError, match="query has a last stride of 2; it must be 1"):
        launch(batch, apart, batch.key_cache, batch.value_cache, torch.empty_like(batch.query))


def test_the_load_decides_how_many_programs_share_a_request() -> None:
    def segments(*requests: Request) -> int:
        implementation = triton()
        batch = make_batch(problem(*requests), torch.device(implementation.device))
        return implementation.plan(batch.config, batch.metadata).num_segments

    assert segments(Request(1, 1, 200)) > 1, "one decode leaves programs idle"
    assert segments(Request(1, 1, 10)) == 1, "one chunk cannot be shared"


def test_a_configuration_whose_tiles_do_not_fill_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_chunk=100, which is not a multiple of kv_tile=32"):
        KernelConfiguration(block_rows=16, kv_tile=32, kv_chunk=100, num_warps=1, num_stages=1)


def test_a_kernel_module_that_does_not_import_is_one_sentence() -> None:
    availability = TritonAttention(kernels="samebits.kernels.triton.absent").probe()
    assert availability.reason == (
        "importing samebits.kernels.triton.absent raised ModuleNotFoundError: "
        "No module named 'samebits.kernels.triton.absent'"
    )
    assert TritonAttention().probe().available, TritonAttention().probe().reason
