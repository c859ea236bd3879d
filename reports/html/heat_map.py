"""The first thing that is seen: backends and implementations down, suites across, what their cells came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup, escape

from samebits.reports import text
from samebits.reports.html.links import cells_link, implementation_place
from samebits.reports.html.marks import Mark
from samebits.reports.html.styled import styled_table
from samebits.reports.html.tallies import Tally
from samebits.reports.regression import ComparedCell, Comparison

_WORST_BUDGET, _WORST_ULP = "worst budget", "worst ULP"


def own_cells(comparison: Comparison) -> list[ComparedCell]:
    """All cells that are of no control."""
    return [cell for cell in comparison.cells if not cell.known.control]


def suites_of(comparison: Comparison) -> list[str]:
    """The suites that the cells are of, in the order of the run."""
    found = {cell.known.suite for cell in comparison.cells}
    told = [suite for suite in dict.fromkeys(comparison.run.header.suites) if suite in found]
    return told + sorted(found - set(told))


def heat_map(comparison: Comparison) -> Markup | None:
    """The matrix as a table, each place of which leads to its cells; None where there is no cell."""
    suites = suites_of(comparison)
    by_place: dict[str, dict[str, list[ComparedCell]]] = {}
    for cell in own_cells(comparison):
        by_place.setdefault(cell.known.label, {}).setdefault(cell.known.suite, []).append(cell)
    if not by_place:
        return None
    idle = {label for label, found in by_place.items() if not any(Tally.of(cells).ran for cells in found.values())}
    backends = list(dict.fromkeys(label.partition("/")[0] for label in by_place))
    # Implementations of one backend stand together; what could not run here comes after all that did.
    labels = sorted(by_place, key=lambda label: (label in idle, backends.index(label.partition("/")[0])))
    rows = [_row(label, by_place[label], suites) for label in labels]
    shown, classes = ([[pair[part] for pair in row] for row in rows] for part in (0, 1))
    index = pd.MultiIndex.from_tuples(
        [(label.partition("/")[0], label) for label in labels], names=["backend", "implementation"]
    )
    columns = [*suites, _WORST_BUDGET, _WORST_ULP]
    return styled_table(
        pd.DataFrame(shown, index, columns, dtype=object),
        "Cells by implementation and suite; each place leads to its cells.",
        lambda value: value,
        pd.DataFrame(classes, index, columns, dtype=object),
        _row_head,
    )


def counts(marks: Mapping[Mark, int]) -> Markup:
    """Counts as symbols to look at and words to hear."""
    return Markup(" ").join(
        Markup('<span class="count {}"><i aria-hidden="true">{}</i>{}<span class="heard"> {}</span></span>').format(
            mark.tone, mark.symbol, f"{count:,}", mark.name
        )
        for mark, count in marks.items()
    )


def _row(label: str, by_suite: Mapping[str, Sequence[ComparedCell]], suites: Sequence[str]) -> list[tuple[str, str]]:
    """What each place shows, and its classes."""
    found = [_place(label, suite, by_suite.get(suite, ())) for suite in suites]
    whole = Tally.of(cell for cells in by_suite.values() for cell in cells)
    wrong = " bad-2" if whole.budget is not None and whole.budget > 1 else ""
    return [*found, (text.budget(whole.budget), f"number{wrong}"), (text.whole(whole.ulp), "number")]


def _place(label: str, suite: str, cells: Sequence[ComparedCell]) -> tuple[str, str]:
    if not cells:
        return Markup('<span aria-hidden="true">·</span><span class="heard">no cells</span>'), "heat empty"
    tally = Tally.of(cells)
    regressed = (
        Markup(
            ' <span class="count bad"><i aria-hidden="true">▼</i>{}<span class="heard"> regressed</span></span>'
        ).format(f"{tally.regressed:,}")
        if tally.regressed
        else ""
    )
    shown = Markup('<a href="{}" title="{}">{}{}</a>').format(
        cells_link(implementation=label, suite=suite),
        f"{label}, {suite}: {tally.told}",
        counts(tally.marks),
        regressed,
    )
    return shown, f"heat {tally.heat}"


def _row_head(value: str) -> Markup:
    """A backend, or an implementation; its backend stands to the left, unless the screen is narrow."""
    if "/" not in value:
        return escape(value)
    backend, _, name = value.partition("/")
    link = Markup('<a href="#{}"><span class="narrow">{}/</span>{}</a>')
    return link.format(implementation_place(value), backend, name)
