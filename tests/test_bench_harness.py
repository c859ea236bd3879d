"""How fast the harness itself is: pytest is run as users run it, and what its records say is told on the page."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from samebits.harness.bench import suite_rate
from samebits.harness.bench.options import Options
from samebits.harness.bench.records import BENCH_FILE, SuiteRate, SuiteShare
from samebits.harness.bench.session import BenchSession
from samebits.harness.bench.suite_rate import SuiteSelection, suite_rates
from samebits.harness.bench.termination import Terminated, terminated_as_interrupted
from samebits.harness.cli import main
from samebits.harness.record_files import RecordWriter
from samebits.harness.records import UnusableInput, Verdict
from samebits.reports.bench import words
from samebits.reports.bench.page import as_page, as_summary
from samebits.reports.bench.suite_rates import rate_outcomes

from .bench_samples import bench_of, measured
from .samples import CPU, cell, control, save

SELECTION = SuiteSelection("CPU/bundled", ("batch_invariant", "dtype"), "default", workers=4, runs=2)
CELLS = (cell(seconds=1.0), control(seconds=0.5), cell(suite="dtype", cell_id="another", seconds=0.5))
RED = (
    CELLS[0],
    control(seconds=0.5, verdict=Verdict.PASS),
    cell(suite="dtype", cell_id="another", seconds=0.5, verdict=Verdict.ERROR),
)
# A backend of a user's file that has the name of samebits' own.
LOADED = """
from samebits.backends.cpu import implementations as ours


def implementations():
    (bundled,) = [found for found in ours() if (found.operation, found.name) == ("attention", "bundled")]
    mine = type("Mine", (type(bundled),), {"backend": "MY_ATTN", "__module__": __name__})
    return [mine()]
