"""The kernel for Hopper: what it is given, and, where there is such a GPU, that its bits are the portable kernel's."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends import triton_hopper
from samebits.backends.platform import accelerator, compute_capability
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request, Strides
from samebits.backends.target import TARGETS, supposing
from samebits.backends.triton_attn import TritonAttention
from samebits.backends.triton_hopper import computes_caches
from samebits.harness.batch import make_batch
from samebits.harness.execution import Execution, execute

CPU = torch.device("cpu")
LLAMA = Geometry("test", num_heads=8, num_kv_heads=2, head_dim=128)
HEAD_DIMS = triton_hopper.HEAD_DIMS + triton_hopper.WIDE_HEAD_DIMS
on_hopper = pytest.mark.skipif(compute_capability() != (9, 0), reason="there is no Hopper GPU to run its kernel on")


def planned(problem: Problem, **options: Any) -> Any:  # noqa: ANN401
    with supposing(TARGETS["sm_90"]):
        batch = make_batch(problem, CPU)
        return TritonAttention(**options).plan(batch.config, batch.metadata)


def causal(*requests: Request, geometry: Geometry = LLAMA, dtype: str = "bf16") -> Problem:
    return Problem(geometry, Mask.CAUSAL, dtype, requests)


def test_hopper_computes_in_its_own_tiles_whoever_launches_them() -> None:
    for head_dim in HEAD_DIMS:
        problem = causal(Request(1, 5, 20), geometry=replace(LLAMA, head_dim=head_dim))
        plan, portable = planned(problem), planned(problem, on_hopper=False)
        assert plan.hopper is not None, f"the kernel for Hopper was not chosen for heads of {head_dim}"
        assert portable.hopper is None, "the portable kernel was asked for"
        assert plan.configuration == portable.configuration, f"heads of {head_dim} have different tiles in the kernels"


def test_queries_and_two_tiles_of_keys_and_of_values_fit_the_shared_memory() -> None:
    for head_dim, query_len in itertools.product(HEAD_DIMS, (1, 100)):
        plan = planned(causal(Request(1, query_len, 20), geometry=replace(LLAMA, head_dim=head_dim)))
        stages = plan.hopper.key_stages, plan.hopper.value_stages
        assert min(stages) >= 2, f"heads of {head_dim}: {stages} buffers, and nothing is loaded ahead"
        rows = 64 * plan.hopper.warpgroups + plan.configuration.kv_tile * sum(stages)
        # A program has 227 KiB on Hopper, of which barriers and numbers take less than one.
        assert rows * head_dim * 2 <= 226 * 1024, f"heads of {head_dim}: {stages} buffers are more than there is"


@pytest.mark.parametrize(
    "problem",
    [
        causal(Request(1, 5, 20), dtype="fp32"),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, head_dim=32)),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, head_dim=112)),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, softcap=30.0)),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, page_size=48)),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, page_size=4)),
        causal(Request(1, 5, 20), geometry=replace(LLAMA, num_heads=142)),
        Problem(LLAMA, Mask.PER_REQUEST, "bf16", (Request(1, 5, 20),)),
        Problem(LLAMA, Mask.CAUSAL, "bf16", (Request(1, 5, 20, encoder_len=7),)),
    ],
    ids=["fp32", "head_dim 32", "head_dim 112", "softcap", "page 48", "page 4", "group 71", "per request", "encoder"],
)
def test_what_the_kernel_for_hopper_cannot_compute_is_left_to_the_portable_one(problem: Problem) -> None:
    assert planned(problem).hopper is None


def test_short_queries_take_one_warpgroup_and_long_ones_two_that_share_what_is_loaded() -> None:
    # 4 heads of a group, 64 rows of a warpgroup.
    assert planned(causal(Request(1, 16, 20))).hopper.warpgroups == 1
    plan = planned(causal(Request(1, 1, 20), Request(2, 17, 20)))
    assert plan.hopper.warpgroups == 2
    assert plan.hopper.counter is not None, "tiles of different sizes are taken by who is free"


def test_heads_without_room_for_two_outputs_in_the_registers_have_one_in_memory_for_each_program() -> None:
    request = Request(1, 100, 5000)
    for head_dim, needed in ((128, False), (192, True), (256, True)):
        problem = causal(request, geometry=replace(LLAMA, head_dim=head_dim))
        plan = planned(problem, num_segments=1).hopper
        assert (plan.merged_outputs is not None) == needed, f"heads of {head_dim}"
        if needed:
            assert plan.merged_outputs.shape == (plan.num_programs, 2, 64, head_dim)
        shared = planned(problem, num_segments=2).hopper
        assert shared.merged_outputs is None, "each chunk has a place of its own where several programs share them"


def test_decodes_of_heads_that_one_warpgroup_is_slow_with_are_shared_however_many_there_are() -> None:
    for head_dim, shared in ((64, False), (96, True), (128, False), (256, True)):
        for query_len, one_warpgroup in ((1, True), (100, False)):
            plan = planned(causal(Request(1, query_len, 20), geometry=replace(LLAMA, head_dim=head_dim)))
            least = triton_hopper.least_segments(plan.config, plan.metadata)
            assert (least > 1) == (shared and one_warpgroup), f"{query_len} queries with heads of {head_dim}: {least}"
            assert plan.num_segments == 1, "one chunk cannot be shared"


def test_caches_whose_pages_are_no_rows_of_a_matrix_are_left_to_the_portable_kernel() -> None:
    cache = torch.zeros(6, 16, 2, 128, dtype=torch.bfloat16)
    head_first = torch.zeros(6, 2, 16, 128, dtype=torch.bfloat16).transpose(1, 2)
    beside = torch.zeros(6, 2, 16, 2, 128, dtype=torch.bfloat16)[:, 0]
    assert all(computes_caches(cache, other) for other in (cache, head_first, beside))
    padded_page = torch.zeros(6, 16 * 256 + 8, dtype=torch.bfloat16)[:, : 16 * 256].view(6, 16, 2, 128)
    odd_slot = torch.zeros(6, 16, 260, dtype=torch.bfloat16).as_strided((6, 16, 2, 128), (16 * 260, 260, 128, 1))
    astray = torch.zeros(6 * 16 * 256 + 1, dtype=torch.bfloat16)[1:].view(6, 16, 2, 128)
    for name, other in {"padded page": padded_page, "odd slot": odd_slot, "address": astray}.items():
        assert not computes_caches(cache, other), name
        assert not computes_caches(other, cache), name


def test_a_triton_without_the_kernels_language_is_told_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, triton_hopper.KERNELS, None)
    with supposing(TARGETS["sm_90"]):
        assert triton_hopper.KERNELS in TritonAttention().probe().reason
        assert TritonAttention(on_hopper=False).probe().available, "the portable kernel does not need it"


def run(problem: Problem, **options: Any) -> Execution:  # noqa: ANN401
    return execute(TritonAttention(**options), problem, torch.device(accelerator().device))


BATCH = (Request(1, 1, 1500), Request(2, 40, 90), Request(3, 200, 0), Request(4, 3, 2046), Request(5, 17, 1111))


@on_hopper
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_geometry_has_the_bits_of_the_portable_kernel(head_dim: int) -> None:
    for group, page_size, dtype in (
        (1, 16, "bf16"),
        (3, 8, "fp16"),
        (4, 16, "bf16"),
        (4, 16, "fp16"),
        (7, 128, "bf16"),
        (16, 64, "fp16"),
        (64, 512, "bf16"),
    ):
        geometry = Geometry("test", num_heads=2 * group, num_kv_heads=2, head_dim=head_dim, page_size=page_size)
        problem = causal(*BATCH, geometry=geometry, dtype=dtype)
        assert run(problem).digest == run(problem, on_hopper=False).digest, problem


@on_hopper
@pytest.mark.parametrize("head_dim", [96, 128, 256])
def test_every_mask_and_share_has_the_bits_of_the_portable_kernel(head_dim: int) -> None:
    masks = ((Mask.CAUSAL, False), (Mask.NON_CAUSAL, True), (Mask.SLIDING_WINDOW, True))
    batches = (BATCH, BATCH[:1], BATCH[3:4], BATCH[2:3])
    for requests, (mask, sinks) in itertools.product(batches, masks):
        geometry = replace(LLAMA, head_dim=head_dim, sinks=sinks, window=300)
        problem = Problem(geometry, mask, "bf16", requests)
        alone = run(problem, on_hopper=False, num_segments=1)
        for num_segments in (None, 1, 2, 5):
            shared = run(problem, num_segments=num_segments)
            assert shared.digest == alone.digest, f"{num_segments} segments: {problem}"


@on_hopper
def test_every_layout_of_the_cache_has_the_bits_of_the_portable_kernel() -> None:
    for kind in Strides:
        problem = Problem(LLAMA, Mask.CAUSAL, "bf16", BATCH, Layout(strides=kind))
        assert run(problem).digest == run(problem, on_hopper=False).digest, problem
