"""FLASH_ATTN/torch on a GPU: torch's variable-length flash attention, over gathered pages.

A batch is planned for kernels that read no pages, whether torch's or another library's: by itself, or with room for all
batches of its padded sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
from samebits.backends.flash_limits import head_dim_supported
from samebits.backends.gathered import GatheredRequest, gather_slots, gathered_requests
from samebits.backends.persistent_copy import copy_to_persistent
from samebits.backends.platform import accelerator, capability_reason
from samebits.backends.problem import Mask
from samebits.backends.subject import GraphSupport, PaddingRows
from samebits.backends.support import Support

# What padding gathers: the first slot of the page that padding points at.
_NULL_SLOT = 0
# What torch's flash kernel for NVIDIA GPUs is compiled for at least: Ampere.
_LEAST_CAPABILITY = (8, 0)
# Where torch would say that its flash kernels are batch-invariant.
TORCH_DECLARES_NONE = "ATen/native/cpu/FlashAttentionKernel.cpp and torch.nn.attention.varlen declare none"


@dataclass(frozen=True)
class VariableLengthCall:
    """Requests of a batch that are masked alike, for one call of the variable-length kernel.

    Attributes:
        rows: their query rows: a slice, or int64 indices where other requests lie between them.
        slots: int64 `[total_keys]`, cache slots of all their keys, request after request.
        query_start_loc, key_start_loc: int32 `[requests + 1]`.
        causal: whether a query sees no later key.
        written: bool `[rows]`, which of the rows the call computes; None for all.
    """

    rows: slice | torch.Tensor
    slots: torch.Tensor
    query_start_loc: torch.Tensor
    key_start_loc: torch.Tensor
    causal: bool
    written: torch.Tensor | None = None

    def write(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Stores what came of the rows that are the call's.

        Args:
            output: `[num_tokens, ...]`, of the batch.
            result: `[rows, ...]`, of the call.
        """
        if self.written is not None:
            written = self.written.view(-1, *[1] * (result.dim() - 1))
            result = torch.where(written, result, output[self.rows])
        output[self.rows] = result


@dataclass(frozen=True)
class VariableLengthPlan:
    """A batch for the variable-length kernel."""

    config: AttentionConfig
    calls: tuple[VariableLengthCall, ...]
    max_query_len: int
    max_kv_len: int


def variable_length_call(requests: Sequence[GatheredRequest], is_whole_batch: bool) -> VariableLengthCall:
    """One call for requests that are masked alike.

    Args:
        requests: one at least.
        is_whole_batch: whether there are no others between them.
    """
    # A request's blind rows come right before the others, and the kernel finds them by itself.
    firsts, lasts = [request.blind_rows.start for request in requests], [request.rows.stop for request in requests]
    device = requests[0].slots.device

    def starts(lengths: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)

    rows: slice | torch.Tensor = slice(firsts[0], lasts[-1])
    if not is_whole_batch:
        ranges = [torch.arange(first, last) for first, last in zip(firsts, lasts, strict=True)]
        rows = torch.cat(ranges).to(device)
    return VariableLengthCall(
        rows=rows,
        slots=torch.cat([request.slots for request in requests]),
        query_start_loc=starts([last - first for first, last in zip(firsts, lasts, strict=True)]),
        key_start_loc=starts([request.num_keys for request in requests]),
        causal=requests[0].causal,
    )


def lasting_plan(config: AttentionConfig, metadata: AttentionMetadata) -> VariableLengthPlan:
    """A plan for all batches of some padded sizes, filled in for the one that the metadata hold.

    Every call has all rows and all requests of the batch. To a call that is not theirs, requests have no keys, and
    their rows are not written, no more than those of padding.

    Args:
        config: of the layer.
        metadata: of persistent tensors, with bounds that hold for all batches.
    """
    device, num_requests, num_tokens = config.device, metadata.num_requests, metadata.num_tokens
    masked = (True, False) if config.mask is Mask.PER_REQUEST else (metadata.causal,)
    plan = VariableLengthPlan(
        config=config,
        calls=tuple(
            VariableLengthCall(
                rows=slice(0, num_tokens),
                slots=torch.zeros(num_requests * metadata.max_seq_len, dtype=torch.int64, device=device),
                query_start_loc=metadata.query_start_loc,
                key_start_loc=torch.zeros(num_requests + 1, dtype=torch.int32, device=device),
                causal=causal,
                written=torch.zeros(num_tokens, dtype=torch.bool, device=device),
            )
            for causal in masked
        ),
        max_query_len=metadata.max_query_len,
        max_kv_len=metadata.max_seq_len,
    )
    refill_plan(plan, metadata)
    return plan


def refill_plan(plan: VariableLengthPlan, metadata: AttentionMetadata) -> None:
    """Fills a lasting plan in for the batch that its metadata hold now. Reads lengths on the host.

    Args:
        plan: from `lasting_plan`.
        metadata: that it was made from.
    """
    device = plan.config.device
    requests = gathered_requests(plan.config, metadata)
    (live,) = torch.nonzero(metadata.query_start_loc.cpu().diff(), as_tuple=True)
    for call in plan.calls:
        assert call.written is not None, "a lasting plan says which rows its calls write"
        num_keys = torch.zeros(metadata.num_requests, dtype=torch.int64)
        written = torch.zeros(len(call.written), dtype=torch.bool)
        slots = [call.slots[:0]]
        for place, request in zip(live.tolist(), requests, strict=True):
            if request.causal is call.causal:
                num_keys[place] = request.num_keys
                written[request.blind_rows.start : request.rows.stop] = True
                slots.append(request.slots)
        copy_to_persistent(torch.cat(slots), call.slots, _NULL_SLOT)
        call.key_start_loc[1:] = num_keys.cumsum(0).to(device)
        call.written.copy_(written)


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
        masks=tuple(Mask),
        head_dims=head_dim_supported,
        softcap=False,
        encoder_offset=True,
        lse=True,
    )
    tiling = Tiling(query_tile=128, kv_tile=128, kv_split=256)
    # Its output is NaN where it should be; its log-sum-exp says that the row sees no key.
    known_gaps = tuple(
        KnownGap("docs/backends.md, torch's log-sum-exp hides NaN", relation=relation, always=always)
        for relation, always in (
            ("lse_seen_nan", True),
            ("lse_all_nan", True),
            ("lse_seen_inf", False),
            ("nan_query", False),
        )
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
            refuses_contradictions=True,
            source=declared if num_splits == 1 else TORCH_DECLARES_NONE,
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
        reason = self.absence()
        if not reason and not torch.backends.cuda.is_flash_attention_available():
            reason = "this torch was built without flash attention"
        if not reason and accelerator().kind == "cuda":
            reason = capability_reason("torch's flash attention", _LEAST_CAPABILITY)
        return Availability(reason=reason) if reason else Availability(version=torch.__version__, device="cuda")

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
        window_left, window_right = plan.config.window_sides or (None, None)
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
            window_size_left=window_left,
            window_size_right=window_right,
            **splits,
        )
        return output, lse


def _argument_names(operator: str) -> list[str]:
    """What an operator of ATen's takes."""
    return [argument.name for argument in getattr(torch.ops.aten, operator).default._schema.arguments]
