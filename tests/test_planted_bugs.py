"""Bugs planted in the bundled kernels turn the suite that users run red, and their correct parent stays green."""

from __future__ import annotations

from pathlib import Path

import pytest

from samebits.harness.records import Verdict

from .suite_runs import PLANTED, run_suite

ONE_CASE = ("--tier", "smoke", "--dtype", "fp32", "-k")


@pytest.mark.parametrize(
    ("file", "parent", "cells"),
    [
        ("cpu_kernel.py", "CPU/bundled", "llama3-8b-causal-mixed"),
        # Those that must see the bugs alone: a kernel in the interpreter takes four times as long over the others.
        ("triton_kernel.py", "TRITON_ATTN/bundled", "llama3-8b-causal-mixed and (batch_size or neighbour_lengths)"),
    ],
    ids=["C++", "Triton"],
)
def test_planted_bugs_turn_the_run_red_and_the_parent_does_not(
    tmp_path: Path, file: str, parent: str, cells: str
) -> None:
    backend = parent.split("/")[0]
    narrowed = (*ONE_CASE, f"{cells} and not CONTROL", "--backend", backend)
    run = run_suite("batch_invariant", tmp_path, "--load", PLANTED / file, *narrowed)
    assert run.exit_code == 1, "the run with planted bugs ended green"
    seen = {
        name: {record.relation for record in run.of(f"{backend}/{name}") if record.red}
        for name in ("split-by-batch", "tile-by-neighbours", "reads-past-the-end", "bundled")
    }
    assert "batch_size" in seen["split-by-batch"], f"relations that saw the per-batch split: {seen['split-by-batch']}"
    assert "neighbour_lengths" in seen["tile-by-neighbours"], f"saw the tile: {seen['tile-by-neighbours']}"
    wrong = [r for r in run.of(f"{backend}/reads-past-the-end") if r.verdict is Verdict.FAIL]
    assert wrong, "nothing saw a slot read past seq_lens"
    assert max(record.error_budget or 0.0 for record in wrong) > 1.0, "the read past seq_lens stayed inside its budget"
    assert not seen["bundled"], f"the correct parent failed {seen['bundled']}"
