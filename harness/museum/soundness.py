"""What the suites say of the kernels without a bug, under many seeds: what they see must mean that there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from samebits.harness.museum.catalogue import Exhibit
from samebits.harness.museum.visit import SOUND, is_searched
from samebits.harness.records import Verdict
from samebits.harness.session import MatrixSession, Options


@dataclass(frozen=True)
class Soundness:
    """What the cells of bugs come to on the implementations that the bugs are planted in.

    Attributes:
        seeds: how many there were, from 0.
        verdicts: how often the cells came to each.
        worst_budget: the largest share of its error bound that a cell used which passed.
        faults: cells that are red, each with its reasons.
    """

    seeds: int
    verdicts: Mapping[Verdict, int]
    worst_budget: float
    faults: tuple[str, ...]


def soundness_of_parents(exhibits: Sequence[Exhibit], seeds: int) -> Soundness:
    """Runs the cells that bugs are searched in, each once, on the correct implementations alone.

    Args:
        exhibits: whose parents and searches are meant.
        seeds: how many, from 0.
    """
    verdicts: Counter[Verdict] = Counter()
    faults, worst_budget = [], 0.0
    for seed in range(seeds):
        session = MatrixSession(Options(implementations=_parents(exhibits), seed=seed))
        for suite in dict.fromkeys(search.suite for exhibit in exhibits for search in exhibit.searches):
            for cell in session.cells(suite):
                searches = (
                    search
                    for exhibit in exhibits
                    if exhibit.parent == cell.implementation.label
                    for search in exhibit.searches
                    if search.suite == suite
                )
                if cell.flaw is not None or not any(is_searched(cell, search) for search in searches):
                    continue
                record = session.run(cell)
                verdicts[record.verdict] += 1
                if record.verdict not in SOUND:
                    faults.append(f"{record.cell_id} came to {record.verdict}: {'; '.join(record.reasons)}")
                elif record.verdict is Verdict.PASS and record.error_budget is not None:
                    worst_budget = max(worst_budget, record.error_budget)
    return Soundness(seeds, verdicts, worst_budget, tuple(faults))


def _parents(exhibits: Iterable[Exhibit]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(exhibit.parent for exhibit in exhibits))
