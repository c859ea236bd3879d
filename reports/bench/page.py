"""`bench.md`: who is how fast, beside whom and beside what the machine allows, and what invariance costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from samebits.harness.bench.records import Bench, Group, LeftOut, Measurement
from samebits.reports import text
from samebits.reports.bench import words
from samebits.reports.bench.curve import price_curve
from samebits.reports.bench.price import Price, prices
from samebits.reports.bench.standings import Standing, of_groups, seconds_of, standings
from samebits.reports.bench.suite_rates import rate_outcomes, suite_rate_section
from samebits.reports.bench.targets import Outcome, outcomes
from samebits.reports.columns import columns
from samebits.reports.files import replace_file
from samebits.reports.markdown_table import markdown_table

PAGE, CURVE = "bench.md", "bench.svg"
# Of the page. The records have all of it, frames of a process that died among them.
_LONGEST_REASON = 200
_TABLES = (
    ((Group.TABLE,), "Attention"),
    ((Group.OFF_TABLE,), "Other geometries, lengths and batches"),
    ((Group.LINEAR, Group.NORM), "Operations on tokens"),
    ((Group.PRICE,), "Decodes for the price of invariance"),
)


def write_bench(bench: Bench, directory: Path, page: Path | None = None) -> list[Path]:
    """Writes the page and the drawing of a benchmark, and says where they are.

    Args:
        bench: what was recorded.
        directory: of the records, or their file.
        page: where the page goes besides; the drawing goes beside it, under the same name. None for nowhere.

    Raises:
        UnusableInput: a file cannot be written.
    """
    directory = directory if directory.is_dir() else directory.parent
    written: list[Path] = []
    for path in (directory / PAGE, page):
        if path is None:
            continue
        drawing = path.with_suffix(".svg")
        curve = _curve(bench)
        replace_file(path, as_page(bench, drawing.name if curve else ""))
        written.append(path)
        if curve:
            replace_file(drawing, curve)
            written.append(drawing)
    return written


def as_page(bench: Bench, drawing: str = "") -> str:
    """The page as Markdown.

    Args:
        bench: what was recorded.
        drawing: name of the file of the curve beside it; empty for none.
    """
    found = standings(bench)
    sections = [
        _head(bench),
        _machine(bench),
        _targets([*outcomes(found), *rate_outcomes(bench)]),
        suite_rate_section(bench.suite_rates),
        _overview(found),
        _price(prices(found), drawing),
        *(_all_times(of_groups(found, groups), title) for groups, title in _TABLES),
        _not_timed(bench),
    ]
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def as_summary(bench: Bench) -> str:
    """The page's targets, or where there are none the fastest of each problem, for a terminal."""
    found = standings(bench)
    reached = [*outcomes(found), *rate_outcomes(bench)]
    lines: list[str] = []
    if reached:
        headings = [("", "implementation"), ("", "dtype"), ("", "asked"), ("", "met"), ("", "worst")]
        lines += columns(headings, [_short_outcome(outcome) for outcome in reached], left=len(headings))
    else:
        headings = [("", "problem"), ("", "dtype"), ("", "fastest"), ("", "time"), ("of the", "limit")]
        rows = [_fastest_row(standing) for standing in found if standing.timed]
        lines += columns(headings, rows, left=3) if rows else ["Nothing was timed."]
    if bench.failures:
        lines += ["", f"{text.counted(len(bench.failures), 'row')} failed:"]
        lines += [line for failure in bench.failures for line in text.wrapped(failure, "  ", most=3)]
    if bench.truncated:
        lines += ["", "The run was cut off."]
    return "\n".join(lines)


def _fastest_row(standing: Standing) -> list[str]:
    row = standing.timed[0]
    return [
        standing.problem,
        standing.dtype,
        row.label,
        words.seconds(seconds_of(row)),
        words.ratio(standing.of_limit(row)),
    ]


