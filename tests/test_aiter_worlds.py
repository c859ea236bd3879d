"""Worlds without AITER, or with half of it: each gets one sentence, and probing ends no process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from samebits.backends import aiter_adapter
from samebits.backends.aiter_adapter import DISTRIBUTION, PACKAGE, TESTED_VERSION
from samebits.backends.platform import Platform

MODULES = ("unified_attention", "mha_v3")


def add_metadata(folder: Path, version: str = TESTED_VERSION) -> None:
    metadata = folder / f"amd_aiter-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n")


def add_kernels(folder: Path, *sources: str) -> None:
    """A package of AITER's layout, each of whose kernel modules holds one of the sources."""
    for module, source in zip(MODULES, sources, strict=True):
        path = folder / PACKAGE / "ops" / "triton" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def only_metadata(folder: Path) -> None:
    add_metadata(folder)


def part_of_the_modules(folder: Path) -> None:
    add_metadata(folder)
    (folder / PACKAGE / "ops").mkdir(parents=True)


def another_library(folder: Path) -> None:
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").write_text("async def anext(iterator): ...\n")


def a_module_of_the_name(folder: Path) -> None:
    add_metadata(folder)
    (folder / "aiter.py").write_text("raise SystemExit('must not be run')\n")


def modules_that_raise(*errors: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        add_metadata(folder)
        add_kernels(folder, *(f"raise {error}('libamdhip64.so:\\n not found')\n" for error in errors))

    return make


def an_untested_version(folder: Path) -> None:
    add_metadata(folder, "0.2.0")
    add_kernels(folder, *["raise AssertionError('must not be run')\n"] * 2)


# What makes a folder that comes first on the path, with nothing of AITER's behind it.
WORLDS: Mapping[str, Callable[[Path], None]] = {
    "absent": lambda folder: None,
    "only metadata": only_metadata,
    "part of the modules": part_of_the_modules,
    "another library": another_library,
    "a module of the name": a_module_of_the_name,
    "ImportError OSError": modules_that_raise("ImportError", "OSError"),
    "RuntimeError SystemExit": modules_that_raise("RuntimeError", "SystemExit"),
    "an untested version": an_untested_version,
}
# Asks both kernels of attention in each of some worlds. A child of its own for each, as nothing is imported twice.
ASK = """
import json, os, site, sys
site.addsitedir(sys.argv[1])
from samebits.backends.aiter import FlashAttentionWithKVCache, UnifiedAttention
for world in sys.argv[2:]:
    if os.fork() == 0:
        sys.path.insert(0, world)
        print(json.dumps([kernel().probe().reason for kernel in (UnifiedAttention, FlashAttentionWithKVCache)]))
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, f"probing ended the process in {world}"
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("world") for name in WORLDS}
    for name, make in WORLDS.items():
        make(folders[name])
    return folders


@pytest.fixture(scope="module")
def reasons(worlds: dict[str, Path], site_without: Callable[..., Path]) -> dict[str, list[str]]:
    """Why neither the unified kernel nor that of FlashAttention's name can run, by world."""
    bare = site_without(PACKAGE, "amd_aiter")
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK, str(bare), *map(str, worlds.values())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(worlds, map(json.loads, done.stdout.splitlines()), strict=True))


def test_absent(reasons: dict[str, list[str]]) -> None:
    assert reasons["absent"] == ["amd-aiter is not installed; pip install 'samebits[aiter]'"] * 2


def test_metadata_is_left_and_the_modules_are_gone(reasons: dict[str, list[str]]) -> None:
    for reason in reasons["only metadata"]:
        assert f"amd-aiter {TESTED_VERSION} is listed as installed, but its module aiter is missing" in reason


def test_part_of_the_modules_is_gone(reasons: dict[str, list[str]]) -> None:
    for module, reason in zip(MODULES, reasons["part of the modules"], strict=True):
        assert f"its module aiter.ops.triton.{module} is missing" in reason


def test_the_unrelated_library_of_the_name(reasons: dict[str, list[str]]) -> None:
    for reason in reasons["another library"]:
        assert reason.startswith("amd-aiter is not installed: the module aiter at ")
        assert "is another library's (pip install aiter is one); pip install 'samebits[aiter]'" in reason


def test_a_module_of_the_name_shadows_the_package(worlds: dict[str, Path], reasons: dict[str, list[str]]) -> None:
    file = worlds["a module of the name"] / "aiter.py"
    for reason in reasons["a module of the name"]:
        assert f"the module aiter that Python finds first, at {file}, is not that of amd-aiter" in reason


@pytest.mark.parametrize("raised", ["ImportError OSError", "RuntimeError SystemExit"])
def test_modules_that_raise(reasons: dict[str, list[str]], raised: str) -> None:
    assert reasons[raised] == [
        f"importing aiter.ops.triton.{module} raised {error}: libamdhip64.so: not found"
        for module, error in zip(MODULES, raised.split(), strict=True)
    ]


def test_an_untested_version(reasons: dict[str, list[str]]) -> None:
    for reason in reasons["an untested version"]:
        assert reason.startswith("amd-aiter 0.2.0 was never tested with the adapter")
        assert TESTED_VERSION in reason


class TestOnROCm:
    """What an AMD device would do, with stand-ins for the package."""

    @pytest.fixture(autouse=True)
    def rocm(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        monkeypatch.setattr(aiter_adapter, "accelerator", lambda: Platform("rocm", "cuda", "gfx942"))
        monkeypatch.syspath_prepend(tmp_path)
        yield
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]

    def reached(self, *parameters: str) -> aiter_adapter.Reached:
        entry_point = aiter_adapter.EntryPoint("aiter.ops.triton.unified_attention", "unified_attention", parameters)
        return aiter_adapter._reach.__wrapped__(entry_point, None)

    def test_the_package_is_imported_as_its_users_do(self, tmp_path: Path) -> None:
        add_kernels(tmp_path, "import aiter\ndef unified_attention(q): return aiter.initialised\n", "")
        (tmp_path / PACKAGE / "__init__.py").write_text("initialised = True\n")
        reached = self.reached("q")
        assert reached.reason == ""
        assert reached.function(q=None) is True, "the package's __init__ should have run"
        assert dict(aiter_adapter.substitutions()) == {"adapter": "none"}

    def test_a_package_that_cannot_initialise(self, tmp_path: Path) -> None:
        add_kernels(tmp_path, "def unified_attention(q): ...\n", "")
        (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('ROCm version file not found')\n")
        assert self.reached("q").reason == (
            "importing aiter.ops.triton.unified_attention raised RuntimeError: ROCm version file not found"
        )

    def test_a_function_that_takes_other_arguments(self, tmp_path: Path) -> None:
        add_kernels(tmp_path, "def unified_attention(q): ...\n", "")
        (tmp_path / PACKAGE / "__init__.py").touch()
        assert "takes no block_table; tested is" in self.reached("q", "block_table").reason
