"""Splits in which a row sees no key, merged as they lie in scratch that nobody wrote: in C++ and in Triton.

They are registered as any third party's backend is.
"""

from __future__ import annotations

from typing import Any

from samebits.backends.contract import Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.triton_attn import KERNELS, TritonAttention
from samebits.harness.museum.sources import planted_library, planted_module
from samebits.kernels.cpu.build import SOURCE_DIRECTORY


class MergedOnCpu(BundledAttention):
    """The C++ kernel, whose second loop merges every split of a tile into every row."""

    name = "empty-split-merged"

    def __init__(self) -> None:
        planted = """
            for (int64_t row = 0; row < task_.num_rows; ++row) {
                merge_row(total, !row_begun_[row], partials_of(chunk), row, padded_dim_);
                row_begun_[row] = true;
            }"""
        line = ("merge_chunk(chunk, partials_of(chunk), total);", planted)
        super().__init__(source_directory=planted_library(SOURCE_DIRECTORY, "attention.cpp", line))


class MergedOnTriton(TritonAttention):
    """The Triton kernels, of which the second merges as many splits as the longest request of the batch has."""

    name = "empty-split-merged"

    def __init__(self) -> None:
        lines = (
            ("end_chunk = tl.cdiv(end_key, CHUNK)", "end_chunk = partial_chunks"),
            ("range(begin_key // CHUNK, end_chunk, BATCH)", "range(0, end_chunk, BATCH)"),
        )
        super().__init__(kernels=planted_module(KERNELS, "planted_empty_split", *lines))


def implementations() -> list[Implementation[Any]]:
    """The mutants, beside which `CPU/bundled` and `TRITON_ATTN/bundled` are the correct parents."""
    return [MergedOnCpu(), MergedOnTriton()]
