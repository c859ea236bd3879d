"""What the page tells of each implementation: its claims against what was found, figures, and how to see a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from samebits.harness.records import Record, Verdict
from samebits.reports import text
from samebits.reports.accumulation import drawn_orders, has_orders
from samebits.reports.accumulation_words import distances, short_lines
from samebits.reports.audit_words import ordered_dtypes
from samebits.reports.audits import ATTENTION, Audit, AuditedOperation, audited_operations
from samebits.reports.commands import portable
from samebits.reports.findings import DID_NOT_RUN, Finding, easiest, findings, gaps, grouped
from samebits.reports.html.batch_drawing import draw_batch
from samebits.reports.html.cell_data import pairs
from samebits.reports.html.charts import Distribution, budget_distribution, element_distances, ulp_distribution
from samebits.reports.html.heat_map import counts, own_cells, suites_of
from samebits.reports.html.links import cell_link, cells_link, implementation_place
from samebits.reports.html.marks import ERROR, FAIL, KNOWN, VARIES, Mark
from samebits.reports.html.styled import styled_table
from samebits.reports.html.tallies import Tally
from samebits.reports.regression import ComparedCell, Comparison

_MARK_OF_FINDING = {Verdict.FAIL: FAIL, Verdict.ERROR: ERROR, Verdict.VARIES: VARIES, Verdict.KNOWN: KNOWN}
# Reasons why cells did not run that are told, of each implementation.
_MOST_GAPS = 6


@dataclass(frozen=True)
class SuiteLine:
    """Cells of an implementation in one suite.

    Attributes:
        suite: its name.
        link: lists its cells.
        tally: what they came to.
        counts: the same as markup.
    """

    suite: str
    link: str
    tally: Tally
    counts: Markup


@dataclass(frozen=True)
class FindingLine:
    """Cells of one relation that came to the same that is no pass.

    Attributes:
        mark: what they came to.
        label, suite, relation, share: whose they are, and how many of those that ran.
        reason: of the cell that is easiest to follow.
        example: opens that cell.
        link: lists all.
    """

    mark: Mark
    label: str
    suite: str
    relation: str
    share: str
    reason: str
    example: str
    link: str

    @classmethod
    def of(cls, finding: Finding) -> FindingLine:
        """The line of a finding."""
        mark, example = _MARK_OF_FINDING[finding.verdict], finding.example
        return cls(
            mark=mark,
            label=finding.label,
            suite=finding.suite,
            relation=finding.relation,
            share=finding.share,
            reason="; ".join(example.reasons) or "no reason given",
            example=cell_link(example.cell_id),
            link=cells_link(
                implementation=finding.label, suite=finding.suite, relation=finding.relation, verdict=mark.name
            ),
        )


@dataclass(frozen=True)
class Failure:
    """The smallest batch that shows what is worst about an implementation.

    Attributes:
        mark: what its cell came to.
        record: of the cell.
        link: opens it.
        drawing: of the batch; None where there is none, or it cannot be read.
        repro: replays it; empty where the record knows of nothing smaller than its cell.
        command: reproduces the cell.
    """

    mark: Mark
    record: Record
    link: str
    drawing: Markup | None
    repro: str
    command: str


@dataclass(frozen=True)
class Explained:
    """Why the two sides of a cell differ.

    Attributes:
        cell_id: of the cell.
        link: opens it.
        why: a sentence each.
        elements: how many of its elements are how far apart; None where no number is told.
        orders: the orders in which both sides add up, drawn; empty where they were not found out.
    """

    cell_id: str
    link: str
    why: tuple[str, ...]
    elements: Markup | None
    orders: Markup


@dataclass(frozen=True)
class ImplementationView:
    """All that the page tells of one implementation.

    Attributes:
        label: its name.
        place: `id` of its section.
        version, devices, settings: of what ran; settings are attention's.
        whole: what all of its cells came to.
        suites: the same by suite.
        claims: table of claims against what was found; None where no cell judges any.
        budgets: the error budget used, by dtype, the widest first.
        distances: ULP between computations, and from the reference.
        findings: what is no pass, the worst first.
        failure: the smallest batch that shows the worst; None where nothing differs.
        explained: why both sides of a cell differ, one with orders to draw where there is one; None for no such cell.
        gaps: why cells did not run, and how many, the most frequent first.
        more_gaps: how many further reasons there are.
    """

    label: str
    place: str
    version: str
    devices: str
    settings: str
    whole: Tally
    suites: tuple[SuiteLine, ...]
    claims: Markup | None
    budgets: tuple[Distribution, ...]
    distances: tuple[Distribution, ...]
    findings: tuple[FindingLine, ...]
    failure: Failure | None
    explained: Explained | None
    gaps: tuple[tuple[str, int], ...]
    more_gaps: int

    @property
    def bad(self) -> bool:
        """Whether the first thing to see of the implementation is a failure."""
        worst = self.whole.worst
        return worst is not None and worst.tone == "bad"


def implementation_views(comparison: Comparison) -> list[ImplementationView]:
    """A view of each implementation, in the order of the run."""
    header, suites = comparison.run.header, suites_of(comparison)
    own = [record for record in comparison.records if not record.control]
    audited = grouped(audited_operations(own, header), "label")
    by_label: dict[str, list[ComparedCell]] = {}
    for cell in own_cells(comparison):
        by_label.setdefault(cell.known.label, []).append(cell)
    found = grouped(findings(own, header), "label")
    return [
        _view(label, cells, suites, audited.get(label, []), found.get(label, [])) for label, cells in by_label.items()
    ]


def _view(
    label: str,
    cells: Sequence[ComparedCell],
    suites: Iterable[str],
    operations: Sequence[AuditedOperation],
    found: Sequence[Finding],
) -> ImplementationView:
    records = [cell.record for cell in cells if cell.record is not None]
    ran = [record for record in records if record.verdict not in DID_NOT_RUN]
    reasons = sorted(((gap.reason, gap.cells) for gap in gaps(records)), key=lambda pair: (-pair[1], pair[0]))
    return ImplementationView(
        label=label,
        place=implementation_place(label),
        version=text.joined(record.version for record in ran if record.version),
        devices=", ".join(device for device, _ in Counter(record.environment.device for record in ran).most_common()),
        settings=text.joined(pairs(record.configuration) for record in ran if record.operation == ATTENTION),
        whole=Tally.of(cells),
        suites=tuple(
            _suite_line(label, suite, of_suite)
            for suite in suites
            if (of_suite := [cell for cell in cells if cell.known.suite == suite])
        ),
        claims=_claims(operations),
        budgets=_budgets(ran),
        distances=_distances(ran),
        findings=tuple(map(FindingLine.of, found)),
        failure=_failure(found),
        explained=_explained(found),
        gaps=tuple(reasons[:_MOST_GAPS]),
        more_gaps=max(0, len(reasons) - _MOST_GAPS),
    )


def _suite_line(label: str, suite: str, cells: Sequence[ComparedCell]) -> SuiteLine:
    tally = Tally.of(cells)
    return SuiteLine(suite, cells_link(implementation=label, suite=suite), tally, counts(tally.marks))


def _claims(operations: Sequence[AuditedOperation]) -> Markup | None:
    """Every claim that cells judge, or that is made and no cell judges."""
    rows = [
        (operation.operation, audit)
        for operation in operations
        for audit in operation.audits
        if audit.claimed or audit.judged
    ]
    if not rows:
        return None
    index = pd.MultiIndex.from_tuples(
        [(operation, audit.claim.name) for operation, audit in rows], names=["operation", "claim"]
    )
    lines = [_audit_line(audit) for _, audit in rows]
    columns = ["claimed", "found", "cells", "where bits differ"]
    return styled_table(
        pd.DataFrame([line for line, _ in lines], index, columns, dtype=object),
        "Claims against findings",
        str,
        pd.DataFrame([["", f"found {tone}", "number", ""] for _, tone in lines], index, columns, dtype=object),
    )


def _audit_line(audit: Audit) -> tuple[list[str], str]:
    """What is told of a claim, and in which tone."""
    judged, differing = len(audit.judged), len(audit.differing)
    if not judged:
        found, tone = "not judged", "none"
    elif differing:
        found, tone = ("✗ broken", "bad") if audit.claimed else ("≈ varies", "varies")
    else:
        found, tone = ("✓ held", "good") if audit.claimed else ("✓ holds, unclaimed", "good")
    totals = Counter(record.relation for record in audit.judged)
    where = ", ".join(
        f"{relation} {len(cells)}/{totals[relation]}"
        for relation, cells in grouped(audit.differing, "relation").items()
    )
    cells = f"{differing}/{judged}" if differing else str(judged)
    return ["yes" if audit.claimed else "no", found, cells, where], tone


def _budgets(ran: Sequence[Record]) -> tuple[Distribution, ...]:
    """Of cells that do not fail as is known: those would hide all others."""
    found: dict[str, list[float]] = {dtype: [] for dtype in ordered_dtypes(ran)}
    for record in ran:
        if record.error_budget is not None and record.verdict is not Verdict.KNOWN:
            found[record.dtype].append(record.error_budget)
    return tuple(budget_distribution(dtype, budgets) for dtype, budgets in found.items() if budgets)


def _distances(ran: Sequence[Record]) -> tuple[Distribution, ...]:
    found: dict[str, list[int]] = {"between two computations": [], "from the reference": []}
    for record in ran:
        if record.max_ulp is not None and record.verdict is not Verdict.KNOWN:
            found["from the reference" if record.claimed is None else "between two computations"].append(record.max_ulp)
    return tuple(ulp_distribution(name, distances) for name, distances in found.items() if distances)


def _failure(found: Sequence[Finding]) -> Failure | None:
    """Of the worst that was found: the cell whose smallest batch is the smallest."""
    if not found:
        return None
    # What is worst may be a wrong value, of which there is no batch to draw; it is told all the same.
    worst = found[0].verdict
    example = easiest(record for finding in found if finding.verdict is worst for record in finding.records)
    return Failure(
        mark=_MARK_OF_FINDING[worst],
        record=example,
        link=cell_link(example.cell_id),
        drawing=draw_batch(example.smallest_batch, "key" if example.operation == ATTENTION else "position"),
        repro=portable(example.repro),
        command=portable(example.command),
    )


def _explained(found: Sequence[Finding]) -> Explained | None:
    """Of the worst that is explained, by orders of additions first: the cell that is easiest to follow."""
    for verdict in dict.fromkeys(finding.verdict for finding in found):
        records = [record for finding in found if finding.verdict is verdict for record in finding.records]
        explained = [record for record in records if record.explanation]
        with_orders = [record for record in explained if record.explanation and has_orders(record.explanation)]
        if explained:
            example = easiest(with_orders or explained)
            assert example.explanation is not None, "it is one of those that are explained"
            return Explained(
                cell_id=example.cell_id,
                link=cell_link(example.cell_id),
                why=tuple(short_lines(example.explanation)),
                elements=element_distances(dict(distances(example.explanation))) if example.explanation.ulps else None,
                orders=Markup(drawn_orders(example.explanation)),
            )
    return None
