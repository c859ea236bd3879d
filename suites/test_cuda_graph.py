"""CUDA graphs: what was captured once computes every other batch of its padded sizes, bit by bit as a run of its own.

`graph_*` relations capture and replay; `persistent_*` keep the same contract without a graph, on any device. See
`samebits.harness.graphs.relations`.
"""

from __future__ import annotations

import pytest

from samebits.harness.matrix import Cell
from samebits.harness.session import CellRunner


@pytest.mark.cuda_graph
def test_cuda_graph(cell: Cell, run_cell: CellRunner) -> None:
    """Every replay has the bits of an eager run, or no graph is claimed; every control is caught."""
    run_cell(cell)
