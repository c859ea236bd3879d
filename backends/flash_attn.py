"""FLASH_ATTN/torch: torch's own flash kernels over gathered pages.

On a processor, ATen's flash kernel for the CPU runs each request by itself; on CUDA, torch's variable-length flash
kernel (the one behind `torch.nn.attention.varlen`) runs the whole batch. Neither reads pages, so `run` first gathers
the attended keys and values of every request, and nothing else of the cache is read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Availability, Claims, Implementation, Tiling
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask
from samebits.backends.support import Support

_TORCH_KERNELS = "ATen/native/cpu/FlashAttentionKernel.cpp and torch.nn.attention.varlen declare none"


@dataclass(frozen=True)
class RequestPlan:
    """How one request is computed on the CPU.

    Attributes:
        rows: query rows that see at least one key.
        empty_rows: query rows that see none, which come before them.
        slots: int64 `[kv_len]`, cache slots of the attended keys in order.
        bias: float32 `[rows, kv_len]` to add to the scores, or None.
        is_causal: whether the kernel masks by itself.
    """

    rows: slice
    empty_rows: slice
    slots: torch.Tensor
    bias: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class ProcessorPlan:
    """The requests of a batch, one after another."""

    config: AttentionConfig
    requests: tuple[RequestPlan, ...]


class ProcessorFlash(Implementation[ProcessorPlan]):
    """ATen's flash attention for the CPU, per request."""

    backend = "FLASH_ATTN"
    name = "torch"
    # One call a request: nothing of the batch reaches the kernel. It does choose its tiles from the query length.
    claims = Claims(batch_invariant=True, source="one call per request; " + _TORCH_KERNELS)
    support = Support(dtypes=("fp32", "bf16", "fp16"), softcap=False, encoder_offset=True, lse=True)
    tiling = Tiling(query_tile=32, kv_tile=512, kv_split=512)

    def probe(self) -> Availability:
        """Asks torch for the operator that `run` calls."""
        if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
            return Availability(reason="this torch has no aten::_scaled_dot_product_flash_attention_for_cpu")
        return Availability(version=torch.__version__)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> ProcessorPlan:
        """Lays out slots and masks per request."""
        query_start_loc = metadata.query_start_loc.tolist()
        kv_lens = metadata.kv_lens(config.mask).tolist()
        kv_starts = metadata.kv_starts(config.mask).tolist()
        requests = tuple(
            self._plan_request(config, metadata.block_table[index], first, last, kv_starts[index], kv_lens[index])
            for index, (first, last) in enumerate(itertools.pairwise(query_start_loc))
            if last > first
        )
        return ProcessorPlan(config=config, requests=requests)

    def run(
        self,
        plan: ProcessorPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Gathers and computes each request."""
        for request in plan.requests:
            output[request.empty_rows] = 0.0
            if lse is not None:
                lse[:, request.empty_rows] = -torch.inf
            if request.rows.start == request.rows.stop:
                continue
            key, value = (
                gather_slots(cache, request.slots).transpose(0, 1).repeat_interleave(plan.config.group_size, dim=0)
                for cache in (key_cache, value_cache)
            )
            result, result_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[request.rows].transpose(0, 1).unsqueeze(0),
                key.unsqueeze(0),
                value.unsqueeze(0),
                0.0,
                request.is_causal,
                attn_mask=request.bias,
                scale=plan.config.scale,
            )
            output[request.rows] = result[0].transpose(0, 1)
            if lse is not None:
                lse[:, request.rows] = result_lse[0]

    @staticmethod
    def _plan_request(
        config: AttentionConfig, pages: torch.Tensor, first: int, last: int, kv_start: int, kv_len: int
    ) -> RequestPlan:
        query_len = last - first
        causal = config.mask in (Mask.CAUSAL, Mask.SLIDING_WINDOW)
        blind = query_len if kv_len == 0 else max(0, query_len - kv_len) if causal else 0
        seeing = query_len - blind
        is_causal = config.mask is Mask.CAUSAL and seeing == kv_len
        bias = None
        if causal and not is_causal and not (seeing == 1 and config.window is None):
            visible = torch.ones(seeing, kv_len, dtype=torch.bool).tril(kv_len - seeing)
            if config.window is not None:
                visible = visible.triu(kv_len - seeing - config.window + 1)
            bias = torch.zeros(seeing, kv_len, dtype=config.dtype).masked_fill(~visible, -torch.inf)
        return RequestPlan(
            rows=slice(first + blind, last),
            empty_rows=slice(first, first + blind),
            slots=request_slots(pages, kv_start, kv_len, config.page_size),
            bias=bias,
            is_causal=is_causal,
        )


@dataclass(frozen=True)
class VariableLengthPlan:
    """A batch for the variable-length kernel.

    Attributes:
        slots: int64 `[total_kv]`, cache slots of all attended keys, request after request.
        num_tokens: query rows that are no padding.
        query_start_loc, key_start_loc: int32 `[live requests + 1]`, of requests that have a query.
    """

    config: AttentionConfig
    slots: torch.Tensor
    num_tokens: int
    query_start_loc: torch.Tensor
    key_start_loc: torch.Tensor
    max_query_len: int
    max_kv_len: int


class VariableLengthFlash(Implementation[VariableLengthPlan]):
    """Torch's variable-length flash attention on CUDA and ROCm."""

    backend = "FLASH_ATTN"
    name = "torch"
    claims = Claims(source=_TORCH_KERNELS)
    support = Support(
        dtypes=("bf16", "fp16"),
        head_dims=lambda head_dim: head_dim % 8 == 0 and head_dim <= 256,
        softcap=False,
        encoder_offset=True,
        lse=True,
    )
    tiling = Tiling(query_tile=128, kv_tile=128, kv_split=256)

    def probe(self) -> Availability:
        """Asks torch for the accelerator and for the operator that `run` calls."""
        if not hasattr(torch.ops.aten, "_flash_attention_forward"):
            return Availability(reason="this torch has no aten::_flash_attention_forward")
        if not torch.backends.cuda.is_flash_attention_available():
            return Availability(reason="this torch was built without flash attention")
        return Availability(version=torch.__version__, device="cuda")

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> VariableLengthPlan:
        """Lays out the gathered keys of the whole batch."""
        # With one query a request, the kernel takes the number of query rows for the number of requests, so padding may
        # not reach it.
        live = metadata.query_start_loc.diff() > 0
        kv_lens = metadata.kv_lens(config.mask)[live]
        kv_starts = metadata.kv_starts(config.mask)[live]
        slots = [
            request_slots(pages, start, length, config.page_size)
            for pages, start, length in zip(
                metadata.block_table[live], kv_starts.tolist(), kv_lens.tolist(), strict=True
            )
        ]
        query_start_loc = torch.cat([metadata.query_start_loc[:1], metadata.query_start_loc[1:][live]])
        key_start_loc = torch.zeros_like(query_start_loc)
        torch.cumsum(kv_lens, dim=0, out=key_start_loc[1:])
        return VariableLengthPlan(
            config=config,
            slots=torch.cat(slots),
            num_tokens=int(query_start_loc[-1]),
            query_start_loc=query_start_loc,
            key_start_loc=key_start_loc,
            max_query_len=metadata.max_query_len,
            max_kv_len=metadata.max_seq_len,
        )

    def run(
        self,
        plan: VariableLengthPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Gathers all keys and values and computes the batch in one call."""
        causal = plan.config.mask in (Mask.CAUSAL, Mask.SLIDING_WINDOW)
        result, result_lse, *_ = torch.ops.aten._flash_attention_forward(
            query[: plan.num_tokens],
            gather_slots(key_cache, plan.slots),
            gather_slots(value_cache, plan.slots),
            plan.query_start_loc,
            plan.key_start_loc,
            plan.max_query_len,
            plan.max_kv_len,
            0.0,
            causal,
            False,
            scale=plan.config.scale,
            window_size_left=None if plan.config.window is None else plan.config.window - 1,
            window_size_right=None if plan.config.window is None else 0,
        )
        output[: plan.num_tokens] = result
        if lse is not None:
            # The kernel reports +inf for a row that sees no key.
            lse[:, : plan.num_tokens] = result_lse.masked_fill(result_lse == torch.inf, -torch.inf)


def request_slots(pages: torch.Tensor, kv_start: int, kv_len: int, page_size: int) -> torch.Tensor:
    """Cache slots of a request's attended keys in order.

    Args:
        pages: int32 `[max_pages_per_request]`, the request's row of the block table.
        kv_start: its first attended slot, counted from its own first slot.
        kv_len: how many keys it attends to.
        page_size: tokens per page.

    Returns:
        int64 `[kv_len]` on the device of `pages`.
    """
    token = torch.arange(kv_start, kv_start + kv_len, device=pages.device)
    return pages[token // page_size].to(torch.int64) * page_size + token % page_size


def gather_slots(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Copies slots out of a page cache: `[len(slots), num_kv_heads, head_dim]`."""
    return cache[slots // cache.shape[1], slots % cache.shape[1]]


def implementations() -> list[Implementation[Any]]:
    """The implementation for this machine's platform."""
    return [ProcessorFlash() if accelerator().kind == "cpu" else VariableLengthFlash()]
