"""The summary that a run ends with, for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from samebits.harness.records import Verdict
from samebits.reports import text
from samebits.reports.columns import columns
from samebits.reports.findings import FINDING_TITLES, Finding, easiest, findings, gaps
from samebits.reports.history import History
from samebits.reports.regression import Comparison, State
from samebits.reports.resources import COLUMNS, WORDS, resource_rows
from samebits.reports.sentences import baseline_sentences, conclusion, controls_sentence, has_baseline, run_sentences
from samebits.reports.tables import BUDGET_COLUMNS, STATES, VERDICTS, budget_table, implementation_table

# Of what there may be hundreds of, this many are shown; the files hold all.
_MOST = 8
_ALWAYS = (Verdict.PASS.value, Verdict.VARIES.value, Verdict.FAIL.value)
_HEADINGS = {
    "claimed": ("relations", "claimed"),
    "held": ("relations", "held"),
    "unsupported": ("un-", "supported"),
    "unavailable": ("un-", "available"),
    "error_budget": ("worst", "budget"),
    "max_ulp": ("worst", "ULP"),
}


def summary(comparison: Comparison, cells: pd.DataFrame, history: History | None = None) -> str:
    """The whole summary, without a line break at its end.

    Args:
        comparison: of the run with its baseline.
        cells: the comparison's cell table.
        history: of the run, with earlier ones; None where none is told.
    """
    table = implementation_table(cells)
    sections = (
        "\n".join(_title(comparison)),
        "\n".join(_table(table)),
        "\n".join(_budgets(cells)),
        "\n".join(_resources(comparison)),
        *_findings(comparison),
        "\n".join(_gaps(comparison)),
        "\n".join(_changes(comparison, table)),
        "\n".join(text.wrapped(history.told)) if history else "",
        "\n".join(_conclusion(comparison)),
    )
    return "\n\n".join(section for section in sections if section)


def _title(comparison: Comparison) -> Iterator[str]:
    for sentence in run_sentences(comparison):
        yield from text.wrapped(sentence)


def _table(table: pd.DataFrame) -> Iterator[str]:
    if table.empty:
        yield "No cell finished."
        return
    relations = zip(table["held"], table["relations"], strict=True)
    lines = table.assign(held=[f"{held}/{ran}" if ran else "-" for held, ran in relations])
    shown = ["claimed", "held", "cells"]
    shown += [verdict for verdict in VERDICTS if verdict in _ALWAYS or table[verdict].any()]
    yield from _aligned(lines, [*shown, "error_budget", "max_ulp"])


def _budgets(cells: pd.DataFrame) -> Iterator[str]:
    """How right each implementation is, where a suite asked that."""
    table = budget_table(cells)
    if table.empty:
        return
    headings = [*(("", column) for column in BUDGET_COLUMNS[:3]), *(("budget", "worst"), ("budget", "median"))]
    rows = [
        [str(label), str(dtype), str(count), text.budget(worst), text.budget(median), text.whole(max_ulp)]
        for label, dtype, count, worst, median, max_ulp in table.to_numpy().tolist()
    ]
    yield from columns([*headings, ("worst ULP", "to fp64")], rows, 2)


def _resources(comparison: Comparison) -> Iterator[str]:
    """How many kernels were compiled ahead of time, and those that spill."""
    rows = resource_rows(comparison.records)
    if not rows:
        return
    spilling = [row for row in rows if row[COLUMNS.index("spills")] != "-"]
    yield f"Compiled ahead of time: {text.counted(len(rows), 'kernel')}, of which {len(spilling)} spill registers."
    if spilling:
        headings = [(upper, lower) for upper, _, lower in (column.rpartition(" ") for column in COLUMNS)]
        yield from columns(headings, spilling[:_MOST], WORDS)
    yield from _more(len(spilling), "kernel", " that spill")


def _aligned(table: pd.DataFrame, shown: list[str]) -> Iterator[str]:
    """Some columns of the implementation table, behind its implementations."""
    left = ["implementation", *(["suite"] if table["suite"].nunique() > 1 else [])]
    shown = [*left, *shown]
    rows = [
        [_formatted(column, value) for column, value in zip(shown, line, strict=True)]
        for line in table[shown].to_numpy().tolist()
    ]
    yield from columns([_HEADINGS.get(column, ("", column)) for column in shown], rows, len(left))


def _findings(comparison: Comparison) -> Iterator[str]:
    """One section per verdict that is no pass."""
    found = findings(comparison.records, comparison.run.header)
    for verdict, title in FINDING_TITLES.items():
        of_verdict = [finding for finding in found if finding.verdict is verdict]
        if of_verdict:
            told = _failures(of_verdict) if verdict in (Verdict.FAIL, Verdict.ERROR) else _variations(of_verdict)
            yield "\n".join((f"{title}:", *told))


def _failures(found: Sequence[Finding]) -> Iterator[str]:
    """Each group of failures with an example, and the command that reproduces it."""
    for finding in found[:_MOST]:
        example = finding.example
        yield f"  {text.plain(finding.label)}  {text.plain(finding.relation)}  {finding.share} cells"
        yield from text.wrapped("; ".join(example.reasons), "    ", most=3)
        if example.smallest_batch:
            yield from text.wrapped(f"smallest batch: {example.smallest_batch}", "    ", most=2)
        # Never wrapped: it is made to be copied.
        yield f"    reproduce: {text.plain(example.command)}"
        if example.repro:
            yield f"    just that batch: {text.plain(example.repro)}"
    yield from _more(len(found), "group")


def _variations(found: Sequence[Finding]) -> Iterator[str]:
    """The relations of an implementation on one line, and the smallest batch of them all."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.label, []).append(finding)
    for label, group in groups.items():
        relations = ", ".join(f"{finding.relation} {finding.share}" for finding in group)
        yield from text.wrapped(f"{label}: {relations}", "  ")
        smallest = easiest(finding.example for finding in group)
        if smallest.smallest_batch:
            yield from text.wrapped(f"smallest batch, {smallest.relation}: {smallest.smallest_batch}", "    ", most=2)


