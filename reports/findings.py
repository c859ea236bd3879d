"""What a reader must know of a run, gathered so that it can be read: failures, variance, gaps and their reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from samebits.harness.records import Record, Run, RunHeader, Verdict
from samebits.reports import text

EntryT = TypeVar("EntryT")

# What is told of, in this order, and under which title.
FINDING_TITLES = {
    Verdict.FAIL: "Failed",
    Verdict.ERROR: "Raised an error",
    Verdict.VARIES: "Varies where nothing is claimed, which is not red",
    Verdict.KNOWN: "Fails as is known",
}
# Of a batch's text: query, cached and encoder tokens of a request, and how many requests or steps are not told.
_REQUEST = re.compile(r"\br\d+:q(\d{1,9})c(-?\d{1,9})(?:e(\d{1,9}))?", re.ASCII)
_LEFT_OUT = re.compile(r"\b(\d{1,9}) more\b", re.ASCII)
DID_NOT_RUN = (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE)


@dataclass(frozen=True)
class Finding:
    """Cells of one implementation and relation that came to the same verdict.

    Attributes:
        verdict: what they came to.
        label, suite, relation: whose they are.
        records: the cells.
        ran: how many cells of that implementation and relation ran at all.
    """

    verdict: Verdict
    label: str
    suite: str
    relation: str
    records: tuple[Record, ...]
    ran: int

    @property
    def example(self) -> Record:
        """The cell that is easiest to follow."""
        return easiest(self.records)

    @property
    def share(self) -> str:
        """How many cells of those that ran."""
        return f"{len(self.records)} of {self.ran}"


@dataclass(frozen=True)
class Gap:
    """Why some cells of an implementation did not run.

    Attributes:
        verdict: `unsupported` or `unavailable`.
        label: of the implementation.
        reason: one sentence.
        cells: how many.
    """

    verdict: Verdict
    label: str
    reason: str
    cells: int


@dataclass(frozen=True)
class Guard:
    """The controls of a relation of one operation.

    Attributes:
        suite, operation, relation: what they guard.
        caught: ids of the controls that were reported broken.
        missed: ids of those that were not.
    """

    suite: str
    operation: str
    relation: str
    caught: tuple[str, ...]
    missed: tuple[str, ...]

    @property
    def name(self) -> str:
        """The relation, and of what where that is not attention."""
        return self.relation if self.operation == "attention" else f"{self.relation} of {self.operation}"

    @property
    def holds(self) -> bool:
        """Whether there is a control and none was missed."""
        return bool(self.caught) and not self.missed


def findings(records: Iterable[Record], header: RunHeader) -> list[Finding]:
    """Everything that failed, raised, varies or is known to fail, the worst first; controls are left out.

    Args:
        records: of a run, in the order in which implementations are told.
        header: of the run.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if not record.control and record.verdict not in DID_NOT_RUN:
            groups.setdefault((record.label, record.suite, record.relation), []).append(record)
    found = [
        Finding(verdict, label, suite, relation, tuple(told), len(group))
        for (label, suite, relation), group in groups.items()
        for verdict in FINDING_TITLES
        if (told := [record for record in group if record.verdict is verdict])
    ]
    labels = list(dict.fromkeys(label for label, _, _ in groups))
    return sorted(
        found,
        key=lambda finding: (
            list(FINDING_TITLES).index(finding.verdict),
            labels.index(finding.label),
            finding.suite,
            relation_place(finding.relation, header),
        ),
    )


def easiest(records: Iterable[Record]) -> Record:
    """The cell that is easiest to follow: the one whose smallest batch is the smallest, where any has one."""
    return min(records, key=lambda record: (not record.smallest_batch, *_size(record.smallest_batch), record.cell_id))


def _size(batch: str) -> tuple[int, int, int]:
    """Requests and steps that are left out of the text, tokens of those that are in it, and the text's length."""
    left_out = sum(map(int, _LEFT_OUT.findall(batch)))
    tokens = sum(int(length or 0) for lengths in _REQUEST.findall(batch) for length in lengths)
    return left_out, tokens, len(batch)


def gaps(records: Iterable[Record]) -> list[Gap]:
    """Why cells did not run: what is unavailable first, then what is unsupported, each reason once."""
    counted = Counter(
        (record.verdict, record.label, reason)
        for record in records
        if not record.control and record.verdict in DID_NOT_RUN
        for reason in (record.reasons or ("no reason given",))
    )
    return [
        Gap(verdict, label, reason, cells)
        for wanted in reversed(DID_NOT_RUN)
        for (verdict, label, reason), cells in counted.items()
        if verdict is wanted
    ]


def guards(run: Run) -> list[Guard]:
    """The controls of every relation that was checked, operation by operation."""
    controls: dict[tuple[str, str, str], list[Record]] = {}
    for record in run.records:
        if not record.control and record.verdict in DID_NOT_RUN:
            continue
        of_guard = controls.setdefault((record.suite, record.operation, record.relation), [])
        if record.control:
            of_guard.append(record)
    return [
        Guard(*key, *(tuple(sorted(r.cell_id for r in controls[key] if r.red is missed)) for missed in (False, True)))
        for key in sorted(controls, key=lambda key: (*key[:2], relation_place(key[2], run.header)))
    ]


def red_reasons(run: Run) -> list[str]:
    """Why a run is red by itself, whatever its baseline; empty where it is not."""
    cells = [record for record in run.records if not record.control]
    reasons = ["the run was cut off"] if run.truncated else []
    reasons += [] if run.records else ["no cell ran"]
    reasons += [
        f"{text.counted(number, 'cell')} {what}"
        for verdict, what in ((Verdict.FAIL, "failed"), (Verdict.ERROR, "raised an error"))
        if (number := sum(record.verdict is verdict for record in cells))
    ]
    every_guard = guards(run)
    missed = [cell_id for guard in every_guard for cell_id in guard.missed]
    if missed:
        reasons.append(f"{text.counted(len(missed), 'control')} not caught")
    unguarded = [guard.name for guard in every_guard if not (guard.caught or guard.missed)]
    if unguarded and not (run.header.narrowed or run.truncated):
        reasons.append(f"no control for {', '.join(unguarded)}")
    return reasons + [f"{name} was asked for and cannot run: {reason}" for name, reason in not_run(run).items()]


def any_ran(run: Run) -> bool:
    """Whether any cell of an implementation ran, to whatever end: controls alone check none."""
    return any(not record.control and record.verdict not in DID_NOT_RUN for record in run.records)


def not_run(run: Run) -> dict[str, str]:
    """Names that the user asked for of which no implementation can run here, and why not."""
    found = {}
    for name in run.header.asked:
        own = [record for record in run.records if name in (record.backend, record.label, record.unvaried_label)]
        if own and all(record.verdict is Verdict.UNAVAILABLE for record in own):
            found[name] = text.joined(reason for record in own for reason in record.reasons)
    return found


def grouped(entries: Iterable[EntryT], name: str) -> dict[str, list[EntryT]]:
    """Records, or what is made of them, by an attribute of theirs, in order of first mention."""
    by_value: dict[str, list[EntryT]] = {}
    for entry in entries:
        by_value.setdefault(getattr(entry, name), []).append(entry)
    return by_value


def relation_place(relation: str, header: RunHeader) -> tuple[int, str]:
    """Sorts relations into the order that a run's header has; those that it has not follow by name."""
    order = header.relations
    return (order.index(relation) if relation in order else len(order)), relation
