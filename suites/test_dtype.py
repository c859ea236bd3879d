"""Dtype: on each kind of data, every number is as right as arithmetic in its dtype allows.

Outputs and log-sum-exps are judged against the fp64 reference, element by element, and NaN must reach those rows that
see it and no others. See `samebits.harness.inputs` for the checks, `samebits.harness.dataset` for the data and
`samebits.harness.reference` for the bound.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.dtype
def test_dtype(cell: Cell, run_cell: CellRunner) -> None:
    """No element uses more than its error budget; every control does."""
    run_cell(cell)
