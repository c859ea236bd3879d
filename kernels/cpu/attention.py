"""Paged attention on the CPU: how a batch is divided into tasks, and the call of the compiled kernel."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# Floats that a dot product and a softmax sum are computed on together; `kLanes` in lanes.h.
LANES = 16
ROW_TILE = 256  # `kRowTile` in chunk.h
ROW_BLOCK = 32  # `kRowBlock` in chunk.h
# Tiles that a request is cut into before they grow, so that threads can share it.
TILES_PER_REQUEST = 4
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Waking a thread takes about as long as this many multiplications.
_MULTIPLICATIONS_PER_THREAD = 1 << 20
# A task is cut so that every thread has several, whatever their lengths.
_TASKS_PER_THREAD = 4
# Rows of queries that wait for memory, more than they compute, and how many elements side by side it is read best in.
_FEW_ROWS = 16
_ELEMENTS_TOGETHER = 1024
# Outputs of more bytes than this are more than caches hold.
_STREAMED_BYTES = 1 << 22
# A shorter piece costs more in scratch and scheduling than it brings.
_MIN_CHUNKS_PER_TASK = 4

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AttentionParameters:
    """What does not change from batch to batch.

    Attributes:
        num_kv_heads, group_size, head_dim, page_size: as in a geometry; `group_size` query heads share a KV head.
        scale: factor on `q . k`.
        softcap: cap on the scaled scores; None for none.
        window: keys that a query of a causal request sees, its own among them; None for no window.
        chunk_size: keys per chunk, a multiple of 16. It decides bits.
        sinks: float32 `[num_heads]`, the score of a key without a value that every query of a head sees; None for none.
        amx: whether bfloat16 is multiplied by AMX, if `samebits.kernels.cpu.amx.has_amx` says so. It decides bits.
    """

    num_kv_heads: int
    group_size: int
    head_dim: int
    page_size: int
    scale: float
    softcap: float | None
    window: int | None
    chunk_size: int
    sinks: torch.Tensor | None = None
    amx: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size < LANES or self.chunk_size % LANES:
            raise ValueError(f"chunk_size is {self.chunk_size}; it must be a positive multiple of {LANES}")
        if self.sinks is not None:
            _check_tensor("sinks", self.sinks, (self.num_heads,), torch.float32)

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group_size


@dataclass(frozen=True)
class Schedule:
    """A batch divided into tasks. Nothing here changes bits.

    Attributes:
        parameters: of the layer.
        block_table: int32 `[num_requests, max_pages_per_request]`, read at every run.
        query_starts, query_lens: first query row and number of rows of each request.
        kv_starts, kv_lens: slot of the first attended key, counted from the request's first slot, and number of keys.
        causal: 1 for a request whose queries see no key after their own position, else 0.
        tasks: int64 `[num_tasks, 8]`: request, first row, rows, first chunk, end chunk, offset of its partial sums,
            first key/value head, heads that a thread computes in turn.
        merges: as `tasks`, for the rows whose chunks were computed by several tasks; for every head.
        partials: float32 scratch for the partial sums of those rows.
        max_threads: more threads than this would not make it faster.
    """

    parameters: AttentionParameters
    block_table: torch.Tensor
    query_starts: Ints
    query_lens: Ints
    kv_starts: Ints
    kv_lens: Ints
    causal: Ints
    tasks: Ints
    merges: Ints
    partials: torch.Tensor
    max_threads: int

    @property
    def num_query_rows(self) -> int:
        """Query rows that belong to a request."""
        return int((self.query_starts + self.query_lens).max(initial=0))


class AttentionCall(ctypes.Structure):
    """`AttentionCall` in attention_call.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key_cache", "value_cache", "output", "lse", "sinks")),
        *((f"query_{axis}_stride", ctypes.c_int64) for axis in ("token", "head")),
        *((f"key_{axis}_stride", ctypes.c_int64) for axis in ("page", "slot", "head")),
        *((f"value_{axis}_stride", ctypes.c_int64) for axis in ("page", "slot", "head")),
        *((f"output_{axis}_stride", ctypes.c_int64) for axis in ("token", "head")),
        ("lse_head_stride", ctypes.c_int64),
        ("block_table", ctypes.c_void_p),
        ("block_table_stride", ctypes.c_int64),
        ("num_pages", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("query_starts", "query_lens", "kv_starts", "kv_lens", "causal")),
        *((name, ctypes.c_void_p) for name in ("tasks", "merges")),
        *((name, ctypes.c_int64) for name in ("num_tasks", "num_merges")),
        ("partials", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("element", "page_size", "num_kv_heads", "group_size", "head_dim")),
        *((name, ctypes.c_int64) for name in ("chunk_size", "window", "num_threads", "streamed", "amx")),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
    ]


