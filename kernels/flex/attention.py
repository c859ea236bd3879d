"""FlexAttention for a batch of any size, mask and number of heads: laid out in tiles, and run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.kernels.flex.cache import BlocksBehindSink, as_sequence, at_least_pages, page_distance
from samebits.kernels.flex.compiled import (
    MIN_COLUMNS,
    Pipeline,
    compiled_attention,
    compiled_copies,
    compiler_configuration,
    put,
    take,
)
from samebits.kernels.flex.log_sum_exp import log_sum_exp
from samebits.kernels.flex.tiles import (
    KeyBlocks,
    QueryRows,
    Sequences,
    TileShape,
    Visibility,
    find_key_blocks,
    lead_with_sink,
    move_pages_apart,
    place_queries,
    with_columns,
)

# Inductor decides by the number of rows and of slots whether to pack keys and values for the matrix unit (on a CPU that
# has one, for 16-bit dtypes, from 64 of each and 4 rows per thread), and whether to split the keys of a row (on a GPU,
# below 128 rows). Neither may depend on the batch, so there are always as many: rows without keys cost nothing.
_MIN_ROWS = 128
_MIN_ROWS_PER_THREAD = 4
_MIN_SLOTS = 64


@dataclass(frozen=True)
class Layer:
    """What is the same for every batch.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: elements per head.
        page_size: tokens per page; a multiple of the keys of a block.
        scale: factor on `q . k`.
        softcap: cap on the scaled scores; None for none.
        sinks: float32 `[num_heads]` on `device`, logit of each head's sink; None for none.
        dtype: of queries, cache and output.
        device: where they are.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class RowSinks:
    """The sinks of a batch.

    Attributes:
        blocks: the copies that are read instead of the cache.
        logits: float32 `[num_kv_heads * num_rows]`, of each row's head; 0 where no query stands.
        head_starts: int32 `[num_kv_heads]`, where those of a key/value head begin.
    """

    blocks: BlocksBehindSink
    logits: torch.Tensor
    head_starts: torch.Tensor


