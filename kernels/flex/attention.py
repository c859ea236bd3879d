"""One compiled FlexAttention call for a batch of any size, mask and number of heads.

Compiling costs seconds, so little is compiled in: dtype, head_dim, scale, whether there is a softcap, and whether there
is one key/value head. The rest is data. The mask is a range of slots per row, the key/value heads are FlexAttention's
batch dimension (its number of heads is always compiled in, and here always 1), and the query heads that share one are
rows like others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx.experimental import _config as symbolic_shapes_config
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from samebits.kernels.flex.tiles import Sequences, TileShape, Visibility, find_key_blocks, place_queries

# Inductor decides by the number of rows and of slots whether to pack keys and values for the matrix unit (on a CPU that
# has one, for 16-bit dtypes, from 64 of each and 4 rows per thread), and whether to split the keys of a row (on a GPU,
# below 128 rows). Neither may depend on the batch, so there are always as many: rows without keys cost nothing.
_MIN_ROWS = 128
_MIN_ROWS_PER_THREAD = 4
_MIN_SLOTS = 64
# Graphs of one process, far more than a matrix needs. Beyond them torch raises; it never runs uncompiled.
_MAX_GRAPHS = 128


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
        dtype: of queries, cache and output.
        device: where they are.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    scale: float
    softcap: float | None
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class FlexPlan:
    """A batch, ready to compute. `num_rows` counts those of one key/value head.

    Attributes:
        shape: of the tiles.
        scale: factor on `q . k`.
        softcap: float32 scalar, or None for none.
        rows: `[num_kv_heads * num_rows, head_dim]`, scratch for the queries; 0 where no query stands.
        row_of_head: int64 `[num_tokens * num_heads]`, the row in it of each query head of each token.
        key_counts: int32 `[1, 1, num_tiles]`, blocks that a tile reads.
        key_blocks: int32 `[1, 1, num_tiles, columns]`, which ones.
        starts, lower, upper, positions: see `KeyBlocks`.
        num_pages: pages of the cache that the call is given.
    """

    shape: TileShape
    scale: float
    softcap: torch.Tensor | None
    rows: torch.Tensor
    row_of_head: torch.Tensor
    key_counts: torch.Tensor
    key_blocks: torch.Tensor
    starts: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    positions: torch.Tensor
    num_pages: int


def plan_batch(
    layer: Layer, sequences: Sequences, visibility: Visibility, block_table: torch.Tensor, shape: TileShape
) -> FlexPlan:
    """Lays a batch out in tiles.

    Args:
        layer: what is computed.
        sequences: the requests.
        visibility: which keys a query sees.
        block_table: int32 `[num_requests, max_pages_per_request]`, on the host.
        shape: of the tiles.
    """
    device, num_kv_heads = layer.device, layer.num_kv_heads
    min_rows = max(_MIN_ROWS, _MIN_ROWS_PER_THREAD * torch.get_num_threads())
    queries = place_queries(sequences, layer.num_heads // num_kv_heads, shape, min_rows)
    blocks = find_key_blocks(sequences, queries, visibility, block_table, layer.page_size, shape, _MIN_SLOTS)
    # FlexAttention for the CPU asks for a column per block of the cache; fewer than 2 would be compiled in.
    columns = blocks.num_blocks if device.type == "cpu" else max(2, blocks.indices.shape[1])
    key_blocks = torch.nn.functional.pad(blocks.indices, (0, columns - blocks.indices.shape[1]))
    head_origin = torch.arange(num_kv_heads).view(1, -1, 1) * queries.num_rows
    return FlexPlan(
        shape=shape,
        scale=layer.scale,
        softcap=None if layer.softcap is None else torch.tensor(layer.softcap, dtype=torch.float32, device=device),
        rows=torch.zeros((num_kv_heads * queries.num_rows, layer.head_dim), dtype=layer.dtype, device=device),
        row_of_head=(queries.row.unsqueeze(1) + head_origin).flatten().to(device),
        key_counts=blocks.counts.view(1, 1, -1).to(device),
        key_blocks=key_blocks.view(1, 1, -1, columns).to(device),
        starts=blocks.starts.to(device),
        lower=blocks.lower.to(device),
        upper=blocks.upper.to(device),
        positions=blocks.positions.to(device),
        num_pages=blocks.num_pages,
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
        query: `[num_tokens, num_heads, head_dim]`; rows after the last request's are not read.
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        value_cache: the same shape.
        output: the shape of `query`.
        lse: float32 `[num_heads, num_tokens]`, or None. FlexAttention for the CPU has none to give.

    Raises:
        ValueError: a cache that is too small, or whose pages do not follow each other at their own distance.
    """
    _, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[2]
    num_filled = len(plan.row_of_head)
    plan.rows.index_copy_(0, plan.row_of_head, query.reshape(-1, head_dim)[:num_filled])
    with _compiler_configuration():
        rows_output, rows_lse = _compiled(plan.shape, with_lse=lse is not None)(
            plan.rows.view(num_kv_heads, 1, -1, head_dim),
            _as_sequence(key_cache, plan.num_pages, "key_cache"),
            _as_sequence(value_cache, plan.num_pages, "value_cache"),
            plan.key_counts,
            plan.key_blocks,
            plan.starts,
            plan.lower,
            plan.upper,
            plan.positions,
            plan.scale,
            plan.softcap,
        )
    output.view(-1, head_dim)[:num_filled] = rows_output.reshape(-1, head_dim)[plan.row_of_head]
    if lse is not None and rows_lse is not None:
        filled_tokens = num_filled // num_heads
        lse[:, :filled_tokens] = rows_lse.flatten()[plan.row_of_head].view(filled_tokens, num_heads).T


