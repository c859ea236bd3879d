"""Compile: every Triton kernel becomes code for devices that are not here, and the code fits them.

Kernels are compiled ahead of time, as they would be launched, and the rows say which registers, spills and shared
memory came of it. See `samebits.harness.compilation`.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.compile
def test_compile(cell: Cell, run_cell: CellRunner) -> None:
    """The kernel compiles for its target and fits it; every control does not, or spills."""
    run_cell(cell)
