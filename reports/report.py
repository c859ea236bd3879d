"""A run's report: compared, written as a page and a table, and summed up for a terminal.

Importing this module is cheap, because the pytest plugin does so in every run of an environment: pandas and all that
needs it are imported when a report is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.records import Run, UnusableInput
from samebits.reports.baseline import Baseline, Scope, require_device
from samebits.reports.files import replace_file
from samebits.reports.findings import red_reasons
from samebits.reports.regression import compare

PAGE, TABLE, IMPLEMENTATIONS, INDEX = "regression.md", "regression.csv", "implementations.md", "index.html"


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        summary: for a terminal, of several lines.
        red: whether the run failed by itself or against its baseline.
        regressed: whether a cell regressed or is missing against the baseline, or the run was cut off before all ran.
        undecided: whether it is so only because the run was cut off.
        paths: of the files written.
    """

    summary: str
    red: bool
    regressed: bool
    undecided: bool
    paths: tuple[Path, ...]


def require_common_suite(run: Run, baseline: Baseline) -> None:
    """Refuses to compare a run with one of other suites, of which nothing could regress.

    Args:
        run: to compare.
        baseline: to compare it with.

    Raises:
        UnusableInput: the baseline has rows, and none of a suite of the run.
    """
    there = {row.suite for row in baseline.rows}
    # A run's header names all suites that its options left, of which single files may have been collected.
    here = {record.suite for record in run.records} or set(run.header.suites)
    if there and here.isdisjoint(there):
        told, known = (", ".join(sorted(suites)) for suites in (here, there))
        raise UnusableInput(
            f"the later run is of {told}, and the earlier one of {known}; they must have a suite in common"
        )


def write_report(
    run: Run, baseline: Baseline, directory: Path, earlier: Sequence[Run] = (), unreadable: int = 0
) -> Report:
    """Compares a run with a baseline, writes the pages and the table of it, and sums up.

    Args:
        run: to report.
        baseline: to compare it with.
        directory: where the files go; those of an earlier report are replaced.
        earlier: runs whose history is told; the run itself may be among them.
        unreadable: how many more were to be told, and cannot be read.

    Raises:
        UnusableInput: the baseline is of a file for other devices only, or the directory cannot be written.
    """
    from samebits.reports import implementations_page, page, summary, tables  # pandas: see above
    from samebits.reports.history import History
    from samebits.reports.html.page import html_page

    require_device(baseline, Scope.of(run).devices)
    comparison = compare(run, baseline)
    cells = tables.cell_table(comparison)
    paths = (directory / PAGE, directory / TABLE, directory / IMPLEMENTATIONS, directory / INDEX)
    replace_file(paths[0], page.page(comparison, cells))
    replace_file(paths[1], tables.to_csv(cells))
    replace_file(paths[2], implementations_page.implementations_page(comparison))
    history = History.of(run, earlier, unreadable) if earlier else None
    replace_file(paths[3], html_page(comparison, history))
    return Report(
        summary=summary.summary(comparison, cells, history),
        red=bool(red_reasons(run)) or comparison.regressed,
        regressed=comparison.regressed,
        undecided=comparison.undecided,
        paths=paths,
    )
