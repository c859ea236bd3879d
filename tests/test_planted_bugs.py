"""Bugs planted in the bundled kernels turn the suite that users run red, and their correct parent stays green."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samebits.harness.record_files import read_run
from samebits.harness.records import Record, Verdict

ROOT = Path(__file__).parent.parent
PLANTED = Path(__file__).parent / "planted"


ONE_CASE = "llama3-8b-causal-mixed and not CONTROL"


def run_suite(results: Path, *arguments: str) -> tuple[int, list[Record]]:
    """Runs the batch-invariance suite as a user does: exit code, and the records of no control."""
    command = [sys.executable, "-m", "pytest", "-m", "batch_invariant", "--tier", "smoke", "--results", str(results)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.returncode, [record for record in read_run(results).records if not record.control]


@pytest.mark.parametrize(
    ("file", "parent"), [("cpu_kernel.py", "CPU/bundled"), ("triton_kernel.py", "TRITON_ATTN/bundled")]
)
def test_planted_bugs_turn_the_run_red_and_the_parent_does_not(tmp_path: Path, file: str, parent: str) -> None:
    backend = parent.split("/")[0]
    exit_code, records = run_suite(
        tmp_path, "--load", str(PLANTED / file), "--backend", backend, "--dtype", "fp32", "-k", ONE_CASE
    )
    assert exit_code == 1, "the run with planted bugs ended green"
    seen = {
        name: {record.relation for record in records if record.implementation == name and record.red}
        for name in ("split-by-batch", "tile-by-neighbours", "reads-past-the-end", parent.split("/")[1])
    }
    assert "batch_size" in seen["split-by-batch"], f"relations that saw the per-batch split: {seen['split-by-batch']}"
    assert "neighbour_lengths" in seen["tile-by-neighbours"], f"saw the tile: {seen['tile-by-neighbours']}"
    wrong = [r for r in records if r.implementation == "reads-past-the-end" and r.verdict is Verdict.FAIL]
    assert wrong, "nothing saw a slot read past seq_lens"
    assert max(record.error_budget or 0.0 for record in wrong) > 1.0, "the read past seq_lens stayed inside its budget"
    assert not seen[parent.split("/")[1]], f"the correct parent failed {seen[parent.split('/')[1]]}"
