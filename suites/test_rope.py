"""Rotary embedding: right in every pairing and dtype, invariant, and by the rules of its cache.

See `samebits.backends.operations` for the rules, `samebits.harness.tokens.relations` for the checks and
`samebits.harness.tokens.rotary` for the reference.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.rope
def test_rope(cell: Cell, run_cell: CellRunner) -> None:
    """The check holds on the cell's case, or is not claimed; every control is caught."""
    run_cell(cell)
