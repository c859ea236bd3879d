"""What the museum tells: a table of the planted bugs, and a page of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samebits.harness.museum.catalogue import Entry, NotPlanted
from samebits.harness.museum.soundness import Soundness
from samebits.harness.museum.visit import Finding
from samebits.reports.markdown_table import markdown_table

_HEADINGS = ("bug", "what went wrong", "shown by", "parent", "caught by", "parent's cells", "seen", "seconds")
_NUMBERS = 2
# Checks of a suite that are named where more than these saw a bug.
_NAMED = 4
_PAGE = """# The museum of attention bugs

Bugs that real projects shipped, planted again by the smallest change of a bundled kernel, wrapper or planner, and what
the suites that users run make of them. `samebits museum --seeds 50 --write docs/museum.md` makes this page, in a
checkout; `samebits museum --only B03` looks at one bug.

Each mutant is registered as any third party's backend is, from a file in `tests/museum/`. It goes through whole suites
of the default tier, narrowed to some cases and never to a check, beside the implementation that it was made from.
*Seen* are the cells that fail, of those that were computed; *seconds* are those of the cells up to the first that does.
"""


def as_table(findings: Iterable[Finding]) -> str:
    """The planted bugs that were looked at, one row for each, in Markdown."""
    return "\n".join(markdown_table(_HEADINGS, [_row(finding) for finding in findings], _NUMBERS))


def as_sentence(findings: Sequence[Finding]) -> str:
    """How many were caught, and which were not."""
    missed = [finding.exhibit.number for finding in findings if not finding.seen]
    faulty = [fault for finding in findings for fault in finding.faults]
    told = f"{sum(finding.caught for finding in findings)} of {len(findings)} planted bugs are caught"
    if missed:
        told += f"; missed: {', '.join(missed)}"
    return "\n".join([told, *(f"a parent fails: {fault}" for fault in dict.fromkeys(faulty))])


def as_soundness(soundness: Soundness) -> str:
    """What the implementations without a bug came to under many seeds."""
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(soundness.verdicts.items()))
    return "\n".join(
        [
            f"Without a bug, under {soundness.seeds} seeds, the same cells come to: {told}; "
            f"of those that pass, the worst error budget is {soundness.worst_budget:.2f}",
            *(f"fails without a bug: {fault}" for fault in soundness.faults),
        ]
    )


def as_page(findings: Sequence[Finding], entries: Sequence[Entry], soundness: Soundness | None) -> str:
    """The page of all bugs, in Markdown."""
    left_out = [entry for entry in entries if isinstance(entry, NotPlanted)]
    return "\n".join(
        [
            _PAGE,
            f"{as_sentence(findings)}.\n",
            *([f"{as_soundness(soundness)}.\n"] if soundness else []),
            as_table(findings),
            f"## Not planted\n\n{len(left_out)} of {len(entries)} bugs are not planted:\n",
            *(f"- **{entry.number}**, {entry.title}: {entry.reason}" for entry in left_out),
            "",
        ]
    )


def _row(finding: Finding) -> tuple[str, ...]:
    exhibit = finding.exhibit
    seen_by = "; ".join(f"`{suite}`: {_some(relations)}" for suite, relations in finding.seen_by.items())
    parent = ", ".join(f"{count} {verdict}" for verdict, count in sorted(finding.parent.items()))
    return (
        exhibit.number,
        exhibit.title,
        exhibit.trigger,
        exhibit.parent,
        seen_by or "**missed**",
        parent if not finding.faults else f"**{parent}**",
        f"{finding.seen} of {finding.ran}",
        "" if finding.seconds is None else f"{finding.seconds:.2f}",
    )


def _some(relations: Sequence[str]) -> str:
    named, more = relations[:_NAMED], len(relations) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
