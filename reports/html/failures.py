"""Why a run is red, for its first screen: each reason of an implementation once, whatever relations it breaks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from samebits.harness.records import Record, RunHeader, Verdict
from samebits.reports.findings import DID_NOT_RUN, easiest, relation_place
from samebits.reports.html.links import cell_link, cells_link
from samebits.reports.html.marks import ERROR, FAIL, Mark

_MARKS = {Verdict.FAIL: FAIL, Verdict.ERROR: ERROR}
# What differs between two cells that break in one way: where, by how much, at which address.
_NUMBER = re.compile(r"0x[0-9a-f]+|[-+]?(?:\d[\d.,]*(?:e[-+]?\d+)?|\b(?:inf|nan)\b)", re.ASCII | re.IGNORECASE)

# Relations of a failure that are named; all of its cells are a click away.
_MOST_NAMED = 8
# What a crash says of the cells before it.
_ABOUT_OTHERS = " (after "


@dataclass(frozen=True)
class BrokenRelation:
    """A relation that breaks for the reason of a failure.

    Attributes:
        name: of the relation.
        example: opens its cell that is easiest to follow.
    """

    name: str
    example: str


@dataclass(frozen=True)
class Failure:
    """Cells of one implementation that came to the same for the same reason, but for numbers in it.

    Attributes:
        mark: what they came to.
        label: whose they are.
        suites: relations that they are of, by suite; the first of them where there are many.
        more: how many relations are not among those.
        cells, ran: how many they are, of how many cells of all those relations that ran.
        reason: of the cell that is easiest to follow.
        example: opens that cell.
        link: lists all cells of the implementation that came to the same.
    """

    mark: Mark
    label: str
    suites: dict[str, list[BrokenRelation]]
    more: int
    cells: int
    ran: int
    reason: str
    example: str
    link: str


def failures(records: Iterable[Record], header: RunHeader) -> list[Failure]:
    """What failed or raised: the first of each implementation, then the others, so that nobody's is far down.

    Args:
        records: of a run, in the order in which implementations are told; controls are left out.
        header: of the run.
    """
    own = [record for record in records if not record.control and record.verdict not in DID_NOT_RUN]
    ran = Counter((record.label, record.suite, record.relation) for record in own)
    alike: dict[tuple[str, Verdict, str], list[Record]] = {}
    for record in own:
        if record.verdict in _MARKS:
            alike.setdefault((record.label, record.verdict, _cause(record)), []).append(record)
    labels, verdicts = list(dict.fromkeys(record.label for record in own)), list(_MARKS)
    places: Counter[str] = Counter()
    ranked: list[tuple[int, int, int, list[Record]]] = []
    # What is wrong comes before what raised, as everywhere, and what is frequent before what is not.
    for (label, verdict, _), cells in sorted(
        alike.items(), key=lambda found: (verdicts.index(found[0][1]), -len(found[1]))
    ):
        ranked.append((places[label], verdicts.index(verdict), labels.index(label), cells))
        places[label] += 1
    return [_failure(cells, ran, header) for *_, cells in sorted(ranked, key=lambda found: found[:3])]


def _cause(record: Record) -> str:
    """The first of a record's reasons, which is what the others follow from, without what differs from cell to cell."""
    reason, _, _ = next(iter(record.reasons), "").partition(_ABOUT_OTHERS)
    return _NUMBER.sub("#", reason)


def _failure(cells: list[Record], ran: Counter[tuple[str, str, str]], header: RunHeader) -> Failure:
    example = easiest(cells)
    mark, label = _MARKS[example.verdict], example.label
    by_place: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(cells, key=lambda record: _place(record, header)):
        by_place.setdefault((record.suite, record.relation), []).append(record)
    suites: dict[str, list[BrokenRelation]] = {}
    for (suite, relation), of_relation in list(by_place.items())[:_MOST_NAMED]:
        suites.setdefault(suite, []).append(BrokenRelation(relation, cell_link(easiest(of_relation).cell_id)))
    return Failure(
        mark=mark,
        label=label,
        suites=suites,
        more=max(0, len(by_place) - _MOST_NAMED),
        cells=len(cells),
        ran=sum(ran[label, *place] for place in by_place),
        reason="; ".join(example.reasons) or "no reason given",
        example=cell_link(example.cell_id),
        link=cells_link(implementation=label, verdict=mark.name),
    )


def _place(record: Record, header: RunHeader) -> tuple[int, str, tuple[int, str]]:
    """Sorts cells by suite and relation, as the run has them."""
    suites = header.suites
    place = suites.index(record.suite) if record.suite in suites else len(suites)
    return place, record.suite, relation_place(record.relation, header)
