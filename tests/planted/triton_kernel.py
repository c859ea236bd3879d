"""Bugs planted in copies of the Triton kernel and of its planner, registered as any third party's backend is."""

from __future__ import annotations

from dataclasses import replace

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.triton_attn import KERNELS, TritonAttention, TritonPlan
from samebits.harness.museum.sources import planted_module


class SplitByBatch(TritonAttention):
    """The split length follows the number of requests in the batch."""

    name = "split-by-batch"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
        """Plans with shorter chunks in larger batches."""
        chunk = 64 if metadata.num_requests < 3 else 32
        return TritonAttention(replace(self.kernel_configuration, kv_chunk=chunk)).plan(config, metadata)


class TileByNeighbours(TritonAttention):
    """The tile of keys follows the longest query of the batch."""

    name = "tile-by-neighbours"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
        """Plans with smaller tiles beside long queries."""
        tile = 32 if metadata.max_query_len < 4 else 16
        return TritonAttention(replace(self.kernel_configuration, kv_tile=tile)).plan(config, metadata)


class ReadsPastTheEnd(TritonAttention):
    """Every row sees one key more, the last one a slot past `seq_lens`."""

    name = "reads-past-the-end"

    def __init__(self) -> None:
        planted = planted_module(
            KERNELS,
            "planted_paged_attention",
            ("in_range = key < end_key", "in_range = key <= end_key"),
            ("visible = key[None, :] < visible_end", "visible = key[None, :] <= visible_end"),
        )
        super().__init__(kernels=planted)


def implementations() -> list[TritonAttention]:
    """The mutants, beside which `TRITON_ATTN/bundled` is the correct parent."""
    return [SplitByBatch(), TileByNeighbours(), ReadsPastTheEnd()]
