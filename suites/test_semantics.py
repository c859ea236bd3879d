"""Semantics: each mask and each option of attention means what it should.

Windows, softcaps, scales, sinks, groups of heads, head dims, pages, encoders, blocks, causality by request, strides: on
cases made for each, outputs and log-sum-exps are judged against the fp64 reference. See `samebits.harness.semantics`.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.semantics
def test_semantics(cell: Cell, run_cell: CellRunner) -> None:
    """No element uses more than its error budget; every control does."""
    run_cell(cell)
