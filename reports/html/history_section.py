"""What the page tells of earlier runs: which there were, which bits changed when, and how budget and time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from samebits.reports import text
from samebits.reports.baseline import changes
from samebits.reports.history import History, Trend, grouped_drifts
from samebits.reports.html.heat_map import counts
from samebits.reports.html.links import cell_link
from samebits.reports.html.marks import MARKS, mark_of_record

# Groups of changed cells that are told; each cell tells its own.
_MOST_GROUPS = 60
_WIDTH, _HEIGHT = 120, 24


@dataclass(frozen=True)
class RunLine:
    """A run of the history.

    Attributes:
        run_id, started: of its header.
        cells, counts: how many it has, and what they came to.
        moved: of how many cells the bits changed.
        changed: versions that changed since the run before, in words.
        seconds: that all cells took.
    """

    run_id: str
    started: str
    cells: int
    counts: Markup
    moved: int
    changed: str
    seconds: float


@dataclass(frozen=True)
class DriftLine:
    """Cells of one implementation whose bits last changed in the same run, for the same cause.

    Attributes:
        label: of the implementation.
        started: of the run from which on they have the bits of now.
        before: start of the run that last had others.
        cause: what else changed.
        cells: how many.
        example: opens one of them.
    """

    label: str
    started: str
    before: str
    cause: str
    cells: int
    example: str


@dataclass(frozen=True)
class TrendLine:
    """An implementation over the runs.

    Attributes:
        label, cells, runs: of the trend.
        worst, median, seconds: the last value, and all as a drawing.
    """

    label: str
    cells: int
    runs: int
    worst: tuple[str, Markup]
    median: tuple[str, Markup]
    seconds: tuple[str, Markup]


@dataclass(frozen=True)
class HistoryView:
    """All that the page tells of earlier runs.

    Attributes:
        sentence: the whole in one, and which runs were left out.
        runs: the latest first.
        drifts: the latest first.
        more_drifts: groups that are not told.
        trends: of each implementation.
    """

    sentence: str
    runs: tuple[RunLine, ...]
    drifts: tuple[DriftLine, ...]
    more_drifts: int
    trends: tuple[TrendLine, ...]


def history_view(history: History) -> HistoryView:
    """What the page tells of a history."""
    groups = grouped_drifts(history)
    return HistoryView(
        sentence=history.told,
        runs=tuple(reversed([_run_line(history, number) for number in range(len(history.runs))])),
        drifts=tuple(
            DriftLine(
                label=drift.record.label,
                started=drift.since.started,
                before=drift.before.started if drift.before else "",
                cause=drift.cause,
                cells=cells,
                example=cell_link(drift.record.cell_id),
            )
            for drift, cells in groups[:_MOST_GROUPS]
        ),
        more_drifts=max(0, len(groups) - _MOST_GROUPS),
        trends=tuple(map(_trend_line, history.trends)),
    )


def _run_line(history: History, number: int) -> RunLine:
    run = history.runs[number]
    before = history.runs[number - 1].header if number else run.header
    changed = changes(before.environment.versions, run.header.environment.versions)
    own = [record for record in run.records if not record.control]
    counted = Counter(map(mark_of_record, own))
    return RunLine(
        run_id=run.header.run_id,
        started=run.header.started,
        cells=len(own),
        counts=counts({mark: counted[mark] for mark in MARKS if counted[mark]}),
        moved=history.moved[number],
        changed=", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items()),
        seconds=sum(record.seconds for record in run.records if math.isfinite(record.seconds)),
    )


def _trend_line(trend: Trend) -> TrendLine:
    worst, median = ([getattr(point, name) for point in trend.points] for name in ("worst", "median"))
    seconds = [point.seconds for point in trend.points]
    return TrendLine(
        label=trend.label,
        cells=trend.cells,
        runs=len(trend.runs),
        worst=(text.budget(worst[-1]), _line("Worst error budget", [text.budget(value) for value in worst], worst)),
        median=(
            text.budget(median[-1]),
            _line("Median error budget", [text.budget(value) for value in median], median),
        ),
        seconds=(f"{seconds[-1]:.3g}", _line("Seconds", [f"{value:.3g}" for value in seconds], seconds)),
    )


def _line(name: str, shown: Sequence[str], values: Sequence[float | None]) -> Markup:
    """A line from 0 to the largest value, the runs at equal distances; what is infinite stands at the top."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    highest = max(finite, default=0.0) or 1.0
    step = (_WIDTH - 8) / max(1, len(values) - 1)
    places = [
        (round(4 + number * step, 1), round(_HEIGHT - 3 - (_HEIGHT - 6) * min(1.0, value / highest), 1))
        for number, value in enumerate(values)
        if value is not None
    ]
    outline = " ".join(f"{x:g},{y:g}" for x, y in places)
    last = Markup('<circle cx="{:g}" cy="{:g}" r="2.5"/>').format(*places[-1]) if places else ""
    return Markup(
        '<svg class="trend" viewBox="0 0 {} {}" role="img" aria-label="{}: {}"><polyline points="{}"/>{}</svg>'
    ).format(_WIDTH, _HEIGHT, name, ", ".join(shown), outline, last)
