"""The summary that a run ends with, for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from samebits.harness.records import Verdict
from samebits.reports import text
from samebits.reports.findings import Finding, findings, gaps
from samebits.reports.regression import Comparison, State
from samebits.reports.sentences import baseline_sentences, conclusion, controls_sentence, has_baseline, run_sentences
from samebits.reports.tables import STATES, VERDICTS, implementation_table
from tabulate import tabulate

_WIDTH = 120
# Of what there may be hundreds of, this many are shown; the files hold all.
_MOST = 8
_LEFT = ("implementation", "suite")
_ALWAYS = (Verdict.PASS.value, Verdict.VARIES.value, Verdict.FAIL.value)
_HEADINGS = {
    "unsupported": "un- supported",
    "unavailable": "un- available",
    "error_budget": "worst budget",
    "max_ulp": "worst ULP",
}
_FINDING_TITLES = {
    Verdict.FAIL: "Failed",
    Verdict.ERROR: "Raised an error",
    Verdict.VARIES: "Varies, which is no failure where nothing else is claimed",
    Verdict.KNOWN: "Fails as is known",
}


def summary(comparison: Comparison, cells: pd.DataFrame) -> str:
    """The whole summary, without a line break at its end.

    Args:
        comparison: of the run with its baseline.
        cells: the comparison's cell table.
    """
    sections = (
        _title(comparison),
        _table(comparison, cells),
        _findings(comparison),
        _gaps(comparison),
        _changes(comparison),
        _conclusion(comparison),
    )
    return "\n\n".join("\n".join(section) for lines in sections if (section := list(lines)))


def _title(comparison: Comparison) -> Iterator[str]:
    for sentence in run_sentences(comparison):
        yield from _wrapped(sentence)


def _table(comparison: Comparison, cells: pd.DataFrame) -> Iterator[str]:
    table = implementation_table(cells)
    if table.empty:
        yield "No cell finished."
        return
    shown = ["implementation"]
    shown += ["suite"] if table["suite"].nunique() > 1 else []
    shown += ["relations", "claimed", "held", "cells"]
    shown += [verdict for verdict in VERDICTS if verdict in _ALWAYS or table[verdict].any()]
    shown += ["error_budget", "max_ulp"]
    shown += [state for state in STATES if table[state].any()] if has_baseline(comparison) else []
    headings = [_HEADINGS.get(column, column).split(" ") for column in shown]
    upper = [" ".join(heading[:-1]) for heading in headings]
    lower = [heading[-1] for heading in headings]
    rows = [
        [_formatted(column, value) for column, value in zip(shown, line, strict=True)] for line in table[shown].values
    ]
    lines = tabulate(
        [upper, lower, *rows],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left" if column in _LEFT else "right" for column in shown],
    ).splitlines()
    yield from (line.rstrip() for line in lines[:2])
    yield "-" * max(map(len, lines))
    yield from lines[2:]


def _findings(comparison: Comparison) -> Iterator[str]:
    found = findings(comparison.run.records)
    for verdict, title in _FINDING_TITLES.items():
        of_verdict = [finding for finding in found if finding.verdict is verdict]
        if of_verdict:
            yield f"{title}:"
            yield from _failures(of_verdict) if verdict in (Verdict.FAIL, Verdict.ERROR) else _variations(of_verdict)


def _failures(found: Sequence[Finding]) -> Iterator[str]:
    """Each group of failures with an example, and the command that reproduces it."""
    for finding in found[:_MOST]:
        example = finding.example
        yield f"  {text.plain(finding.label)}  {text.plain(finding.relation)}  {finding.share} cells"
        yield from _wrapped("; ".join(example.reasons), "    ")
        if example.smallest_batch:
            yield from _wrapped(f"smallest batch: {example.smallest_batch}", "    ")
        # Never wrapped: it is made to be copied.
        yield f"    reproduce: {text.plain(example.command)}"
    yield from _more(len(found), "groups")


def _variations(found: Sequence[Finding]) -> Iterator[str]:
    """The relations of an implementation on one line, and the smallest batch of them all."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.label, []).append(finding)
    for label, group in groups.items():
        relations = ", ".join(f"{finding.relation} {finding.share}" for finding in group)
        yield from _wrapped(f"{label}: {relations}", "  ")
        examples = [finding.example for finding in group if finding.example.smallest_batch]
        if examples:
            smallest = min(examples, key=lambda record: len(record.smallest_batch))
            yield from _wrapped(f"smallest batch, {smallest.relation}: {smallest.smallest_batch}", "    ")


def _gaps(comparison: Comparison) -> Iterator[str]:
    found = gaps(comparison.run.records)
    if found:
        yield "Did not run:"
    for gap in found[:_MOST]:
        yield from _wrapped(f"{gap.label}: {text.counted(gap.cells, 'cell')} {gap.verdict}: {gap.reason}", "  ")
    yield from _more(len(found), "reasons")


def _changes(comparison: Comparison) -> Iterator[str]:
    for sentence in baseline_sentences(comparison):
        yield from _wrapped(sentence)
    regressed = [cell for cell in comparison.cells if cell.state is State.REGRESSED]
    for cell in regressed[:_MOST]:
        yield "  " + text.plain(f"regressed: {cell.known.cell_id}, {cell.note}")
    yield from _more(len(regressed), "regressed cells")
    missing: dict[str, list[str]] = {}
    for cell in comparison.cells:
        if cell.state is State.MISSING:
            missing.setdefault(cell.known.label, []).append(cell.known.cell_id)
    for cell_ids in list(missing.values())[:_MOST]:
        others = f" and {len(cell_ids) - 1:,} more of the implementation" if len(cell_ids) > 1 else ""
        yield from _wrapped(f"missing: {cell_ids[0]}{others}", "  ")
    yield from _more(len(missing), "implementations with missing cells")


def _conclusion(comparison: Comparison) -> Iterator[str]:
    yield from _wrapped(controls_sentence(comparison))
    yield from _wrapped(conclusion(comparison))


def _more(found: int, what: str) -> Iterator[str]:
    if found > _MOST:
        yield f"  and {found - _MOST:,} more {what}, in the files"


def _wrapped(sentence: str, indent: str = "") -> list[str]:
    """Lines of a sentence, those after the first set in by two."""
    return textwrap.wrap(
        text.plain(sentence),
        width=_WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _formatted(column: str, value: Any) -> str:  # noqa: ANN401 -- a data frame's value
    """How a value of the implementation table is shown."""
    if column in _LEFT:
        return text.plain(value)
    if column == "error_budget":
        return text.budget(value)
    return text.whole(value) if column == "max_ulp" else text.count(value)
