"""Bench: how fast each implementation is, beside the others, beside the machine's limits, and what invariance costs.

It judges no bits, and runs where its mark is named alone. See `samebits.harness.bench`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.bench
def test_bench(run_bench: Callable[[], None]) -> None:
    """Everything that is available is timed, and computes what it should."""
    run_bench()
