"""Compiled FlexAttention over the paged cache. Few graphs are compiled here, and all tests share them."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from samebits.backends.flex_attention import KERNEL_MODULE, FlexAttention, implementations
from samebits.backends.platform import processor
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request, Strides
from samebits.harness.batch import Batch, attention_config, make_batch, sinks_of
from samebits.harness.execution import Execution, execute

pytestmark = pytest.mark.usefixtures("one_thread")

# One head_dim and never a single key/value head: what is compiled in stays the same.
GROUPED = Geometry("grouped", num_heads=8, num_kv_heads=2, head_dim=64, page_size=16, window=21)
SEVENFOLD = Geometry("sevenfold", num_heads=14, num_kv_heads=2, head_dim=64, page_size=32, window=21)
UNGROUPED = Geometry("ungrouped", num_heads=3, num_kv_heads=3, head_dim=64, page_size=48, window=21)
CAPPED = dataclasses.replace(GROUPED, name="capped", softcap=5.0)
SINKING = dataclasses.replace(GROUPED, name="sinking", sinks=True)

# Values of slots that nobody may see are multiplied by 0, so they must be finite (`ignores_unread_memory=False`).
FINITE = Layout(poison="large")

REQUESTS = {
    "prefill": (Request(1, 33), Request(2, 16), Request(3, 1)),
    "extend": (Request(1, 5, 44), Request(2, 17, 15), Request(3, 3, 16)),
    "decode": (Request(1, 1, 70), Request(2, 1, 31), Request(3, 1, 32), Request(4, 1, 0)),
    "edges": (Request(1, 1, 50), Request(2, 1, -1), Request(3, 7, -4), Request(4, 16, -16), Request(5, 0, 5)),
    "behind_encoder": (Request(1, 4, 30, 7), Request(2, 9, 0, 32), Request(3, 1, 20, 0)),
}

IMPLEMENTATIONS = [each for each in implementations() if isinstance(each, FlexAttention)]
each_implementation = pytest.mark.parametrize("flex", IMPLEMENTATIONS, ids=lambda flex: flex.label)
each_dtype = pytest.mark.parametrize("dtype", ["fp32", "bf16"])
each_layer = pytest.mark.parametrize(
    ("geometry", "dtype"),
    [(SEVENFOLD, "fp32"), (SEVENFOLD, "bf16"), (SINKING, "bf16")],
    ids=lambda value: getattr(value, "name", value),
)


def problem_of(geometry: Geometry, mask: Mask, dtype: str, *requests: Request, layout: Layout = FINITE) -> Problem:
    if mask is Mask.CROSS:
        requests = tuple(dataclasses.replace(r, context_len=2, encoder_len=r.seq_len) for r in requests)
    if mask is Mask.PER_REQUEST:
        requests = tuple(dataclasses.replace(r, causal=index % 2 == 1) for index, r in enumerate(requests))
    return Problem(geometry, mask, dtype, requests, layout)


def executed(flex: FlexAttention, problem: Problem) -> Execution:
    assert flex.reasons(problem) == []
    return execute(flex, problem, torch.device(flex.probe().device))


def run_batch(flex: FlexAttention, batch: Batch) -> torch.Tensor:
    output = torch.full_like(batch.query, float("nan"))
    flex.run(flex.plan(batch.config, batch.metadata), batch.query, batch.key_cache, batch.value_cache, output, None)
    return output


def bits(*tensors: torch.Tensor | None) -> list[list[int]]:
    return [tensor.contiguous().flatten().view(torch.uint8).tolist() for tensor in tensors if tensor is not None]


@each_implementation
@each_dtype
@pytest.mark.parametrize("mask", Mask)
@pytest.mark.parametrize("geometry", [GROUPED, SEVENFOLD, UNGROUPED], ids=lambda geometry: geometry.name)
def test_every_mask_and_batch_is_within_the_error_bound(
    flex: FlexAttention, dtype: str, mask: Mask, geometry: Geometry
) -> None:
    for name, requests in REQUESTS.items():
        if name == "behind_encoder" and mask is Mask.CROSS:
            continue
        execution = executed(flex, problem_of(geometry, mask, dtype, *requests))
        assert execution.error_budget <= 1, f"{name}: {execution.worst}"
        assert not execution.faults, f"{name}: {execution.faults}"


@each_implementation
@pytest.mark.parametrize("data", ["normal", "large_scores", "offset_values"])
def test_a_sink_takes_its_weight_and_is_rounded_with_the_rest(flex: FlexAttention, data: str) -> None:
    """Scaling a rounded output afterwards would exceed the bound, where 1000 keys have values around 10."""
    for mask in Mask:
        problem = problem_of(SINKING, mask, "bf16", Request(1, 5, 44), Request(2, 1, 0), Request(3, 2, 1000))
        execution = executed(flex, dataclasses.replace(problem, data=data))
        assert execution.error_budget <= 1, f"{mask}: {execution.worst}"
        assert not execution.faults, f"{mask}: {execution.faults}"


@each_implementation
def test_a_query_without_keys_has_its_sink_for_log_sum_exp(flex: FlexAttention) -> None:
    problem = problem_of(SINKING, Mask.CAUSAL, "bf16", Request(1, 7, -4), Request(2, 1, 40), Request(3, 1, -1))
    results = executed(flex, problem).results
    for key, count in ((1, 4), (3, 1)):
        lse = results[key].lse
        assert lse is not None
        assert not results[key].output[:count].any(), f"request {key}: {results[key].output[:count]}"
        expected = sinks_of(problem).unsqueeze(1).expand(-1, count)
        torch.testing.assert_close(lse[:, :count].cpu(), expected, msg=f"request {key}: {lse[:, :count]}")


@each_implementation
def test_page_size_head_dim_and_groups_need_be_no_powers_of_two(flex: FlexAttention) -> None:
    page_size = 6 if flex.probe().device == "cpu" else 48
    for group_size in range(1, 9):
        geometry = Geometry("odd", 2 * group_size, 2, head_dim=96, page_size=page_size, scale=1 / 64)
        execution = executed(flex, problem_of(geometry, Mask.CAUSAL, "bf16", *REQUESTS["extend"]))
        assert execution.error_budget <= 1, f"groups of {group_size}: {execution.worst}"


@each_implementation
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.CROSS])
def test_a_softcap_is_applied_to_the_scaled_scores(flex: FlexAttention, mask: Mask) -> None:
    execution = executed(flex, problem_of(CAPPED, mask, "fp32", *REQUESTS["extend"]))
    assert execution.error_budget <= 1, execution.worst


@each_implementation
@each_dtype
def test_a_query_without_keys_gives_zero_and_an_lse_of_minus_infinity(flex: FlexAttention, dtype: str) -> None:
    problem = problem_of(GROUPED, Mask.CAUSAL, dtype, Request(1, 7, -4), Request(2, 2, -2), Request(3, 1, 40))
    results = executed(flex, problem).results
    for key, count in ((1, 4), (2, 2)):
        assert not results[key].output[:count].any(), f"request {key}: {results[key].output[:count]}"
        assert results[key].output[count:].all(), f"request {key} sees keys from query {count} on"
        lse = results[key].lse
        assert lse is not None
        assert torch.isneginf(lse[:, :count]).all(), f"request {key}: {lse[:, :count]}"
        assert torch.isfinite(lse[:, count:]).all(), f"request {key}: {lse[:, count:]}"


@each_implementation
@each_dtype
def test_a_nan_that_a_query_sees_is_seen_and_one_that_it_does_not_is_not(flex: FlexAttention, dtype: str) -> None:
    problem = problem_of(GROUPED, Mask.CAUSAL, dtype, Request(1, 8), Request(2, 1, 40))
    batch = make_batch(problem, torch.device(flex.probe().device))
    batch.key_cache[batch.metadata.block_table[0, 0], 5] = float("nan")
    batch.key_cache[batch.metadata.block_table[1, 0], 5] = float("nan")
    output = run_batch(flex, batch)
    assert output[5:].isnan().all(), f"a NaN among the scores came out as {output[5:].flatten()[:4].tolist()}"
    assert output[:5].isfinite().all(), "a NaN in a later key reached a query before it"


@each_implementation
@each_dtype
def test_each_request_reads_its_own_encoder_and_an_empty_one_gives_zero(flex: FlexAttention, dtype: str) -> None:
    requests = (Request(1, 3, 4, 0), Request(2, 2, 4, 20), Request(3, 1, 4, 1), Request(4, 5, 4, 33))
    execution = executed(flex, Problem(GROUPED, Mask.CROSS, dtype, requests, FINITE))
    assert execution.error_budget <= 1, execution.worst
    results = execution.results
    assert not results[1].output.any(), f"there is nothing to attend to, but output={results[1].output}"
    assert results[1].lse is not None
    assert torch.isneginf(results[1].lse).all(), f"there is nothing to attend to, but lse={results[1].lse}"
    assert results[2].output.all(), "a request with an encoder got nothing from it"


@each_implementation
@each_layer
def test_a_request_keeps_its_bits_whatever_its_batch(flex: FlexAttention, geometry: Geometry, dtype: str) -> None:
    requests = (*REQUESTS["extend"], Request(7, 40), Request(8, 1, 69))
    problem = problem_of(geometry, Mask.CAUSAL, dtype, *requests)
    batch = executed(flex, problem).results
    layout = {"page_seed": 9, "padding_requests": 3, "padding_tokens": 17, "extra_table_columns": 5}
    moved = executed(flex, problem.with_requests(*requests[::-1]).with_layout(**layout)).results
    for request in requests:
        alone = executed(flex, problem.with_requests(request)).results[request.key]
        expected = batch[request.key]
        for name, result in {"alone": alone, "moved": moved[request.key]}.items():
            assert bits(result.output) == bits(expected.output), f"request {request} differs {name}"
            assert bits(result.lse) == bits(expected.lse), f"the log-sum-exp of request {request} differs {name}"


@each_implementation
@each_layer
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW])
def test_a_row_keeps_its_bits_however_its_sequence_was_divided(
    flex: FlexAttention, geometry: Geometry, dtype: str, mask: Mask
) -> None:
    whole = problem_of(geometry, mask, dtype, Request(1, 70))
    at_once = executed(flex, whole).results[1]
    assert at_once.lse is not None
    for start, stop in ((0, 1), (0, 33), (33, 70), (15, 16), (16, 17), (69, 70)):
        part = executed(flex, whole.with_requests(Request(1, stop - start, start))).results[1]
        assert bits(part.output) == bits(at_once.output[start:stop]), f"positions {start} to {stop} differ as a step"
        lse = at_once.lse[:, start:stop]
        assert bits(part.lse) == bits(lse), f"the log-sum-exp of positions {start} to {stop} differs as a step"


@each_implementation
def test_stale_table_entries_may_name_any_page(flex: FlexAttention) -> None:
    problem = problem_of(GROUPED, Mask.CAUSAL, "fp32", *REQUESTS["extend"]).with_layout(extra_table_columns=4)
    batch = make_batch(problem, torch.device(flex.probe().device))
    expected = run_batch(flex, batch)
    table = batch.metadata.block_table
    for name, stale in {
        "the request's own first page": table[:, :1],
        "a neighbour's first page": table.roll(1, dims=0)[:, :1],
        "a page number that does not exist": torch.full_like(table[:, :1], 1 << 20),
        "a negative page number": torch.full_like(table[:, :1], -1),
    }.items():
        changed = table.clone()
        for index, request in enumerate(problem.requests):
            changed[index, -(-request.num_slots // GROUPED.page_size) :] = stale[index]
        metadata = dataclasses.replace(batch.metadata, block_table=changed)
        actual = run_batch(flex, dataclasses.replace(batch, metadata=metadata))
        assert bits(actual) == bits(expected), f"the output depends on stale entries that hold {name}"


@each_implementation
def test_requests_may_share_pages(flex: FlexAttention) -> None:
    """As after prefix caching: two requests, one's pages listed by the other at the same and at a later place."""
    problem = problem_of(GROUPED, Mask.CAUSAL, "fp32", Request(1, 2, 30), Request(2, 3, 45))
    batch = make_batch(problem, torch.device(flex.probe().device))
    first, second = (batch.metadata.block_table[index].clone() for index in range(2))
    shared, copied = second.clone(), second.clone()
    shared[0], shared[1] = first[1], first[0]
    outputs = []
    for table in (shared, copied):
        if table is copied:
            # The same tokens on pages of the second request's own.
            for column, page in ((0, first[1]), (1, first[0])):
                for cache in (batch.key_cache, batch.value_cache):
                    cache[second[column]] = cache[page]
        metadata = dataclasses.replace(batch.metadata, block_table=torch.stack([first, table]))
        outputs.append(run_batch(flex, dataclasses.replace(batch, metadata=metadata)))
    assert bits(outputs[0]) == bits(outputs[1]), "a request's output depends on whether it shares its pages"


