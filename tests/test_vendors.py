"""What vendors' kernels cannot compute is refused, in the words of their reasons."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

import pytest
import torch

from samebits.backends.aiter import FlashAttentionWithKVCache, UnifiedAttention
from samebits.backends.contract import Implementation
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.backends.vllm_cpu import VllmCpuAttention
from samebits.backends.vllm_flash_attn import VllmFlashAttention2, VllmFlashAttention3
from samebits.backends.vllm_triton import VllmTritonAttention
from samebits.harness.batch import make_batch

from .plain_attention import CPU, GEOMETRY, WITH_SINKS

UNCAPPED = dataclasses.replace(GEOMETRY, softcap=None)


def decode(
    geometry: Geometry = UNCAPPED,
    mask: Mask = Mask.CAUSAL,
    dtype: str = "bf16",
    **changes: Any,  # noqa: ANN401 -- of the geometry
) -> Problem:
    return Problem(dataclasses.replace(geometry, **changes), mask, dtype, (Request(1, 1),))


@pytest.mark.parametrize(
    ("implementation", "problem", "reason"),
    [
        (VllmFlashAttention2(0), decode(WITH_SINKS), "sinks are not supported"),
        (VllmFlashAttention3(0), decode(WITH_SINKS, dtype="fp16"), "sinks are supported in bf16 only"),
        (
            VllmFlashAttention3(0),
            decode(WITH_SINKS, num_heads=128),
            "sinks of 128 heads are not supported, only of 64 or fewer",
        ),
        (VllmFlashAttention2(0), decode(dtype="fp32"), "dtype fp32 is not supported, only bf16, fp16"),
        (VllmFlashAttention2(0), decode(page_size=8), "page_size 8 is not supported"),
        (VllmFlashAttention3(0), decode(head_dim=100), "head_dim 100 is not supported"),
        (
            VllmTritonAttention(True),
            decode(mask=Mask.NON_CAUSAL),
            "mask non_causal is not supported, only causal, sliding_window",
        ),
        (
            VllmCpuAttention(True),
            decode(head_dim=72),
            "head_dim 72 is not supported, only 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512",
        ),
    ],
)
def test_what_a_vendors_kernel_cannot_do_is_refused_in_the_words_of_the_reasons(
    implementation: Implementation[Any], problem: Problem, reason: str
) -> None:
    assert implementation.reasons(problem) == [reason]
    batch = make_batch(problem, CPU)
    with pytest.raises(ValueError, match=f"cannot compute this layer: {reason}"):
        implementation.plan(batch.config, batch.metadata)


@pytest.mark.parametrize(
    "implementation",
    [
        VllmFlashAttention2(0),
        VllmFlashAttention3(0),
        VllmTritonAttention(True),
        VllmCpuAttention(True),
        UnifiedAttention(),
        FlashAttentionWithKVCache(),
    ],
    ids=attrgetter("label"),
)
def test_self_attention_behind_encoder_tokens_is_refused(implementation: Implementation[Any]) -> None:
    batch = make_batch(Problem(UNCAPPED, Mask.CAUSAL, "bf16", (Request(1, 1, encoder_len=3),)), CPU)
    with pytest.raises(ValueError, match=r"behind encoder_seq_lens \[3\]"):
        implementation.plan(batch.config, batch.metadata)


@pytest.mark.parametrize(
    "implementation",
    [VllmFlashAttention2(0), VllmFlashAttention3(0), VllmTritonAttention(True), UnifiedAttention()],
    ids=attrgetter("label"),
)
def test_no_graph_is_made_for_requests_that_may_come_to_have_encoder_tokens(
    implementation: Implementation[Any],
) -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", (Request(1, 1, 20),))
    batch = make_batch(problem, CPU)
    implementation.plan_for_graph(batch.config, batch.metadata, 8)
    # As at a capture: the lengths that count come later.
    empty = dataclasses.replace(batch.metadata, encoder_seq_lens=torch.zeros(1, dtype=torch.int32))
    implementation.plan(batch.config, empty)
    with pytest.raises(ValueError, match="encoder_seq_lens, which may hold other lengths at a replay"):
        implementation.plan_for_graph(batch.config, empty, 8)
    behind_encoder = problem.with_requests(Request(1, 1, 20, encoder_len=3))
    assert implementation.reasons(behind_encoder) == [
        "self-attention behind a request's encoder tokens is not supported"
    ]
