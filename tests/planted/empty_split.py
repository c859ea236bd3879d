"""Splits in which a row sees no key, merged as they lie in scratch that nobody wrote: in C++ and in Triton.

They are registered as any third party's backend is.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from samebits.backends.contract import Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.triton_attn import KERNELS, TritonAttention
from samebits.kernels.cpu.build import SOURCE_DIRECTORY


class MergedOnCpu(BundledAttention):
    """The C++ kernel, whose second loop merges every split of a tile into every row."""

    name = "empty-split-merged"

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp())
        for source in (SOURCE_DIRECTORY / "attention.cpp", *SOURCE_DIRECTORY.glob("*.h")):
            shutil.copy(source, directory)
        kernel = directory / "attention.cpp"
        planted = """
            for (int64_t row = 0; row < task_.num_rows; ++row) {
                merge_row(total, !row_begun_[row], partials_of(chunk), row, padded_dim_);
                row_begun_[row] = true;
            }"""
        kernel.write_text(replaced(kernel.read_text(), "merge_chunk(chunk, partials_of(chunk), total);", planted))
        super().__init__(source_directory=directory)


class MergedOnTriton(TritonAttention):
    """The Triton kernels, of which the second merges as many splits as the longest request of the batch has."""

    name = "empty-split-merged"

    def __init__(self) -> None:
        specification = importlib.util.find_spec(KERNELS)
        assert specification is not None
        assert specification.origin is not None
        planted = replaced(
            Path(specification.origin).read_text(),
            "tl.range(begin_key // CHUNK, tl.cdiv(end_key, CHUNK), num_stages=NUM_STAGES)",
            "tl.range(0, partial_chunks, num_stages=NUM_STAGES)",
        )
        directory = Path(tempfile.mkdtemp())
        (directory / "planted_empty_split.py").write_text(planted)
        sys.path.append(str(directory))
        super().__init__(kernels="planted_empty_split")


def replaced(source: str, line: str, planted: str) -> str:
    """The source with a bug in place of a line that occurs in it once."""
    assert source.count(line) == 1, f"the line to plant the bug in has changed: {line}"
    return source.replace(line, planted)


def implementations() -> list[Implementation[Any]]:
    """The mutants, beside which `CPU/bundled` and `TRITON_ATTN/bundled` are the correct parents."""
    return [MergedOnCpu(), MergedOnTriton()]
