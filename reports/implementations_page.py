"""The page that tells who holds what: each implementation's claims, what held, what broke, and by which batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samebits.harness.records import Record, Verdict
from samebits.reports import text
from samebits.reports.audit_words import verdict_counts
from samebits.reports.audits import ATTENTION, AuditedOperation, audited_operations
from samebits.reports.findings import Gap, gaps
from samebits.reports.implementation_section import implementation_section
from samebits.reports.overview import batch_invariance, claims_of_attention, other_operations
from samebits.reports.regression import Comparison
from samebits.reports.sentences import controls_sentence, run_sentences


def implementations_page(comparison: Comparison) -> str:
    """The whole page, which is the same for the same records, in whatever order they finished.

    Args:
        comparison: of the run; what it was compared with is not told.
    """
    own = [record for record in comparison.records if not record.control]
    operations = audited_operations(own, comparison.run.header)
    attention = [operation for operation in operations if operation.operation == ATTENTION]
    others = [operation for operation in operations if operation.operation != ATTENTION]
    sections = (
        _head(comparison, own),
        batch_invariance(attention) if attention else (),
        claims_of_attention(attention) if attention else (),
        other_operations(others) if others else (),
        _implementations(operations),
        _did_not_run(own),
    )
    return "\n".join(line for section in sections for line in section)


def _head(comparison: Comparison, own: Sequence[Record]) -> Iterator[str]:
    header = comparison.run.header
    yield f"# {text.markdown(f'samebits: implementations on {header.environment.device}')}\n"
    cells = f"Started {header.started}. Cells: {verdict_counts(own) or 'none'}."
    for sentence in (*run_sentences(comparison), cells, controls_sentence(comparison)):
        yield f"- {text.markdown(sentence)}"
    yield "- This page again, from the run's records: `samebits report RESULTS`.\n"


def _implementations(operations: Sequence[AuditedOperation]) -> Iterator[str]:
    by_label: dict[str, list[AuditedOperation]] = {}
    for operation in operations:
        by_label.setdefault(operation.label, []).append(operation)
    for of_label in by_label.values():
        yield from implementation_section(of_label)


def _did_not_run(own: Sequence[Record]) -> Iterator[str]:
    """Why implementations and cells did not run, the cells folded away."""
    found = gaps(own)
    unavailable, unsupported = (
        [gap for gap in found if gap.verdict is verdict] for verdict in (Verdict.UNAVAILABLE, Verdict.UNSUPPORTED)
    )
    if unavailable:
        yield "## Not available here\n"
        yield from (f"- {text.markdown(gap.label)}: {text.markdown(gap.reason)}" for gap in unavailable)
        yield ""
    if unsupported:
        cells = sum(record.verdict is Verdict.UNSUPPORTED for record in own)
        yield f"<details><summary>Unsupported: {text.counted(cells, 'cell')}, and why</summary>\n"
        yield from _unsupported(unsupported)
        yield "\n</details>\n"


def _unsupported(reasons: Sequence[Gap]) -> Iterator[str]:
    """A line for each implementation, its most frequent reasons first."""
    for label in dict.fromkeys(gap.label for gap in reasons):
        own = sorted((gap for gap in reasons if gap.label == label), key=lambda gap: (-gap.cells, gap.reason))
        told = "; ".join(f"{text.markdown(gap.reason)} ({gap.cells:,})" for gap in own)
        yield f"- **{text.markdown(label)}**: {told}"