def schedule_batch(
    parameters: AttentionParameters,
    block_table: torch.Tensor,
    query_start_loc: Ints,
    kv_starts: Ints,
    kv_lens: Ints,
    causal: Ints,
    num_threads: int,
) -> Schedule:
    """Divides a batch into tasks for about `num_threads` threads.

    Args:
        parameters: of the layer.
        block_table: int32 `[num_requests, max_pages_per_request]` on the CPU.
        query_start_loc: int64 `[num_requests + 1]`.
        kv_starts: int64 `[num_requests]`, slot of the first attended key of each request.
        kv_lens: int64 `[num_requests]`, attended keys of each request.
        causal: int64 `[num_requests]`, 1 for a request whose queries see no key after their own position, else 0.
        num_threads: how many threads will probably run it.

    Raises:
        ValueError: when the lengths do not fit one another or the block table.
    """
    query_lens = np.diff(query_start_loc)
    _check_lengths(parameters, block_table, query_start_loc, kv_starts, kv_lens, causal)
    rows = query_lens * parameters.group_size
    tile_rows = np.clip(-(-rows // (TILES_PER_REQUEST * ROW_BLOCK)) * ROW_BLOCK, ROW_BLOCK, ROW_TILE)
    tiles_per_request = -(-rows // tile_rows)
    request = np.repeat(np.arange(len(query_lens)), tiles_per_request)
    first_tile = np.cumsum(tiles_per_request) - tiles_per_request
    first_row = (np.arange(len(request)) - first_tile[request]) * tile_rows[request]
    num_rows = np.minimum(tile_rows[request], rows[request] - first_row)

    context_len = (kv_lens - query_lens)[request]
    last_position = context_len + (first_row + num_rows - 1) // parameters.group_size
    end = np.where(causal[request], np.maximum(0, last_position + 1), kv_lens[request])
    begin = np.zeros_like(request)
    if parameters.window is not None:
        begin = np.maximum(0, context_len + first_row // parameters.group_size - parameters.window + 1)
    first_chunk = np.minimum(begin, end) // parameters.chunk_size
    end_chunk = -(-end // parameters.chunk_size)

    heads_together = min(parameters.num_kv_heads, max(1, _ELEMENTS_TOGETHER // parameters.head_dim))
    heads = np.where(num_rows <= _FEW_ROWS, heads_together, 1)
    nothing = np.zeros_like(request)
    tiles = np.stack([request, first_row, num_rows, first_chunk, end_chunk, nothing - 1, nothing, heads], axis=1)
    padded_dim = -(-parameters.head_dim // LANES) * LANES
    floats_per_chunk = num_rows * (padded_dim + 2) * parameters.num_kv_heads
    rows_by_keys = int((num_rows * (end_chunk - first_chunk)).sum()) * parameters.chunk_size
    multiplications = 2 * rows_by_keys * padded_dim * parameters.num_kv_heads
    max_threads = 1 + multiplications // _MULTIPLICATIONS_PER_THREAD
    tasks, merges, num_partials = _cut_long_tiles(
        tiles, floats_per_chunk, parameters.num_kv_heads, min(num_threads, max_threads)
    )
    return Schedule(
        parameters=parameters,
        block_table=block_table,
        query_starts=np.ascontiguousarray(query_start_loc[:-1]),
        query_lens=query_lens,
        kv_starts=kv_starts,
        kv_lens=kv_lens,
        causal=causal,
        tasks=_in_turn(tasks, parameters.num_kv_heads),
        merges=merges,
        partials=torch.empty(num_partials, dtype=torch.float32),
        max_threads=max_threads,
    )


def paged_attention(
    library: ctypes.CDLL,
    schedule: Schedule,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """Computes a batch on `torch.get_num_threads()` threads, or on fewer where they would only wait.

    Args:
        library: the compiled kernels.
        schedule: of the batch.
        query: `[num_tokens, num_heads, head_dim]`, last stride 1.
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`, last stride 1.
        value_cache: as `key_cache`.
        output: shape and dtype of `query`; rows that belong to no request stay as they are.
        lse: float32 `[num_heads, num_tokens]` with last stride 1, or None.

    Raises:
        ValueError: for a tensor that the kernel would read or write outside of, or a page that does not exist.
    """
    parameters = schedule.parameters
    _check_tensors(schedule, query, key_cache, value_cache, output, lse)
    call = AttentionCall(
        query=query.data_ptr(),
        key_cache=key_cache.data_ptr(),
        value_cache=value_cache.data_ptr(),
        output=output.data_ptr(),
        lse=None if lse is None else lse.data_ptr(),
        sinks=None if parameters.sinks is None else parameters.sinks.data_ptr(),
        query_token_stride=query.stride(0),
        query_head_stride=query.stride(1),
        key_page_stride=key_cache.stride(0),
        key_slot_stride=key_cache.stride(1),
        key_head_stride=key_cache.stride(2),
        value_page_stride=value_cache.stride(0),
        value_slot_stride=value_cache.stride(1),
        value_head_stride=value_cache.stride(2),
        output_token_stride=output.stride(0),
        output_head_stride=output.stride(1),
        lse_head_stride=0 if lse is None else lse.stride(0),
        block_table=schedule.block_table.data_ptr(),
        block_table_stride=schedule.block_table.stride(0),
        num_pages=key_cache.shape[0],
        query_starts=schedule.query_starts.ctypes.data,
        query_lens=schedule.query_lens.ctypes.data,
        kv_starts=schedule.kv_starts.ctypes.data,
        kv_lens=schedule.kv_lens.ctypes.data,
        causal=schedule.causal.ctypes.data,
        tasks=schedule.tasks.ctypes.data,
        merges=schedule.merges.ctypes.data,
        num_tasks=len(schedule.tasks),
        num_merges=len(schedule.merges),
        partials=schedule.partials.data_ptr(),
        element=ELEMENTS[query.dtype],
        page_size=parameters.page_size,
        num_kv_heads=parameters.num_kv_heads,
        group_size=parameters.group_size,
        head_dim=parameters.head_dim,
        chunk_size=parameters.chunk_size,
        window=parameters.window or 0,
        num_threads=min(torch.get_num_threads(), schedule.max_threads),
        streamed=is_streamed(output),
        amx=parameters.amx,
        scale=parameters.scale,
        softcap=parameters.softcap or 0.0,
    )
    library.samebits_attention.restype = ctypes.c_int64
    faulty_request = library.samebits_attention(ctypes.byref(call))
    if faulty_request >= 0:
        raise ValueError(
            f"the block table names a page outside 0..{key_cache.shape[0] - 1} for request {faulty_request}: "
            f"{schedule.block_table[faulty_request].tolist()}"
        )


def is_streamed(output: torch.Tensor) -> bool:
    """Whether a kernel is to write its output past the caches, which changes no bit."""
    return output.nbytes > _STREAMED_BYTES


def _cut_long_tiles(tiles: Ints, floats_per_chunk: Ints, num_kv_heads: int, num_threads: int) -> tuple[Ints, Ints, int]:
    """Cuts tiles of many chunks into tasks whose sums meet in the scratch; returns tasks, merges and scratch floats."""
    num_chunks = tiles[:, 4] - tiles[:, 3]
    if num_threads > 1:
        total_chunks = int((num_chunks * -(-num_kv_heads // tiles[:, 7])).sum())
        chunks_per_task = max(_MIN_CHUNKS_PER_TASK, math.ceil(total_chunks / (num_threads * _TASKS_PER_THREAD)))
    else:
        chunks_per_task = max(1, int(num_chunks.max(initial=1)))
    pieces = np.maximum(1, -(-num_chunks // chunks_per_task))
    is_cut = pieces > 1
    floats = np.where(is_cut, floats_per_chunk * num_chunks, 0)
    offset = np.cumsum(floats) - floats
    merges = tiles[is_cut]
    merges[:, 5] = offset[is_cut]

    tile = np.repeat(np.arange(len(tiles)), pieces)
    piece = np.arange(len(tile)) - (np.cumsum(pieces) - pieces)[tile]
    tasks = tiles[tile]
    tasks[:, 3] += piece * chunks_per_task
    tasks[:, 4] = np.minimum(tasks[:, 4], np.where(is_cut[tile], tasks[:, 3] + chunks_per_task, tasks[:, 4]))
    tasks[:, 5] = np.where(is_cut[tile], offset[tile] + piece * chunks_per_task * floats_per_chunk[tile], -1)
    return tasks, np.ascontiguousarray(merges), int(floats.sum())


def _in_turn(tasks: Ints, num_kv_heads: int) -> Ints:
    """The tasks of all heads, in the order in which threads take them.

    Those that read the same keys follow one another, and those of a request, whose queries lie together, follow them.
    Requests of most work come first, and the longest tasks of a head, so that no thread begins a long one when the
    others are done.
    """
    turns = -(-num_kv_heads // tasks[:, 7])
    turn = np.arange(int(turns.sum())) - np.repeat(np.cumsum(turns) - turns, turns)
    tasks = np.repeat(tasks, turns, axis=0)
    tasks[:, 6] = turn * tasks[:, 7]
    tasks[:, 7] = np.minimum(tasks[:, 7], num_kv_heads - tasks[:, 6])
    num_chunks = tasks[:, 4] - tasks[:, 3]
    work = np.bincount(tasks[:, 0], weights=tasks[:, 2] * num_chunks) if len(tasks) else np.zeros(0)
    order = np.lexsort((-num_chunks, tasks[:, 6], tasks[:, 0], -work[tasks[:, 0]]))
    return np.ascontiguousarray(tasks[order])


def _check_lengths(
    parameters: AttentionParameters,
    block_table: torch.Tensor,
    query_start_loc: Ints,
    kv_starts: Ints,
    kv_lens: Ints,
    causal: Ints,
) -> None:
    num_requests = len(query_start_loc) - 1
    if block_table.dtype != torch.int32 or block_table.dim() != 2 or block_table.device.type != "cpu":
        raise ValueError(
            f"block_table is {block_table.dtype} {list(block_table.shape)} on {block_table.device}; "
            "it must be int32 [num_requests, max_pages_per_request] on the cpu"
        )
    if block_table.shape[1] > 1 and block_table.stride(1) != 1:
        raise ValueError(f"block_table has strides {block_table.stride()}; the last one must be 1")
    if not len(kv_starts) == len(kv_lens) == len(causal) == block_table.shape[0] == num_requests:
        raise ValueError(
            f"query_start_loc is for {num_requests} requests, seq_lens for {len(kv_lens)}, causal for {len(causal)} "
            f"and block_table for {block_table.shape[0]}; they must agree"
        )
    if query_start_loc[0] < 0 or (np.diff(query_start_loc) < 0).any():
        raise ValueError(f"query_start_loc is {query_start_loc.tolist()}; it must not be negative or descend")
    if (kv_starts < 0).any() or (kv_lens < 0).any():
        raise ValueError(f"lengths are {kv_lens.tolist()} behind {kv_starts.tolist()} slots; they must not be negative")
    slots = np.where(kv_lens > 0, kv_starts + kv_lens, 0)
    if slots.max(initial=0) > block_table.shape[1] * parameters.page_size:
        raise ValueError(
            f"a request has {slots.max()} slots, but block_table has {block_table.shape[1]} pages of "
            f"{parameters.page_size} for each; it must hold all of them"
        )


def _check_tensors(
    schedule: Schedule,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    parameters = schedule.parameters
    if query.dtype not in ELEMENTS:
        raise ValueError(f"query has dtype {query.dtype}; it must be one of {', '.join(map(str, ELEMENTS))}")
    if query.dim() != 3 or query.shape[0] < schedule.num_query_rows:
        raise ValueError(
            f"query has shape {list(query.shape)}; it must be [num_tokens, num_heads, head_dim] with at least "
            f"{schedule.num_query_rows} tokens"
        )
    num_tokens, num_pages = query.shape[0], key_cache.shape[0] if key_cache.dim() else 0
    cache_shape = (num_pages, parameters.page_size, parameters.num_kv_heads, parameters.head_dim)
    tokens_shape = (num_tokens, parameters.num_heads, parameters.head_dim)
    _check_tensor("query", query, tokens_shape, query.dtype)
    _check_tensor("key_cache", key_cache, cache_shape, query.dtype)
    _check_tensor("value_cache", value_cache, cache_shape, query.dtype)
    _check_tensor("output", output, tokens_shape, query.dtype)
    if lse is not None:
        _check_tensor("lse", lse, (parameters.num_heads, num_tokens), torch.float32)


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be {dtype} {list(shape)} "
            "on the cpu"
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; the last one must be 1")
