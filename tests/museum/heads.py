"""Heads that are mapped to others, and results that are written by the strides of other tensors."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.cpu import BundledAttention
from samebits.backends.cpu_operations import BundledMerge
from samebits.backends.operations import MergeTensors
from samebits.backends.subject import Subject
from samebits.backends.token_problem import MergeStates
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

# Query heads that the tile of `TileOfEightHeads` holds.
_HEADS_OF_A_TILE = 8


class OutputByQueryStrides(BundledAttention):
    """The output is written by the strides of the queries."""

    name = "b94-output-by-query-strides"

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Takes the output for another view of its memory, in which torch refuses what lies outside."""
        super().run(plan, query, key_cache, value_cache, output.as_strided(query.shape, query.stride()), lse)


class LseAsIfContiguous(BundledMerge):
    """Log-sum-exps are read as if they were contiguous."""

    name = "b96-lse-as-if-contiguous"

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Merges by what lies there."""
        num_heads, num_tokens = tensors.prefix_lse.shape
        read = tensors.prefix_lse.as_strided((num_heads, num_tokens), (num_tokens, 1))
        super().compute(operation, replace(tensors, prefix_lse=read))


class HeadByRowOfTile(BundledAttention):
    """Who merges splits takes a row's head by its place in its tile, which any head may begin where groups are odd."""

    name = "b100-head-by-row-of-tile"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            (
                "(task_.first_row + row) % call_.group_size;",
                "((merging_ ? 0 : task_.first_row) + row) % call_.group_size;",
            ),
            ("    void merge() {", "    void merge() {\n        merging_ = true;"),
            ("    bool row_begun_[kRowTile] = {};", "    bool row_begun_[kRowTile] = {};\n    bool merging_ = false;"),
        )
        super().__init__(source_directory=planted)


class SomeHeads(BundledAttention):
    """The kernel computes some of the heads, and leaves the others as they are."""

    def computes(self, head: int, num_heads: int, group_size: int) -> bool:
        """Whether a query head is among them."""
        raise NotImplementedError

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes all into memory of its own, and copies some."""
        num_heads, group_size = plan.parameters.num_heads, plan.parameters.group_size
        heads = [head for head in range(num_heads) if self.computes(head, num_heads, group_size)]
        if len(heads) == num_heads:
            super().run(plan, query, key_cache, value_cache, output, lse)
            return
        result, result_lse = torch.empty_like(output), torch.empty(num_heads, len(output))
        super().run(plan, query, key_cache, value_cache, result, result_lse)
        rows = plan.num_query_rows
        output[:rows, heads] = result[:rows, heads]
        if lse is not None:
            lse[heads, :rows] = result_lse[heads, :rows]


class SwizzledByOneNumber(SomeHeads):
    """Heads are swizzled by the size of a group alone: right where there are as many key/value heads."""

    name = "b102-swizzled-by-one-number"

    def computes(self, head: int, num_heads: int, group_size: int) -> bool:
        """Whether some program comes to the head."""
        return head in {program % group_size * group_size + program // group_size for program in range(num_heads)}


class TileOfEightHeads(SomeHeads):
    """A tile holds eight query heads of a group, and nothing goes round the others."""

    name = "b104-tile-of-eight-heads"

    def computes(self, head: int, num_heads: int, group_size: int) -> bool:
        """Whether the head is one of the first of its group."""
        return head % group_size < _HEADS_OF_A_TILE


def implementations() -> list[Subject]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [OutputByQueryStrides(), LseAsIfContiguous(), HeadByRowOfTile(), SwizzledByOneNumber(), TileOfEightHeads()]
