"""One implementation in Markdown: claim by claim what held and what broke, by which batch, and how to see it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from samebits.harness.records import Record
from samebits.reports import text
from samebits.reports.audit_words import dtypes, relations, set_aside, verdict_counts, versions
from samebits.reports.audits import ATTENTION, Audit, AuditedOperation
from samebits.reports.commands import portable
from samebits.reports.findings import easiest, grouped


def implementation_section(operations: Sequence[AuditedOperation]) -> Iterator[str]:
    """The section.

    Args:
        operations: all of one implementation.
    """
    yield f"## {text.markdown(operations[0].label)}\n"
    yield _described(operations) + "\n"
    for operation in operations:
        if not _in_one_line(operation):
            yield from _bullets(operation)
    yield from _clean_bullets([operation for operation in operations if _in_one_line(operation)])
    yield ""


def _in_one_line(operation: AuditedOperation) -> bool:
    return operation.clean and operation.operation != ATTENTION


def _described(operations: Sequence[AuditedOperation]) -> str:
    """Version, place, settings and verdicts."""
    here = [record for operation in operations for record in operation.ran]
    # Other operations are other kernels, whose settings would be taken for those of attention.
    settings = text.joined(
        f"{name} {value}"
        for record in here
        if record.operation == ATTENTION
        for name, value in sorted(record.configuration.items())
    )
    devices = Counter(record.environment.device for record in here).most_common()
    places = text.markdown(", ".join(device for device, _ in devices))
    every = [record for operation in operations for record in operation.records]
    return (
        f"Version {versions(here)}, on {places}. "
        + (f"Settings of attention: {text.markdown(settings)}. " if settings else "")
        + f"Cells: {verdict_counts(every)}."
    )


def _bullets(operation: AuditedOperation) -> Iterator[str]:
    """What became of each claim and of the values of one operation."""
    of_what = "" if operation.operation == ATTENTION else f"{text.markdown(operation.operation)}, "
    for audit in operation.audits:
        # A claim that nobody makes and no cell judges, of threads on a GPU for example, is no news.
        if audit.claimed or audit.judged:
            yield from _audit_bullet(audit, of_what)
    for bad, what in ((operation.wrong, "wrong"), (operation.raised, "raised an error")):
        if bad:
            yield f"- **{of_what}values**: **{what}** in {len(bad)} of {text.counted(len(operation.ran), 'cell')}"
            yield from _examples(bad, operation.ran)
    if operation.right:
        yield f"- **{of_what}values**: right in {_all(len(operation.right))} of {relations(operation.right)}"
    for issue, cells in operation.known.items():
        what = f"{text.counted(len(cells), 'cell')} ({dtypes(cells)}) of {relations(cells)}"
        yield f"- **{of_what}{text.markdown(issue)}**: {what}"
        yield f"  - {_reproduced(easiest(cells))}"


def _audit_bullet(audit: Audit, of_what: str) -> Iterator[str]:
    """One claim: where it held, and an example of each relation that breaks it, or of all that vary."""
    claim = f"- **{of_what}{audit.claim.name}**, {'claimed' if audit.claimed else 'not claimed'}"
    held = text.markdown(", ".join(audit.held))
    if not audit.judged:
        yield f"{claim}: no cell judges it{set_aside(audit)}"
        return
    if not audit.differing:
        yield f"{claim}: held in {_all(len(audit.judged))} of {held}{set_aside(audit)}"
        return
    apart = (f"; held in {held}" if held else "") + set_aside(audit)
    share = f"{len(audit.differing)} of {text.counted(len(audit.judged), 'cell')}"
    if audit.claimed:
        yield f"{claim}: **broken** in {share}{apart}"
        yield from _examples(audit.differing, audit.judged)
    else:
        yield f"{claim}: varies in {share}: {_shares(audit.differing, audit.judged)}{apart}"
        example = easiest(audit.differing)
        yield f"  - {_place(example)}: {_reproduced(example)}"


def _clean_bullets(operations: Sequence[AuditedOperation]) -> Iterator[str]:
    """Operations of which all is right, those that claim the same together."""
    by_claims: dict[tuple[str, ...], list[AuditedOperation]] = {}
    for operation in operations:
        claimed = tuple(audit.claim.name for audit in operation.audits if audit.claimed and audit.judged)
        by_claims.setdefault(claimed, []).append(operation)
    for claimed, members in by_claims.items():
        names = ", ".join(text.markdown(operation.operation) for operation in members)
        right = f"right in {_all(sum(len(operation.ran) for operation in members))}"
        yield f"- **{names}**: " + (f"claims {', '.join(claimed)}; held, and {right}" if claimed else right)


def _examples(found: Sequence[Record], of: Sequence[Record]) -> Iterator[str]:
    """Each relation by itself, with the cell that is easiest to follow."""
    for cells in grouped(found, "relation").values():
        example = easiest(cells)
        reason = text.markdown("; ".join(example.reasons) or "no reason given")
        yield f"  - {_shares(cells, of)}, {_place(example)}: {reason}"
        yield f"    - {_reproduced(example)}"


def _reproduced(example: Record) -> str:
    batch = f"smallest batch {text.markdown_code(example.smallest_batch)}; " if example.smallest_batch else ""
    alone = f"; just that batch: {text.markdown_code(portable(example.repro))}" if example.repro else ""
    return f"{batch}reproduce: {text.markdown_code(portable(example.command))}{alone}"


def _place(example: Record) -> str:
    return text.markdown(f"{example.dtype}, {example.mask or example.geometry}")


def _shares(found: Iterable[Record], of: Iterable[Record]) -> str:
    """Relations, each with its cells of those that could have been found."""
    totals = grouped(of, "relation")
    return ", ".join(
        f"{text.markdown(relation)} {len(cells)}/{len(totals[relation])}"
        for relation, cells in grouped(found, "relation").items()
    )


def _all(cells: int) -> str:
    return "the one cell" if cells == 1 else f"all {cells:,} cells"
