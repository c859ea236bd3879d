"""Kernels that are wrong where a length fills no tile, or where a later stage counts rows in another way."""

from __future__ import annotations

import abc
from dataclasses import replace

import numpy as np
import torch

from samebits.backends.cpu import BundledAttention
from samebits.harness.museum.sources import Replacement, planted_library
from samebits.kernels.cpu.attention import ROW_TILE, Ints, Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY


class CombinesAtOtherRows(BundledAttention):
    """The second stage, which merges splits, takes a request's rows to begin elsewhere."""

    @abc.abstractmethod
    def first_rows(self, plan: Schedule) -> Ints:
        """The row of the output that each request is taken to begin at."""

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes all tasks, then merges into an output of its own, of which the rows that exist are copied."""
        super().run(replace(plan, merges=plan.merges[:0]), query, key_cache, value_cache, output, lse)
        starts = self.first_rows(plan)
        num_rows = max(len(output), int((starts + plan.query_lens).max(initial=0)))
        wide = query.new_zeros((num_rows, *query.shape[1:]))
        wide_lse = torch.zeros(query.shape[1], num_rows)
        second_stage = replace(plan, tasks=plan.tasks[:0], query_starts=starts)
        super().run(second_stage, torch.zeros_like(wide), key_cache, value_cache, wide, wide_lse)
        rows = {
            int(starts[request]) + row // plan.parameters.group_size
            for request, first, count in plan.merges[:, :3].tolist()
            for row in range(first, first + count)
        }
        written = sorted(row for row in rows if row < len(output))
        output[written] = wide[written]
        if lse is not None:
            lse[:, written] = wide_lse[:, written]


class RowsByPaddedTiles(CombinesAtOtherRows):
    """As many rows are counted for each request as the tiles of the longest query have."""

    name = "b17-rows-by-padded-tiles"

    def first_rows(self, plan: Schedule) -> Ints:
        """Whole tiles of tokens for each request before."""
        tokens = max(1, ROW_TILE // plan.parameters.group_size)
        tiles = -(-int(plan.query_lens.max(initial=0)) // tokens)
        return np.arange(len(plan.query_lens)) * tiles * tokens


class RowsByLongestQuery(CombinesAtOtherRows):
    """As many rows are counted for each request as the longest query has, though the output is packed."""

    name = "b37-rows-by-longest-query"

    def first_rows(self, plan: Schedule) -> Ints:
        """As many rows for each request before."""
        return np.arange(len(plan.query_lens)) * int(plan.query_lens.max(initial=0))


class Patched(BundledAttention):
    """The C++ kernel with a piece of its source replaced."""

    def __init__(self, name: str, *replacements: Replacement) -> None:
        super().__init__(source_directory=planted_library(SOURCE_DIRECTORY, "attention.cpp", *replacements))
        self.name = name


_ALL_KEYS = "if (!call_.causal[task_.request]) return {0, kv_len};"


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [
        RowsByPaddedTiles(),
        RowsByLongestQuery(),
        # The last block of keys is read to its end, as where its bounds are not checked.
        Patched("b18-unchecked-bounds", (_ALL_KEYS, _ALL_KEYS.replace("kv_len}", "(kv_len + 15) / 16 * 16}"))),
        # The number of keys is compared with a place that is counted from the request's first slot.
        Patched(
            "b21-end-from-first-slot",
            (_ALL_KEYS, _ALL_KEYS.replace("kv_len}", "kv_len + call_.kv_starts[task_.request]}")),
        ),
        # Keys that a block has beyond the last one score 0, and take weight.
        Patched(
            "b22-hidden-keys-score-0",
            (
                "visible.end - block, score, splat(-kInfinity));",
                "visible.end - block, score, splat(0.0f));",
            ),
            (
                "_mm512_mask_loadu_ps(_mm512_set1_ps(-kInfinity), sees, score)",
                "_mm512_mask_loadu_ps(_mm512_setzero_ps(), sees, score)",
            ),
        ),
        # The last page is read to its end.
        Patched(
            "b23-page-tail-unmasked",
            (
                _ALL_KEYS,
                _ALL_KEYS.replace("kv_len}", "(kv_len + call_.page_size - 1) / call_.page_size * call_.page_size}"),
            ),
        ),
    ]
