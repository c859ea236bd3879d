"""Properties: every relation of attention, and correctness, on batches that Hypothesis draws.

A batch that fails is made smaller while it still does, and told as one line. See `samebits.harness.properties`.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.properties
def test_property(cell: Cell, run_cell: CellRunner) -> None:
    """The relation holds on every batch that is drawn, or nothing was claimed; every control is caught."""
    run_cell(cell)