@each_implementation
@each_dtype
def test_nobody_reads_the_padding_rows(flex: FlexAttention, dtype: str) -> None:
    problem = problem_of(GROUPED, Mask.NON_CAUSAL, dtype, *REQUESTS["prefill"]).with_layout(padding_tokens=20)
    batch = make_batch(problem, torch.device(flex.probe().device))
    filled = problem.requests[0].query_len + problem.requests[1].query_len + problem.requests[2].query_len
    outputs = []
    for value in (float("nan"), 3.0):
        query = batch.query.clone()
        query[filled:] = value
        outputs.append(run_batch(flex, dataclasses.replace(batch, query=query))[:filled])
    assert bits(outputs[0]) == bits(outputs[1]), "the output depends on query rows that belong to nobody"


@each_implementation
def test_values_of_unseen_slots_reach_the_output_as_zero_times_nan(flex: FlexAttention) -> None:
    """When this fails, torch no longer multiplies them, and `claims.ignores_unread_memory` may be True."""
    problem = problem_of(GROUPED, Mask.CAUSAL, "fp32", Request(1, 1, 20), layout=Layout(poison="nan"))
    assert not flex.claims.ignores_unread_memory
    assert executed(flex, problem).results[1].output.isnan().any(), "NaN behind the last key did not reach the output"


