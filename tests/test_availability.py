"""A backend that is not there, half there, or not what its name says leaves rows with the right sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.harness.record_files import read_run
from samebits.harness.records import Record, Verdict

ROOT = Path(__file__).parent.parent
FEW_CELLS = "llama3-8b-causal-mixed and (pages or table_width) and not CONTROL"
SUITE = ("-m", "batch_invariant", "--tier", "smoke", "--dtype", "fp32", "-k", FEW_CELLS)
# Runs pytest in a world whose installed packages are those of a folder.
IN_SITE = "import site, sys; site.addsitedir(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"


def rows(tmp_path: Path, site: Path, *arguments: str, first: Path | None = None) -> tuple[int, list[Record], str]:
    """Runs one case of the suite in a world: exit code, rows of no control, output.

    Args:
        tmp_path: where the results go.
        site: what is installed.
        arguments: further ones of pytest.
        first: a folder that comes first on the path.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", IN_SITE, str(site), *SUITE, "--results", str(tmp_path / "results"), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(first or "")},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, f"a traceback was printed:\n{output}"
    records = [record for record in read_run(tmp_path / "results").records if not record.control]
    return done.returncode, records, output


def assert_unavailable(records: list[Record], name: str, sentence: str) -> None:
    """Asserts that a backend or an implementation left rows, and that each says why it cannot run."""
    own = [record for record in records if name in (record.backend, record.label)]
    assert own, f"{name} left no row"
    for record in own:
        assert record.verdict is Verdict.UNAVAILABLE, f"{record.cell_id} came to {record.verdict}: {record.reasons}"
        assert sentence in record.reasons[0], f"the reason is {record.reasons[0]!r}"


def test_a_package_that_is_deleted(tmp_path: Path, site_without: Callable[..., Path]) -> None:
    site = site_without("aiter", "amd_aiter")
    exit_code, records, output = rows(tmp_path, site, "--backend", "AITER", "--backend", "CPU")
    assert_unavailable(records, "AITER", "amd-aiter is not installed; pip install 'samebits[aiter]'")
    assert {r.verdict for r in records if r.label == "CPU/bundled"} == {Verdict.PASS}, (
        "a missing backend stopped others"
    )
    assert exit_code == 1, "a backend that was asked for and cannot run left the run green"
    assert "AITER was asked for and cannot run" in " ".join(output.split())


def test_a_package_whose_metadata_is_left(tmp_path: Path, site_without: Callable[..., Path]) -> None:
    _, records, _ = rows(tmp_path, site_without("aiter"), "--backend", "AITER")
    assert_unavailable(records, "AITER", "is listed as installed, but its module aiter is missing")


@pytest.mark.parametrize(
    "raised", ["ImportError('undefined symbol: _ZN3c10')", "OSError('no libamdhip64.so')", "SystemExit(1)"]
)
@pytest.mark.parametrize(("module", "backend"), [("triton", "TRITON_ATTN"), ("aiter", "AITER")])
def test_a_broken_module_of_the_name_comes_first(
    tmp_path: Path, site_without: Callable[..., Path], module: str, backend: str, raised: str
) -> None:
    first = tmp_path / "first"
    (first / module).mkdir(parents=True)
    (first / module / "__init__.py").write_text(f"raise {raised}\n")
    exit_code, records, _ = rows(
        tmp_path, site_without("nothing"), "--backend", backend, "--backend", "CPU", first=first
    )
    name = {"triton": "TRITON_ATTN/bundled", "aiter": "AITER"}[module]
    sentence = {"triton": raised.split("(")[0], "aiter": str(first)}[module]
    assert_unavailable(records, name, sentence)
    assert {record.verdict for record in records if record.label == "CPU/bundled"} == {Verdict.PASS}
    assert exit_code == 1


def test_no_triton_at_all(tmp_path: Path, site_without: Callable[..., Path]) -> None:
    _, records, _ = rows(tmp_path, site_without("triton"), "--backend", "TRITON_ATTN", "--backend", "AITER")
    assert_unavailable(records, "TRITON_ATTN/bundled", "No module named 'triton'")
    assert_unavailable(records, "AITER", "triton")


def test_no_compiler(tmp_path: Path, site_without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    _, records, _ = rows(tmp_path, site_without("nothing"), "--implementation", "CPU/bundled")
    assert_unavailable(records, "CPU", "no-such-compiler")