def _curve(bench: Bench) -> str:
    """The drawing of the price in bfloat16; empty where nothing is known of it."""
    found = [price for price in prices(standings(bench)) if price.dtype == "bf16"]
    if not found:
        return ""
    return price_curve(found, f"Price of batch invariance in bf16 on {bench.header.environment.device}")


def _head(bench: Bench) -> Iterator[str]:
    header = bench.header
    yield f"# Speed on {text.markdown(header.environment.device)}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(header.environment.versions.items()))
    yield (
        f"Timed on {text.moment(header.started)} UTC by `samebits bench"
        f"{' ' if header.asked else ''}{' '.join(header.asked)}`, with {text.markdown(versions)}, on "
        f"{text.counted(header.environment.threads, 'thread')} of the host. `docs/bench.md` says how it is measured."
    )
    if bench.truncated:
        yield ""
        yield "**The run was cut off**: what follows is what it finished."
    yield ""


def _machine(bench: Bench) -> Iterator[str]:
    yield "## What the machine does at most"
    yield ""
    rows = [
        [rate.name, text.markdown(rate.what), words.rate(rate), words.percent(rate.timing.spread)]
        for rate in bench.rates.values()
    ]
    yield from markdown_table(("", "measured by", "rate", "spread"), rows, numbers=2)
    yield (
        "A problem's limit is the longer of two times: its bytes at the faster of both rates of memory (a norm's at "
        "that of a copy), and its operations at the rate of matrix products of its dtype."
    )
    yield ""


def _targets(reached: Sequence[Outcome]) -> Iterator[str]:
    if not reached:
        return
    yield "## Asked and reached"
    yield ""
    rows = [[text.markdown(cell) for cell in _outcome_row(outcome)] for outcome in reached]
    yield from markdown_table(("implementation", "dtype", "asked", "reached", "met"), rows, numbers=1)


def _outcome_row(outcome: Outcome) -> list[str]:
    """With all problems, for the page."""
    implementation, dtype, asked, met, _ = _short_outcome(outcome)
    return [implementation, dtype, asked, ", ".join(itertools.starmap(_told_problem, outcome.reached)), met]


def _short_outcome(outcome: Outcome) -> list[str]:
    """With the worst problem alone, for a terminal."""
    met = f"{outcome.met} of {len(outcome.reached)}" if outcome.judged else "-"
    worst = "-" if outcome.worst is None else _told_problem(*outcome.worst)
    return [outcome.ours, outcome.dtype, outcome.asked, met, worst]


def _told_problem(problem: str, value: float | None) -> str:
    return f"{problem} {words.ratio(value)}"


def _overview(found: Sequence[Standing]) -> Iterator[str]:
    """The bundled kernels beside the best of the others: a row for each problem, a table for each dtype."""
    if not found:
        return
    yield "## The bundled kernels beside the best of the others"
    yield ""
    for dtype in dict.fromkeys(standing.dtype for standing in found):
        rows = [row for standing in found if standing.dtype == dtype for row in _overview_rows(standing)]
        if rows:
            yield f"### {dtype}"
            yield ""
            headings = ("problem", "bundled", "best peer", "limit", "bundled", "best peer", "ratio", "of limit")
            yield from markdown_table(headings, rows, numbers=5)


def _overview_rows(standing: Standing) -> Iterator[list[str]]:
    peer = standing.best_peer
    for row in standing.timed:
        if row.implementation == "bundled":
            yield [
                f"{standing.problem}: {text.markdown(row.told)}",
                text.markdown(row.label),
                "-" if peer is None else text.markdown(peer.label),
                words.seconds(standing.limit),
                words.median(row.eager),
                "-" if peer is None else words.median(peer.eager),
                words.ratio(standing.of_best_peer(row)),
                words.ratio(standing.of_limit(row)),
            ]


