"""The CPU backend: samebits' own C++ kernel, and torch's scaled dot product attention request by request."""

from __future__ import annotations

import ctypes
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.support import Support
from samebits.kernels.cpu.attention import (
    LANES,
    ROW_TILE,
    AttentionParameters,
    Schedule,
    paged_attention,
    schedule_batch,
)
from samebits.kernels.cpu.build import SOURCE_DIRECTORY, BuildError, load_library

# Two chunks are crossed by a few hundred keys; a chunk's partial sums are 1/32 of the bf16 keys and values it reads.
DEFAULT_CHUNK_SIZE = 128
# A batch is planned for at least as many threads, so that long requests are shared, and their parts merged, on a single
# one too: the merge is then in daily use wherever the matrix runs, and no bit depends on it.
SHARED_BY = 4


class BundledAttention(Implementation[Schedule]):
    """Samebits' own C++ kernel, compiled on first use.

    Args:
        chunk_size: keys per chunk, a multiple of 16; another than the default is a variant of its own.
        source_directory: where the kernel's sources are.
        shared_by: threads that a batch is planned for at least. It changes no bit.
    """

    backend = "CPU"
    name = "bundled"
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=True,
        ignores_unread_memory=True,
        source="kernels/cpu/attention.cpp: chunks at fixed positions, each from zero, merged in ascending order",
    )
    support = Support(dtypes=("fp32", "bf16", "fp16"), encoder_offset=True, lse=True)

    def __init__(
        self,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        source_directory: Path = SOURCE_DIRECTORY,
        shared_by: int = SHARED_BY,
    ) -> None:
        self._chunk_size = chunk_size
        self._shared_by = shared_by
        self._source_directory = source_directory
        self._library: ctypes.CDLL | None = None
        self.variant = "" if chunk_size == DEFAULT_CHUNK_SIZE else f"chunk_size={chunk_size}"
        self.tiling = Tiling(query_tile=ROW_TILE, kv_tile=LANES, kv_split=chunk_size)
        self.configuration = {"chunk_size": str(chunk_size), "lanes": str(LANES), "accumulator": "fp32"}

    def probe(self) -> Availability:
        """Compiles the kernel, unless this machine has done so before, and loads it."""
        try:
            self._loaded_library()
        except BuildError as error:
            return Availability(reason=str(error))
        return Availability(version=importlib.metadata.version("samebits"))

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Divides the batch into tasks and allocates scratch for the long ones."""
        parameters = AttentionParameters(
            num_kv_heads=config.num_kv_heads,
            group_size=config.group_size,
            head_dim=config.head_dim,
            page_size=config.page_size,
            scale=config.scale,
            softcap=config.softcap,
            causal=metadata.causal,
            window=config.window,
            chunk_size=self._chunk_size,
        )
        query_start_loc, kv_starts, kv_lens = (
            tensor.to(device="cpu", dtype=torch.int64).numpy()
            for tensor in (metadata.query_start_loc, metadata.kv_starts(config.mask), metadata.kv_lens(config.mask))
        )
        return schedule_batch(
            parameters,
            metadata.block_table,
            query_start_loc,
            kv_starts,
            kv_lens,
            max(self._shared_by, torch.get_num_threads()),
        )

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Launches the kernel on torch's number of threads."""
        paged_attention(self._loaded_library(), plan, query, key_cache, value_cache, output, lse)

    def _loaded_library(self) -> ctypes.CDLL:
        if self._library is None:
            self._library = load_library(self._source_directory)
        return self._library


@dataclass(frozen=True)
class RequestPlan:
    """One request of `SdpaAttention`.

    Attributes:
        rows: its query rows that see a key.
        empty_rows: its query rows that see none, which come before those.
        pages, offsets: int64 `[kv_len]`, where its keys lie, in order.
        visible: bool `[len(rows), kv_len]`, or None where every row sees every key.
    """

    rows: slice
    empty_rows: slice
    pages: torch.Tensor
    offsets: torch.Tensor
    visible: torch.Tensor | None


@dataclass(frozen=True)
class SdpaPlan:
    """A batch of `SdpaAttention`."""

    scale: float
    enable_gqa: bool
    requests: tuple[RequestPlan, ...]


class SdpaAttention(Implementation[SdpaPlan]):
    """`torch.nn.functional.scaled_dot_product_attention` over the gathered pages of one request at a time."""

    backend = "CPU"
    name = "torch"
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=False,
        ignores_unread_memory=True,
        source="backends/cpu.py: each request is computed alone, from copies of its own keys and values",
    )
    support = Support(dtypes=("fp32", "bf16", "fp16"), softcap=False, encoder_offset=True)
    configuration = MappingProxyType({"api": "torch.nn.functional.scaled_dot_product_attention"})

    def probe(self) -> Availability:
        """Always available: torch is what samebits stands on."""
        return Availability(version=torch.__version__)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> SdpaPlan:
        """Finds each request's slots and mask."""
        query_start_loc = metadata.query_start_loc.tolist()
        kv_starts = metadata.kv_starts(config.mask).tolist()
        kv_lens = metadata.kv_lens(config.mask).tolist()
        requests = []
        for index, (kv_start, kv_len) in enumerate(zip(kv_starts, kv_lens, strict=True)):
            rows = slice(query_start_loc[index], query_start_loc[index + 1])
            if rows.start == rows.stop:
                continue
            requests.append(_plan_request(config, metadata, rows, metadata.block_table[index], kv_start, kv_len))
        return SdpaPlan(scale=config.scale, enable_gqa=config.group_size > 1, requests=tuple(requests))

    def run(
        self,
        plan: SdpaPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Gathers and computes the requests one after another."""
        for request in plan.requests:
            output[request.empty_rows] = 0
            if request.rows.start == request.rows.stop:
                continue
            # A copy starts at an aligned address wherever the request lies in the batch.
            queries = query[request.rows].clone()
            keys = key_cache[request.pages, request.offsets]
            values = value_cache[request.pages, request.offsets]
            result = torch.nn.functional.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=request.visible,
                scale=plan.scale,
                enable_gqa=plan.enable_gqa,
            )
            output[request.rows] = result[0].transpose(0, 1)


def implementations() -> list[Implementation[Any]]:
    """What the CPU backend offers."""
    return [BundledAttention(), SdpaAttention()]


def _plan_request(
    config: AttentionConfig,
    metadata: AttentionMetadata,
    rows: slice,
    block_table: torch.Tensor,
    kv_start: int,
    kv_len: int,
) -> RequestPlan:
    slots = torch.arange(kv_start, kv_start + kv_len)
    query_len = rows.stop - rows.start
    context_len = kv_len - query_len
    if kv_len == 0:
        num_empty = query_len
    elif metadata.causal:
        num_empty = max(0, -context_len)
    else:
        num_empty = 0
    visible = None
    if metadata.causal:
        position = torch.arange(context_len + num_empty, kv_len)[:, None]
        key = torch.arange(kv_len)[None, :]
        visible = key <= position
        if config.window is not None:
            visible &= key > position - config.window
    return RequestPlan(
        rows=slice(rows.start + num_empty, rows.stop),
        empty_rows=slice(rows.start, rows.start + num_empty),
        pages=block_table[slots // config.page_size].long(),
        offsets=slots % config.page_size,
        visible=visible,
    )