def _as_sequence(cache: torch.Tensor, num_pages: int, name: str) -> torch.Tensor:
    """A view of the first pages as one sequence per key/value head: `[num_kv_heads, 1, num_slots, head_dim]`."""
    available, page_size = cache.shape[:2]
    if available < num_pages:
        raise ValueError(f"{name} has {available} pages; it must have at least {num_pages}")
    if cache.stride(0) != page_size * cache.stride(1):
        raise ValueError(
            f"{name} has strides {cache.stride()}; the first must be {page_size * cache.stride(1)}, "
            f"page_size times the second, for its pages to be one sequence"
        )
    return cache[:num_pages].flatten(0, 1).transpose(0, 1).unsqueeze(1)


@contextlib.contextmanager
def _compiler_configuration() -> Iterator[None]:
    """One graph serves every size, numbers are compiled in, and running out of graphs is an error."""
    with (
        # Sizes that happen to be equal in the first batch need not be in the next.
        symbolic_shapes_config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        torch._dynamo.config.patch(
            # A number of the tile's shape that were a symbol would not compile inside a mask (Triton, torch 2.11).
            specialize_int=True,
            specialize_float=True,
            recompile_limit=_MAX_GRAPHS,
            fail_on_recompile_limit_hit=True,
        ),
    ):
        yield


@functools.cache
def _compiled(shape: TileShape, *, with_lse: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """FlexAttention over rows and slots, compiled at its first call."""
    # A cast, as IS_DIVISIBLE and FLOAT32_PRECISION are options of the kernel that torch's type does not list.
    kernel_options = cast(
        FlexKernelOptions,
        {
            "BLOCK_M": shape.rows,
            "BLOCK_N": shape.keys,
            # No other kernel for a batch of few rows, which would split the keys by the number of processors.
            "FORCE_USE_FLEX_ATTENTION": True,
            "IS_DIVISIBLE": False,
            # Nothing is left for autotuning to choose.
            "num_warps": 4,
            "num_stages": 2,
            # Products of float32 are not rounded to TF32, whatever the process allows elsewhere.
            "FLOAT32_PRECISION": "'ieee'",
        },
    )

    # The four that the mask reads have one dimension each, and names to be kept. Their sizes are symbols in the C++ of
    # the mask, named by a hash of the parameter's name, and inductor (2.11 to 2.13) corrupts those that begin like its
    # own for the tile's sizes, `ks4` and `ks5`: a size called `s42` would come out as `cur_qSplitSize2`, undeclared.
    def attend(
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_counts: torch.Tensor,
        key_blocks: torch.Tensor,
        starts: torch.Tensor,
        lower: torch.Tensor,
        upper: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
        softcap: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def mask(head: torch.Tensor, unused: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
            position = positions[starts[row] + slot // shape.keys] + slot % shape.keys
            return (position >= lower[row]) & (position < upper[row])

        def cap(
            score: torch.Tensor,
            head: torch.Tensor,
            unused: torch.Tensor,
            row: torch.Tensor,
            slot: torch.Tensor,
        ) -> torch.Tensor:
            assert softcap is not None
            return softcap * torch.tanh(score / softcap)

        block_mask = BlockMask(
            seq_lengths=(query.shape[2], keys.shape[2]),
            kv_num_blocks=key_counts,
            kv_indices=key_blocks,
            # Blocks that need no mask would be read after all others, out of order.
            full_kv_num_blocks=None,
            full_kv_indices=None,
            q_num_blocks=None,
            q_indices=None,
            full_q_num_blocks=None,
            full_q_indices=None,
            BLOCK_SIZE=(shape.rows, shape.keys),
            mask_mod=mask,
        )
        attention, auxiliary = flex_attention(
            query,
            keys,
            values,
            score_mod=None if softcap is None else cap,
            block_mask=block_mask,
            scale=scale,
            kernel_options=kernel_options,
            return_aux=AuxRequest(lse=with_lse),
        )
        return attention, auxiliary.lse

    return torch.compile(attend, fullgraph=True, dynamic=True)
