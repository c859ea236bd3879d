"""vLLM's FlashAttention: how each build is called, by plain kernels that check what they are given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from samebits.backends import vllm_flash_attn
from samebits.backends.compiled_library import CompiledLibrary, LoadedLibrary, Operator
from samebits.backends.paged_flash import PagedFlash
from samebits.backends.platform import Platform
from samebits.backends.problem import Mask, Problem, Request
from samebits.backends.vllm_flash_attn import VllmFlashAttention2, VllmFlashAttention3
from samebits.harness.batch import make_batch
from samebits.harness.cases import BATCHES

from .plain_attention import CPU, GEOMETRY, WITH_SINKS, assert_right, plain_attention, problem_of


def filled(library: CompiledLibrary, operator: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of a call, all of which the library must have names for; those that are not named are None."""
    unknown = arguments.keys() - set(library.operators[operator])
    assert not unknown, f"{operator} takes no {unknown}"
    return dict.fromkeys(library.operators[operator]) | dict(arguments)


@dataclasses.dataclass
class PlainFlash2:
    """`_vllm_fa2_C::varlen_fwd`: decodes are packed row by row, and a blind row's log-sum-exp is inf."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, **arguments: object) -> list[torch.Tensor]:
        given = filled(vllm_flash_attn._FA2, "varlen_fwd", arguments)
        may_be_none = {"leftpad_k", "alibi_slopes", "gen"}
        missing = [name for name, value in given.items() if value is None and name not in may_be_none]
        assert not missing, f"{missing} are given nothing"
        query, output, starts = given["q"], given["out"], given["cu_seqlens_q"]
        assert query.shape == output.shape, "the output must have the rows of the query"
        assert given["k"].shape[1] % 16 == 0, "pages must hold a multiple of 16"
        num_requests = given["seqused_k"].shape[0]
        assert num_requests, "batch size must be positive"
        assert given["block_table"].shape[0] == num_requests
        assert starts.shape == (num_requests + 1,)
        window = (given["window_size_left"], given["window_size_right"])
        if given["max_seqlen_q"] == 1 and window == (-1, -1):
            assert query.shape[0] == num_requests, "with one query each, row i is taken for request i"
            starts = torch.arange(num_requests + 1)
        self.calls.append(given["num_splits"])
        assert given["p_dropout"] == 0
        assert not given["zero_tensors"]
        assert not given["return_softmax"]
        result, lse = plain_attention(
            query,
            given["k"],
            given["v"],
            starts,
            given["seqused_k"],
            given["block_table"],
            given["softmax_scale"],
            [given["is_causal"]] * num_requests,
            window,
            given["softcap"],
            None,
        )
        output.copy_(result)
        return [output, lse.masked_fill(lse == -math.inf, math.inf)]


@dataclasses.dataclass
class PlainFlash3:
    """`_vllm_fa3_C::fwd`: takes sinks in bfloat16."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, **arguments: object) -> list[torch.Tensor]:
        given = filled(vllm_flash_attn._FA3, "fwd", arguments)
        set_apart = [
            *("k_new", "v_new", "q_v", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "kv_batch_idx", "leftpad_k"),
            *("rotary_cos", "rotary_sin", "seqlens_rotary", "q_descale", "k_descale", "v_descale"),
            *("scheduler_metadata", "pack_gqa", "cp_tot_seqused_k"),
        ]
        wrong = [name for name in set_apart if given[name] is not None]
        assert not wrong, f"{wrong} are given something"
        missing = [name for name, value in given.items() if value is None and name not in (*set_apart, "s_aux")]
        assert not missing, f"{missing} are given nothing"
        assert (given["cp_world_size"], given["cp_rank"], given["sm_margin"]) == (1, 0, 0)
        sinks = given["s_aux"]
        assert sinks is None or sinks.dtype is torch.bfloat16, "We only support bf16 dtype for S aux"
        self.calls.append(given["num_splits"])
        num_requests = given["seqused_k"].shape[0]
        result, lse = plain_attention(
            given["q"],
            given["k"],
            given["v"],
            given["cu_seqlens_q"],
            given["seqused_k"],
            given["page_table"],
            given["softmax_scale"],
            [given["is_causal"]] * num_requests,
            (given["window_size_left"], given["window_size_right"]),
            given["softcap"],
            sinks,
        )
        given["out"].copy_(result)
        return [given["out"], lse, torch.empty(0), torch.empty(0)]


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[int]]]:
    """Plain kernels in place of the compiled ones: the splits that each was called with."""
    two, three = PlainFlash2(), PlainFlash3()
    operators: Mapping[str, Operator] = {"varlen_fwd": two, "fwd": three}
    monkeypatch.setattr(CompiledLibrary, "loaded", LoadedLibrary("0.20.2", operators))
    called = {"vllm-fa2": two.calls, "vllm-fa3": three.calls}
    yield called
    assert any(called.values()), "the implementation called another kernel"


