"""Compiling the C++ kernels: what becomes a reason, and what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samebits.backends.cpu import BundledAttention


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel cache in which nothing has been compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samebits"


def test_missing_compiler_is_a_reason(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert BundledAttention().probe().reason == (
        "there is no C++ compiler 'no-such-compiler' on PATH; install g++, or set CXX to a compiler"
    )


def test_failed_compilation_is_a_reason_with_the_compilers_first_error(empty_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "attention.cpp").write_text("#error first fault\n#error second fault\n")
    (tmp_path / "a.cpp").write_text('extern "C" int sound() { return 0; }\n')
    reason = BundledAttention(source_directory=tmp_path).probe().reason
    assert "first fault" in reason, reason
    assert "second fault" not in reason, reason
    assert "\n" not in reason, reason
    assert not list(empty_cache.iterdir()), "a failed compilation left files in the cache"


def test_cache_that_cannot_be_written_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reason = BundledAttention().probe().reason
    assert reason.startswith(f"the kernel cache {tmp_path / 'file' / 'samebits'} cannot be written"), reason


def test_library_that_does_not_load_is_a_reason(empty_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "attention.cpp").write_text('extern "C" int undefined_function();\nint value = undefined_function();\n')
    reason = BundledAttention(source_directory=tmp_path).probe().reason
    assert reason.startswith("the compiled kernel cannot be loaded: "), reason
    assert "undefined_function" in reason, reason


def test_importing_the_backend_compiles_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    code = "from samebits.backends.cpu import implementations; implementations(); print('made')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "made", finished.stderr
    assert not empty_cache.exists(), "importing the backend touched the kernel cache"


def test_processes_may_build_at_once_and_later_ones_reuse_the_library(empty_cache: Path, tmp_path: Path) -> None:
    calls, sources = tmp_path / "calls", tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cpp").write_text("#include <vector>\n")
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) echo "$$" >> {calls};; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    code = (
        f"from pathlib import Path; from samebits.kernels.cpu import build; build.load_library(Path({str(sources)!r}))"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "CXX": str(compiler)}
    racing = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in racing:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    built = calls.read_text().split()
    subprocess.run(command, env=environment, check=True)
    assert calls.read_text().split() == built, "a process compiled what another had compiled before"
    left = [path.name for path in empty_cache.iterdir()]
    assert len(left) == 1, f"the cache holds {left}, not one library"
