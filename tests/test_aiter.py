"""AITER/triton: its kernels of attention are right where they are said to be, and its adapter leaves no trace."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.aiter import FlashAttentionWithKVCache, UnifiedAttention, UnifiedPlan, implementations
from samebits.backends.aiter_adapter import PACKAGE, TESTED_VERSION, _private_package
from samebits.backends.contract import Implementation
from samebits.backends.platform import accelerator
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request, Strides
from samebits.harness.batch import make_batch
from samebits.harness.comparison import compare_bits
from samebits.harness.execution import execute

from .needs_aiter import needs_aiter

DEVICE = torch.device(accelerator().device)
GEOMETRY = Geometry("small", num_heads=2, num_kv_heads=1, head_dim=64, page_size=16, window=20)
WITH_SINKS = replace(GEOMETRY, name="with_sinks", sinks=True)
SEVERAL_KV_HEADS = replace(GEOMETRY, name="several_kv_heads", num_heads=4, num_kv_heads=2)
EXTEND, DECODE = Request(1, 5, 68), Request(2, 1, 40)


def problem(*requests: Request, mask: Mask = Mask.CAUSAL, dtype: str = "fp32", poison: str = "large") -> Problem:
    return Problem(GEOMETRY, mask, dtype, requests, layout=Layout(poison=poison))


def computed(implementation: Implementation[Any], case: Problem) -> torch.Tensor:
    """All query rows that `run` writes for a problem, whatever the implementation says of its support."""
    batch = make_batch(case, DEVICE)
    output = torch.full_like(batch.query, 7.0)
    plan = implementation.plan(batch.config, batch.metadata)
    implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, None)
    return output


def assert_correct(implementation: Implementation[Any], case: Problem) -> None:
    assert implementation.reasons(case) == [], f"{implementation.label} should support {case}"
    execution = execute(implementation, case, DEVICE)
    assert execution.error_budget <= 1.0, f"{execution.error_budget:.3g} of the error budget at {execution.worst}"
    assert execution.faults == (), f"{implementation.label} did more than write its output on {case}"


@needs_aiter
class TestKernels:
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW])
    def test_unified_agrees_with_the_reference(self, mask: Mask, dtype: str) -> None:
        assert_correct(UnifiedAttention(), problem(EXTEND, DECODE, mask=mask, dtype=dtype))

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_unified_caps_scores(self, dtype: str) -> None:
        geometry = replace(GEOMETRY, softcap=2.0)
        assert_correct(UnifiedAttention(), replace(problem(EXTEND, DECODE, dtype=dtype), geometry=geometry))

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_unified_split_over_keys_agrees_with_the_reference(self, dtype: str) -> None:
        case = problem(EXTEND, DECODE, dtype=dtype).with_layout(max_seq_len_slack=4096)
        assert_correct(UnifiedAttention(), case)

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("mask", list(Mask))
    def test_kvcache_agrees_with_the_reference(self, mask: Mask, dtype: str) -> None:
        encoder_len = 30 if mask is Mask.CROSS else 0
        requests = [replace(request, encoder_len=encoder_len) for request in (EXTEND, DECODE)]
        assert_correct(FlashAttentionWithKVCache(), problem(*requests, mask=mask, dtype=dtype, poison="nan"))

    def test_kvcache_returns_the_log_sum_exp(self) -> None:
        execution = execute(FlashAttentionWithKVCache(), problem(EXTEND, DECODE, Request(3, 2, -2)), DEVICE)
        assert execution.judgements["lse"].error_budget <= 1.0, execution.judgements["lse"].worst

    def test_kvcache_keeps_causal_and_non_causal_requests_of_one_query_len_apart(self) -> None:
        requests = [Request(key, 5, context, causal=key % 2 == 0) for key, context in enumerate((68, 60, 0, -4))]
        assert_correct(FlashAttentionWithKVCache(), problem(*requests, mask=Mask.PER_REQUEST, poison="nan"))

    @pytest.mark.parametrize("slack", [0, 4096], ids=["2d", "3d"])
    @pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW])
    def test_unified_takes_sinks(self, mask: Mask, slack: int) -> None:
        case = replace(problem(EXTEND, DECODE, mask=mask), geometry=WITH_SINKS).with_layout(max_seq_len_slack=slack)
        assert_correct(UnifiedAttention(), case)

    @pytest.mark.parametrize("strides", Strides)
    def test_unified_takes_views(self, strides: Strides) -> None:
        case = replace(problem(EXTEND, DECODE), geometry=SEVERAL_KV_HEADS).with_layout(strides=strides)
        assert_correct(UnifiedAttention(), case)

    def test_kvcache_gives_zero_for_queries_that_see_no_key(self) -> None:
        more_queries_than_keys, no_keys = Request(1, 5, -2), Request(2, 5, -5)
        assert_correct(FlashAttentionWithKVCache(), problem(more_queries_than_keys, no_keys, poison="nan"))
        assert_correct(FlashAttentionWithKVCache(), problem(Request(1, 3, 4), mask=Mask.CROSS, poison="nan"))

    def test_kvcache_keeps_requests_of_different_query_len_apart(self) -> None:
        implementation = FlashAttentionWithKVCache()
        longer = Request(9, 2, 200)
        alone = computed(implementation, problem(DECODE))
        beside = computed(implementation, problem(DECODE, longer))[:1]
        assert compare_bits(alone, beside).mismatches == 0, "a request of another query_len changed a decode row"

    @pytest.mark.parametrize("strides", [strides for strides in Strides if strides is not Strides.MIXED_ORDER])
    def test_kvcache_takes_pages_that_are_as_far_apart_in_both_caches(self, strides: Strides) -> None:
        case = replace(problem(EXTEND, DECODE), geometry=SEVERAL_KV_HEADS).with_layout(strides=strides)
        assert FlashAttentionWithKVCache().reasons(case) == []
        assert_correct(FlashAttentionWithKVCache(), case)

    def test_kvcache_refuses_pages_that_no_one_table_leads_to(self) -> None:
        mixed = replace(problem(DECODE), geometry=SEVERAL_KV_HEADS).with_layout(strides=Strides.MIXED_ORDER)
        reasons = FlashAttentionWithKVCache().reasons(mixed)
        assert any("keys slot by slot beside values head by head are not supported" in reason for reason in reasons)
        with pytest.raises(ValueError, match=r"key_cache has strides .* needs the same ratio"):
            computed(FlashAttentionWithKVCache(), mixed)

    def test_kvcache_refuses_pages_that_begin_between_slots(self) -> None:
        batch = make_batch(problem(DECODE), DEVICE)
        longer = torch.nn.functional.pad(batch.key_cache, (0, 0, 0, 0, 0, 1))[:, : batch.key_cache.shape[1]]
        implementation = FlashAttentionWithKVCache()
        plan = implementation.plan(batch.config, batch.metadata)
        output = torch.empty_like(batch.query)
        with pytest.raises(ValueError, match=r"key_cache has strides .* a multiple of page_size times the second"):
            implementation.run(plan, batch.query, longer, batch.value_cache, output, None)

    def test_padding_requests_and_rows_are_left_alone(self) -> None:
        for implementation in (UnifiedAttention(), FlashAttentionWithKVCache()):
            padded = problem(EXTEND, DECODE).with_layout(padding_requests=2, padding_tokens=3)
            assert_correct(implementation, padded)

    @pytest.mark.parametrize("mask", [Mask.NON_CAUSAL, Mask.CROSS, Mask.PER_REQUEST])
    def test_unified_refuses_a_mask_it_would_compute_as_causal(self, mask: Mask) -> None:
        case = problem(replace(EXTEND, encoder_len=9), mask=mask)
        reasons = UnifiedAttention().reasons(case)
        assert any(f"mask {mask} is not supported" in reason for reason in reasons), reasons
        with pytest.raises(ValueError, match=rf"mask {mask} is not supported, only causal, sliding_window"):
            computed(UnifiedAttention(), case)

    @pytest.mark.parametrize(
        "implementation", [UnifiedAttention(), FlashAttentionWithKVCache()], ids=["unified", "kvcache"]
    )
    def test_self_attention_behind_encoder_tokens_is_refused(self, implementation: Implementation[Any]) -> None:
        case = problem(replace(EXTEND, encoder_len=9), DECODE)
        assert implementation.reasons(case), "both kernels read a request's slots from its first"
        with pytest.raises(ValueError, match=r"cannot compute mask causal behind encoder_seq_lens \[9, 0\]"):
            computed(implementation, case)

    def test_kvcache_refuses_sinks(self) -> None:
        case = replace(problem(DECODE), geometry=WITH_SINKS)
        with pytest.raises(ValueError, match="sinks are not supported"):
            computed(FlashAttentionWithKVCache(), case)


@needs_aiter
class TestWhatAiterDoesToABatch:
    """What its rows report. When one of these fails, AITER has changed: claims, support and docs/aiter.md follow."""

    def test_unified_decodes_with_other_tiles_beside_a_prefill(self) -> None:
        alone = computed(UnifiedAttention(), problem(DECODE))
        beside = computed(UnifiedAttention(), problem(DECODE, EXTEND))[:1]
        assert compare_bits(alone, beside).mismatches > 0, "a tile is a page in an all-decode batch, and 64 keys else"

    def test_unified_splits_keys_where_the_bound_on_lengths_is_large(self) -> None:
        tight = computed(UnifiedAttention(), problem(EXTEND))
        loose = computed(UnifiedAttention(), problem(EXTEND).with_layout(max_seq_len_slack=4096))
        assert compare_bits(tight, loose).mismatches > 0, "max_seqlen_k above 512 should choose the split kernel"

    def test_kvcache_splits_where_the_longest_neighbour_says(self) -> None:
        victim = Request(2, 1, 99)
        alone = computed(FlashAttentionWithKVCache(), problem(victim))
        beside = computed(FlashAttentionWithKVCache(), problem(victim, Request(9, 1, 129)))[:1]
        assert compare_bits(alone, beside).mismatches > 0, "a neighbour of 130 keys should bring a second split"

    def test_unified_reads_behind_the_last_key_of_a_page(self) -> None:
        assert not UnifiedAttention().claims.ignores_unread_memory
        assert computed(UnifiedAttention(), problem(DECODE, poison="nan")).isnan().all()
        assert computed(UnifiedAttention(), problem(DECODE, poison="large")).isfinite().all()

    def test_unified_divides_by_zero_for_a_query_that_sees_no_key(self) -> None:
        case = problem(Request(1, 5, -2))
        assert UnifiedAttention().reasons(case), "what is NaN must not be called supported"
        assert computed(UnifiedAttention(), case)[0].isnan().all()

    def test_unified_cannot_merge_splits_of_an_odd_head_dim(self) -> None:
        case = problem(DECODE).with_layout(max_seq_len_slack=4096)
        case = replace(case, geometry=replace(GEOMETRY, head_dim=80))
        assert UnifiedAttention().reasons(case) == ["head_dim 80 is not supported"]
        batch = make_batch(case, DEVICE)
        unrefused = UnifiedPlan(batch.config, batch.metadata)
        with pytest.raises(Exception, match="offs_d"):
            UnifiedAttention().run(
                unrefused, batch.query, batch.key_cache, batch.value_cache, torch.empty_like(batch.query), None
            )

    def test_kvcache_reads_values_that_a_window_hides_from_all_queries(self) -> None:
        assert not FlashAttentionWithKVCache().claims.ignores_unread_memory
        case = problem(DECODE, mask=Mask.SLIDING_WINDOW)
        assert computed(FlashAttentionWithKVCache(), case).isfinite().all()
        assert computed(FlashAttentionWithKVCache(), replace(case, data="unseen_nan")).isnan().all()

    def test_kvcache_hides_nan_from_its_log_sum_exp(self) -> None:
        # A NaN in a key: those of odd requests are in a value.
        execution = execute(FlashAttentionWithKVCache(), replace(problem(DECODE), data="seen_nan"), DEVICE)
        result = execution.results[DECODE.key]
        assert result.output.isnan().all(), "the output should be NaN"
        assert result.lse is not None
        assert result.lse.isfinite().all(), "AITER takes the largest score for the log-sum-exp where the sum is NaN"


@needs_aiter
class TestAdapter:
    def test_leaves_no_trace_in_the_process(self) -> None:
        if accelerator().kind == "rocm":
            pytest.skip("on ROCm there is no adapter")
        script = """
import sys
import triton
from samebits.backends.aiter import implementations

def state():
    return triton.runtime.driver._active, triton.knobs.runtime.interpret

before = state()
assert all(implementation.probe().available for implementation in implementations())
assert state() == before, state()
assert not [name for name in sys.modules if name.split(".")[0] == "aiter"], "aiter stayed in sys.modules"
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

    def test_puts_back_a_foreign_module_of_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        foreign = types.ModuleType(PACKAGE)
        monkeypatch.setitem(sys.modules, PACKAGE, foreign)
        monkeypatch.setitem(sys.modules, f"{PACKAGE}.core", foreign)
        with _private_package(["nowhere"]):
            assert sys.modules[PACKAGE] is not foreign
            assert f"{PACKAGE}.core" not in sys.modules
        assert sys.modules[PACKAGE] is foreign
        assert sys.modules[f"{PACKAGE}.core"] is foreign

    def test_records_what_it_substitutes(self) -> None:
        adapter = {"cpu": "triton interpreter", "cuda": "cuda", "rocm": "none"}[accelerator().kind]
        for implementation in implementations():
            assert implementation.configuration["adapter"] == adapter
            assert implementation.probe().version == TESTED_VERSION