"""


def leaving(*records: object, code: int | None = 0, output: str = "") -> suite_rate.Runner:
    """A run that takes no time, and leaves records; none where there are none."""

    def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
        if records:
            save(Path(command[-1]), *records)  # type: ignore[arg-type]
        return code, output

    return run


def test_each_run_is_measured_from_the_start_of_pytest_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
        commands.append(command)
        return leaving(*CELLS)(command, folder, environment)

    first, again = suite_rates(SELECTION, run)
    assert [(rate.run, rate.cells, rate.seconds, rate.rate, rate.reason) for rate in (first, again)] == [
        (0, 3, 2.0, 1.5, ""),
        (1, 3, 1.0, 3.0, ""),
    ]
    assert first.suites == (SuiteShare("batch_invariant", 2, 1.5), SuiteShare("dtype", 1, 0.5))
    assert again.share_in_cells == pytest.approx(2 / 4), "2 s of 4 workers' 1 s each"
    pytest_words = "-n 4 -m 'batch_invariant or dtype' --implementation CPU/bundled"
    assert first.told_words == pytest_words
    assert commands[0][:3] == [sys.executable, "-m", "pytest"]
    assert commands[0][-1] != commands[1][-1], "the second run found the records of the first"
    assert not Path(commands[0][-1]).exists(), "records of the first run are left behind"


def test_red_cells_are_counted_and_told_and_fail_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rate, _) = suite_rates(SELECTION, leaving(*RED, code=1))
    assert (rate.cells, rate.failed, rate.errors, rate.reason) == (3, 1, 1, ""), "a red run is a run of as many cells"
    assert words.suite_rate(rate).endswith(" a second; 1 failed and 1 raised")
    bench = replace(bench_of(), suite_rates=(rate,))
    assert "| 1 failed and 1 raised | batch_invariant 2 in" in as_page(bench)
    writer = RecordWriter(tmp_path, bench.header, BENCH_FILE)
    writer.write(rate)
    writer.close()
    assert main(["bench", "--report", str(tmp_path)]) == 1, "red cells leave the command green"
    assert f"pytest {rate.told_words}: of 3 cells 1 failed and 1 raised" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (leaving(code=2, output="unknown\nbackend"), "it ended with exit code 2: unknown backend"),
        (leaving(*CELLS, code=None), "it did not end in 300 s"),
        (leaving(), "it left no records: cannot read"),
        (leaving(*CELLS, code=1, output="it broke"), "no cell of it is red, and it ended with exit code 1: it broke"),
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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPATH", f"mine{os.pathsep}{tmp_path}")
    known: list[Mapping[str, str]] = []

    def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
        known.append(environment)
        return leaving(*CELLS)(command, folder, environment)

    list(suite_rates(SELECTION, run))
    assert {name for name in known[0] if name.startswith("PYTEST_")} == set()
    assert known[0]["OMP_NUM_THREADS"] == "1"
    assert "PYTHONDONTWRITEBYTECODE" not in known[0]
    assert known[0]["PYTHONPYCACHEPREFIX"] == known[1]["PYTHONPYCACHEPREFIX"], "the second run compiles all again"
    assert known[0]["PYTHONPATH"] == f"{Path.cwd() / 'mine'}{os.pathsep}{tmp_path}", "relative to another folder"
    code, output = suite_rate._in_process(["sh", "-c", "pwd; exit 3"], tmp_path, known[0])
    assert (code, output) == (3, f"{tmp_path}\n")


def test_settings_of_the_folder_it_is_called_from_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('of the user')\n")
    monkeypatch.chdir(tmp_path)

    def collect_nothing(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
        words = (*command[: command.index("--pyargs")], "--collect-only", ".")
        return suite_rate._in_process(words, folder, {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})

    (rate,) = suite_rates(replace(SELECTION, runs=1), collect_nothing)
    assert rate.reason.startswith("it ended with exit code 5: "), f"what the user has there counts: {rate.reason}"


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
        ["sh", "-c", f"echo $$ > {shlex.quote(str(group))}; sleep 60 & sleep 60"], tmp_path, os.environ
    )
    assert code is None
    assert_ends(int(group.read_text()))


def test_sigterm_ends_what_was_begun_and_removes_its_folder() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Path] = []
    groups: list[int] = []

    def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, str]:
        found.append(folder)
        try:
            script = "echo $$ > group; kill -TERM $PPID; exec sleep 60"
            return suite_rate._in_process(["sh", "-c", script], folder, environment)
        finally:
            groups.append(int((folder / "group").read_text()))

    with pytest.raises(Terminated, match="ended by SIGTERM"), terminated_as_interrupted():
        list(suite_rates(SELECTION, run))
    assert signal.getsignal(signal.SIGTERM) == before, "the handler stays behind"
    assert not found[0].exists(), f"{found[0]} is left behind"
    assert_ends(groups[0])


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_who_ends_the_command_is_told_how_to_make_the_page(
    number: signal.Signals,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    one_thread: None,
) -> None:
    monkeypatch.setattr("samebits.harness.bench.command._time_all", lambda *_: os.kill(os.getpid(), number))
    # A shell has its jobs in the background ignore interrupts, and they may be these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["bench", "--problem", "norm-64", "--results", str(tmp_path)]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == (
        f"samebits: {told}; `samebits bench --report {tmp_path}` makes the page of what is done\n"
    )


def assert_ends(group: int) -> None:
    deadline = time.monotonic() + 10
    # Until somebody has noticed that they ended, they are still there.
    while is_there(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_there(group), "what the process had begun goes on"


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
    (again,) = [line for line in page.splitlines() if line.startswith("| again")]
    assert [cell.strip() for cell in again.strip("|").split("|")] == [
        *("again", "1,200", "16.0 s", "75.0", "16", "31%", "none"),
        "batch_invariant 600 in 60.0 s, dtype 600 in 20.0 s",
    ]
    assert "at least 60 cells a second  1 of 2  first 50.00" in as_summary(bench)
    quick = replace(bench, header=replace(bench.header, asked=("--quick",)))
    assert "at least 60 cells a second  -    first 50.00" in as_summary(quick), "a quick run is held against it"
    on_processor = replace(bench, header=replace(bench.header, environment=CPU))
    assert rate_outcomes(on_processor)[0].asked == "at least 4 cells a second"
    assert "The harness" not in as_page(bench_of()), "what was not timed is told"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"run": 2}, "field 'run' is 2; it must be 0, of the first run, or 1, of the one behind it"),
        ({"run": -3}, "field 'run' is -3; it must be 0"),
        ({"workers": 0}, "field 'workers' is 0; it must be at least 1"),
        ({"seconds": 0}, "field 'seconds' is 0.0; it must be a finite number above 0"),
        ({"seconds": "nan"}, "field 'seconds' is nan; it must be a finite number above 0"),
        ({"failed": 2, "errors": 2}, "2 of 3 cells failed and 2 raised; both must be at least 0"),
        ({"failed": -1}, "-1 of 3 cells failed and 0 raised; both must be at least 0"),
        ({"suites": [{"suite": "dtype", "cells": -1, "seconds": 1}]}, "field 'cells' is -1; it must be at least 0"),
        ({"suites": [{"suite": "dtype", "cells": 3, "seconds": -1}]}, "field 'seconds' is -1.0; it must be a finite"),
    ],
)
def test_what_no_run_of_the_harness_can_be_is_refused(
    changes: Mapping[str, object], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = (SuiteShare("dtype", 3, 1.0),)
    line = json.loads(SuiteRate("CPU/bundled", ("-n", "2"), 2, 0, 17.5, shares).to_line()) | dict(changes)
    file = tmp_path / BENCH_FILE
    file.write_text(f"{bench_of().header.to_line()}\n{json.dumps(line)}\n")
    assert main(["bench", "--report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"samebits: {str(file)!r}, line 2: ")
    assert complaint in told


def test_the_harness_is_timed_where_nothing_else_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, one_thread: None
) -> None:
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
    loaded = tmp_path / "mine.py"
    loaded.write_text(LOADED)
    assert BenchSession(Options(backends=("MY_ATTN",), load=(loaded,))).suites is None, "pytest does not know it"
    assert main(["bench", "--list", "--problem", "harness"]) == 0
    assert "pytest -n " in capsys.readouterr().out
    assert SuiteSelection.of("A/b", "cuda", 64, quick=False).workers == 16
