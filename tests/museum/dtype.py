"""Numbers that are rounded where they must not be, or that a formula takes for others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import LANES, Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY


class KeysInInt16(BundledAttention):
    """The number of keys goes through 16 bits with a sign."""

    name = "b58-keys-in-int16"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans for what is left of it."""
        lengths = metadata.seq_lens.to(torch.int16).to(torch.int32).clamp(min=0)
        return super().plan(config, replace(metadata, seq_lens=lengths))


class ScaleWithoutLog2e(BundledAttention):
    """The kernel of decodes takes scores to base 2, and its scale is not that of base 2."""

    name = "b60-scale-without-log2e"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans decodes with a temperature."""
        scale = config.scale * math.log(2) if metadata.max_query_len == 1 else config.scale
        return super().plan(replace(config, scale=scale), metadata)


class OutputByFp16(BundledAttention):
    """Results are converted to fp16 whatever is stored."""

    name = "b61-output-by-fp16"

    def run(self, plan: Schedule, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Converts what was stored."""
        super().run(plan, query, *tensors)
        rows = tensors[2][: plan.num_query_rows]
        rows.copy_(rows.half())


class PartialsInBf16(BundledAttention):
    """Where queries have 16 bits, so have the partial outputs that the splits of a request leave for their merge."""

    name = "b62-partials-in-bf16"

    def run(self, plan: Schedule, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Computes the splits, rounds, and merges."""
        super().run(replace(plan, merges=plan.merges[:0]), query, *tensors)
        parameters = plan.parameters
        padded_dim = -(-parameters.head_dim // LANES) * LANES
        for rows, first, end, offset in plan.merges[:, 2:6].tolist():
            chunks = (end - first) * parameters.num_kv_heads
            partials = plan.partials[offset : offset + chunks * rows * (padded_dim + 2)].view(chunks, -1)
            outputs = partials[:, : rows * padded_dim]
            if query.element_size() == 2:
                outputs.copy_(outputs.bfloat16())
        super().run(replace(plan, tasks=plan.tasks[:0]), query, *tensors)


class SinkAdded(BundledAttention):
    """The sink is added to the sum of exponentials, and not its own exponential."""

    name = "b121-sink-added"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            (
                "merge_row(total.from(row, padded_dim_), !row_begun_[row], sink, 0, padded_dim_);",
                "if (row_begun_[row]) {\n"
                "                total.sum[row] += largest;\n"
                "                continue;\n"
                "            }\n"
                "            merge_row(total.from(row, padded_dim_), true, sink, 0, padded_dim_);",
            ),
        )
        super().__init__(source_directory=planted)


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [KeysInInt16(), ScaleWithoutLog2e(), OutputByFp16(), PartialsInBf16(), SinkAdded()]
