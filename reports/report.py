"""A run's report: compared, written as a page and a table, and summed up for a terminal.

Importing this module is cheap, because the pytest plugin does so in every run of an environment: pandas and all that
needs it are imported when a report is made.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.records import Run, UnusableInput
from samebits.reports.baseline import Baseline, Scope, require_device
from samebits.reports.baseline_files import PACKAGED_BASELINES, check_update, read_baseline, write_baseline
from samebits.reports.files import replace_file
from samebits.reports.findings import red_reasons
from samebits.reports.regression import compare

__all__ = ["Report", "check_baseline", "check_update", "write_baseline", "write_report"]

PAGE, TABLE = "regression.md", "regression.csv"


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        summary: for a terminal, of several lines.
        red: whether the run failed by itself or against its baseline.
        regressed: whether a cell regressed or is missing against the baseline, or the run was cut off before all ran.
        paths: of the files written.
    """

    summary: str
    red: bool
    regressed: bool
    paths: tuple[Path, ...]


def check_baseline(baseline: Path | None, devices: Collection[str] = ()) -> None:
    """Finds out before a run whether its baseline can be used after it.

    Args:
        baseline: file or directory that the user named; None for the baselines that come with samebits.
        devices: as `Environment.device` names those that the run may compute on; empty to leave that unchecked.

    Raises:
        UnusableInput: the baseline cannot be read, or is a file for other devices only.
    """
    _read(baseline, devices)


def require_common_suite(run: Run, baseline: Path) -> None:
    """Refuses to compare a run with one of other suites, of which nothing could regress.

    Args:
        run: to compare.
        baseline: file or directory to compare it with.

    Raises:
        UnusableInput: the baseline cannot be read, or has rows and none of a suite of the run.
    """
    there = {row.suite for row in _read(baseline, ()).rows}
    # A run's header names all suites that its options left, of which single files may have been collected.
    here = {record.suite for record in run.records} or set(run.header.suites)
    if there and here.isdisjoint(there):
        told, known = (", ".join(sorted(suites)) for suites in (here, there))
        raise UnusableInput(
            f"the later run is of {told}, and the earlier one of {known}; they must have a suite in common"
        )


def write_report(run: Run, baseline: Path | None, directory: Path) -> Report:
    """Compares a run with a baseline, writes `regression.md` and `regression.csv`, and sums up.

    Args:
        run: to report.
        baseline: file or directory; None for the baselines that come with samebits.
        directory: where the files go; those of an earlier report are replaced.

    Raises:
        UnusableInput: the baseline cannot be read, or is a file for other devices only; or the directory cannot be
            written.
    """
    from samebits.reports import page, summary, tables  # pandas: see above

    comparison = compare(run, _read(baseline, Scope.of(run).devices))
    cells = tables.cell_table(comparison)
    paths = (directory / PAGE, directory / TABLE)
    replace_file(paths[0], page.page(comparison, cells))
    replace_file(paths[1], tables.to_csv(cells))
    return Report(
        summary=summary.summary(comparison, cells),
        red=bool(red_reasons(run)) or comparison.regressed,
        regressed=comparison.regressed,
        paths=paths,
    )


def _read(baseline: Path | None, devices: Collection[str]) -> Baseline:
    path = PACKAGED_BASELINES if baseline is None else baseline
    read = read_baseline(path)
    # A directory is searched for a fitting file, and may hold none; a file is meant.
    if devices and not os.path.isdir(path):
        require_device(read, devices)
    return read
