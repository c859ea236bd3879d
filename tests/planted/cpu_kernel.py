"""Bugs planted in copies of the C++ kernel and of its planner, registered as any third party's backend is."""

from __future__ import annotations

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY


class SplitByBatch(BundledAttention):
    """The split length follows the number of requests in the batch."""

    name = "split-by-batch"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with shorter chunks in larger batches."""
        return BundledAttention(128 if metadata.num_requests < 3 else 64).plan(config, metadata)


class TileByNeighbours(BundledAttention):
    """The tile follows the longest query of the batch."""

    name = "tile-by-neighbours"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with longer chunks beside long queries."""
        return BundledAttention(128 if metadata.max_query_len < 4 else 256).plan(config, metadata)


class ReadsPastTheEnd(BundledAttention):
    """Every row sees one key more, the last one a slot past `seq_lens`."""

    name = "reads-past-the-end"

    def __init__(self) -> None:
        line = ("return {begin, position + 1};", "return {begin, position + 2};")
        super().__init__(source_directory=planted_library(SOURCE_DIRECTORY, "attention.cpp", line))


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [SplitByBatch(), TileByNeighbours(), ReadsPastTheEnd()]
