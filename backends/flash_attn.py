"""FLASH_ATTN/torch: torch's own flash kernels over gathered pages.

On a processor, ATen's flash kernel for the CPU runs each request by itself; on CUDA, torch's variable-length flash
kernel (the one behind `torch.nn.attention.varlen`) runs the whole batch. Neither reads pages, so `run` first gathers
the keys and values that each request attends to, and nothing else of the cache is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.flash_attn_packages import packaged_flash_attention
from samebits.backends.gathered import (
    GatheredRequest,
    additive_mask,
    gaps_of_flash_kernel,
    gather_request,
    gathered_requests,
    write_blind_rows,
)
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask
from samebits.backends.subject import Subject
from samebits.backends.support import Support
from samebits.backends.torch_operations import operations
from samebits.backends.variable_length import TORCH_DECLARES_NONE, VariableLengthFlash
from samebits.backends.vllm_flash_attn import vllm_flash_attention


@dataclass(frozen=True)
class ProcessorCall:
    """One request for the kernel of the CPU.

    Attributes:
        request: which rows and keys.
        mask: what to add to the scores, or None.
        is_causal: whether the kernel masks by itself.
    """

    request: GatheredRequest
    mask: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class ProcessorPlan:
    """The requests of a batch, one after another."""

    config: AttentionConfig
    calls: tuple[ProcessorCall, ...]


class ProcessorFlash(Implementation[ProcessorPlan]):
    """ATen's flash attention for the CPU, per request."""

    backend = "FLASH_ATTN"
    name = "torch"
    # One call a request: nothing of the batch reaches the kernel. It does choose its tiles from the query length.
    claims = Claims(
        batch_invariant=True,
        refuses_contradictions=True,
        source=f"one call per request; {TORCH_DECLARES_NONE}",
    )
    support = Support(
        dtypes=("fp32", "bf16", "fp16"), masks=tuple(Mask), softcap=False, encoder_offset=True, lse=True, sinks=True
    )
    tiling = Tiling(query_tile=32, kv_tile=512, kv_split=512)
    known_gaps = gaps_of_flash_kernel("all_nan", "lse_all_nan", "seen_nan", "lse_seen_nan", "nan_query")

    def probe(self) -> Availability:
        """Asks torch for the operator that `run` calls."""
        if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
            return Availability(reason="this torch has no aten::_scaled_dot_product_flash_attention_for_cpu")
        return Availability(version=torch.__version__)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> ProcessorPlan:
        """Lays out slots and masks per request."""
        self.require(config)
        return ProcessorPlan(
            config=config,
            calls=tuple(_processor_call(request, config) for request in gathered_requests(config, metadata)),
        )

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
        config = plan.config
        for call in plan.calls:
            write_blind_rows(call.request, config, output, lse)
            if not call.request.num_rows:
                continue
            queries, keys, values = gather_request(call.request, config, query, key_cache, value_cache)
            result, result_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries,
                keys.repeat_interleave(config.group_size, dim=1),
                values.repeat_interleave(config.group_size, dim=1),
                0.0,
                call.is_causal,
                attn_mask=call.mask,
                scale=config.scale,
            )
            output[call.request.rows] = result[0].transpose(0, 1)
            if lse is not None:
                lse[:, call.request.rows] = result_lse[0]


def implementations() -> list[Subject]:
    """Torch's attention on this machine's platform, vendors', and the operations on tokens, of which none has any."""
    on_processor = accelerator().kind == "cpu"
    attention = [ProcessorFlash()] if on_processor else [VariableLengthFlash(), VariableLengthFlash(num_splits=1)]
    vendors = [*vllm_flash_attention(), *packaged_flash_attention()]
    return [*attention, *vendors, *operations("FLASH_ATTN", accelerator().device)]


def _processor_call(request: GatheredRequest, config: AttentionConfig) -> ProcessorCall:
    # The kernel's own causal mask is aligned to the first key, ours to the last: they are one where the lengths agree.
    square = request.causal and request.num_rows == request.num_keys
    is_causal = square and request.window is None and config.sinks is None
    return ProcessorCall(request, None if is_causal else additive_mask(request, config), is_causal)
