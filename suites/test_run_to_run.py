"""Run to run: the same call gives the same bits, again and again.

On other addresses, with other scratch, beside other work, and, as a claim of its own, on another number of threads. See
`samebits.harness.repeats`.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.run_to_run
def test_run_to_run(cell: Cell, run_cell: CellRunner) -> None:
    """All calls come to one digest, or nothing was claimed; every control is caught."""
    run_cell(cell)
