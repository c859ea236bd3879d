"""What became of the cells since the baseline, for the first screen and for a section of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samebits.reports.html.links import cell_link, cells_link
from samebits.reports.html.marks import Mark, mark_of
from samebits.reports.regression import ComparedCell, Comparison, State

# Cells that are told of each state; the list of cells has all.
_MOST_CELLS = 12
_SYMBOLS = {
    State.REGRESSED: ("▼", "bad"),
    State.MISSING: ("?", "bad"),
    State.NEW_BITS: ("≠", "varies"),
    State.BETTER: ("▲", "good"),
    State.NEW: ("+", "none"),
    State.NO_BASELINE: ("·", "none"),
    State.SAME: ("=", "good"),
}
_NO_NEWS = (State.NEW, State.NO_BASELINE, State.SAME)


@dataclass(frozen=True)
class ChangedCell:
    """A cell of which something changed.

    Attributes:
        cell_id: its id.
        link: opens it.
        mark: what it came to.
        note: what changed.
        versions: that changed, in words.
    """

    cell_id: str
    link: str
    mark: Mark
    note: str
    versions: str


@dataclass(frozen=True)
class Change:
    """Cells that came to one state.

    Attributes:
        state: its name.
        symbol, tone: how it is shown.
        count: how many there are.
        link: lists them.
        cells: the first of them; none of a state that is no news.
    """

    state: str
    symbol: str
    tone: str
    count: int
    link: str
    cells: tuple[ChangedCell, ...]

    @property
    def more(self) -> int:
        """How many are not told, of a state that is news."""
        return self.count - len(self.cells) if self.cells else 0


def changes(comparison: Comparison) -> list[Change]:
    """Every state that some cell came to, the worst first; controls are cells here."""
    return [
        Change(state.value, *_SYMBOLS[state], len(cells), cells_link(since=state.value), _told(state, cells))
        for state in _SYMBOLS
        if (cells := [cell for cell in comparison.cells if cell.state is state])
    ]


def _told(state: State, cells: Sequence[ComparedCell]) -> tuple[ChangedCell, ...]:
    if state in _NO_NEWS:
        return ()
    return tuple(
        ChangedCell(
            cell_id=cell.known.cell_id,
            link=cell_link(cell.known.cell_id),
            mark=mark_of(cell),
            note=cell.note,
            versions=", ".join(f"{name} {old} → {new}" for name, (old, new) in cell.versions.items()),
        )
        for cell in cells[:_MOST_CELLS]
    )
