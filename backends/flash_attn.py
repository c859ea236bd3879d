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
    KnownGap,
    Tiling,
)
from samebits.backends.gathered import (
    GatheredRequest,
    additive_mask,
    gaps_of_few_keys,
    gather_request,
    gather_slots,
    gathered_requests,
    write_blind_rows,
)
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask
from samebits.backends.subject import GraphSupport, PaddingRows, Subject
from samebits.backends.support import Support
from samebits.backends.torch_operations import operations
from samebits.backends.variable_length import (
    VariableLengthCall,
    VariableLengthPlan,
    lasting_plan,
    refill_plan,
    variable_length_call,
)
from samebits.backends.vllm_flash_attn import vllm_flash_attention

_TORCH_KERNELS = "ATen/native/cpu/FlashAttentionKernel.cpp and torch.nn.attention.varlen declare none"
_MASKS = (Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS, Mask.PER_REQUEST)
# What torch's flash kernel for NVIDIA GPUs is compiled for at least: Ampere.
_LEAST_CAPABILITY = (8, 0)


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
    claims = Claims(batch_invariant=True, source="one call per request; " + _TORCH_KERNELS)
    support = Support(
        dtypes=("fp32", "bf16", "fp16"), masks=_MASKS, softcap=False, encoder_offset=True, lse=True, sinks=True
    )
    tiling = Tiling(query_tile=32, kv_tile=512, kv_split=512)
    known_gaps = gaps_of_few_keys("all_nan", "lse_all_nan")

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


class VariableLengthFlash(Implementation[VariableLengthPlan]):
    """Torch's variable-length flash attention on CUDA and ROCm.

    Args:
        num_splits: parts that a request's keys are divided into, in a variant of its own; None for torch's choice, and
            for versions of torch that leave none.
    """

    backend = "FLASH_ATTN"
    name = "torch"
    support = Support(
        dtypes=("bf16", "fp16"),
        masks=_MASKS,
        head_dims=lambda head_dim: head_dim % 8 == 0 and head_dim <= 256,
        softcap=False,
        encoder_offset=True,
        lse=True,
    )
    tiling = Tiling(query_tile=128, kv_tile=128, kv_split=256)
    # Its output is NaN where it should be; its log-sum-exp says that the row sees no key.
    known_gaps = tuple(
        KnownGap("docs/backends.md, torch's log-sum-exp hides NaN", relation=relation)
        for relation in ("lse_seen_nan", "lse_all_nan")
    )

    def __init__(self, num_splits: int | None = None) -> None:
        self.num_splits = num_splits
        self.variant = "" if num_splits is None else f"num_splits={num_splits}"
        declared = "docstring of torch.nn.attention.varlen.varlen_attn, num_splits"
        self.claims = Claims(
            batch_invariant=num_splits == 1,
            # Lengths are read on the device, and what is gathered is as large as bounds say: `lasting_plan`.
            cuda_graph=GraphSupport.ALWAYS,
            padding_rows=PaddingRows.UNTOUCHED,
            source=declared if num_splits == 1 else _TORCH_KERNELS,
        )

    def absence(self) -> str:
        """Looks for the argument that a variant needs."""
        if self.num_splits is None or "num_splits" in _argument_names("_flash_attention_forward"):
            return ""
        return f"torch {torch.__version__}'s aten::_flash_attention_forward takes no num_splits; torch 2.13's does"

    def probe(self) -> Availability:
        """Asks torch for the accelerator and for the operator that `run` calls."""
        if not hasattr(torch.ops.aten, "_flash_attention_forward"):
            return Availability(reason="this torch has no aten::_flash_attention_forward")
        if self.absence():
            return Availability(reason=self.absence())
        if not torch.backends.cuda.is_flash_attention_available():
            return Availability(reason="this torch was built without flash attention")
        if accelerator().kind == "cuda":
            capability = torch.cuda.get_device_capability()
            if capability < _LEAST_CAPABILITY:
                least, found = (".".join(map(str, version)) for version in (_LEAST_CAPABILITY, capability))
                reason = f"torch's flash attention needs compute capability {least} or newer, and this GPU has {found}"
                return Availability(reason=reason)
        return Availability(version=torch.__version__, device="cuda")

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> VariableLengthPlan:
        """Lays out the gathered keys of the whole batch: in one call, or in two where only some requests are causal."""
        self.require(config)
        requests = gathered_requests(config, metadata)
        alike = [[request for request in requests if request.causal is causal] for causal in (True, False)]
        groups = [group for group in alike if group]
        return VariableLengthPlan(
            config=config,
            calls=tuple(variable_length_call(group, is_whole_batch=len(groups) == 1) for group in groups),
            max_query_len=metadata.max_query_len,
            max_kv_len=metadata.max_seq_len,
        )

    def plan_for_graph(
        self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int
    ) -> VariableLengthPlan:
        """Makes room for the keys of any batch of these sizes."""
        self.require(config)
        return lasting_plan(config, metadata)

    def refill(self, config: AttentionConfig, plan: VariableLengthPlan, metadata: AttentionMetadata) -> None:
        """Looks up the slots of the batch's keys."""
        refill_plan(plan, metadata)

    def run(
        self,
        plan: VariableLengthPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Gathers the keys and values of each call, and computes it."""
        for call in plan.calls:
            result, result_lse = self._attend(
                plan,
                call,
                # The kernel loads 16 bytes at a time, which need not be aligned in rows of any stride.
                query[call.rows].contiguous(),
                gather_slots(key_cache, call.slots).contiguous(),
                gather_slots(value_cache, call.slots).contiguous(),
            )
            call.write(output, result)
            if lse is not None:
                # The kernel reports +inf for a row that sees no key.
                keyless = result_lse.masked_fill(result_lse == torch.inf, -torch.inf)
                call.write(lse.transpose(0, 1), keyless.transpose(0, 1))

    def _attend(
        self,
        plan: VariableLengthPlan,
        call: VariableLengthCall,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Calls the kernel on gathered tokens: the output, and the log-sum-exp `[num_heads, rows]`."""
        window = plan.config.window
        splits = {} if self.num_splits is None else {"num_splits": self.num_splits}
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            queries,
            keys,
            values,
            call.query_start_loc,
            call.key_start_loc,
            plan.max_query_len,
            plan.max_kv_len,
            0.0,
            call.causal,
            False,
            scale=plan.config.scale,
            window_size_left=None if window is None else window - 1,
            window_size_right=None if window is None else 0,
            **splits,
        )
        return output, lse


def implementations() -> list[Subject]:
    """Torch's attention on this machine's platform, vendors', and the operations on tokens, of which none has any."""
    # Imported here, as its classes derive from those above.
    from samebits.backends.flash_attn_packages import packaged_flash_attention

    on_processor = accelerator().kind == "cpu"
    attention = [ProcessorFlash()] if on_processor else [VariableLengthFlash(), VariableLengthFlash(num_splits=1)]
    vendors = [*vllm_flash_attention(), *packaged_flash_attention()]
    return [*attention, *vendors, *operations("FLASH_ATTN", accelerator().device)]


def _argument_names(operator: str) -> list[str]:
    """What an operator of ATen's takes."""
    return [argument.name for argument in getattr(torch.ops.aten, operator).default._schema.arguments]


def _processor_call(request: GatheredRequest, config: AttentionConfig) -> ProcessorCall:
    # The kernel's own causal mask is aligned to the first key, ours to the last: they are one where the lengths agree.
    square = request.causal and request.num_rows == request.num_keys
    is_causal = square and request.window is None and config.sinks is None
    return ProcessorCall(request, None if is_causal else additive_mask(request, config), is_causal)
