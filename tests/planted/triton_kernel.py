"""Bugs planted in copies of the Triton kernel and of its planner, registered as any third party's backend is."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.triton_attn import KERNELS, TritonAttention, TritonPlan


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
        specification = importlib.util.find_spec(KERNELS)
        assert specification is not None
        assert specification.origin is not None
        text = Path(specification.origin).read_text()
        planted = text.replace("in_range = key < end_key", "in_range = key <= end_key")
        planted = planted.replace("visible = key[None, :] < visible_end", "visible = key[None, :] <= visible_end")
        assert planted.count("<= end_key") == planted.count("<= visible_end") == 1, "the lines to plant in have changed"
        directory = Path(tempfile.mkdtemp())
        (directory / "planted_paged_attention.py").write_text(planted)
        sys.path.append(str(directory))
        super().__init__(kernels="planted_paged_attention")


def implementations() -> list[TritonAttention]:
    """The mutants, beside which `TRITON_ATTN/bundled` is the correct parent."""
    return [SplitByBatch(), TileByNeighbours(), ReadsPastTheEnd()]
