"""Several runs in the order of their time: when each cell's bits last changed, with which versions, and the trends."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from samebits.harness.records import Record, Run, RunHeader, Verdict
from samebits.reports import text
from samebits.reports.baseline import BaselineRow, changed_versions, changes
from samebits.reports.findings import DID_NOT_RUN

# What a cell of another run must share for its bits to be held against: the seed is part of the id.
_Place = tuple[str, str, int]


@dataclass(frozen=True)
class Drift:
    """When a cell's bits last changed.

    Attributes:
        record: of the last run.
        before: the last run that has other bits; None where no run has.
        since: the first run from which on all have the bits of now.
        runs: how many runs have the cell.
        times: how often its bits changed in them.
        changed: old and new of the versions and settings that differ between both runs, by name.
    """

    record: Record
    before: RunHeader | None
    since: RunHeader
    runs: int
    times: int
    changed: Mapping[str, tuple[str, str]]

    @property
    def cause(self) -> str:
        """What else changed when the bits did, in words."""
        told = ", ".join(f"{name} {old} → {new}" for name, (old, new) in self.changed.items())
        return told or "no version and no setting changed"

    @property
    def told(self) -> str:
        """The whole in a sentence."""
        if self.before is None:
            return f"in none of {self.runs:,} runs since {text.moment(self.since.started)}" if self.runs > 1 else ""
        often = f"; {self.times:,} times in {self.runs:,} runs" if self.times > 1 else ""
        between = f"between {text.moment(self.before.started)} and {text.moment(self.since.started)}"
        return f"{between}: {self.cause}{often}"


@dataclass(frozen=True)
class Point:
    """What some cells came to in one run.

    Attributes:
        worst, median: of the error budget used; None where nothing was computed.
        seconds: that the cells took.
    """

    worst: float | None
    median: float | None
    seconds: float


@dataclass(frozen=True)
class Trend:
    """One implementation over the runs that have it.

    Attributes:
        label: of the implementation.
        cells: how many cells all of these runs have, which the points are of.
        runs: their headers, the earliest first.
        points: one for each.
    """

    label: str
    cells: int
    runs: tuple[RunHeader, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class History:
    """Runs on the device of the last one, the earliest first; controls have no history.

    Attributes:
        runs: with the last one.
        drifts: of the cells of the last run that have bits, by id.
        moved: of how many cells the bits changed in each run, against the run before that has them.
        left_out: how many runs were left out: they are of other devices, or started after the last one.
        unreadable: how many could not be read.
    """

    runs: tuple[Run, ...]
    drifts: Mapping[str, Drift]
    moved: tuple[int, ...]
    left_out: int
    unreadable: int = 0

    @classmethod
    def of(cls, last: Run, others: Iterable[Run], unreadable: int = 0) -> History:
        """Puts runs in order before the last one; the same run given twice, or the last among them, counts once."""
        by_id = {run.header.run_id: run for run in others if run.header.run_id != last.header.run_id}
        devices = _devices(last)
        before = [
            run
            for run in sorted(by_id.values(), key=lambda run: (run.header.started, run.header.run_id))
            if run.header.started <= last.header.started and devices & _devices(run)
        ]
        runs = (*before, last)
        bits = [
            {_place(record): record for record in run.records if record.digest and not record.control} for run in runs
        ]
        return cls(
            runs=runs,
            drifts={place[0]: _drift(place, runs, bits) for place in bits[-1]},
            moved=_moved(bits),
            left_out=len(by_id) - len(before),
            unreadable=unreadable,
        )

    @property
    def told(self) -> str:
        """The history in a sentence, and another for runs that were left out."""
        changed = sum(drift.before is not None for drift in self.drifts.values())
        left_out = f" {text.counted(self.left_out, 'run')} left out: of other devices, or later than this one."
        unreadable = f" {text.counted(self.unreadable, 'run')} left out: not to be read."
        return (
            f"History: of {text.counted(len(self.drifts), 'cell')} with bits, {changed:,} changed them over "
            f"{text.counted(len(self.runs), 'run')}, {self.moved[-1] or 'none'} of them in this one."
            f"{left_out if self.left_out else ''}{unreadable if self.unreadable else ''}"
        )

    @property
    def trends(self) -> list[Trend]:
        """Of every implementation of the last run that another run has, too."""
        labels = dict.fromkeys(record.label for record in self.runs[-1].records if _measured(record))
        return [trend for label in labels if (trend := self._trend(label)) is not None]

    def _trend(self, label: str) -> Trend | None:
        found = [
            (run.header, {_place(record): record for record in run.records if record.label == label})
            for run in self.runs
        ]
        measured = [
            (header, {place: record for place, record in cells.items() if _measured(record)}) for header, cells in found
        ]
        measured = [(header, cells) for header, cells in measured if cells]
        common = set.intersection(*(set(cells) for _, cells in measured)) if len(measured) > 1 else set()
        if not common:
            return None
        points = tuple(_point([cells[place] for place in sorted(common)]) for _, cells in measured)
        return Trend(label, len(common), tuple(header for header, _ in measured), points)


def _devices(run: Run) -> set[str]:
    return {header.environment.device for header in run.header.runs}


def _place(record: Record) -> _Place:
    return record.cell_id, record.environment.device, record.environment.threads


def _measured(record: Record) -> bool:
    return not record.control and record.verdict not in (*DID_NOT_RUN, Verdict.KNOWN, Verdict.ERROR)


def _drift(place: _Place, runs: Sequence[Run], bits: Sequence[Mapping[_Place, Record]]) -> Drift:
    """Goes back through the runs that have a cell."""
    held = [(run.header, found[place]) for run, found in zip(runs, bits, strict=True) if place in found]
    digests = [record.digest for _, record in held]
    turns = [turn for turn in range(1, len(held)) if digests[turn] != digests[turn - 1]]
    record = held[-1][1]
    if not turns:
        return Drift(record, None, held[0][0], len(held), 0, {})
    (before, old), (since, new) = held[turns[-1] - 1], held[turns[-1]]
    versions = changed_versions(BaselineRow.of(old, before), BaselineRow.of(new, since))
    settings = changes(old.configuration, new.configuration)
    return Drift(record, before, since, len(held), len(turns), versions | settings)


def _moved(bits: Sequence[Mapping[_Place, Record]]) -> tuple[int, ...]:
    latest: dict[_Place, str] = {}
    moved = []
    for found in bits:
        moved.append(sum(latest.get(place, record.digest) != record.digest for place, record in found.items()))
        latest |= {place: record.digest for place, record in found.items()}
    return tuple(moved)


def _point(records: Sequence[Record]) -> Point:
    budgets = [
        math.inf if math.isnan(record.error_budget) else record.error_budget
        for record in records
        if record.error_budget is not None
    ]
    return Point(
        worst=max(budgets, default=None),
        median=statistics.median_low(budgets) if budgets else None,
        seconds=sum(record.seconds for record in records if math.isfinite(record.seconds)),
    )


def grouped_drifts(history: History) -> list[tuple[Drift, int]]:
    """Changes of bits by implementation, time and cause, the latest first: an example of each, and how many cells."""
    changed = [drift for drift in history.drifts.values() if drift.before is not None]
    counted = Counter(_group(drift) for drift in changed)
    examples = {_group(drift): drift for drift in reversed(changed)}
    order = {run.header.run_id: number for number, run in enumerate(history.runs)}
    groups = sorted(examples, key=lambda group: (-order[group[1]], -counted[group], group))
    return [(examples[group], counted[group]) for group in groups]


def _group(drift: Drift) -> tuple[str, str, str]:
    return drift.record.label, drift.since.run_id, drift.cause
