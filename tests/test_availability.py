"""A backend that is not there, half there, or not what its name says leaves rows with the right sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.harness.records import Verdict

from .suite_runs import SuiteRun, python_path, run_suite

FEW_CELLS = "llama3-8b-causal-mixed and (pages or table_width) and not CONTROL"
# Runs pytest in a world whose installed packages are those of a folder.
IN_SITE = "import site, sys; site.addsitedir(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"


def run_in(site: Path, results: Path, *arguments: str, first: Path | None = None) -> SuiteRun:
    """Runs one case of the suite in a world.

    Args:
        site: what is installed.
        results: where the results go.
        arguments: further ones of pytest.
        first: a folder that comes first on the path.
    """
    few = ("--tier", "smoke", "--dtype", "fp32", "-k", FEW_CELLS)
    python = ("-S", "-c", IN_SITE, site)
    path = {"PYTHONPATH": python_path(*([first] if first else []))}
    run = run_suite("batch_invariant", results, *few, *arguments, python=python, environment=path)
    assert "Traceback" not in run.output, f"a traceback was printed:\n{run.output}"
    return run


def assert_unavailable(run: SuiteRun, name: str, sentence: str) -> None:
    """Asserts that a backend or an implementation left rows, and that each says why it cannot run."""
    own = [record for record in run.records if name in (record.backend, record.label)]
    assert own, f"{name} left no row"
    for record in own:
        assert record.verdict is Verdict.UNAVAILABLE, f"{record.cell_id} came to {record.verdict}: {record.reasons}"
        assert sentence in record.reasons[0], f"the reason is {record.reasons[0]!r}"


def assert_asked_for_and_others_pass(run: SuiteRun, other: str = "CPU/bundled") -> None:
    """Asserts that what stops one backend stops no other, and that the run is red for it."""
    assert {record.verdict for record in run.of(other)} == {Verdict.PASS}, "a missing backend stopped others"
    assert run.exit_code == 1, "a backend that was asked for and cannot run left the run green"


def test_a_package_that_is_deleted_and_a_compiler_that_is_not_there(
    tmp_path: Path, site_without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    run = run_in(site_without("aiter", "amd_aiter"), tmp_path / "results", "--backend", "AITER", "--backend", "CPU")
    assert_unavailable(run, "AITER", "amd-aiter is not installed; pip install 'samebits[aiter]'")
    assert_unavailable(run, "CPU/bundled", "no-such-compiler")
    assert_asked_for_and_others_pass(run, "CPU/torch")
    assert "AITER was asked for and cannot run" in " ".join(run.output.split())


# What AITER says of further worlds is asked of its probe in test_aiter.py, where nothing but the probe need run. A
# module of its name is not imported when it is another's, so that it does not matter what it would raise.
@pytest.mark.parametrize(
    ("modules", "raised"),
    [
        (["triton"], "ImportError('undefined symbol: _ZN3c10')"),
        (["triton"], "OSError('no libamdhip64.so')"),
        (["triton", "aiter"], "SystemExit(1)"),
    ],
)
def test_a_broken_module_of_the_name_comes_first(
    tmp_path: Path, site_without: Callable[..., Path], modules: list[str], raised: str
) -> None:
    first = tmp_path / "first"
    for module in modules:
        (first / module).mkdir(parents=True)
        (first / module / "__init__.py").write_text(f"raise {raised}\n")
    backends = ("--backend", "TRITON_ATTN", *(("--backend", "AITER") if "aiter" in modules else ()))
    run = run_in(site_without("nothing"), tmp_path / "results", *backends, "--backend", "CPU", first=first)
    assert_unavailable(run, "TRITON_ATTN/bundled", raised.split("(")[0])
    if "aiter" in modules:
        assert_unavailable(run, "AITER", str(first))
    assert_asked_for_and_others_pass(run)


def test_no_triton_at_all(tmp_path: Path, site_without: Callable[..., Path]) -> None:
    run = run_in(site_without("triton"), tmp_path, "--backend", "TRITON_ATTN", "--backend", "AITER")
    assert_unavailable(run, "TRITON_ATTN/bundled", "No module named 'triton'")
    assert_unavailable(run, "AITER", "triton")
