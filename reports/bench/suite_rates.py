"""How fast the harness itself is: what was asked of it, and where its time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samebits.harness.bench.records import Bench, SuiteRate
from samebits.reports import text
from samebits.reports.bench import words
from samebits.reports.bench.targets import Outcome
from samebits.reports.markdown_table import markdown_table

# Cells a second that cheap kernels should have, by the device that computes them.
_ASKED = {"cpu": 4.0, "cuda": 60.0}
_RUNS = ("first", "again")


def rate_outcomes(bench: Bench) -> list[Outcome]:
    """What the harness came to beside what is asked of it on such a device; nothing where it was not timed."""
    asked = _ASKED.get(bench.header.environment.device.split(" ")[0])
    if asked is None or not bench.suite_rates:
        return []
    # A quick run's few cells take less time than to start the processes.
    judged = "--quick" not in bench.header.asked
    reached = tuple((_RUNS[run.run], run.rate) for run in bench.suite_rates)
    told = f"at least {asked:.0f} cells a second"
    return [Outcome(f"samebits on {bench.suite_rates[0].label}", "all", told, asked, True, reached, judged)]


def suite_rate_section(runs: Sequence[SuiteRate]) -> Iterator[str]:
    """The section of a page; nothing where the harness was not timed."""
    if not runs:
        return
    yield "## The harness"
    yield ""
    yield (
        f"`pytest {runs[0].told_words}`, from its start to the end of its report. The first run compiles what is not "
        "compiled yet. Cells have their share of all workers' time; the rest starts processes, collects, waits, and "
        "reports."
    )
    yield ""
    rows = [
        [
            _RUNS[run.run],
            text.whole(run.cells),
            words.seconds(run.seconds),
            "-" if run.rate is None else f"{run.rate:.1f}",
            str(run.workers),
            "-" if run.rate is None else words.percent(run.share_in_cells),
            "-" if run.rate is None else run.told_red or "none",
            ", ".join(f"{suite.suite} {suite.cells:,} in {words.seconds(suite.seconds)}" for suite in run.suites)
            or text.markdown(run.reason),
        ]
        for run in runs
    ]
    headings = ("run", "cells", "time", "cells a second", "workers", "in cells", "red")
    yield from markdown_table((*headings, "suites, in seconds of all workers"), rows, numbers=0)