def _price(found: Sequence[Price], drawing: str) -> Iterator[str]:
    if not found:
        return
    yield "## The price of invariance"
    yield ""
    yield (
        "Of each library the fastest setting that claims batch invariance, over its own fastest setting and over "
        "anybody's, for requests of one query token. Claims are what libraries say of themselves; whether they hold is "
        "what the suites find out."
    )
    yield ""
    if drawing:
        yield f"![The price of invariance by batch and length]({drawing})"
        yield ""
    rows = [
        [
            price.dtype,
            text.markdown(price.invariant.label),
            str(price.batch),
            text.whole(price.kv_len),
            words.median(price.invariant.eager),
            words.ratio(price.own),
            words.ratio(price.over_best),
            text.markdown(price.best.label),
        ]
        for price in found
    ]
    headings = ("dtype", "invariant setting", "batch", "keys", "time", "over its own best", "over the best", "the best")
    yield from markdown_table(headings, rows, numbers=0)


def _all_times(found: Sequence[Standing], title: str) -> Iterator[str]:
    """Everybody's times: a table for each dtype."""
    if not found:
        return
    yield f"## {title}: all times"
    yield ""
    for dtype in dict.fromkeys(standing.dtype for standing in found):
        yield f"### {title}, {dtype}"
        yield ""
        rows = [row for standing in found if standing.dtype == dtype for row in _time_rows(standing)]
        headings = (
            *("problem", "implementation", "invariant", "time", "spread", "runs", "of best peer", "of limit"),
            *("replayed", "of best replayed peer", "host", "plan"),
        )
        yield from markdown_table(headings, rows, numbers=9)


def _time_rows(standing: Standing) -> Iterator[list[str]]:
    best_replayed = standing.best_replayed_peer
    for place, row in enumerate(standing.timed):
        assert row.eager is not None, "it is timed"
        replayed = None if row.replayed is None else row.replayed.median
        yield [
            standing.problem if place == 0 else "",
            text.markdown(row.label),
            "yes" if row.batch_invariant else "",
            words.median(row.eager),
            words.percent(row.eager.spread),
            str(row.eager.runs),
            words.ratio(standing.of_best_peer(row)),
            words.ratio(standing.of_limit(row)),
            words.seconds(replayed),
            words.ratio(None if replayed is None or best_replayed is None else replayed / best_replayed),
            words.median(row.launching),
            words.median(row.planning),
        ]


def _not_timed(bench: Bench) -> Iterator[str]:
    """What was asked for and could not run, each with its reason once."""
    rows = [*_left_out(bench.left_out), *_failed(bench.failed), *_not_replayed(bench.measurements)]
    if not rows:
        return
    yield "## Not timed"
    yield ""
    yield from markdown_table(("implementation", "on", "why not"), rows, numbers=0)


def _left_out(entries: Iterable[LeftOut]) -> Iterator[list[str]]:
    problems: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        named = f"{entry.problem} {entry.dtype}".strip()
        problems.setdefault((entry.label, entry.operation, entry.reason), []).append(named)
    for (label, operation, reason), names in problems.items():
        told = ", ".join(name for name in names if name)
        yield [text.markdown(label), told or operation, text.markdown(text.shortened(reason, _LONGEST_REASON))]


def _failed(rows: Iterable[Measurement]) -> Iterator[list[str]]:
    yield from _by_reason(((row, row.reason) for row in rows), "")


def _not_replayed(rows: Iterable[Measurement]) -> Iterator[list[str]]:
    yield from _by_reason(((row, row.not_replayed) for row in rows if row.eager and row.not_replayed), "replay of ")


def _by_reason(rows: Iterable[tuple[Measurement, str]], what: str) -> Iterator[list[str]]:
    problems: dict[tuple[str, str], list[str]] = {}
    for row, reason in rows:
        problems.setdefault((row.label, reason), []).append(f"{row.problem} {row.dtype}")
    for (label, reason), names in problems.items():
        yield [text.markdown(label), what + ", ".join(names), text.markdown(text.shortened(reason, _LONGEST_REASON))]
