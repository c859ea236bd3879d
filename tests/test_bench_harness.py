"""How fast the harness itself is: pytest is run as users run it, and what its records say is told on the page."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from samebits.harness.bench import suite_rate
from samebits.harness.bench.options import Options
from samebits.harness.bench.records import SuiteRate, SuiteShare
from samebits.harness.bench.session import BenchSession
from samebits.harness.bench.suite_rate import SuiteSelection, suite_rates
from samebits.harness.cli import main
from samebits.harness.records import UnusableInput
from samebits.reports.bench.page import as_page, as_summary
from samebits.reports.bench.suite_rates import rate_outcomes

from .bench_samples import bench_of, measured
from .samples import CPU, cell, control, save

SELECTION = SuiteSelection("CPU/bundled", ("batch_invariant", "dtype"), "default", workers=4, runs=2)
CELLS = (cell(seconds=1.0), control(seconds=0.5), cell(suite="dtype", cell_id="another", seconds=0.5))


def leaving(*records: object, code: int | None = 0, output: str = "") -> suite_rate.Runner:
    """A run that takes no time, and leaves records; none where there are none."""

    def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
        if records:
            save(Path(command[-1]), *records)  # type: ignore[arg-type]
        return code, output

    return run


def test_each_run_is_measured_from_the_start_of_pytest_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
        commands.append(command)
        return leaving(*CELLS, code=1)(command, environment)

    first, again = suite_rates(SELECTION, run)
    assert [(rate.run, rate.cells, rate.seconds, rate.rate, rate.reason) for rate in (first, again)] == [
        (0, 3, 2.0, 1.5, ""),
        (1, 3, 1.0, 3.0, ""),
    ], "a red run, too, is a run of so many cells"
    assert first.suites == (SuiteShare("batch_invariant", 2, 1.5), SuiteShare("dtype", 1, 0.5))
    assert again.share_in_cells == pytest.approx(2 / 4), "2 s of 4 workers' 1 s each"
    pytest_words = "-n 4 -m 'batch_invariant or dtype' --implementation CPU/bundled"
    assert first.told_words == pytest_words
    assert commands[0][:3] == [sys.executable, "-m", "pytest"]
    assert commands[0][-1] != commands[1][-1], "the second run found the records of the first"
    assert not Path(commands[0][-1]).exists(), "records of the first run are left behind"


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (leaving(code=2, output="unknown\nbackend"), "it ended with exit code 2: unknown backend"),
        (leaving(*CELLS, code=None), "it did not end in 300 s"),
        (leaving(), "it left no records: cannot read"),
    ],
)
def test_a_run_without_a_rate_says_why(run: suite_rate.Runner, reason: str) -> None:
    (rate, _) = suite_rates(SELECTION, run)
    assert rate.reason.startswith(reason)
    assert (rate.rate, rate.cells) == (None, 0)
    bench = replace(bench_of(), suite_rates=(rate,))
    assert bench.failures == (f"pytest {rate.told_words}: {rate.reason}",), "a run that failed is no failure"
    assert reason.split(":")[0] in as_page(bench)


def test_the_runs_know_nothing_of_the_pytest_around_them_and_keep_compiled_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    known: list[Mapping[str, str]] = []

    def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
        known.append(environment)
        return leaving(*CELLS)(command, environment)

    list(suite_rates(SELECTION, run))
    assert {name for name in known[0] if name.startswith("PYTEST_")} == set()
    assert known[0]["OMP_NUM_THREADS"] == "1"
    assert "PYTHONDONTWRITEBYTECODE" not in known[0]
    assert known[0]["PYTHONPYCACHEPREFIX"] == known[1]["PYTHONPYCACHEPREFIX"], "the second run compiles all again"
    code, output = suite_rate._in_process([sys.executable, "-c", "print('told'); raise SystemExit(3)"], known[0])
    assert (code, output) == (3, "told\n")


def is_there(group: int) -> bool:
    """Whether a group has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_who_takes_too_long_is_ended_with_all_that_he_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite_rate, "_SECONDS", 0.2)
    group = tmp_path / "group"
    code, _ = suite_rate._in_process(
        ["sh", "-c", f"echo $$ > {shlex.quote(str(group))}; sleep 60 & sleep 60"], os.environ
    )
    assert code is None
    deadline = time.monotonic() + 10
    # Until somebody has noticed that they ended, they are still there.
    while is_there(int(group.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_there(int(group.read_text())), "what the process had begun goes on"


def test_the_page_holds_the_rate_against_what_is_asked_of_such_a_device() -> None:
    shares = (SuiteShare("batch_invariant", 600, 60.0), SuiteShare("dtype", 600, 20.0))
    runs = tuple(
        SuiteRate("TRITON_ATTN/bundled", ("-n", "16"), 16, run, seconds, shares)
        for run, seconds in enumerate((24.0, 16.0))
    )
    bench = replace(bench_of(measured("TRITON_ATTN/bundled", 10, "mine")), suite_rates=runs)
    (outcome,) = rate_outcomes(bench)
    assert outcome.reached == (("first", 50.0), ("again", 75.0))
    assert (outcome.met, outcome.worst) == (1, ("first", 50.0))
    page = as_page(bench)
    assert "`pytest -n 16`, from its start" in page
    told = (
        "| again | 1,200   | 16.0 s | 75.0             | 16        | 31%        | batch_invariant 600 in 60.0 s, dtype"
    )
    assert told in page
    assert "at least 60 cells a second  1 of 2  first 50.00" in as_summary(bench)
    on_processor = replace(bench, header=replace(bench.header, environment=CPU))
    assert rate_outcomes(on_processor)[0].asked == "at least 4 cells a second"
    assert "The harness" not in as_page(bench_of()), "what was not timed is told"


def test_the_harness_is_timed_where_nothing_else_is_named(capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    every = BenchSession(Options(quick=True))
    assert every.suites is not None
    assert (every.suites.tier, every.suites.runs) == ("smoke", 1)
    assert BenchSession(Options(problems=("norm-64",))).suites is None
    alone = BenchSession(Options(problems=("harness",)))
    assert alone.problems == ()
    assert alone.suites is not None
    assert (alone.suites.suites, alone.suites.runs) == (("batch_invariant",), 2)
    with pytest.raises(UnusableInput, match="harness is timed on bundled attention for cpu, and none that can run"):
        BenchSession(Options(problems=("harness",), implementations=("CPU/torch",)))
    assert main(["bench", "--list", "--problem", "harness"]) == 0
    assert "pytest -n " in capsys.readouterr().out
    assert SuiteSelection.of("A/b", "cuda", 64, quick=False).workers == 16
