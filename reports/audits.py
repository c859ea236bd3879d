"""Claims held against what was found: of one implementation and operation, claim by claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from samebits.harness.records import Record, RunHeader, Verdict
from samebits.reports.findings import DID_NOT_RUN, grouped, relation_place

ATTENTION = "attention"


@dataclass(frozen=True)
class Claim:
    """Something that an implementation may promise.

    Attributes:
        attribute: of `Claims`, which an implementation declares.
        name: in a sentence.
        heading: over a column.
    """

    attribute: str
    name: str
    heading: str


CLAIMS = (
    Claim("batch_invariant", "batch invariance", "batch"),
    Claim("schedule_invariant", "schedule invariance", "schedule"),
    Claim("ignores_unread_memory", "unread memory", "unread memory"),
    Claim("ignores_hidden_keys", "hidden keys", "hidden keys"),
    Claim("deterministic", "run to run", "repeats"),
    Claim("thread_invariant", "thread invariance", "threads"),
    Claim("cuda_graph", "graph replay", "replay"),
)
# A record says that a claim is judged, and names the relation alone. All other relations judge batch invariance.
_CLAIM_OF_RELATION = {
    "chunked_prefill": "schedule_invariant",
    "extend": "schedule_invariant",
    "decode": "schedule_invariant",
    "unread_memory": "ignores_unread_memory",
    "unseen_nan": "ignores_unread_memory",
    "hidden_nan": "ignores_hidden_keys",
    "repeated": "deterministic",
    "second_process": "deterministic",
    "threads": "thread_invariant",
}
# They compare bits too, to see where a NaN goes. A NaN that is lost is a wrong value, and no batch that matters.
_RELATIONS_OF_VALUES = ("nan_query",)
_REPLAYED, _AGAINST_UNPADDED = ("persistent_", "graph_"), "_unpadded"


def claim_attribute(relation: str) -> str:
    """The claim that a relation judges, as an attribute of `Claims`.

    Args:
        relation: of a record that judges a claim, whose `claimed` is not None.
    """
    if relation.startswith(_REPLAYED) and not relation.endswith(_AGAINST_UNPADDED):
        return "cuda_graph"
    return _CLAIM_OF_RELATION.get(relation, "batch_invariant")


@dataclass(frozen=True)
class Audit:
    """What became of one claim of one implementation and operation.

    A cell judges a claim by bits that differ, or by bits that agree and are right. One that is wrong, raises or fails
    as is known without a difference says nothing of the claim: garbage can be perfectly invariant.

    Attributes:
        claim: that is audited.
        claimed: whether it is promised.
        judged: cells that judge it.
        unjudged: cells of its relations that ran and do not.
    """

    claim: Claim
    claimed: bool
    judged: tuple[Record, ...]
    unjudged: tuple[Record, ...]

    @property
    def differing(self) -> tuple[Record, ...]:
        """The cells in which bits differ."""
        return tuple(record for record in self.judged if record.mismatches)

    @property
    def broken(self) -> bool:
        """Whether it is promised, and bits differ."""
        return self.claimed and bool(self.differing)

    @property
    def held(self) -> tuple[str, ...]:
        """The relations in which no cell differs."""
        relations = grouped(self.judged, "relation").items()
        return tuple(relation for relation, cells in relations if not any(cell.mismatches for cell in cells))


@dataclass(frozen=True)
class AuditedOperation:
    """One operation of one implementation, of which some cell ran.

    Attributes:
        label: of the implementation.
        operation: what it computes, for example `attention`.
        records: its cells, those that did not run among them, relations in the order of the run.
    """

    label: str
    operation: str
    records: tuple[Record, ...]

    @cached_property
    def audits(self) -> tuple[Audit, ...]:
        """Every claim that the cells speak of, judged or not, in the order of `CLAIMS`."""
        spoken_of: dict[str, list[Record]] = {}
        for record in self.records:
            if record.claimed is not None and record.relation not in _RELATIONS_OF_VALUES:
                spoken_of.setdefault(claim_attribute(record.relation), []).append(record)
        return tuple(_audit(claim, found) for claim in CLAIMS if (found := spoken_of.get(claim.attribute)))

    @cached_property
    def ran(self) -> tuple[Record, ...]:
        """The cells that ran, to whatever end."""
        return _ran(self.records)

    @property
    def wrong(self) -> tuple[Record, ...]:
        """The cells that fail by something else than a promise of their bits: by values, or a write outside of them."""
        return tuple(
            record for record in self.ran if record.verdict is Verdict.FAIL and not _breaks_promise_alone(record)
        )

    @property
    def raised(self) -> tuple[Record, ...]:
        """The cells that raised an error."""
        return tuple(record for record in self.ran if record.verdict is Verdict.ERROR)

    @property
    def right(self) -> tuple[Record, ...]:
        """The cells in which correctness alone is judged and found, of relations in which none is wrong or raised."""
        bad = {record.relation for record in (*self.wrong, *self.raised)}
        return tuple(
            record
            for record in self.ran
            if record.claimed is None and record.verdict is Verdict.PASS and record.relation not in bad
        )

    @property
    def known(self) -> Mapping[str, list[Record]]:
        """The cells that fail as is known, by what says so."""
        by_issue: dict[str, list[Record]] = {}
        for record in self.ran:
            if record.verdict is Verdict.KNOWN:
                by_issue.setdefault(record.reasons[0] if record.reasons else "known", []).append(record)
        return by_issue

    @property
    def clean(self) -> bool:
        """Whether there is nothing to tell but that all is right."""
        return all(record.verdict is Verdict.PASS for record in self.ran)

    def audit(self, attribute: str) -> Audit | None:
        """That of one claim; None where no cell judges it."""
        return next((audit for audit in self.audits if audit.claim.attribute == attribute and audit.judged), None)


def audited_operations(records: Iterable[Record], header: RunHeader) -> list[AuditedOperation]:
    """All that ran: implementations in the order of their records, attention of each first; controls are left out.

    Args:
        records: of a run, in the order in which implementations are told.
        header: of the run.
    """
    found = []
    for label, of_label in grouped((record for record in records if not record.control), "label").items():
        of_label.sort(key=lambda record: (relation_place(record.relation, header), record.cell_id))
        by_operation = grouped(of_label, "operation")
        for operation in sorted(by_operation, key=lambda name: (name != ATTENTION, name)):
            found.append(AuditedOperation(label, operation, tuple(by_operation[operation])))
    return [operation for operation in found if operation.ran]


def _audit(claim: Claim, records: Sequence[Record]) -> Audit:
    here = _ran(records)
    judged, unjudged = (tuple(record for record in here if _judges(record) is judges) for judges in (True, False))
    return Audit(claim, bool(records[0].claimed), judged, unjudged)


def _judges(record: Record) -> bool:
    return record.verdict is Verdict.PASS or record.mismatches > 0


def _ran(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(record for record in records if record.verdict not in DID_NOT_RUN)


def _breaks_promise_alone(record: Record) -> bool:
    within = record.error_budget is not None and record.error_budget <= 1.0
    return bool(record.claimed) and record.mismatches > 0 and within
