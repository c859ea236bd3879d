"""Planners that look at thousands of tokens, at classes of batch sizes or at the order of pages turn the suite red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from samebits.harness.record_files import read_run

ROOT = Path(__file__).parent.parent
# Which relation must name each planted choice.
SEEN_BY = {
    "few-programs": "batch_size",
    "size-class": "batch_size",
    "many-tokens": "batch_size",
    "longest-query": "neighbour_lengths",
    "longest-context": "neighbour_lengths",
    "sum-of-contexts": "neighbour_lengths",
    "pages-in-order": "pages",
}


def test_each_choice_is_seen_by_its_relation_and_the_parent_stays_green(tmp_path: Path) -> None:
    planted = Path(__file__).parent / "planted" / "thresholds.py"
    command = [sys.executable, "-m", "pytest", "-m", "batch_invariant", "--load", str(planted), "--backend", "CPU"]
    relations = " or ".join(sorted(set(SEEN_BY.values())))
    cells = f"granite-3-2b-causal-pair and ({relations}) and not CONTROL"
    command += ["--dtype", "fp32", "-k", cells, "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    red: dict[str, set[str]] = {}
    smallest: dict[str, str] = {}
    for record in read_run(tmp_path).records:
        if record.red:
            red.setdefault(record.implementation, set()).add(record.relation)
            smallest[f"{record.implementation}:{record.relation}"] = record.smallest_batch
    missed = {name: red.get(name, set()) for name, relation in SEEN_BY.items() if relation not in red.get(name, set())}
    assert not missed, f"not seen by the relation that is there for it; seen by: {missed}"
    assert set(red) == set(SEEN_BY), f"correct kernels failed too: {set(red) - set(SEEN_BY)}"
    long = smallest["longest-context:neighbour_lengths"]
    assert len(long.split(" against ")[1].split()) == 2, f"more than one neighbour is told: {long}"
