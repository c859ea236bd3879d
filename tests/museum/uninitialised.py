"""Results, scratch and counters that nobody writes before they are read, or that outlive what they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

# Requests whose lengths fit the pool of `LengthsInFreedMemory`.
_POOLED = 4096


class EmptySplitsMerged(BundledAttention):
    """A split in which a row sees no key is merged as it lies in the scratch, where nobody wrote a maximum or a sum."""

    name = "b44-empty-splits-merged"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            (
                "merge_chunk(chunk, partials_of(chunk), total);",
                "for (int64_t row = 0; row < task_.num_rows; ++row) {\n"
                "                merge_row(total, !row_begun_[row], partials_of(chunk), row, padded_dim_);\n"
                "                row_begun_[row] = true;\n"
                "            }",
            ),
        )
        super().__init__(source_directory=planted)


class BlindRowsUnwritten(BundledAttention):
    """Rows before the first key are left as they were: only a length of 0 is thought of."""

    name = "b47-blind-rows-unwritten"

    def __init__(self) -> None:
        line = "const float* weighted = total.weighted + row * padded_dim_;"
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            (line, f"if (!row_begun_[row] && call_.kv_lens[task_.request] > 0) continue;\n            {line}"),
        )
        super().__init__(source_directory=planted)


class EmptyRequestsUnplanned(BundledAttention):
    """Work is listed by ranges of keys, of which a request without keys has none."""

    name = "b48-empty-requests-unplanned"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans no task for them."""
        plan = super().plan(config, metadata)
        return replace(plan, tasks=plan.tasks[plan.kv_lens[plan.tasks[:, 0]] > 0])


class Counted(NamedTuple):
    """A planned batch, and how many of its tasks were handed out: int64 `[1]`."""

    schedule: Schedule
    handed_out: np.ndarray[Any, np.dtype[np.int64]]


class CounterOfThePlan(BundledAttention):
    """The counter of the tasks that were handed out is set to 0 when a batch is planned, and never again."""

    name = "b50-counter-of-the-plan"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Any:  # noqa: ANN401 -- not the parent's
        """Plans with a counter."""
        return Counted(super().plan(config, metadata), np.zeros(1, dtype=np.int64))

    def run(self, plan: Any, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Hands out the tasks that are left."""
        left = plan.schedule.tasks[plan.handed_out[0] :]
        plan.handed_out[0] += len(left)
        super().run(replace(plan.schedule, tasks=left), *tensors)


class LengthsInFreedMemory(BundledAttention):
    """A plan keeps the address of an array, whose memory the next plan is given."""

    name = "b116-lengths-in-freed-memory"

    def __init__(self) -> None:
        super().__init__()
        self._pool = np.zeros(_POOLED, dtype=np.int64)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with lengths in memory that is given back at once."""
        plan = super().plan(config, metadata)
        lengths = self._pool[: len(plan.kv_lens)]
        lengths[:] = plan.kv_lens
        return replace(plan, kv_lens=lengths)

    def run(self, plan: Schedule, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Reads what is there by now, but never so much that it would leave the block table."""
        room = plan.block_table.shape[1] * plan.parameters.page_size - plan.kv_starts
        super().run(replace(plan, kv_lens=np.minimum(plan.kv_lens, room)), query, *tensors)


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [
        EmptySplitsMerged(),
        BlindRowsUnwritten(),
        EmptyRequestsUnplanned(),
        CounterOfThePlan(),
        LengthsInFreedMemory(),
    ]
