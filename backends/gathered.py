"""A batch taken apart into requests, for kernels that read no pages.

Each request's keys and values are gathered from the cache, but for those that none of its queries sees, and its rows
are divided into those that see a key and those that see none. What is left is dense attention, one request at a time.

A sink becomes one more key: a key of zeros scores 0 against every query, the mask adds the head's logit to that, and a
value of zeros takes the weight without adding anything.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from samebits.backends.consistency import refuse_contradictions
from samebits.backends.contract import AttentionConfig, AttentionMetadata, KnownGap

# Batches in which a request whose keys are made NaN has fewer than a vector holds.
_BATCHES_OF_FEW_KEYS = {
    "all_nan": ("edges", "splits"),
    "seen_nan": ("decode",),
    "nan_query": ("draft", "edges", "splits", "decode", "prefill"),
}


@dataclass(frozen=True)
class GatheredRequest:
    """One request of a batch: dense attention of its seeing rows over its gathered keys.

    The last row sees the last key; under a causal mask each row before sees one key less.

    Attributes:
        rows: query rows that see at least one key.
        blind_rows: query rows that see none, which come before them.
        slots: int64 `[num_keys]`, cache slots of the keys that at least one row sees, in order.
        causal: whether a row sees no later key.
        window: keys that a row sees, its own among them; None for no window.
    """

    rows: slice
    blind_rows: slice
    slots: torch.Tensor
    causal: bool
    window: int | None

    @property
    def num_rows(self) -> int:
        """Rows that see at least one key."""
        return int(self.rows.stop - self.rows.start)

    @property
    def num_keys(self) -> int:
        """Keys that at least one row sees."""
        return int(self.slots.shape[0])

    @property
    def all_visible(self) -> bool:
        """Whether every seeing row sees every gathered key."""
        return not self.causal or self.num_rows <= 1

    def visible(self) -> torch.Tensor:
        """Which gathered keys each seeing row sees: bool `[num_rows, num_keys]` on the device of `slots`."""
        visible = torch.ones(self.num_rows, self.num_keys, dtype=torch.bool, device=self.slots.device)
        if self.all_visible:
            return visible
        diagonal = self.num_keys - self.num_rows
        visible = visible.tril(diagonal)
        return visible if self.window is None else visible.triu(diagonal - self.window + 1)


def gaps_of_flash_kernel(*relations: str) -> tuple[KnownGap, ...]:
    """What ATen's flash kernel for the CPU gets wrong: NaN of fewer keys than a vector holds, and infinite scores.

    Args:
        relations: that see the first.
    """
    few = "docs/backends.md, ATen's flash kernel hides NaN"
    infinite = "docs/backends.md, ATen's flash kernel hides infinite scores"
    return (
        *(
            KnownGap(few, relation=relation, batch=batch)
            for relation in relations
            for batch in _BATCHES_OF_FEW_KEYS[relation.removeprefix("lse_")]
        ),
        *(
            KnownGap(infinite, relation="seen_inf", dtype=dtype, batch=batch)
            for dtype in ("bf16", "fp16")
            for batch in ("mixed", "decode")
        ),
    )


def gathered_requests(config: AttentionConfig, metadata: AttentionMetadata) -> tuple[GatheredRequest, ...]:
    """Takes a batch apart: the requests that have a query, in order. Reads lengths on the host.

    Args:
        config: gives mask, window and page size.
        metadata: of the batch.

    Raises:
        ValueError: the metadata contradict themselves.
    """
    refuse_contradictions(config, metadata)
    per_request = zip(
        itertools.pairwise(metadata.query_start_loc.tolist()),
        metadata.block_table,
        metadata.kv_starts(config.mask).tolist(),
        metadata.kv_lens(config.mask).tolist(),
        metadata.causal_of_requests().tolist(),
        strict=True,
    )
    return tuple(
        _gathered_request(config, first, last, pages, kv_start, kv_len, is_causal)
        for (first, last), pages, kv_start, kv_len, is_causal in per_request
        if last > first
    )


def additive_mask(request: GatheredRequest, config: AttentionConfig) -> torch.Tensor | None:
    """What to add to a request's scores: 0 for a visible key, `-inf` for a hidden one, and the sinks as a last column.

    Args:
        request: whose scores.
        config: gives dtype and sinks.

    Returns:
        `[1, num_heads, num_rows, num_keys + 1]` in the config's dtype with sinks, `[1, 1, num_rows, num_keys]` without,
        and None where that would be all zeros.
    """
    if request.all_visible and config.sinks is None:
        return None
    mask = torch.zeros(request.num_rows, request.num_keys, dtype=config.dtype, device=request.slots.device)
    mask = mask.masked_fill(~request.visible(), -torch.inf)[None, None]
    if config.sinks is None:
        return mask
    sinks = config.sinks.to(config.dtype).view(1, -1, 1, 1).expand(-1, -1, request.num_rows, -1)
    return torch.cat([mask.expand(-1, config.num_heads, -1, -1), sinks], dim=3)


def gather_request(
    request: GatheredRequest,
    config: AttentionConfig,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies a request's queries, keys and values, so that no kernel sees where they were or how they were strided.

    Args:
        request: which.
        config: says whether there are sinks.
        query: `[num_tokens, num_heads, head_dim]`.
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        value_cache: as `key_cache`.

    Returns:
        Queries `[1, num_heads, num_rows, head_dim]`, and keys and values `[1, num_kv_heads, num_keys, head_dim]`; with
        sinks, keys and values have one more token, of zeros.
    """
    queries = query[request.rows].clone(memory_format=torch.contiguous_format)
    keys, values = (gather_slots(cache, request.slots).contiguous() for cache in (key_cache, value_cache))
    if config.sinks is not None:
        keys, values = (torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 1)) for tensor in (keys, values))
    queries, keys, values = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    return queries, keys, values


def gather_slots(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Copies slots out of a page cache of any strides: `[len(slots), num_kv_heads, head_dim]`."""
    return cache[slots // cache.shape[1], slots % cache.shape[1]]


def write_blind_rows(
    request: GatheredRequest, config: AttentionConfig, output: torch.Tensor, lse: torch.Tensor | None
) -> None:
    """Writes what a row that sees no key comes to: an output of 0, and the sink alone as its log-sum-exp.

    Args:
        request: whose blind rows.
        config: gives the sinks; without any the log-sum-exp is `-inf`.
        output: `[num_tokens, num_heads, head_dim]`.
        lse: float32 `[num_heads, num_tokens]`, or None.
    """
    output[request.blind_rows] = 0.0
    if lse is not None:
        lse[:, request.blind_rows] = -torch.inf if config.sinks is None else config.sinks[:, None]


def _gathered_request(
    config: AttentionConfig, first: int, last: int, pages: torch.Tensor, kv_start: int, kv_len: int, causal: bool
) -> GatheredRequest:
    query_len = last - first
    num_blind = max(0, query_len - kv_len) if causal or kv_len == 0 else 0
    num_hidden = 0
    if config.window is not None:
        # The first seeing row sees the fewest earlier keys; what lies left of its window is hidden from all.
        num_hidden = max(0, kv_len - (query_len - num_blind) - config.window + 1)
    token = torch.arange(kv_start + num_hidden, kv_start + kv_len, device=pages.device)
    return GatheredRequest(
        rows=slice(first + num_blind, last),
        blind_rows=slice(first, first + num_blind),
        slots=pages[token // config.page_size].to(torch.int64) * config.page_size + token % config.page_size,
        causal=causal,
        window=config.window,
    )
