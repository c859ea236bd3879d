"""A plain kernel that a CUDA graph can capture: dense attention of all tokens, in launches of one shape alone.

Every sum is a tree of elementwise additions over a fixed number of elements, so that no bit depends on how many tokens,
requests or keys there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.harness.controls.kernels import finite

CHUNK = 32
# Elements behind each row of slots: who takes them for compact writes elsewhere.
_ROW_PADDING = 8


@dataclass
class DensePlan:
    """A batch for the dense kernel, in tensors that `refill` brings up to date.

    Attributes:
        config: of the layer.
        chunk: keys that are added up from zero, a power of two.
        request_of_token: int64 `[num_tokens]`; of padding, any.
        last_key: int64 `[num_tokens]`, the last key that a token sees; -1 for none.
        slots: int64 `[num_requests, max_keys]`, where each key lies: a slice of longer rows.
        owned: bool `[num_tokens]`, which tokens are a request's.
        lengths: int32 `[num_requests]`, which the kernel does not read.
        scratch: float32 `[num_tokens, num_heads, max_keys]`, for the scores.
        total: of the output's shape, for a flaw to add up in.
    """

    config: AttentionConfig
    chunk: int
    request_of_token: torch.Tensor
    last_key: torch.Tensor
    slots: torch.Tensor
    owned: torch.Tensor
    lengths: torch.Tensor
    scratch: torch.Tensor
    total: torch.Tensor


# What a refill copies.
REFILLED = ("request_of_token", "last_key", "slots", "owned", "lengths")


def dense_plan(config: AttentionConfig, metadata: AttentionMetadata, chunk: int = CHUNK) -> DensePlan:
    """Lays a causal batch out. Shapes follow from sizes and bounds alone, and nothing is read on the host."""
    device, starts = config.device, metadata.query_start_loc.to(torch.int64)
    num_tokens, num_requests = metadata.num_tokens, metadata.num_requests
    max_keys = -(-metadata.max_seq_len // CHUNK) * CHUNK
    token = torch.arange(num_tokens, device=device)
    request = torch.searchsorted(starts[1:], token, right=True).clamp(max=num_requests - 1)
    from_end = token - starts[request + 1]
    owned = token < starts[-1]
    key = torch.arange(max_keys, device=device)
    column = (key // config.page_size).clamp(max=metadata.block_table.shape[1] - 1)
    rows = torch.zeros(num_requests, max_keys + _ROW_PADDING, dtype=torch.int64, device=device)
    rows[:, :max_keys] = metadata.block_table.to(torch.int64)[:, column] * config.page_size + key % config.page_size
    return DensePlan(
        config=config,
        chunk=chunk,
        request_of_token=request,
        last_key=torch.where(owned, metadata.seq_lens.to(torch.int64)[request] + from_end, -1),
        slots=rows[:, :max_keys],
        owned=owned,
        lengths=metadata.seq_lens.clone(),
        scratch=torch.zeros(num_tokens, config.num_heads, max_keys, device=device),
        total=torch.zeros(num_tokens, config.num_heads, config.head_dim, device=device),
    )


def attend(
    plan: DensePlan, scratch: torch.Tensor, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[num_tokens, num_heads, head_dim]` and log-sum-exp `[num_heads, num_tokens]` of all tokens."""
    config = plan.config
    # A flaw may leave numbers in here that lead nowhere.
    slots = plan.slots.clamp(0, key_cache.shape[0] * key_cache.shape[1] - 1)
    request = plan.request_of_token.clamp(0, len(slots) - 1)
    visible = torch.arange(slots.shape[1], device=slots.device) <= plan.last_key.unsqueeze(1)
    keys, values = (
        cache[slots // config.page_size, slots % config.page_size][request]
        .masked_fill(~visible[:, :, None, None], 0.0)
        .transpose(1, 2)
        .repeat_interleave(config.group_size, dim=1)
        for cache in (key_cache, value_cache)
    )
    query = query.masked_fill(~plan.owned[:, None, None], 0.0)
    scores = _tree_sum(query.unsqueeze(2) * keys) * config.scale
    scratch.copy_(scores.masked_fill(~visible.unsqueeze(1), -torch.inf))
    maximum = torch.full_like(scratch[:, :, 0], -torch.inf)
    total, output = torch.zeros_like(maximum), torch.zeros_like(query)
    for start in range(0, slots.shape[1], plan.chunk):
        part = slice(start, start + plan.chunk)
        new_maximum = torch.maximum(maximum, scratch[:, :, part].amax(dim=2))
        weights = torch.exp(scratch[:, :, part] - finite(new_maximum).unsqueeze(2))
        rescale = torch.exp(maximum - finite(new_maximum))
        weighted = (weights.unsqueeze(3) * values[:, :, part]).transpose(2, 3)
        total = total * rescale + _tree_sum(weights)
        output = output * rescale.unsqueeze(2) + _tree_sum(weighted)
        maximum = new_maximum
    lse = (maximum + torch.log(total)).transpose(0, 1)
    return output / total.masked_fill(total == 0.0, 1.0).unsqueeze(2) + 0.0, lse


def _tree_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension, of a power of two of elements: halves are added until one is left."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
