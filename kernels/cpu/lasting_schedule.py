"""A schedule that serves all batches of some padded sizes: as large as any of them needs, and refilled in place."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from samebits.kernels.cpu.attention import (
    LANES,
    ROW_TILE,
    TILES_PER_REQUEST,
    AttentionParameters,
    Ints,
    Schedule,
)

# A task of no rows and no chunks does nothing, whatever request it names; its sums go nowhere.
_IDLE_TASK = (0, 0, 0, 0, 0, -1, 0, 1)


def lasting_schedule(
    parameters: AttentionParameters, block_table: torch.Tensor, num_tokens: int, max_kv_len: int, max_threads: int
) -> Schedule:
    """A schedule of idle tasks, as large as any batch of some sizes needs.

    Args:
        parameters: of the layer.
        block_table: int32 `[num_requests, max_pages_per_request]` on the CPU, which every batch will use.
        num_tokens: query tokens of a batch at most.
        max_kv_len: attended keys of a request at most.
        max_threads: threads that a batch may be run by.
    """
    num_requests = block_table.shape[0]
    max_chunks = -(-max_kv_len // parameters.chunk_size)
    # Each request may have tiles that are not full.
    num_tiles = num_tokens * parameters.group_size // ROW_TILE + num_requests * TILES_PER_REQUEST
    padded_dim = -(-parameters.head_dim // LANES) * LANES
    floats_per_chunk = num_tokens * parameters.group_size * (padded_dim + 2) * parameters.num_kv_heads

    def of_requests() -> Ints:
        return np.zeros(num_requests, dtype=np.int64)

    return Schedule(
        parameters=parameters,
        block_table=block_table,
        query_starts=of_requests(),
        query_lens=of_requests(),
        kv_starts=of_requests(),
        kv_lens=of_requests(),
        causal=of_requests(),
        tasks=np.tile(np.array(_IDLE_TASK), (num_tiles * max(1, max_chunks) * parameters.num_kv_heads, 1)),
        merges=np.tile(np.array(_IDLE_TASK), (num_tiles, 1)),
        partials=torch.zeros(max_chunks * floats_per_chunk, dtype=torch.float32),
        max_threads=max_threads,
    )


def refill_schedule(lasting: Schedule, schedule: Schedule) -> None:
    """Writes a batch's schedule into a lasting one.

    Args:
        lasting: from `lasting_schedule`, with the same parameters and the same block table.
        schedule: of a batch of the sizes that it was made for.

    Raises:
        ValueError: the batch is larger than that.
    """
    for field in dataclasses.fields(Schedule):
        array = getattr(lasting, field.name)
        if not isinstance(array, np.ndarray):
            continue
        new = getattr(schedule, field.name)
        if len(new) > len(array):
            raise ValueError(f"the batch has {len(new)} {field.name}; the lasting schedule has room for {len(array)}")
        array[: len(new)] = new
        array[len(new) :] = _IDLE_TASK if array.ndim > 1 else 0
    if len(schedule.partials) > len(lasting.partials):
        needed, room = len(schedule.partials), len(lasting.partials)
        raise ValueError(f"the batch needs {needed} floats of scratch; the lasting schedule has {room}")
