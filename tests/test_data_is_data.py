"""Records, baselines, matrices and bundles are data: nothing that is read is executed, or decides what is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from samebits.harness.cli import main

from .suite_runs import ROOT, run_pytest

FOLDERS = ("backends", "ci", "harness", "kernels", "reports", "suites")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# What makes code, or objects of any class, from bytes.
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
CALLS = {"eval", "exec", "compile", "torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}
# What this process and one that it started tell each other, through a pipe that nobody else has.
BETWEEN_OWN_PROCESSES = {
    *("harness/second_process.py", "harness/second_process_tasks.py"),
    *("harness/isolation/served.py", "harness/isolation/template_main.py"),
    *("harness/bench/isolated.py", "harness/bench/server.py"),
}
# Mutants are samebits' own sources, changed.
OWN_SOURCES = {"harness/mutation/planting.py"}
# A wall clock may be set at any time, so it says when a run was and decides nothing.
CLOCKS = {"time.time", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
TELL_THE_TIME = {"harness/session.py", "harness/resuming.py", "harness/ci_jobs.py", "harness/bench/session.py"}


def dotted(node: ast.expr) -> str:
    """A name as it is written; empty for what is none."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(path: Path) -> Iterator[str]:
    """Every module that a file imports, and every name that it calls."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call):
            yield dotted(node.func)


def files_that_use(names: set[str]) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in SOURCES if names & set(uses(path))}


def test_nothing_is_unpickled_or_evaluated_but_what_own_processes_tell_each_other() -> None:
    assert files_that_use(MODULES | CALLS) == BETWEEN_OWN_PROCESSES | OWN_SOURCES


def test_no_clock_that_can_be_set_decides_anything() -> None:
    assert files_that_use(CLOCKS) == TELL_THE_TIME


def test_what_runs_code_says_so_where_it_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "matrix", "explain", "repro"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert "--load FILE a Python file that defines a backend: its code is run" in told, told
        assert "--libs DIR a bundle of vendors' libraries for what is not installed: its code is run" in told, told
    told = " ".join(run_pytest("--help").stdout.split())
    assert "a Python file that defines a backend: its code is run" in told, told
    assert "a bundle of vendors' libraries for what is not installed: its code is run" in told, told
    for page in ("README.md", "docs/backends.md", "docs/vendors.md", "docs/faults.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert "run your code" in text or "run the code" in text or "runs the code" in text or "run code" in text, page