@dataclass(frozen=True)
class Capacity:
    """What all batches of some padded sizes need, so that a plan of one has room for any other.

    Attributes:
        num_tokens: query tokens, those of padding among them.
        num_rows: rows of a key/value head, a multiple of the tile: the last tile is for padding.
        num_columns: blocks that a tile reads.
        num_read: blocks that a batch reads.
        num_pages: pages of the cache.
    """

    num_tokens: int
    num_rows: int
    num_columns: int
    num_read: int
    num_pages: int

    @classmethod
    def of(
        cls, num_requests: int, num_tokens: int, group_size: int, max_kv_len: int, num_pages: int, shape: TileShape
    ) -> Capacity:
        """The capacity for batches of some sizes.

        Args:
            num_requests: of a batch, padding among them.
            num_tokens: likewise.
            group_size: query heads that share a key/value head.
            max_kv_len: keys that a request attends to at most.
            num_pages: pages of the cache.
            shape: of the tiles.
        """
        # A request may begin and end inside of a tile, and its keys inside of a block.
        num_tiles = num_tokens * group_size // shape.rows + 2 * num_requests + 1
        num_columns = -(-max_kv_len // shape.keys) + 1
        return cls(num_tokens, num_tiles * shape.rows, num_columns, num_requests * num_columns, num_pages)


@dataclass(frozen=True)
class FlexPlan:
    """A batch, ready to compute. `num_rows` counts those of one key/value head.

    Attributes:
        shape: of the tiles.
        pipeline: of a GPU's programs.
        page_size: tokens per page.
        scale: factor on `q . k`.
        softcap: float32 scalar, or None for none.
        rows: `[num_kv_heads * num_rows, head_dim]`, scratch for the queries; 0 where no query stands.
        row_of_head: int64 `[num_tokens * num_heads]`, the row in it of each query head of each token.
        blocks: what the tiles read: of the cache if its pages follow each other, or of the copies behind a sink.
        sinks: None for none.
        owned: bool `[num_tokens]`, which tokens are a request's; None where all are. The others count as zeros.
        capacity: what the plan has room for; None for its own batch alone.
    """

    shape: TileShape
    pipeline: Pipeline
    page_size: int
    scale: float
    softcap: torch.Tensor | None
    rows: torch.Tensor
    row_of_head: torch.Tensor
    blocks: KeyBlocks
    sinks: RowSinks | None
    owned: torch.Tensor | None = None
    capacity: Capacity | None = None


def plan_batch(
    layer: Layer,
    sequences: Sequences,
    visibility: Visibility,
    block_table: torch.Tensor,
    shape: TileShape,
    pipeline: Pipeline,
    capacity: Capacity | None = None,
) -> FlexPlan:
    """Lays a batch out in tiles.

    Args:
        layer: what is computed.
        sequences: the requests.
        visibility: which keys a query sees.
        block_table: int32 `[num_requests, max_pages_per_request]`, on the host.
        shape: of the tiles.
        pipeline: of a GPU's programs.
        capacity: what to make room for, so that all plans of it are of the same sizes; None for this batch alone.

    Raises:
        ValueError: the batch is larger than the capacity.
    """
    device, num_kv_heads = layer.device, layer.num_kv_heads
    min_rows = max(_MIN_ROWS, _MIN_ROWS_PER_THREAD * torch.get_num_threads())
    min_slots, min_blocks = _MIN_SLOTS, _MIN_SLOTS // shape.keys
    if capacity is not None:
        min_rows = max(min_rows, capacity.num_rows)
        min_slots = max(min_slots, capacity.num_pages * layer.page_size)
        min_blocks = max(min_blocks, capacity.num_read + 1)
    queries = place_queries(sequences, layer.num_heads // num_kv_heads, shape, min_rows)
    # The processor's kernel applies the mask to every block, so there they would change the order alone.
    blocks = find_key_blocks(
        sequences,
        queries,
        visibility,
        block_table,
        layer.page_size,
        shape,
        min_slots,
        tell_full=device.type != "cpu",
    )
    if device.type != "cpu":
        blocks = _of_one_width(blocks)
    head_origin = torch.arange(num_kv_heads).view(1, -1, 1) * queries.num_rows
    row_of_head = (queries.row.unsqueeze(1) + head_origin).flatten().to(device)
    owned = None
    if capacity is not None:
        blocks = with_columns(blocks, capacity.num_columns, capacity.num_pages)
        row_of_head, owned = _with_padding(row_of_head, head_origin, queries, layer, capacity)
    sinks = None
    if layer.sinks is not None:
        blocks, cache_blocks = lead_with_sink(blocks, min_blocks)
        if capacity is not None:
            cache_blocks = torch.nn.functional.pad(cache_blocks, (0, capacity.num_read - len(cache_blocks)))
        logits = torch.zeros(num_kv_heads * queries.num_rows, dtype=torch.float32, device=device)
        logits[row_of_head] = layer.sinks.repeat(len(row_of_head) // layer.num_heads)
        sinks = RowSinks(
            blocks=_behind_sink(layer, cache_blocks, blocks.num_blocks, shape),
            logits=logits,
            head_starts=head_origin.flatten().to(device, torch.int32),
        )
    return FlexPlan(
        shape=shape,
        pipeline=pipeline,
        page_size=layer.page_size,
        scale=layer.scale,
        softcap=None if layer.softcap is None else torch.tensor(layer.softcap, dtype=torch.float32, device=device),
        rows=torch.zeros((num_kv_heads * queries.num_rows, layer.head_dim), dtype=layer.dtype, device=device),
        row_of_head=row_of_head,
        blocks=blocks.to(device),
        sinks=sinks,
        owned=owned,
        capacity=capacity,
    )


@torch.no_grad()
def paged_attention(
    plan: FlexPlan,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """Computes a planned batch.

    Args:
        plan: from `plan_batch`.
        query: `[num_tokens, num_heads, head_dim]`, any strides; rows after the last request's are not read.
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`, any strides with sinks, and without them such as
            `page_distance` accepts.
        value_cache: the same shape.
        output: the shape of `query`, any strides.
        lse: float32 `[num_heads, num_tokens]`, or None. On the CPU it is computed beside the kernel.

    Raises:
        ValueError: a cache that is too small, or strides that are refused.
    """
    num_tokens = len(plan.row_of_head) // query.shape[1]
    queries = query[:num_tokens]
    if plan.owned is not None:
        queries = torch.where(plan.owned.view(-1, 1, 1), queries, 0.0)
    on_processor = query.device.type == "cpu"
    put_rows, take_rows = (put, take) if on_processor else compiled_copies()
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.shape[0] < plan.blocks.num_pages:
            raise ValueError(f"{name} has {cache.shape[0]} pages; it must have at least {plan.blocks.num_pages}")
    keys, values, blocks = _sequences(plan, key_cache, value_cache)
    rows = plan.rows.view(key_cache.shape[2], 1, -1, query.shape[2])
    sink_logits, head_starts = (None, None) if plan.sinks is None else (plan.sinks.logits, plan.sinks.head_starts)
    with_lse = lse is not None and not on_processor
    lists = _of_one_width(blocks)
    full = (None, None) if lists.full is None else lists.full.as_mask()
    with compiler_configuration():
        put_rows(plan.rows, plan.row_of_head, queries)
        rows_output, rows_lse = compiled_attention(plan.shape, plan.pipeline, with_lse=with_lse)(
            rows,
            keys,
            values,
            *lists.masked.as_mask(),
            *full,
            blocks.starts,
            blocks.lower,
            blocks.upper,
            blocks.positions,
            plan.scale,
            plan.softcap,
            sink_logits,
            head_starts,
        )
        take_rows(output[:num_tokens], rows_output.view(-1, query.shape[2]), plan.row_of_head)
    if lse is None:
        return
    if rows_lse is None:
        rows_lse = log_sum_exp(rows, keys, blocks, plan.shape, plan.scale, plan.softcap, sink_logits)
    lse[:, :num_tokens] = rows_lse.flatten()[plan.row_of_head].view(num_tokens, query.shape[1]).T


def _with_padding(
    row_of_head: torch.Tensor, head_origin: torch.Tensor, queries: QueryRows, layer: Layer, capacity: Capacity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows for tokens of padding too, all of them in one row of the last tile; and which tokens are none.

    Raises:
        ValueError: the batch has more tokens, or rows, than the capacity.
    """
    num_tokens = len(queries.row)
    # The last tile must stay free for padding.
    last = int(queries.row.max()) if num_tokens else 0
    if num_tokens > capacity.num_tokens or last >= queries.num_rows - 1:
        raise ValueError(
            f"the batch has {num_tokens} tokens in rows up to {last} of {queries.num_rows}; the plan has room for "
            f"{capacity.num_tokens} in {capacity.num_rows}"
        )
    missing = capacity.num_tokens - num_tokens
    padding = (head_origin + queries.num_rows - 1).expand(missing, -1, layer.num_heads // layer.num_kv_heads)
    owned = torch.arange(capacity.num_tokens) < num_tokens
    return torch.cat([row_of_head, padding.flatten().to(row_of_head.device)]), owned.to(layer.device)


def _behind_sink(layer: Layer, cache_blocks: torch.Tensor, num_blocks: int, shape: TileShape) -> BlocksBehindSink:
    """Where the blocks of a batch are in the cache, and scratch for their copies."""
    blocks_per_page = layer.page_size // shape.keys
    size = (num_blocks, shape.keys, layer.num_kv_heads, layer.head_dim)
    first = (cache_blocks % blocks_per_page * shape.keys).unsqueeze(1)
    return BlocksBehindSink(
        pages=(cache_blocks // blocks_per_page).unsqueeze(1).to(layer.device),
        offsets=(first + torch.arange(shape.keys)).to(layer.device),
        keys=torch.zeros(size, dtype=layer.dtype, device=layer.device),
        values=torch.zeros(size, dtype=layer.dtype, device=layer.device),
    )


def _sequences(
    plan: FlexPlan, key_cache: torch.Tensor, value_cache: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, KeyBlocks]:
    """What the kernel reads as keys and values, and where in it the blocks of the batch are."""
    blocks = plan.blocks
    if plan.sinks is not None:
        copies = plan.sinks.blocks
        copies.copy(key_cache, value_cache)
        key_cache, value_cache = copies.keys, copies.values
    else:
        blocks_per_page = plan.page_size // plan.shape.keys
        num_pages = blocks.num_blocks // blocks_per_page
        key_cache, value_cache = (at_least_pages(cache, num_pages) for cache in (key_cache, value_cache))
        distance = page_distance(key_cache, value_cache, plan.shape.keys)
        if distance != plan.page_size:
            blocks = move_pages_apart(blocks, blocks_per_page, distance // plan.shape.keys)
    num_slots = blocks.num_blocks * plan.shape.keys
    return as_sequence(key_cache, num_slots), as_sequence(value_cache, num_slots), blocks


def _of_one_width(blocks: KeyBlocks) -> KeyBlocks:
    """The same with lists as wide as FlexAttention needs them: torch 2.11 finds full blocks by the others' width."""
    # For the CPU a column per block of the sequence.
    width = max(MIN_COLUMNS, *(lists.width for lists in blocks.lists))
    if blocks.full is None:
        width = blocks.num_blocks
    return blocks.with_lists(lambda lists: lists.with_width(width))
