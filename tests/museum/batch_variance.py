"""Kernels whose order of additions follows the batch, the schedule, or who comes first."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import DEFAULT_CHUNK_SIZE, BundledAttention
from samebits.backends.problem import Mask
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import LANES, AttentionParameters, Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

# What a heuristic wants to keep busy, and how many splits it makes for that at most.
_PROCESSORS, _MAX_SPLITS = 16, 8
# Columns of a block table that has room for a chunk more.
_SPARE_COLUMNS = 1 + DEFAULT_CHUNK_SIZE


class ExponentialByMaskedTile(BundledAttention):
    """A chunk that all rows of a tile see whole has another exponential than one that is masked for some."""

    name = "b01-exponential-by-masked-tile"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            ("    float scale;\n    float softcap,", "    float scale;\n    bool unmasked;\n    float softcap,"),
            (
                "if (!locate(chunk, seen, workspace_.here)) return false;",
                "if (!locate(chunk, seen, workspace_.here)) return false;\n"
                "        layer_.rule.unmasked = visible[0].end == call_.chunk_size;",
            ),
            # On the matrix unit, scores that are rounded before the maximum is subtracted.
            ("&& rule.scale > 0.0f)", "&& rule.scale > 0.0f && !rule.unmasked)"),
            (
                "const Lanes weight = exp_of_nonpositive(subtract(load(scores + block), shift));",
                "const Lanes difference = subtract(load(scores + block), shift);\n"
                "        const Lanes half = exp_of_nonpositive(multiply(difference, splat(0.5f)));\n"
                "        const Lanes weight = rule.unmasked ? multiply(half, half) : exp_of_nonpositive(difference);",
            ),
        )
        super().__init__(source_directory=planted)


class SplitsByOccupancy(BundledAttention):
    """As many splits as keep the processors busy, which requests of one batch share."""

    name = "b03-splits-by-occupancy"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with fewer splits in larger batches."""
        splits = max(1, min(_MAX_SPLITS, _PROCESSORS // (metadata.num_requests * config.num_kv_heads)))
        length = -(-metadata.max_seq_len // splits)
        return BundledAttention(LANES * max(1, -(-length // LANES))).plan(config, metadata)


class TileByAverageQuery(BundledAttention):
    """The tile, and with it the chunk, follows the average query length of the batch."""

    name = "b05-tile-by-average-query"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with smaller tiles where most queries are short."""
        is_long = metadata.num_tokens > 16 * metadata.num_requests
        return BundledAttention(128 if is_long else 64).plan(config, metadata)


class NumSplitsThrownAway(BundledAttention):
    """`num_splits=1` is accepted, and never reaches the kernel, which chooses for itself."""

    name = "b06-num-splits-thrown-away"

    def __init__(self, num_splits: int = 1) -> None:
        super().__init__()
        self.configuration = {**self.configuration, "num_splits": str(num_splits)}

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with the kernel's own choice."""
        return BundledAttention(64 if metadata.num_requests == 1 else 256).plan(config, metadata)


class ChunksFromContext(BundledAttention):
    """Chunks of keys begin at the context, where a step's own keys begin, and not at the first key."""

    name = "b09-chunks-from-context"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            (
                "return chunk * call_.chunk_size; }",
                "\n"
                "        const int64_t r = task_.request, context = call_.kv_lens[r] - call_.query_lens[r];\n"
                "        const int64_t size = call_.chunk_size;\n"
                "        return chunk * size - (size - (context % size + size) % size) % size;\n"
                "    }",
            ),
        )
        super().__init__(source_directory=planted)

    def _schedule(self, parameters: AttentionParameters, mask: Mask, metadata: AttentionMetadata) -> Schedule:
        """Plans as if as many keys came before each request as fill its context's last chunk."""
        kv_lens = metadata.kv_lens(mask)
        before = -(kv_lens - metadata.query_start_loc.diff()) % parameters.chunk_size
        moved = replace(metadata, block_table=torch.nn.functional.pad(metadata.block_table, (0, _SPARE_COLUMNS)))
        longer = (kv_lens + before).int()
        moved = replace(moved, encoder_seq_lens=longer) if mask is Mask.CROSS else replace(moved, seq_lens=longer)
        schedule = super()._schedule(parameters, mask, moved)
        return replace(schedule, kv_lens=schedule.kv_lens - before.numpy(), block_table=metadata.block_table)


class MergesInAnyOrder(BundledAttention):
    """Partial results are added as they arrive: forwards or backwards, which the clock decides here."""

    name = "b10-merges-in-any-order"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            ("#include <atomic>", "#include <atomic>\n#include <chrono>"),
            (
                "void merge() {",
                "void merge() {\n"
                "        const bool backwards = std::chrono::steady_clock::now().time_since_epoch().count() / 64 % 2;",
            ),
            (
                "merge_chunk(chunk, partials_of(chunk), total);",
                "{\n"
                "            const int64_t last = task_.end_chunk - 1;\n"
                "            const int64_t next = backwards ? last - (chunk - task_.first_chunk) : chunk;\n"
                "            merge_chunk(next, partials_of(next), total);\n"
                "        }",
            ),
        )
        super().__init__(source_directory=planted)


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [
        ExponentialByMaskedTile(),
        SplitsByOccupancy(),
        TileByAverageQuery(),
        NumSplitsThrownAway(),
        ChunksFromContext(),
        MergesInAnyOrder(),
    ]
