"""vLLM's kernel for the CPU: which file is loaded, how its cache is packed, how it is called, with plain operators."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from samebits.backends import vllm_cpu
from samebits.backends.compiled_library import CompiledLibrary, LoadedLibrary
from samebits.backends.problem import Mask, Problem, Request, Strides
from samebits.backends.vllm_cpu import VllmCpuAttention

from .plain_attention import GEOMETRY, assert_right, plain_attention, problem_of


@dataclasses.dataclass
class PlainCpu:
    """The operators of vLLM's CPU backend: a cache head by head, in memory of its own."""

    schedules: list[dict[str, object]] = dataclasses.field(default_factory=list)

    def get_scheduler_metadata(self, **arguments: object) -> torch.Tensor:
        # The dtype of the cache is left to its default.
        assert set(arguments) == set(vllm_cpu._OPERATORS["get_scheduler_metadata"]) - {"kv_cache_dtype"}
        self.schedules.append(arguments)
        return torch.zeros(1)

    def cpu_attn_reshape_and_cache(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        isa: str,
    ) -> None:
        page_size = key_cache.shape[2]
        for tokens, cache in ((key, key_cache), (value, value_cache)):
            cache[slot_mapping // page_size, :, slot_mapping % page_size] = tokens

    def cpu_attention_with_kv_cache(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        scale: float,
        causal: bool,
        sliding_window_size: int,
        block_table: torch.Tensor,
        softcap: float,
        scheduler_metadata: torch.Tensor,
        s_aux: torch.Tensor | None,
        dynamic_causal: torch.Tensor | None,
    ) -> None:
        assert output.is_contiguous(), "the kernel takes its output for contiguous"
        assert dynamic_causal is None or dynamic_causal.dtype is torch.int32
        assert not (causal and dynamic_causal is not None)
        causal_of = [causal] * len(seq_lens) if dynamic_causal is None else [bool(flag) for flag in dynamic_causal]
        window = (-1, -1) if sliding_window_size == -1 else (sliding_window_size - 1, 0)
        result, _ = plain_attention(
            query,
            key_cache.transpose(1, 2),
            value_cache.transpose(1, 2),
            query_start_loc,
            seq_lens,
            block_table,
            scale,
            causal_of,
            window,
            softcap,
            s_aux,
        )
        output.copy_(result)


@pytest.fixture
def cpu_library(monkeypatch: pytest.MonkeyPatch) -> PlainCpu:
    plain = PlainCpu()
    operators = {name: getattr(plain, name) for name in vllm_cpu._OPERATORS}
    monkeypatch.setattr(CompiledLibrary, "loaded", LoadedLibrary("0.32.0", operators))
    return plain


@pytest.mark.parametrize("mask", Mask, ids=str)
def test_vllms_cpu_kernel_is_given_the_batch(cpu_library: PlainCpu, mask: Mask) -> None:
    for split_keys in (True, False):
        for strides in Strides:
            problem = problem_of(GEOMETRY, mask, "mixed", "fp32").with_layout(strides=strides)
            assert_right(VllmCpuAttention(split_keys), problem)
        assert {schedule["enable_kv_split"] for schedule in cpu_library.schedules} == {split_keys}
        cpu_library.schedules.clear()


@pytest.mark.parametrize(
    ("page_size", "head_dim", "dtype", "amx", "expected"),
    [
        (16, 64, "bf16", True, "vec16"),
        (32, 64, "bf16", True, "amx"),
        (32, 64, "bf16", False, "vec"),
        (32, 64, "fp32", True, "vec"),
        (48, 64, "fp32", True, "vec16"),
        (32, 80, "bf16", True, "vec16"),
    ],
)
def test_vllms_cpu_cache_is_packed_as_vllm_packs_it(
    cpu_library: PlainCpu,
    monkeypatch: pytest.MonkeyPatch,
    page_size: int,
    head_dim: int,
    dtype: str,
    amx: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    geometry = dataclasses.replace(GEOMETRY, page_size=page_size, head_dim=head_dim)
    assert_right(VllmCpuAttention(True), Problem(geometry, Mask.CAUSAL, dtype, (Request(1, 3, 70),)))
    assert {schedule["isa_hint"] for schedule in cpu_library.schedules} == {expected}


@pytest.mark.parametrize(
    ("avx512", "avx512_bf16", "file"),
    [(True, True, "_C.abi3.so"), (True, False, "_C_AVX512.abi3.so"), (False, False, "_C_AVX2.abi3.so")],
)
def test_vllms_cpu_file_is_the_one_for_this_processor(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, avx512_bf16: bool, file: str
) -> None:
    monkeypatch.setattr(vllm_cpu, "_is_x86", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert vllm_cpu._library().relative == f"vllm/{file}"
