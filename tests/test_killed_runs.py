"""Runs that are killed at random moments and resumed until they are done: no cell is lost, and none is run again.

`SAMEBITS_KILLS` says how often; `make nightly` has it 50 times, with as many cells as a suite's smoke tier has.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samebits.harness.record_files import read_run
from samebits.harness.records import RECORDS_FILE, Run, UnusableInput
from samebits.reports.report import write_report

from .samples import NO_BASELINE
from .suite_runs import NO_BASELINES, PYTEST, ROOT, WITHOUT_PLUGINS, python_path

KILLS = int(os.environ.get("SAMEBITS_KILLS", "2"))
SELECTION = ("-m", "rope", "--implementation", "CPU/torch", "--tier", "smoke")
# Of all cells, so that a run that is killed twice takes no longer than it must.
FEW, KEYWORD = ("--dtype", "fp32"), ("-k", "large_values")
# Started from scratch, a run that is killed again and again would never end.
KILLS_OF_ONE_RUN = 5
# For a process to go: a worker whose controller is dead finishes its cell first.
SECONDS_TO_END = 60
# Notes each cell that a process begins.
CELL_STARTS = """
import os

def pytest_runtest_call(item):
    with open(os.environ["CELL_STARTS"], "a") as stream:
        stream.write(item.nodeid.partition("[")[2].removesuffix("]") + "\\n")
"""


@dataclass
class Sitting:
    """One process of a run, from its start until it ended or was killed."""

    finished_before: frozenset[str]
    begun: list[str]
    killed: bool
    output: str


class DisturbedRun:
    """A run into one directory, by one process after another."""

    def __init__(self, folder: Path, options: Sequence[str], keyword: Sequence[str]) -> None:
        self.results = folder / "results"
        self._folder, self._options, self._keyword = folder, options, keyword
        folder.mkdir()
        (folder / "cell_starts.py").write_text(CELL_STARTS)

    def sit(self, workers: Sequence[str], kill_at: float | None, rng: random.Random) -> Sitting:
        """Starts or resumes the run, and kills it when so many lines are there, or lets it end."""
        finished, starts = self.finished(), self._folder / "starts"
        starts.write_text("")
        began = self._has_header()
        if not began:
            # What a user is told to do where a process was killed before it wrote anything.
            (self.results / RECORDS_FILE).unlink(missing_ok=True)
        # The records know the options, workers among those who are told of them.
        where = ("--resume", self.results) if began else (*self._options, "--results", self.results)
        words = [*PYTEST, *WITHOUT_PLUGINS, "-p", "cell_starts", *self._keyword, *workers, *where]
        output = self._folder / "output"
        with output.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, *map(str, words), "-q", "--baseline", str(NO_BASELINES)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": python_path(self._folder), "CELL_STARTS": str(starts)},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                killed = kill_at is not None and self._kill(process, kill_at, rng)
                code = process.wait()
            finally:
                end_all(process)
        assert killed or code == 0, f"exit code {code}:\n{output.read_text()}"
        return Sitting(finished, starts.read_text().split(), killed, output.read_text())

    def finished(self) -> frozenset[str]:
        """Ids of the cells that are in the file."""
        return (
            frozenset(record.cell_id for record in read_run(self.results).records)
            if self._has_header()
            else frozenset()
        )

    def _has_header(self) -> bool:
        path = self.results / RECORDS_FILE
        return path.exists() and b"\n" in path.read_bytes()

    def _kill(self, process: subprocess.Popen[bytes], lines: float, rng: random.Random) -> bool:
        """Kills the process when its file has so many lines, and a random moment later; False where it ended before."""
        path = self.results / RECORDS_FILE
        while process.poll() is None:
            if lines == 0 or (path.exists() and path.read_bytes().count(b"\n") >= lines):
                # Before anything is written a process takes seconds, and a cell takes some hundredths of one.
                time.sleep(rng.uniform(0, 5 if lines == 0 else 0.1))
                process.kill()
                return process.wait() == -signal.SIGKILL
            time.sleep(0.005)
        return False


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Waits for what a process left running, which must end by itself when its controller is dead."""
    deadline = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(f"processes outlived the one that was killed by {SECONDS_TO_END} s")


def rendered(run: Run, directory: Path) -> dict[str, str]:
    """All that is made of a run's records, but for the times and names that differ between any two runs."""
    header = replace(run.header, run_id="run", started="then", resumed=())
    timeless = replace(run, header=header, records=tuple(replace(record, seconds=0.0) for record in run.records))
    report = write_report(timeless, NO_BASELINE, directory)
    return {"summary": report.summary} | {path.name: path.read_text(encoding="utf-8") for path in report.paths}


def test_a_run_that_is_killed_at_random_moments_loses_and_repeats_nothing(tmp_path: Path) -> None:
    selection = (SELECTION, ()) if KILLS > 10 else ((*SELECTION, *FEW), KEYWORD)
    undisturbed = DisturbedRun(tmp_path / "undisturbed", *selection)
    whole_sitting = undisturbed.sit((), None, random.Random(0))
    whole = read_run(undisturbed.results)
    wanted, pages = undisturbed.finished(), rendered(whole, tmp_path / "undisturbed" / "pages")
    assert sorted(whole_sitting.begun) == sorted(wanted)
    kills = runs = lost = doubled = 0
    while kills < KILLS:
        rng = random.Random(runs)
        disturbed = DisturbedRun(tmp_path / f"run{runs}", *selection)
        of_this_run, sitting = 0, None
        while sitting is None or sitting.killed:
            # From before the header to the report that follows the last line.
            lines = rng.randint(len(disturbed.finished()), len(wanted) + 2)
            again = kills < KILLS and of_this_run < KILLS_OF_ONE_RUN
            before = disturbed.finished()
            sitting = disturbed.sit(rng.choice(((), ("-n", "2"))), lines if again else None, rng)
            kills += sitting.killed
            of_this_run += sitting.killed
            lost += len(before - disturbed.finished())
            doubled += len(sitting.finished_before & set(sitting.begun))
            if sitting.killed and not read_is_cut_off(disturbed):
                break  # It was killed when all was written, so that nothing is left to resume.
        run = read_run(disturbed.results)
        lost += len(wanted - {record.cell_id for record in run.records})
        doubled += len(run.records) - len({record.cell_id for record in run.records})
        assert not run.truncated, f"run {runs} finished, and looks cut off"
        assert rendered(run, tmp_path / f"run{runs}" / "pages") == pages, f"run {runs} came to other tables"
        assert (disturbed.results / RECORDS_FILE).read_bytes().count(b"\n") == len(wanted) + 2, (
            "a header or an end twice"
        )
        runs += 1
    print(f"kills: {kills} of {runs} runs of {len(wanted)} cells; cells lost: {lost}, doubled: {doubled}")
    assert (lost, doubled) == (0, 0), f"of {kills} kills: {lost} cells lost, {doubled} run again"


def read_is_cut_off(disturbed: DisturbedRun) -> bool:
    """Whether something is left to do; nothing is readable of a run that was killed before its first line."""
    try:
        return read_run(disturbed.results).truncated
    except UnusableInput:
        return True
