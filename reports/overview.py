"""Who holds what, on one screen: batch invariance first, then every claim, then the other operations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from samebits.harness.records import Verdict
from samebits.reports import text
from samebits.reports.audit_words import dtypes, ordered_dtypes, set_aside, versions
from samebits.reports.audits import CLAIMS, Audit, AuditedOperation
from samebits.reports.findings import easiest
from samebits.reports.markdown_table import markdown_table


def batch_invariance(attention: Sequence[AuditedOperation]) -> Iterator[str]:
    """The first thing that is asked: whose bits follow the batch, and which batch is the smallest that shows it."""
    groups: dict[str, list[str]] = {
        "Claimed, and broken": [],
        "Claimed, and held in every cell": [],
        "Not claimed, and the bits differ": [],
        "Not claimed, and held in every cell": [],
        "Not judged: no cell of it was right": [],
    }
    broken, held, varies, holds, unjudged = groups.values()
    for operation in attention:
        audit = operation.audit("batch_invariant")
        if audit is None:
            unjudged.append(_link(operation.label))
            continue
        found = (broken if audit.claimed else varies) if audit.differing else (held if audit.claimed else holds)
        found.append(f"{_link(operation.label)} ({dtypes(audit.judged)}){_smallest(audit)}{set_aside(audit)}")
    yield "## Batch invariance of attention\n"
    for title, members in groups.items():
        if members:
            yield f"**{title}**\n"
            yield from (f"- {member}" for member in members)
            yield ""
    yield (
        "In brackets are the dtypes in which it was judged. In a batch, `r1:q4c128` is a request of 4 query tokens "
        "behind 128 that are cached, and `e` counts encoder tokens; a request that both sides compute differs.\n"
    )


def _smallest(audit: Audit) -> str:
    """How often bits differ, and the smallest batch that shows it; empty where none do."""
    if not audit.differing:
        return ""
    batch = easiest(audit.differing).smallest_batch
    told = f": {len(audit.differing)} of {text.counted(len(audit.judged), 'cell')}"
    return told + (f", smallest batch {text.markdown_code(batch)}" if batch else "")


def claims_of_attention(attention: Sequence[AuditedOperation]) -> Iterator[str]:
    """A row for each implementation: what became of each claim, whether values are right, and how right."""
    claims = [claim for claim in CLAIMS if any(operation.audit(claim.attribute) for operation in attention)]
    columns = ordered_dtypes(record for operation in attention for record in operation.ran)
    rows = [
        [
            _link(operation.label),
            versions(operation.ran),
            *(_found(operation.audit(claim.attribute)) for claim in claims),
            _values(operation),
            *(_worst_budget(operation, dtype) for dtype in columns),
        ]
        for operation in attention
    ]
    headings = ["implementation", "version", *(claim.heading for claim in claims), "values"]
    yield "## Claims and findings of attention\n"
    yield from markdown_table([*headings, *map(text.markdown, columns)], rows, numbers=len(columns))
    yield (
        "*held*: claimed, and so in every cell that judges it, as many as the number says. *broken*: claimed, and not "
        "so. *varies*: not claimed, and not so. *holds, unclaimed*: so, and not promised. A cell that is wrong judges "
        "no claim, unless its bits differ. Below each dtype is the worst error budget used against the fp64 reference, "
        "above 1 is wrong; cells that fail as is known are left out.\n"
    )


def other_operations(others: Sequence[AuditedOperation]) -> Iterator[str]:
    """Operations on tokens, and kernels compiled ahead of time: a row for each implementation."""
    names = sorted({operation.operation for operation in others})
    by_label: dict[str, dict[str, str]] = {}
    for operation in others:
        by_label.setdefault(operation.label, {})[operation.operation] = _in_short(operation)
    rows = [[_link(label), *(found.get(name, "-") for name in names)] for label, found in by_label.items()]
    yield "## Other operations\n"
    yield from markdown_table(["implementation", *map(text.markdown, names)], rows, numbers=0)
    yield (
        "Of all claims, in the same words; *held* and *holds, unclaimed* speak of batch invariance. *right*: no claim "
        "is judged. *kernel*: compiled ahead of time for devices that are not here.\n"
    )


def _found(audit: Audit | None) -> str:
    if audit is None:
        return "-"
    if audit.differing:
        share = f"{len(audit.differing)}/{len(audit.judged)}"
        return f"**broken {share}**" if audit.claimed else f"varies {share}"
    return f"{_kept(audit)} {len(audit.judged)}"


def _kept(audit: Audit) -> str:
    return "held" if audit.claimed else "holds, unclaimed"


def _values(operation: AuditedOperation) -> str:
    cells, known = len(operation.ran), sum(map(len, operation.known.values()))
    bad = [f"**wrong {len(operation.wrong)}**"] if operation.wrong else []
    bad += [f"**raised {len(operation.raised)}**"] if operation.raised else []
    bad += [f"known {known}"] if known else []
    return f"{', '.join(bad)} of {cells}" if bad else f"right {cells}"


def _in_short(operation: AuditedOperation) -> str:
    """All of an operation in one cell."""
    if operation.clean:
        batch = operation.audit("batch_invariant")
        return f"{_kept(batch) if batch else 'right'} {len(operation.ran)}"
    broken, varies = (
        sum(len(audit.differing) for audit in operation.audits if audit.claimed is claimed) for claimed in (True, False)
    )
    told = [f"**broken {broken}**"] if broken else []
    told += [f"varies {varies}"] if varies else []
    return ", ".join([*told, _values(operation)])


def _worst_budget(operation: AuditedOperation, dtype: str) -> str:
    budgets = [
        math.inf if math.isnan(record.error_budget) else record.error_budget
        for record in operation.ran
        if record.dtype == dtype and record.verdict is not Verdict.KNOWN and record.error_budget is not None
    ]
    return text.budget(max(budgets, default=None))


def _link(label: str) -> str:
    """A label that leads to its section, by the name that GitHub gives to a heading."""
    anchor = re.sub(r"[^\w\- ]", "", text.plain(label).lower()).replace(" ", "-")
    return f"[{text.markdown(label)}](#{anchor})"
