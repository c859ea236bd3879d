"""A run's records say whether all of its cells ran, however it ended, and selections that leave nothing are told."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.harness.record_files import read_run

from .suite_runs import IN_PROCESS, NO_BASELINES, ROOT, python_path, run_pytest

CELLS = ("--tier", "smoke", "--dtype", "fp32", "--implementation", "CPU/torch", *IN_PROCESS)
SUITE = ("-m", "batch_invariant", *CELLS, "--baseline", NO_BASELINES)
# What a user does in the middle of a run, and once more while pytest deals with it.
TWO_INTERRUPTS = """
def pytest_runtest_logreport(report):
    if report.when == "teardown" and "padding" in report.nodeid:
        raise KeyboardInterrupt

def pytest_keyboard_interrupt(excinfo):
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_a_run_that_is_interrupted_twice_is_cut_off(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "two_interrupts.py").write_text(TWO_INTERRUPTS)
    results = tmp_path / "results"
    one_case = ("-k", "llama3-8b-causal-mixed and not CONTROL", "--results", results)
    done = run_pytest(
        *SUITE, *one_case, *workers, "-p", "two_interrupts", environment={"PYTHONPATH": python_path(tmp_path)}
    )
    run = read_run(results)
    assert run.records, f"no cell finished before the interrupt:\n{done.stdout}\n{done.stderr}"
    assert run.truncated, "a run whose cells did not all run says that it finished"


def test_a_selection_that_leaves_nothing_is_told_in_one_sentence(
    tmp_path: Path, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    code = run_here(*SUITE, "-k", "nothing_such", "--results", tmp_path / "results")
    output, _ = capfd.readouterr()
    assert code == 2, f"exit code {code}:\n{output}"
    told = [line for line in output.splitlines() if line.startswith("samebits: ")]
    assert told == [
        "samebits: -m 'batch_invariant' -k 'nothing_such' suites leaves no test; pytest --collect-only -q lists "
        "what there is"
    ]
    assert "GREEN" not in output
    assert not list((tmp_path / "results").iterdir()), "a run of nothing left records"


def test_a_narrowed_run_does_not_start_when_it_should_become_a_baseline(
    tmp_path: Path, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "cpu.jsonl"
    code = run_here(*SUITE, "-k", "pages", "--update-baseline", baseline, "--results", tmp_path / "results")
    output, _ = capfd.readouterr()
    assert code == 2, f"exit code {code}:\n{output}"
    assert "--update-baseline needs whole suites, and this run is narrowed to some of their cells" in output
    assert not list((tmp_path / "results").iterdir()), "cells ran before the user was told"
    assert not baseline.exists()


def test_a_suite_by_its_file_misses_no_cell_of_another(
    tmp_path: Path, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    # The suite of the fewest cells, and the baselines that come with samebits, which hold cells of all the others.
    packaged = ROOT / "reports" / "baselines"
    code = run_here("suites/test_compile.py", *CELLS, "--results", tmp_path, "--baseline", packaged)
    assert code == 0, capfd.readouterr()
    run = read_run(tmp_path)
    assert {record.suite for record in run.records} == {"compile"}
    assert run.header.narrowed, "cells of the suite that was not collected count as missing"


def test_a_disk_that_fills_up_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    done = run_pytest(*SUITE, "--results", tmp_path, prepare=no_large_files)
    output = done.stdout + done.stderr
    assert done.returncode == 2, f"exit code {done.returncode}:\n{output}"
    assert f"cannot write '{tmp_path / 'records.jsonl'}' (File too large); give a place that can be written" in output
    assert "Traceback" not in output, f"a traceback was printed:\n{output}"
    assert read_run(tmp_path).truncated


def test_paths_of_options_do_not_decide_what_pytest_takes_for_its_root(tmp_path: Path) -> None:
    """pytest takes the word after an option that it does not know yet for a path of tests, where it exists."""
    results, cell = tmp_path / "results", "CPU/torch:pages:llama3-8b-causal-mixed:fp32"
    results.mkdir()
    done = run_pytest("-m", "batch_invariant", *CELLS, "--cell", cell, "--results", results, "--baseline", tmp_path)
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert f"rootdir: {ROOT}\n" in done.stdout
    assert "testpaths: suites\n" in done.stdout
    assert [record.cell_id for record in read_run(results).records] == [cell]


FOREIGN_CONFTEST = """
import sys

def pytest_unconfigure():
    print("torch was imported" if "torch" in sys.modules else "torch was not imported")

def pytest_addoption(parser):
    parser.addoption("--backend", default="mine", choices=["mine", "yours"])
    parser.addoption("--seed", action="store_true")
"""
FOREIGN_TEST = """
import pytest

@pytest.fixture
def cell(): return 7

@pytest.mark.dtype
def test_options(request, cell):
    assert (request.config.getoption("--backend"), request.config.getoption("--seed"), cell) == ("yours", True, 7)
"""


def test_another_project_keeps_its_options_marks_and_fixtures_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(FOREIGN_CONFTEST)
    (tmp_path / "test_foreign.py").write_text(FOREIGN_TEST)

    def pytest_there(*arguments: str) -> tuple[int, str]:
        done = run_pytest(*arguments, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    code, output = pytest_there("--backend", "yours", "--seed")
    assert code == 0, f"exit code {code}:\n{output}"
    code, output = pytest_there("--backend", "mine")
    assert code == 1, f"exit code {code}:\n{output}"
    assert "torch was not imported" in output, "a failure in another project made this one load all of its backends"
    code, output = pytest_there("--backend", "yours", "--seed", "--samebits-backend", "NOBODY")
    assert code == 2, f"exit code {code}:\n{output}"
    assert "unknown backend 'NOBODY'" in output
    code, output = pytest_there("--help")
    for name, known in (("--backend=NAME", False), ("--samebits-backend=NAME", True), ("--tier=TIER", True)):
        assert (name in output) is known, f"{name} among the options:\n{output}"
