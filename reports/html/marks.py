"""What a cell is shown as: a word, a symbol beside it and a tone, so that colour never tells anything alone."""

from __future__ import annotations

from dataclasses import dataclass

from samebits.harness.records import Record, Verdict
from samebits.reports.baseline import BaselineRow
from samebits.reports.regression import ComparedCell, State


# One object for each kind, told apart as such: thousands are counted.
@dataclass(frozen=True, eq=False)
class Mark:
    """How one kind of result is shown.

    Attributes:
        name: the word that is read, and that filters select by.
        symbol: one character, for those who look.
        tone: of the palette.
        meaning: in a line, for the legend.
        ran: whether something was computed.
    """

    name: str
    symbol: str
    tone: str
    meaning: str
    ran: bool = True

    @property
    def css_class(self) -> str:
        """Its name as a class of the style sheet."""
        return self.name.replace(" ", "-")


ERROR = Mark("error", "!", "bad", "raised, or its process died")
FAIL = Mark("fail", "✗", "bad", "incorrect, or a claim broken")
NOT_CAUGHT = Mark("not caught", "✗", "bad", "a control whose fault was not seen")
MISSING = Mark("missing", "?", "bad", "in the baseline, and not in this run", ran=False)
KNOWN = Mark("known", "◆", "known", "fails as an issue says")
VARIES = Mark("varies", "≈", "varies", "correct; bits differ, and nobody claimed otherwise")
PASS = Mark("pass", "✓", "good", "correct, and what is claimed holds")
UNSUPPORTED = Mark("unsupported", "\N{EN DASH}", "none", "the implementation cannot compute this", ran=False)
UNAVAILABLE = Mark("unavailable", "○", "none", "cannot run on this machine", ran=False)
CAUGHT = Mark("caught", "✓", "good", "a control whose fault was seen")

# The worst first: in this order cells are listed, and the first that a place of the heat map holds gives its tone.
MARKS = (ERROR, FAIL, NOT_CAUGHT, MISSING, KNOWN, VARIES, PASS, UNSUPPORTED, UNAVAILABLE, CAUGHT)
_OF_VERDICT = {
    Verdict.ERROR: ERROR,
    Verdict.FAIL: FAIL,
    Verdict.KNOWN: KNOWN,
    Verdict.VARIES: VARIES,
    Verdict.PASS: PASS,
    Verdict.UNSUPPORTED: UNSUPPORTED,
    Verdict.UNAVAILABLE: UNAVAILABLE,
}


def mark_of(cell: ComparedCell) -> Mark:
    """What a cell is shown as."""
    return MISSING if cell.state is State.MISSING else mark_of_record(cell.known)


def mark_of_record(record: Record | BaselineRow) -> Mark:
    """What a record is shown as, or a row that stands for one."""
    if record.control:
        return CAUGHT if record.verdict is Verdict.FAIL else NOT_CAUGHT
    return _OF_VERDICT[record.verdict]
