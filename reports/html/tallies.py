"""Cells counted for one place of the matrix: an implementation in a suite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from samebits.harness.records import Verdict
from samebits.reports.html.marks import MARKS, Mark, mark_of
from samebits.reports.html.palette import HEAT
from samebits.reports.regression import ComparedCell, State

# From these shares on, of the cells that ran, the tint is deeper.
_DEEPER = (0.02, 0.1, 0.33)


@dataclass(frozen=True)
class Tally:
    """What the cells of one place came to.

    Attributes:
        marks: how many cells have each, the worst first; only those that occur.
        regressed: how many regressed since the baseline.
        budget: the worst error budget used; None where nothing was computed. Cells that fail as is known are apart.
        ulp: the largest distance of two results; likewise.
    """

    marks: Mapping[Mark, int]
    regressed: int
    budget: float | None
    ulp: int | None

    @classmethod
    def of(cls, cells: Iterable[ComparedCell]) -> Tally:
        """Counts some cells."""
        every = list(cells)
        counted = Counter(map(mark_of, every))
        measured = [cell.known for cell in every if cell.record and cell.known.verdict is not Verdict.KNOWN]
        budgets = [known.error_budget for known in measured if known.error_budget is not None]
        return cls(
            marks={mark: counted[mark] for mark in MARKS if counted[mark]},
            regressed=sum(cell.state is State.REGRESSED for cell in every),
            budget=max((math.inf if math.isnan(budget) else budget for budget in budgets), default=None),
            ulp=max((known.max_ulp for known in measured if known.max_ulp is not None), default=None),
        )

    @property
    def cells(self) -> int:
        """How many there are."""
        return sum(self.marks.values())

    @property
    def worst(self) -> Mark | None:
        """The worst mark of those that ran, or were lost; of those that did not run where none did."""
        telling = [mark for mark in self.marks if mark.ran or mark.tone == "bad"]
        return next(iter([*telling, *self.marks]), None)

    @property
    def heat(self) -> str:
        """The classes of the tint: the tone of the worst mark, deeper the more of the cells have that tone."""
        worst = self.worst
        if worst is None:
            return "empty"
        if worst.tone in ("good", "none"):
            return f"{worst.tone}-1"
        here = sum(count for mark, count in self.marks.items() if mark.tone == worst.tone)
        among = sum(count for mark, count in self.marks.items() if mark.ran or mark.tone == worst.tone)
        level = 1 + sum(here / among >= share for share in _DEEPER)
        # One failure among hundreds of cells must be seen from afar.
        return f"{worst.tone}-{max(2, level)} alarm" if worst.tone == "bad" else f"{worst.tone}-{level}"

    @property
    def ran(self) -> bool:
        """Whether any cell of them ran."""
        return any(mark.ran for mark in self.marks)

    @property
    def told(self) -> str:
        """All counts in words."""
        counts = [f"{count:,} {mark.name}" for mark, count in self.marks.items()]
        counts += [f"{self.regressed:,} regressed"] if self.regressed else []
        return ", ".join(counts) or "no cells"


assert len(_DEEPER) == len(HEAT) - 1, "there is a tint for each step of the share"
