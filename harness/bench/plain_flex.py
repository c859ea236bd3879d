"""FlexAttention as its users call it: compiled, over keys and values that lie contiguously, one length for all."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from samebits.harness.bench.inputs import AttentionInputs
from samebits.harness.bench.stopwatch import Action

# Shapes that one process compiles it for. Beyond them torch raises; it never runs uncompiled.
_MOST_SHAPES = 64


def plain_flex(inputs: AttentionInputs) -> tuple[Action, Action]:
    """A call over copies of a batch's keys and values.

    Args:
        inputs: of requests that all have as many queries, and as many keys.

    Returns:
        What computes the batch, compiled at its first call; and what brings its last result to `inputs.output`.
    """
    batch = inputs.batch
    config, num_requests = batch.config, len(inputs.slots)
    slots = torch.stack(inputs.slots).to(batch.query.device)
    pages, offsets = slots // config.page_size, slots % config.page_size
    # [num_requests, heads, tokens, head_dim]
    keys, values = (
        cache[pages, offsets].transpose(1, 2).contiguous() for cache in (batch.key_cache, batch.value_cache)
    )
    query = batch.query.view(num_requests, -1, config.num_heads, config.head_dim).transpose(1, 2).contiguous()
    query_len, kv_len = query.shape[2], keys.shape[2]
    context = kv_len - query_len

    def causal(request: torch.Tensor, head: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key <= row + context

    # A single query sees all keys, so that none is needed.
    block_mask = None
    if query_len > 1:
        block_mask = create_block_mask(causal, None, None, query_len, kv_len, device=str(query.device))
    attend = torch.compile(flex_attention, dynamic=False)
    results: list[torch.Tensor] = []

    def attend_once() -> None:
        with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES, fail_on_recompile_limit_hit=True):
            result = attend(
                query, keys, values, block_mask=block_mask, scale=config.scale, enable_gqa=config.group_size > 1
            )
        results[:] = [result]

    def collect() -> None:
        inputs.output.view(num_requests, query_len, config.num_heads, config.head_dim).copy_(results[0].transpose(1, 2))

    return attend_once, collect