def _gaps(comparison: Comparison) -> Iterator[str]:
    found = gaps(comparison.records)
    if found:
        yield "Did not run:"
    for gap in found[:_MOST]:
        yield from text.wrapped(
            f"{gap.label}: {text.counted(gap.cells, 'cell')} {gap.verdict}: {gap.reason}", "  ", most=2
        )
    yield from _more(len(found), "reason")


def _changes(comparison: Comparison, table: pd.DataFrame) -> Iterator[str]:
    for sentence in baseline_sentences(comparison):
        yield from text.wrapped(sentence)
    # An implementation of which every cell is the same is told by the sentence above.
    changed = table[table[State.SAME] != table[list(STATES)].sum(axis=1)]
    if has_baseline(comparison) and not changed.empty:
        yield ""
        yield from _aligned(changed, [state for state in STATES if table[state].any()])
        yield ""
    regressed = [cell for cell in comparison.cells if cell.state is State.REGRESSED]
    for cell in regressed[:_MOST]:
        yield "  " + text.plain(f"regressed: {cell.known.cell_id}, {cell.note}")
    yield from _more(len(regressed), "regressed cell")
    missing: dict[str, list[str]] = {}
    for cell in comparison.cells:
        if cell.state is State.MISSING:
            missing.setdefault(cell.known.label, []).append(cell.known.cell_id)
    for cell_ids in list(missing.values())[:_MOST]:
        others = f" and {len(cell_ids) - 1:,} more of the implementation" if len(cell_ids) > 1 else ""
        yield from text.wrapped(f"missing: {cell_ids[0]}{others}", "  ")
    yield from _more(len(missing), "implementation", " with missing cells")


def _conclusion(comparison: Comparison) -> Iterator[str]:
    yield from text.wrapped(controls_sentence(comparison))
    yield from text.wrapped(conclusion(comparison))


def _more(found: int, noun: str, which: str = "") -> Iterator[str]:
    if found > _MOST:
        yield f"  and {text.counted(found - _MOST, f'more {noun}')}{which}, in the files"


def _formatted(column: str, value: Any) -> str:  # noqa: ANN401 -- a data frame's value
    """How a value of the implementation table is shown."""
    if column in ("implementation", "suite", "held"):
        return text.plain(value)
    if column == "error_budget":
        return text.budget(value)
    return text.whole(value) if column == "max_ulp" else text.count(value)
