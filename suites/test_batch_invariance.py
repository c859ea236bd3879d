"""Batch invariance: a request keeps its bits whatever its batch, its neighbours, its pages and its schedule.

One test per cell of the matrix; the samebits plugin makes the cells from the selected implementations, and the controls
beside them. See `samebits.harness.relations` for what each relation of attention compares, and
`samebits.harness.tokens.relations` for those of KV-cache writes, merges, linear layers and norms.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.batch_invariant
def test_batch_invariance(cell: Cell, run_cell: CellRunner) -> None:
    """The relation holds on the cell's case, or is not claimed; every control is caught."""
    run_cell(cell)
