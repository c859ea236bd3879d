"""A batch for kernels of variable-length attention, which read no pages: a plan for it, or for all of its sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.gathered import GatheredRequest, gathered_requests
from samebits.backends.persistent_copy import copy_to_persistent
from samebits.backends.problem import Mask

# What padding gathers: the first slot of the page that padding points at.
_NULL_SLOT = 0


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
