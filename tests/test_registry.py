"""Third parties add backends by a file or an entry point, and nonsense is told in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from samebits.harness.records import UnusableInput
from samebits.harness.registry import load_registry

HEAD = """
import torch
from samebits.backends.contract import *
from samebits.backends.problem import *
from samebits.backends.support import *

class Mine(Implementation):
    backend, name, support = "MY_ATTN", "mine", Support()
    def probe(self): return Availability()
    def plan(self, config, metadata): return None
    def run(self, plan, query, key_cache, value_cache, output, lse): output.zero_()
"""


def write(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    return path


def test_a_loaded_file_adds_its_backend(tmp_path: Path) -> None:
    path = write(tmp_path, "def implementations(): return [Mine()]")
    registry = load_registry([path])
    assert "MY_ATTN" in registry.backends
    (mine,) = registry.select(backends=["MY_ATTN"])
    assert mine.label == "MY_ATTN/mine"
    assert registry.availability(mine).available


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "defines no function implementations()"),
        ("raise RuntimeError('no such luck')", "importing it raised RuntimeError: no such luck"),
        ("raise SystemExit(3)", "importing it raised SystemExit: 3"),
        ("def (", "importing it raised SyntaxError"),
        ("def implementations(): return 7", "implementations() of"),
        ("def implementations(): return [7]", "returned 7, which is no instance of samebits' Implementation"),
        ("Mine.backend = 'my attn'\ndef implementations(): return [Mine()]", "Mine.backend is 'my attn'"),
        ("Mine.name = 'a/b'\ndef implementations(): return [Mine()]", "Mine.name is 'a/b'"),
        ("Mine.claims = 'all'\ndef implementations(): return [Mine()]", "must be an instance of Claims"),
        (
            "Mine.claims = Claims(batch_invariant='sometimes')\ndef implementations(): return [Mine()]",
            "claims batch_invariant='sometimes'; it must be True or False",
        ),
        (
            "Mine.support = Support(dtypes=('int4',))\ndef implementations(): return [Mine()]",
            "supports dtypes ('int4',)",
        ),
        ("Mine.tiling = Tiling(kv_split=0)\ndef implementations(): return [Mine()]", "kv_split=0"),
        ("def implementations(): return [Mine(), Mine()]", "'MY_ATTN/mine' is registered twice"),
    ],
)
def test_a_file_that_is_no_backend_is_told_in_one_sentence(tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        load_registry([write(tmp_path, body)])
    message = str(caught.value)
    assert told in message, f"the message is {message!r}"
    assert "\n" not in message


def test_a_missing_file_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"nowhere\.py.*no such file"):
        load_registry([tmp_path / "nowhere.py"])


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    registry = load_registry()
    with pytest.raises(UnusableInput, match=r"unknown backend 'TRITON'; known are FLASH_ATTN, TRITON_ATTN, "):
        registry.select(backends=["TRITON"])
    with pytest.raises(UnusableInput, match=r"unknown implementation 'FLASH_ATTN/fa9'; known are FLASH_ATTN/torch"):
        registry.select(names=["FLASH_ATTN/fa9"])


def test_the_five_backends_come_first_and_in_order() -> None:
    assert load_registry().backends[:5] == ("FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "AITER", "CPU")


def test_a_probe_that_raises_makes_the_implementation_unavailable(tmp_path: Path) -> None:
    body = "Mine.probe = lambda self: 1 / 0\ndef implementations(): return [Mine()]"
    registry = load_registry([write(tmp_path, body)])
    (mine,) = registry.select(backends=["MY_ATTN"])
    availability = registry.availability(mine)
    assert not availability.available
    assert availability.reason == "its probe raised ZeroDivisionError: division by zero"


def listed(site: Path) -> list[dict[str, object]]:
    """What `samebits list --json` says where a folder of installed packages comes first."""
    done = subprocess.run(
        [sys.executable, "-c", "from samebits.harness.cli import main; raise SystemExit(main(['list', '--json']))"],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entries: list[dict[str, object]] = json.loads(done.stdout)["implementations"]
    return entries


def install(site: Path, name: str, source: str) -> None:
    """A distribution whose one module is a backend, with its entry point."""
    (site / f"{name}.py").write_text(source)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[samebits.backends]\n{name.upper()} = {name}:implementations\n")


def test_an_installed_package_adds_its_backend_by_entry_point(tmp_path: Path) -> None:
    install(tmp_path, "third_party", HEAD + "def implementations(): return [Mine()]")
    mine = [entry for entry in listed(tmp_path) if entry["backend"] == "MY_ATTN"]
    assert [entry["label"] for entry in mine] == ["MY_ATTN/mine"]
    assert mine[0]["available"] is True


def test_a_broken_installed_package_is_unavailable_and_stops_nobody(tmp_path: Path) -> None:
    install(tmp_path, "broken_party", "raise OSError('libmine.so: undefined symbol')")
    entries = {str(entry["backend"]): entry for entry in listed(tmp_path)}
    assert entries["BROKEN_PARTY"]["available"] is False
    assert "OSError: libmine.so: undefined symbol" in str(entries["BROKEN_PARTY"]["reason"])
    assert entries["CPU"]["available"] is True, "a broken package took another backend with it"