@pytest.mark.parametrize("kind", [VllmFlashAttention2, VllmFlashAttention3])
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS], ids=str)
def test_vllms_flash_attention_is_given_the_batch(
    flash: dict[str, list[int]], kind: type[PagedFlash], mask: Mask
) -> None:
    for num_splits in (0, 1):
        for batch in BATCHES:
            problem = problem_of(GEOMETRY, mask, batch)
            blind = any(not problem.kv_len(request) for request in problem.requests if request.query_len)
            if kind is VllmFlashAttention2 and blind:
                assert any("requests without keys" in reason for reason in kind(num_splits).reasons(problem)), batch
            elif batch != "behind_encoder" or mask is Mask.CROSS:
                assert_right(kind(num_splits), problem)
        assert set(flash[kind.name]) == {num_splits}, "another number of splits was asked for"
        flash[kind.name].clear()
    assert_right(kind(1), problem_of(GEOMETRY, mask, "mixed", "fp16"))


@pytest.mark.parametrize("requests", [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 0, 0]])
@pytest.mark.parametrize("padding_tokens", [0, 1, 2])
def test_flash_attention_2_is_given_a_row_for_each_request_of_a_decode(
    flash: dict[str, list[int]], requests: list[int], padding_tokens: int
) -> None:
    batch = [Request(key, query_len, 40 + key) for key, query_len in enumerate(requests, start=1)]
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", tuple(batch))
    for padding_requests in (0, 1):
        padded = problem.with_layout(padding_requests=padding_requests, padding_tokens=padding_tokens)
        assert_right(VllmFlashAttention2(0), padded)


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW], ids=str)
def test_flash_attention_2_is_not_called_where_nobody_has_a_query(flash: dict[str, list[int]], mask: Mask) -> None:
    idle = Problem(GEOMETRY, mask, "bf16", (Request(1, 0, 40), Request(2, 0, 7)))
    for padding_tokens in (0, 2):
        assert_right(VllmFlashAttention2(0), idle.with_layout(padding_tokens=padding_tokens))
    assert not flash["vllm-fa2"], "a step of padding alone was given to the kernel"
    flash["vllm-fa2"].append(0)


def test_flash_attention_2_needs_a_row_for_each_request_of_a_captured_decode(flash: dict[str, list[int]]) -> None:
    implementation = VllmFlashAttention2(0)
    requests = (Request(1, 1, 20), Request(2, 1, 30))
    fitting = make_batch(Problem(GEOMETRY, Mask.CAUSAL, "bf16", requests).with_layout(padding_tokens=1), CPU)
    assert implementation.plan_for_graph(fitting.config, fitting.metadata, 8).num_rows == 2
    crowded = make_batch(Problem(GEOMETRY, Mask.CAUSAL, "bf16", requests).with_layout(padding_requests=1), CPU)
    with pytest.raises(ValueError, match="is given 2 rows for 3 requests of one query"):
        implementation.plan_for_graph(crowded.config, crowded.metadata, 8)
    flash["vllm-fa2"].append(0)


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS], ids=str)
def test_flash_attention_3_takes_sinks(flash: dict[str, list[int]], mask: Mask) -> None:
    assert_right(VllmFlashAttention3(1), problem_of(WITH_SINKS, mask, "mixed"))


@pytest.mark.parametrize(
    ("kind", "platform", "capability", "sentence"),
    [
        (VllmFlashAttention2, "cpu", (0, 0), "runs on NVIDIA GPUs, and this machine computes on cpu"),
        (VllmFlashAttention2, "rocm", (9, 4), "runs on NVIDIA GPUs, and this machine computes on rocm"),
        (VllmFlashAttention2, "cuda", (7, 5), "needs compute capability 8.0 or newer, and this GPU has 7.5"),
        (VllmFlashAttention3, "cuda", (8, 0), "needs compute capability 9.x, and this GPU has 8.0"),
        (VllmFlashAttention3, "cuda", (10, 0), "needs compute capability 9.x, and this GPU has 10.0"),
        (VllmFlashAttention2, "cuda", (9, 0), "vllm is not installed"),
        (VllmFlashAttention3, "cuda", (9, 0), "vllm is not installed"),
    ],
)
def test_the_platform_is_asked_before_a_file(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[VllmFlashAttention2 | VllmFlashAttention3],
    platform: str,
    capability: tuple[int, int],
    sentence: str,
) -> None:
    monkeypatch.setattr("samebits.backends.platform.accelerator", lambda: Platform(platform, "cuda", "test"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    implementation = kind(0)
    assert sentence in implementation.absence()
    assert implementation.probe().reason == implementation.absence()
