"""Planners that look at thousands of tokens, at classes of batch sizes or at the order of pages turn the suite red."""

from __future__ import annotations

from pathlib import Path

from .suite_runs import PLANTED, run_suite

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
    relations = " or ".join(sorted(set(SEEN_BY.values())))
    cells = f"granite-3-2b-causal-pair and ({relations}) and not CONTROL"
    planted = ("--load", PLANTED / "thresholds.py", "--backend", "CPU")
    run = run_suite("batch_invariant", tmp_path, *planted, "--dtype", "fp32", "-k", cells)
    assert run.exit_code == 1, f"pytest ended with {run.exit_code}:\n{run.output}"
    red: dict[str, set[str]] = {}
    smallest: dict[str, str] = {}
    for record in run.records:
        if record.red:
            red.setdefault(record.implementation, set()).add(record.relation)
            smallest[f"{record.implementation}:{record.relation}"] = record.smallest_batch
    missed = {name: red.get(name, set()) for name, relation in SEEN_BY.items() if relation not in red.get(name, set())}
    assert not missed, f"not seen by the relation that is there for it; seen by: {missed}"
    assert set(red) == set(SEEN_BY), f"correct kernels failed too: {set(red) - set(SEEN_BY)}"
    long = smallest["longest-context:neighbour_lengths"]
    assert len(long.split(" against ")[1].split()) == 2, f"more than one neighbour is told: {long}"
