"""The page that a run leaves, in Markdown: what changed first, then what failed, then the tables, folded.

It fits a comment on GitHub, and tells what it left out to do so; the other files have all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from samebits.harness.records import Verdict
from samebits.reports import text
from samebits.reports.accumulation_words import short_lines
from samebits.reports.findings import FINDING_TITLES, Finding, findings, gaps, guards
from samebits.reports.markdown_table import markdown_table
from samebits.reports.regression import ComparedCell, Comparison, State
from samebits.reports.resources import COLUMNS, WORDS, resource_rows
from samebits.reports.sentences import baseline_sentences, conclusion, controls_sentence, run_sentences
from samebits.reports.tables import budget_table, claims_table, implementation_table

# GitHub takes 65,536; the rest is for whoever posts it.
MOST_CHARACTERS = 65_000
_ROOM_FOR_NOTE = 300
_HEADING_LINES = 4
# Enough to act on; the table in CSV holds every cell.
_MOST_CELLS = 25
_MOST_FINDINGS = 40
# Of a reason, characters: of what is red, and of what is not.
_MOST_OF_REASON = {True: 500, False: 160}
_RED = (Verdict.FAIL, Verdict.ERROR)
_CHANGED = (State.REGRESSED, State.MISSING, State.NEW_BITS, State.BETTER)
_FORMATS: Mapping[str, Callable[[Any], str]] = {
    "implementation": text.markdown,
    "suite": text.markdown,
    "error_budget": text.budget,
    "max_ulp": text.whole,
}


@dataclass(frozen=True)
class _Section:
    """A part of the page.

    Attributes:
        title: its heading; empty for the first part, which has one of its own.
        lines: its content.
        folded: whether it is to be opened first.
    """

    title: str
    lines: Iterable[str]
    folded: bool = False


def page(comparison: Comparison, cells: pd.DataFrame) -> str:
    """The whole page, of no more than `MOST_CHARACTERS`.

    Args:
        comparison: of the run with its baseline.
        cells: the comparison's cell table.
    """
    red, others = _findings(comparison)
    return _fitted(
        (
            _Section("", _summary(comparison)),
            _Section("What changed", _changes(comparison)),
            _Section("What failed", red),
            _Section("Implementations", _implementations(cells), folded=True),
            _Section("Error budgets", _budgets(cells), folded=True),
            _Section("Claims and findings", _claims(comparison), folded=True),
            _Section("What did not run", _gaps(comparison), folded=True),
            _Section("Controls", _controls(comparison), folded=True),
            _Section("Kernels compiled ahead of time", _resources(comparison), folded=True),
            _Section("Findings that are not red", others, folded=True),
        )
    )


def _fitted(sections: Iterable[_Section]) -> str:
    """The sections that say anything, as far as there is room; those behind give way to those before."""
    told, room = "", MOST_CHARACTERS - _ROOM_FOR_NOTE
    left_out = []
    for section in sections:
        lines = [line for block in section.lines for line in _unpadded(block).split("\n")]
        if not lines:
            continue
        before = f"<details><summary>{section.title}</summary>\n\n" if section.folded else ""
        before = f"## {section.title}\n\n" if section.title and not section.folded else before
        after = "\n</details>\n\n" if section.folded else "\n"
        kept = _kept(lines, room - len(before) - len(after))
        if len(kept) < len(lines):
            left_out.append(section.title or "the summary")
        if kept:
            told += before + "\n".join(kept).rstrip("\n") + "\n" + after
            room = MOST_CHARACTERS - _ROOM_FOR_NOTE - len(told)
    note = f"Left out, to fit a comment: of {', '.join(left_out)}. The other files have all.\n" if left_out else ""
    return told + note


def _kept(lines: Sequence[str], room: int) -> list[str]:
    """As many lines as there is room for; none where a table's heading would be all."""
    lengths = itertools.accumulate(len(line) + 1 for line in lines)
    kept = [line for line, length in zip(lines, lengths, strict=True) if length < room]
    return kept if len(kept) == len(lines) or len(kept) > _HEADING_LINES else []


def _unpadded(block: str) -> str:
    """Lines of a table without the spaces that align them, which are most of it; no text of a record has two."""
    return re.sub("-{4,}", "---", re.sub(" {2,}(?=\\S)", " ", block)) if block.startswith("|") else block


def _summary(comparison: Comparison) -> Iterator[str]:
    yield f"# {text.markdown(f'samebits: run {comparison.run.header.run_id}')}\n"
    yield f"**{text.markdown(conclusion(comparison))}**\n"
    for sentence in (*baseline_sentences(comparison), controls_sentence(comparison), *run_sentences(comparison)):
        yield f"- {text.markdown(sentence)}"
    yield ""


def _changes(comparison: Comparison) -> Iterator[str]:
    changed = [(state, [cell for cell in comparison.cells if cell.state is state]) for state in _CHANGED]
    if not any(cells for _, cells in changed):
        return
    for state, cells in changed:
        if not cells:
            continue
        yield f"### {state.value.capitalize()}: {text.counted(len(cells), 'cell')}\n"
        rows = [[text.markdown(cell.known.cell_id), text.markdown(cell.note), _versions(cell)] for cell in cells]
        yield from markdown_table(["cell", "change", "versions"], rows[:_MOST_CELLS], numbers=0)
        if len(rows) > _MOST_CELLS:
            yield f"And {len(rows) - _MOST_CELLS:,} more, in the CSV file.\n"


def _versions(cell: ComparedCell) -> str:
    return text.markdown(", ".join(f"{name} {old} -> {new}" for name, (old, new) in cell.versions.items()))


