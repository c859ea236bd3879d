"""Launching our attention kernel for Hopper GPUs, for what it can compute: the bits are those of the portable kernel.

It reads pages with the tensor memory accelerator, which wants them in boxes of whole rows at aligned addresses, and is
written for the heads that most models have. Everything else is left to the portable kernel, in tiles of the same keys.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.hopper_boxes import ALIGNMENT_BYTES, SPAN, WARPGROUP_ROWS, boxed_matrix
from samebits.backends.platform import multiprocessors
from samebits.backends.problem import Mask
from samebits.backends.triton_kernels import next_power_of_two

KERNELS = "samebits.kernels.triton.hopper_attention"

# Columns of a part of a head at most: see the kernel.
_MOST_OF_PART = 128
# Powers of two, and those with a second part that fills a box. Of the wide ones a program has registers for one tile of
# rows alone.
HEAD_DIMS = (64, 80, 96, 128)
WIDE_HEAD_DIMS = (160, 192, 256)
# Shared memory is swizzled in groups of so many rows, which a page has to fill.
_LEAST_PAGE = 8
# What setmaxnreg gives threads that load and threads that compute, of the 65,536 registers of a multiprocessor.
_LOADING_REGISTERS, _COMPUTING_REGISTERS = 24, 240
# So that two programs fit a multiprocessor.
_REGISTERS_OF_TWO = 128
# Beside the chunk that is computed, a thread has registers for what the chunks before came to, of heads up to this.
_MOST_IN_REGISTERS = 160
# Of a multiprocessor, less what barriers take.
_SHARED_MEMORY_BYTES = 226 << 10
_MOST_STAGES = 3


@dataclass(frozen=True)
class HopperPlan:
    """How a batch is launched.

    Attributes:
        warpgroups: that share what is loaded: one where queries are short, else two.
        num_tiles: upper bound on tiles of query rows.
        num_programs: that take them.
        counter: int32 `[1]`, from which programs take their next tile; None where each has its own.
        key_stages, value_stages: tiles of keys, and of values, that a program has room for.
        max_registers: of a thread when the kernel starts; None for as many as there are.
        merged_outputs: scratch for what the chunks before came to, as the kernel's parameter.
    """

    warpgroups: int
    num_tiles: int
    num_programs: int
    counter: torch.Tensor | None
    key_stages: int
    value_stages: int
    max_registers: int | None
    merged_outputs: torch.Tensor | None = None


@dataclass(frozen=True)
class _Rows:
    """A page cache as a matrix.

    Attributes:
        descriptor: of the matrix and of the boxes in which it is read.
        rest_descriptor: of boxes for what a head has over a power of two; None where it has nothing.
        page_rows, head_rows, head_columns: from a page, or a head, to the next.
    """

    descriptor: Any
    rest_descriptor: Any
    page_rows: int
    head_rows: int
    head_columns: int


def computes(config: AttentionConfig, metadata: AttentionMetadata) -> bool:
    """Whether the kernel can compute a batch of a layer, if its caches allow.

    Keys have to begin where a page does, and one rule of causality to be for all requests.
    """
    begins_with_page = metadata.encoder_seq_lens is None or config.mask is Mask.CROSS
    return (
        config.dtype.itemsize == 2
        and config.head_dim in HEAD_DIMS + WIDE_HEAD_DIMS
        and config.group_size <= WARPGROUP_ROWS
        and config.page_size >= _LEAST_PAGE
        and config.page_size == next_power_of_two(config.page_size)
        and config.softcap is None
        and begins_with_page
        and metadata.causal_requests is None
    )


def computes_caches(key_cache: torch.Tensor, value_cache: torch.Tensor) -> bool:
    """Whether the kernel can read page caches: their pages are rows of a matrix, and rows begin at 16 bytes."""
    return _is_matrix(key_cache) and _is_matrix(value_cache)


def warpgroups_for(config: AttentionConfig, metadata: AttentionMetadata) -> int:
    """How many warpgroups share the keys of a tile: two where a query has rows for both."""
    return 2 if metadata.max_query_len * config.group_size > WARPGROUP_ROWS else 1


def num_tiles_for(config: AttentionConfig, metadata: AttentionMetadata) -> int:
    """Upper bound on tiles of query rows."""
    tile_tokens = WARPGROUP_ROWS // config.group_size * warpgroups_for(config, metadata)
    return metadata.num_tokens // tile_tokens + metadata.num_requests


def programs_at_once(config: AttentionConfig, metadata: AttentionMetadata) -> int:
    """Programs that run at once where the keys of a tile are shared."""
    two_fit = warpgroups_for(config, metadata) == 1 and config.head_dim in HEAD_DIMS
    return multiprocessors(config.device) * (2 if two_fit else 1)


def least_segments(config: AttentionConfig, metadata: AttentionMetadata) -> int:
    """Programs that share the keys of a tile even where there are tiles enough for all.

    One warpgroup that walks through all keys keeps up with the memory if heads are 64 or 128 wide. Others do better
    side by side, or in smaller pieces: 64 decodes on 4,096 keys with heads of 96 went from 377 to 352 us on an H100,
    on 2,048 keys with heads of 256 from 417 to 398 us.
    """
    return 1 if warpgroups_for(config, metadata) == 2 or config.head_dim in (64, 128) else 4


def plan_on_hopper(config: AttentionConfig, metadata: AttentionMetadata, num_segments: int, kv_tile: int) -> HopperPlan:
    """Decides how a batch is launched, by bounds alone. Nothing here changes a bit.

    Args:
        config: of the layer.
        metadata: of a batch that it `computes`.
        num_segments: programs that share the keys of a tile.
        kv_tile: keys of a tile.
    """
    warpgroups, num_tiles = warpgroups_for(config, metadata), num_tiles_for(config, metadata)
    num_items = num_tiles * config.num_kv_heads * num_segments
    if num_segments > 1 and warpgroups == 1 and config.head_dim in HEAD_DIMS:
        return HopperPlan(1, num_tiles, num_items, None, key_stages=2, value_stages=1, max_registers=_REGISTERS_OF_TWO)
    key_stages, value_stages = _stages_that_fit(config.head_dim, warpgroups, kv_tile)
    in_memory = config.head_dim > _MOST_IN_REGISTERS and num_segments == 1
    num_programs = num_items
    counter = merged_outputs = None
    if warpgroups == 2 or in_memory:
        # Tiles are of all sizes: who is done takes another.
        num_programs = min(num_items, multiprocessors(config.device))
        counter = torch.zeros(1, dtype=torch.int32, device=config.device)
    if in_memory:
        shape = (num_programs, warpgroups, WARPGROUP_ROWS, config.head_dim)
        merged_outputs = torch.empty(shape, dtype=torch.float32, device=config.device)
    return HopperPlan(
        warpgroups, num_tiles, num_programs, counter, key_stages, value_stages, None, merged_outputs=merged_outputs
    )


def _stages_that_fit(head_dim: int, warpgroups: int, kv_tile: int) -> tuple[int, int]:
    """Tiles of keys, and of values, for which a program has room beside its queries."""
    row_bytes = 2 * head_dim
    fitting = (_SHARED_MEMORY_BYTES // row_bytes - warpgroups * WARPGROUP_ROWS) // kv_tile
    return min(_MOST_STAGES, -(-fitting // 2)), min(_MOST_STAGES, fitting // 2)


def launch_on_hopper(
    plan: HopperPlan,
    config: AttentionConfig,
    metadata: AttentionMetadata,
    kv_lens: torch.Tensor,
    num_segments: int,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    results: tuple[torch.Tensor | None, ...],
    result_strides: tuple[int, ...],
    *,
    partial_chunks: int,
    score_scale: float,
    kv_tile: int,
    kv_chunk: int,
) -> None:
    """Launches the kernel.

    Args:
        plan: of the batch.
        config: of the layer.
        metadata: of the batch.
        kv_lens: int32 `[num_requests]`, see `AttentionMetadata`.
        num_segments: as in the plan.
        query: `[num_tokens, num_heads, head_dim]`.
        key_cache: one that `computes_caches`.
        value_cache: one that `computes_caches`.
        results: output, LSE, sinks, and the chunks' maxima, sums and outputs, as the kernel's parameters.
        result_strides: of output, LSE and sinks, as the kernel's parameters.
        partial_chunks: chunks that there is room for.
        score_scale: factor on `q . k` that gives scores in units of log2.
        kv_tile: keys of a tile.
        kv_chunk: keys of a chunk.
    """
    kernel = _kernel()
    if plan.counter is not None:
        plan.counter.zero_()
    keys, values = (_as_rows(cache, min(config.page_size, kv_tile)) for cache in (key_cache, value_cache))
    options: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
    if plan.max_registers is not None:
        options["maxnreg"] = plan.max_registers
    kernel[(plan.num_programs,)](
        query,
        keys.descriptor,
        keys.rest_descriptor,
        values.descriptor,
        values.rest_descriptor,
        *results,
        plan.merged_outputs,
        metadata.query_start_loc,
        kv_lens,
        metadata.block_table,
        plan.counter,
        metadata.num_requests,
        plan.num_tiles,
        config.num_kv_heads,
        num_segments,
        partial_chunks,
        score_scale,
        *query.stride()[:2],
        keys.page_rows,
        keys.head_rows,
        keys.head_columns,
        values.page_rows,
        values.head_rows,
        values.head_columns,
        *result_strides,
        metadata.block_table.stride(0),
        GROUP=config.group_size,
        HEAD_DIM=config.head_dim,
        PAGE_SIZE=config.page_size,
        CAUSAL=metadata.causal,
        WINDOW=config.window or 0,
        KV_TILE=kv_tile,
        CHUNK=kv_chunk,
        WARPGROUPS=plan.warpgroups,
        KEY_STAGES=plan.key_stages,
        VALUE_STAGES=plan.value_stages,
        LOADING_REGISTERS=_LOADING_REGISTERS,
        COMPUTING_REGISTERS=_COMPUTING_REGISTERS,
        **options,
    )


@functools.cache
def _kernel() -> Any:  # noqa: ANN401 -- Triton's, which has no types
    return importlib.import_module(KERNELS).paged_attention_kernel


def _is_matrix(cache: torch.Tensor) -> bool:
    page_stride, slot_stride, head_stride, _ = cache.stride()
    if slot_stride == 0 or slot_stride * cache.element_size() % ALIGNMENT_BYTES:
        return False
    # Heads lie within a slot's row, or are rows of their own.
    heads_fit = head_stride % slot_stride == 0 or (cache.shape[2] - 1) * head_stride + cache.shape[3] <= slot_stride
    aligned = cache.data_ptr() % ALIGNMENT_BYTES == 0
    in_reach = math.prod(cache.shape[:3]) < 1 << 31 and _num_rows(cache) < 1 << 31
    return page_stride % slot_stride == 0 and heads_fit and aligned and in_reach


def _as_rows(cache: torch.Tensor, box_rows: int) -> _Rows:
    page_stride, slot_stride, head_stride, _ = cache.stride()
    within_row = head_stride % slot_stride != 0
    head_columns = head_stride if within_row else 0
    shape = [_num_rows(cache), (cache.shape[2] - 1) * head_columns + cache.shape[3]]
    rest = cache.shape[3] - min(1 << cache.shape[3].bit_length() - 1, _MOST_OF_PART)
    descriptor, rest_descriptor = (
        boxed_matrix(cache, shape, slot_stride, (box_rows, columns)) if columns else None
        for columns in (SPAN, min(SPAN, rest))
    )
    head_rows = 0 if within_row else head_stride // slot_stride
    return _Rows(descriptor, rest_descriptor, page_stride // slot_stride, head_rows, head_columns)


def _num_rows(cache: torch.Tensor) -> int:
    """From the first to the last row of a cache's matrix."""
    page_stride, slot_stride, head_stride, _ = cache.stride()
    num_pages, page_size, num_heads, _ = cache.shape
    of_heads = 0 if head_stride % slot_stride else (num_heads - 1) * head_stride // slot_stride
    return (num_pages - 1) * page_stride // slot_stride + page_size - 1 + of_heads + 1
