"""What goes wrong between a capture and a replay. Each mutant is correct as long as every batch is planned anew."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.harness.museum.sources import planted_module
from samebits.kernels.cpu.attention import Schedule

# Columns behind those of a block table, as an engine's buffer for its longest request has.
_SPARE_COLUMNS = 3


class SlicedTable(BundledAttention):
    """The block table is captured as a slice of a wider buffer, and refilled as if it were compact."""

    name = "b63-sliced-table"

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> Schedule:
        """Keeps a block table of its own."""
        rows, columns = metadata.block_table.shape
        buffer = metadata.block_table.new_zeros(rows, columns + _SPARE_COLUMNS)
        buffer[:, :columns] = metadata.block_table
        return super().plan_for_graph(config, replace(metadata, block_table=buffer[:, :columns]), num_pages)

    def refill(self, config: AttentionConfig, plan: Schedule, metadata: AttentionMetadata) -> None:
        """Fills the first elements of the buffer."""
        super().refill(config, plan, metadata)
        held = plan.block_table
        held.as_strided(held.shape, (held.shape[1], 1)).copy_(metadata.block_table)


class FreshTensors(BundledAttention):
    """Metadata is allocated at every step, and bound in place of what was captured."""

    name = "b64-fresh-tensors"

    def refill(self, config: AttentionConfig, plan: Schedule, metadata: AttentionMetadata) -> None:
        """Plans anew, and keeps the new arrays."""
        fresh = self.plan_for_graph(config, metadata, num_pages=0)
        for name in ("query_starts", "query_lens", "kv_lens", "tasks", "merges"):
            object.__setattr__(plan, name, getattr(fresh, name))


class TableOfTheCapture(BundledAttention):
    """The page table is a buffer of the plan, and what would fill it at a replay was lost."""

    name = "b66-table-of-the-capture"

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> Schedule:
        """Keeps a block table of its own."""
        own = replace(metadata, block_table=metadata.block_table.clone())
        return super().plan_for_graph(config, own, num_pages)


class CheckedNotCopied(BundledAttention):
    """The keys of each request are checked at a refill, and not copied."""

    name = "b68-checked-not-copied"

    def refill(self, config: AttentionConfig, plan: Schedule, metadata: AttentionMetadata) -> None:
        """Copies all but these."""
        captured = plan.kv_lens.copy()
        super().refill(config, plan, metadata)
        plan.kv_lens[:] = captured


# The schedule of a batch is not asked whether the block table holds all of its keys.
planted_module(
    "samebits.kernels.cpu.attention",
    "museum_b70_kernel",
    ("if slots.max(initial=0) > block_table.shape[1] * parameters.page_size:", "if False:"),
)
_PLANTED = planted_module(
    "samebits.backends.cpu",
    "museum_b70_cpu",
    ("from samebits.kernels.cpu.attention import (", "from museum_b70_kernel import ("),
)
if TYPE_CHECKING:
    _Unchecked = BundledAttention
else:
    _Unchecked = importlib.import_module(_PLANTED).BundledAttention


class LengthsBeyondTheTable(_Unchecked):
    """A length that the block table has no columns for is not refused, and read behind the table."""

    name = "b70-lengths-beyond-the-table"


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [SlicedTable(), FreshTensors(), TableOfTheCapture(), CheckedNotCopied(), LengthsBeyondTheTable()]