@each_implementation
def test_no_batch_mask_or_number_of_heads_compiles_again(flex: FlexAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    executed(flex, problem_of(GROUPED, Mask.CAUSAL, "fp32", *REQUESTS["extend"]))
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    crowd = tuple(Request(key, 1 + key % 3, key) for key in range(1, 40))
    for requests in (*REQUESTS.values(), crowd, (Request(1, 128, 0),)):
        for mask in Mask:
            for heads, kv_heads in ((2, 2), (8, 2), (14, 2), (12, 6)):
                geometry = dataclasses.replace(GROUPED, num_heads=heads, num_kv_heads=kv_heads, window=heads)
                if mask is Mask.CROSS:
                    requests = tuple(dataclasses.replace(r, encoder_len=0) for r in requests)
                execution = executed(flex, problem_of(geometry, mask, "fp32", *requests))
                assert execution.error_budget <= 1, execution.worst


@each_implementation
def test_sizes_that_are_equal_in_the_first_batch_are_not_compiled_in_as_equal(
    flex: FlexAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest batches have 128 rows, which for this geometry is head_dim as well."""
    geometry = dataclasses.replace(GROUPED, head_dim=128)
    executed(flex, problem_of(geometry, Mask.CAUSAL, "fp32", Request(1, 1, 20)))
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    execution = executed(flex, problem_of(geometry, Mask.CAUSAL, "fp32", Request(1, 70), Request(2, 1, 300)))
    assert execution.error_budget <= 1, execution.worst


def strided_caches(keys: torch.Tensor, values: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same caches as an engine may have them: two in one allocation, or slices of a larger one."""

    def filled(views: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return views[0].copy_(keys), views[1].copy_(values)

    pages, page_size, heads, head_dim = keys.shape
    by_page = keys.new_full((pages, 2, page_size, heads, head_dim), 32768.0)
    by_token = keys.new_full((pages, page_size, 2, heads, head_dim), 32768.0)
    layers = keys.new_full((3, 2, pages, page_size, heads, head_dim), 32768.0)
    return {
        "K and V page by page": filled((by_page[:, 0], by_page[:, 1])),
        "one layer of several": filled((layers[1, 0], layers[1, 1])),
        "K and V token by token": filled((by_token[:, :, 0], by_token[:, :, 1])),
    }


@each_implementation
@pytest.mark.parametrize(("geometry", "dtype"), [(GROUPED, "fp32"), (SINKING, "bf16")], ids=["in place", "copied"])
def test_the_strides_of_the_cache_change_no_bit(flex: FlexAttention, geometry: Geometry, dtype: str) -> None:
    problem = problem_of(geometry, Mask.CAUSAL, dtype, *REQUESTS["behind_encoder"])
    batch = make_batch(problem, torch.device(flex.probe().device))
    expected = run_batch(flex, batch)
    for name, (keys, values) in strided_caches(batch.key_cache, batch.value_cache).items():
        actual = run_batch(flex, dataclasses.replace(batch, key_cache=keys, value_cache=values))
        assert bits(actual) == bits(expected), f"the output depends on the cache's strides: {name}"


@each_implementation
def test_a_cache_that_shares_its_allocation_compiles_nothing(
    flex: FlexAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(problem_of(GROUPED, Mask.CAUSAL, "fp32", Request(1, 1, 20)), torch.device(flex.probe().device))
    run_batch(flex, batch)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    strided = strided_caches(batch.key_cache, batch.value_cache)
    for name in ("K and V page by page", "one layer of several"):
        run_batch(flex, dataclasses.replace(batch, key_cache=strided[name][0], value_cache=strided[name][1]))


@each_implementation
def test_query_and_output_may_be_slices_of_packed_rows(flex: FlexAttention) -> None:
    problem = problem_of(GROUPED, Mask.CAUSAL, "fp32", *REQUESTS["extend"]).with_layout(padding_tokens=3)
    batch = make_batch(problem, torch.device(flex.probe().device))
    expected = run_batch(flex, batch)
    tokens, heads, head_dim = batch.query.shape
    packed = batch.query.new_zeros(2, tokens, (heads + 4) * head_dim)
    query, output = (rows[:, : heads * head_dim].view(tokens, heads, head_dim) for rows in packed)
    query.copy_(batch.query)
    output.copy_(torch.full_like(expected, float("nan")))
    flex.run(flex.plan(batch.config, batch.metadata), query, batch.key_cache, batch.value_cache, output, None)
    assert bits(output) == bits(expected), "the output depends on the strides of query and output"
    assert not packed[1, :, heads * head_dim :].any(), "run wrote beside the output's heads"


@each_implementation
def test_a_cache_may_hold_a_single_page(flex: FlexAttention) -> None:
    problem = problem_of(GROUPED, Mask.CAUSAL, "fp32", Request(1, 2, 10))
    batch = make_batch(problem, torch.device(flex.probe().device))
    expected = run_batch(flex, batch)
    page = batch.metadata.block_table[:, :1]
    metadata = dataclasses.replace(batch.metadata, block_table=torch.zeros_like(page))
    keys, values = (cache[int(page) :][:1].clone() for cache in (batch.key_cache, batch.value_cache))
    actual = run_batch(flex, dataclasses.replace(batch, metadata=metadata, key_cache=keys, value_cache=values))
    assert bits(actual) == bits(expected), "the output depends on the size of the cache"


@each_implementation
def test_a_cache_that_cannot_be_read_in_place_is_refused(flex: FlexAttention) -> None:
    batch = make_batch(problem_of(GROUPED, Mask.CAUSAL, "fp32", Request(1, 1, 20)), torch.device(flex.probe().device))
    keys, values = batch.key_cache, batch.value_cache
    padded = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, 1))[:, :16]
    with pytest.raises(ValueError, match=r"key_cache has strides \(2176, .* must be a multiple of 16 times the second"):
        run_batch(flex, dataclasses.replace(batch, key_cache=padded))
    apart = torch.stack([values, values], dim=1)[:, 0]
    with pytest.raises(ValueError, match="pages of key_cache begin 16 tokens apart and those of value_cache 32"):
        run_batch(flex, dataclasses.replace(batch, value_cache=apart))
    with pytest.raises(ValueError, match="key_cache has 1 pages; it must have at least"):
        run_batch(flex, dataclasses.replace(batch, key_cache=keys[:1]))


@pytest.mark.parametrize("geometry", [GROUPED, SINKING], ids=["in place", "copied"])
def test_caches_of_two_orders_are_unsupported_where_they_are_read_in_place(geometry: Geometry) -> None:
    problem = problem_of(geometry, Mask.CAUSAL, "fp32", Request(1, 1)).with_layout(strides=Strides.MIXED_ORDER)
    reasons = FlexAttention(processor()).reasons(problem)
    said = any("keys slot by slot beside values head by head are not supported" in reason for reason in reasons)
    assert said is not geometry.sinks, f"with sinks={geometry.sinks} it says {reasons}"


def test_what_is_unsupported_is_refused_by_plan_in_the_words_of_reasons() -> None:
    flex = FlexAttention(processor())
    problem = problem_of(dataclasses.replace(GROUPED, page_size=1), Mask.CAUSAL, "fp32", Request(1, 1))
    (reason,) = flex.reasons(problem)
    assert reason == "page_size 1 is not supported"
    batch = make_batch(problem, torch.device("cpu"))
    with pytest.raises(ValueError, match=reason):
        flex.plan(batch.config, batch.metadata)


@pytest.mark.parametrize("tile", [None, 16])
def test_on_a_gpu_queries_and_the_stages_of_keys_and_values_fit_its_shared_memory(tile: int | None) -> None:
    flex = FlexAttention(dataclasses.replace(processor(), kind="cuda", device="cuda"), tile)
    assert flex.variant == ("" if tile is None else "tile=16")
    for head_dim in (16, 64, 96, 128, 256, 512):
        for dtype in (torch.float32, torch.bfloat16):
            for page_size in (16, 48, 128):
                geometry = dataclasses.replace(GROUPED, head_dim=head_dim, page_size=page_size)
                config = attention_config(problem_of(geometry, Mask.CAUSAL, "bf16", Request(1, 1)), torch.device("cpu"))
                config = dataclasses.replace(config, dtype=dtype)
                shape, pipeline = flex._tile_shape(config), flex._pipeline(config)
                columns = 1 << (head_dim - 1).bit_length()
                elements = (shape.rows + 2 * shape.keys * pipeline.num_stages) * columns
                assert elements * dtype.itemsize <= 160 << 10, (
                    f"{shape} of {head_dim} {dtype} takes {elements} elements"
                )
                assert pipeline.num_stages >= 2, f"{shape} of {head_dim} {dtype} loads nothing ahead"
                assert page_size % shape.keys == 0
                assert shape.rows * columns <= 64 * 32 * pipeline.num_warps, "results do not fit the registers"
    assert flex.reasons(problem_of(dataclasses.replace(GROUPED, head_dim=520), Mask.CAUSAL, "bf16", Request(1, 1)))


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    availability = FlexAttention(processor()).probe()
    assert availability.reason == (
        "inductor compiles FlexAttention with a C++ compiler, and 'no-such-compiler' (from CXX) is not on the path"
    )


def test_where_compiling_is_switched_off_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    assert "torch.compile is switched off" in FlexAttention(processor()).probe().reason


def test_where_the_kernel_does_not_import_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, KERNEL_MODULE, None)
    assert f"importing {KERNEL_MODULE} raised ModuleNotFoundError" in FlexAttention(processor()).probe().reason