def _findings(comparison: Comparison) -> tuple[list[str], list[str]]:
    """What is red, and what is not."""
    found = findings(comparison.records, comparison.run.header)
    red, others = (
        [line for verdict in verdicts for line in _of_verdict(verdict, found)]
        for verdicts in (_RED, [verdict for verdict in FINDING_TITLES if verdict not in _RED])
    )
    return red, others


def _of_verdict(verdict: Verdict, found: Iterable[Finding]) -> Iterator[str]:
    of_verdict = [finding for finding in found if finding.verdict is verdict]
    if of_verdict:
        yield f"### {FINDING_TITLES[verdict]}\n"
    for finding in of_verdict[:_MOST_FINDINGS]:
        yield from _finding(finding)
    if len(of_verdict) > _MOST_FINDINGS:
        yield f"And {len(of_verdict) - _MOST_FINDINGS:,} more groups, in the other files.\n"


def _finding(finding: Finding) -> Iterator[str]:
    example = finding.example
    dtypes, masks = (text.joined(getattr(record, name) for record in finding.records) for name in ("dtype", "mask"))
    where = text.markdown(f"{finding.suite}; {dtypes}; {masks}")
    yield f"- **{text.markdown(finding.label)}**, {text.markdown(finding.relation)}: {finding.share} cells ({where})"
    reason = text.plain("; ".join(example.reasons)) or "no reason given"
    yield f"  - {text.markdown(text.shortened(reason, _MOST_OF_REASON[finding.verdict in _RED]))}"
    if example.smallest_batch:
        yield f"  - smallest batch: {text.markdown_code(example.smallest_batch)}"
    for sentence in [] if example.explanation is None else short_lines(example.explanation):
        yield f"  - {text.markdown(sentence)}"
    yield f"  - reproduce: {text.markdown_code(example.command)}"
    if example.repro:
        yield f"  - just that batch: {text.markdown_code(example.repro)}"
    yield ""


def _implementations(cells: pd.DataFrame) -> Iterator[str]:
    table = implementation_table(cells)
    for column in table.columns:
        table[column] = table[column].map(_FORMATS.get(column, text.count))
    headings = {"error_budget": "worst error budget", "max_ulp": "worst ULP"}
    yield from markdown_table(
        [headings.get(column, column) for column in table.columns],
        table.to_numpy().tolist(),
        numbers=len(table.columns) - 2,
    )
    yield (
        "Of the *relations* that ran, some are *claimed* by the implementation, and some *held* in every cell. The "
        "error budget is the share of the bound on rounding errors that the worst element uses against the fp64 "
        "reference: above 1 is wrong. ULP are between two computations of the same request, "
        "those of an element near 0 at the root mean square of its row.\n"
    )


def _budgets(cells: pd.DataFrame) -> Iterator[str]:
    table = budget_table(cells)
    if table.empty:
        return
    rows = [
        [text.markdown(label), dtype, text.count(count), text.budget(worst), text.budget(median), text.whole(max_ulp)]
        for label, dtype, count, worst, median, max_ulp in table.to_numpy().tolist()
    ]
    yield from markdown_table(["implementation", "dtype", "cells", "worst", "median", "worst ULP"], rows, numbers=4)
    yield (
        "Each cell is one kind of data, and its budget that of its worst element. ULP are distances from the rounded "
        "fp64 reference, among elements no smaller than the root mean square of their row.\n"
    )


def _resources(comparison: Comparison) -> Iterator[str]:
    rows = resource_rows(comparison.records)
    if not rows:
        return
    yield from markdown_table(list(COLUMNS), [_resource_row(row) for row in rows], numbers=len(COLUMNS) - WORDS)
    yield (
        "For devices that are not here. *registers* and *scratch bytes* are of one thread; *spills* are registers kept "
        "in memory or in other registers, which is slow and not wrong; *shared bytes* and *threads* are of a program.\n"
    )


def _resource_row(row: list[str]) -> list[str]:
    return [*map(text.markdown, row[:WORDS]), *row[WORDS:]]


def _claims(comparison: Comparison) -> Iterator[str]:
    table = claims_table(comparison.records, comparison.run.header)
    if table.empty:
        return
    rows = [[text.markdown(str(relation)), *map(text.markdown, line)] for relation, line in table.iterrows()]
    yield from markdown_table(["relation", *map(text.markdown, table.columns)], rows, numbers=0)
    yield (
        "*held*: claimed, and so in every cell. *holds, unclaimed*: so in every cell, and not promised. *broken*: "
        "claimed, and not so. *varies*: not claimed, and not so. *wrong*: the bits hold, but the result is outside its "
        "error budget. Numbers are cells of those that ran.\n"
    )


def _controls(comparison: Comparison) -> Iterator[str]:
    rows = [
        [
            text.markdown(guard.suite),
            text.markdown(guard.name),
            f"{len(guard.caught)}/{len(guard.caught) + len(guard.missed)}",
            text.markdown(", ".join(guard.missed)),
        ]
        for guard in guards(comparison.run)
    ]
    yield from markdown_table(["suite", "relation", "caught", "not caught"], rows, numbers=0)


def _gaps(comparison: Comparison) -> Iterator[str]:
    found = gaps(comparison.records)
    if not found:
        return
    rows = [
        [text.markdown(gap.label), gap.verdict.value, text.markdown(gap.reason), text.count(gap.cells)] for gap in found
    ]
    yield from markdown_table(["implementation", "verdict", "reason", "cells"], rows, numbers=1)
