"""Third parties add backends by a file or an entry point, and nonsense is told in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from samebits.backends import BUNDLED_ORDER
from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem
from samebits.harness.matrix import Selection
from samebits.harness.records import UnusableInput, Verdict
from samebits.harness.registry import load_registry
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES

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


def test_a_loaded_file_may_have_dataclasses_with_annotations_as_strings(tmp_path: Path) -> None:
    path = write(
        tmp_path, "@dataclass\nclass Plan:\n    pages: ClassVar[int] = 3\ndef implementations(): return [Mine()]"
    )
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
    path.write_text(head + path.read_text())
    assert load_registry([path]).select(backends=["MY_ATTN"])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "defines no function implementations()"),
        ("raise RuntimeError('no such luck')", "importing it raised RuntimeError: no such luck"),
        ("raise SystemExit(3)", "importing it raised SystemExit: 3"),
        ("def (", "importing it raised SyntaxError"),
        ("def implementations(): return 7", "implementations() of"),
        ("def implementations(): return []", "returned none; it must return at least one Implementation"),
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
        ("Mine.tiling = Tiling(kv_tile=True)\ndef implementations(): return [Mine()]", "kv_tile=True"),
        ("def implementations(): raise SystemExit(3)", "raised SystemExit: 3"),
        ("def implementations(): return [Mine(), Mine()]", "'MY_ATTN/mine' is registered twice"),
    ],
)
def test_a_file_that_is_no_backend_is_told_in_one_sentence(tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        load_registry([write(tmp_path, body)])
    message = str(caught.value)
    assert told in message, f"the message is {message!r}"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ("claims = Claims(source=7)", "Mine.claims has source=7; it must be a string"),
        ("claims = Claims(batch_invariant=1)", "Mine claims batch_invariant=1; it must be True or False"),
        ("support = Support(dtypes='fp32')", "Mine supports dtypes 'fp32'; they must be among fp32, bf16, fp16"),
        ("support = Support(dtypes=7)", "Mine supports dtypes 7; they must be among"),
        (
            "support = Support(masks=('causal',))",
            "Mine supports masks ('causal',); they must be a tuple of members of Mask",
        ),
        ("support = Support(masks=Mask.CAUSAL)", "they must be a tuple of members of Mask"),
        ("support = Support(masks=())", "Mine supports masks (); they must be a tuple of members of Mask"),
        (
            "support = Support(head_dims=64)",
            "Mine supports head_dims 64; they must be whole numbers in a collection, or a function of one",
        ),
        ("support = Support(head_dims=('64',))", "Mine supports head_dims ('64',); they must be whole numbers"),
        ("support = Support(page_sizes='16')", "Mine supports page_sizes '16'; they must be whole numbers"),
        ("support = Support(lse='natural')", "Mine.support has lse='natural'; it must be True or False"),
        ("costly = 'very'", "Mine.costly is 'very'; it must be True or False"),
        ("known_gaps = KnownGap('issue 7')", "it must be a tuple of KnownGap"),
        ("known_gaps = ('issue 7',)", "Mine.known_gaps is ('issue 7',); it must be a tuple of KnownGap"),
        ("known_gaps = (KnownGap(7),)", "Mine.known_gaps has issue=7; it must name the issue that tracks the gap"),
        ("known_gaps = (KnownGap('issue 7', relation=7),)", "Mine.known_gaps has relation=7"),
        ("known_gaps = (KnownGap('issue 7', mask='causal'),)", "Mine.known_gaps has mask='causal'; it must be a Mask"),
        (
            "known_gaps = (KnownGap('issue 7', dtype='int8'),)",
            "has dtype='int8'; it must be among fp32, bf16",
        ),
        (
            "reasons = lambda self, problem: 'too hard'",
            "Mine.reasons returned 'too hard'; it must be a list",
        ),
        ("reasons = lambda self, problem: None", "Mine.reasons returned None; it must be a list of sentences"),
        ("reasons = lambda self, problem: [7]", "Mine.reasons returned [7]; it must be a list of sentences"),
    ],
)
def test_a_declaration_that_is_nonsense_is_told_in_one_sentence(tmp_path: Path, declared: str, told: str) -> None:
    path = write(tmp_path, f"Mine.{declared}\ndef implementations(): return [Mine()]")
    with pytest.raises(UnusableInput) as caught:
        load_registry([path])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operation", ["Rotary", "CacheWrite", "Merge", "Linear", "RmsNorm"])
def test_reasons_of_an_operation_that_are_no_list_are_told_when_it_is_loaded(tmp_path: Path, operation: str) -> None:
    body = f"""
from samebits.backends.operations import *

class Theirs({operation}Implementation):
    backend, name = "MY_OPS", "theirs"
    def probe(self): return Availability()
    def compute(self, operation, tensors): pass
    def reasons(self, problem): return "too large" if problem.layout.strides and problem.operation else "not one"

def implementations(): return [Theirs()]
"""
    with pytest.raises(UnusableInput, match=r"Theirs\.reasons returned 'too large'; it must be a list of sentences"):
        load_registry([write(tmp_path, body)])


ONLY_64 = {f"head_dim {head_dim} is not supported, only 64" for head_dim in (128, 256)}


@pytest.mark.parametrize(
    ("declared", "refused"),
    [
        ("support = Support(head_dims={64, 128}, page_sizes=[16])", {"head_dim 256 is not supported, only 64, 128"}),
        ("support = Support(head_dims=(64,), page_sizes=range(1, 257))", ONLY_64),
        ("support = Support(head_dims=frozenset({64}), page_sizes=lambda size: size % 16 == 0)", ONLY_64),
        ("tiling = Tiling(1, 1, 1)", set()),
        ("known_gaps = (KnownGap('issue 7', relation='pages', mask=Mask.CAUSAL, dtype='bf16'),)", set()),
    ],
)
def test_the_cells_of_a_sound_declaration_can_be_made_and_asked_for_reasons(
    tmp_path: Path, declared: str, refused: set[str]
) -> None:
    registry = load_registry([write(tmp_path, f"Mine.{declared}\ndef implementations(): return [Mine()]")])
    (mine,) = registry.select(backends=["MY_ATTN"])
    assert isinstance(mine, Implementation)
    cells = [cell for cell in SUITES["batch_invariant"](Selection((mine,), (), "smoke")) if cell.implementation is mine]
    assert len(cells) > 50, f"only {len(cells)} cells"
    problems = {problem for cell in cells for comparison in cell.comparisons for problem in comparison.left}
    told = {reason for problem in problems if isinstance(problem, Problem) for reason in mine.reasons(problem)}
    assert {reason for reason in told if reason.startswith(("head_dim", "page_size"))} == refused


def test_a_missing_file_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"nowhere\.py.*no such file"):
        load_registry([tmp_path / "nowhere.py"])


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    registry = load_registry()
    with pytest.raises(UnusableInput, match=r"unknown backend 'TRITON'; known are FLASH_ATTN, TRITON_ATTN, "):
        registry.select(backends=["TRITON"])
    with pytest.raises(UnusableInput, match=r"unknown implementation 'FLASH_ATTN/fa9'; known are FLASH_ATTN/"):
        registry.select(names=["FLASH_ATTN/fa9"])


def test_the_bundled_backends_come_first_and_in_the_order_in_which_they_are_declared() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    declared = tuple(project["project"]["entry-points"]["samebits.backends"])
    assert declared == BUNDLED_ORDER, "pyproject.toml declares other backends, or in another order"
    assert load_registry().backends[: len(declared)] == declared


def test_the_harness_names_no_backend() -> None:
    harness = Path(__file__).parent.parent / "harness"
    naming = {
        (path.name, backend)
        for path in harness.rglob("*.py")
        for backend in BUNDLED_ORDER
        if f'"{backend}"' in path.read_text()
    }
    assert not naming, f"the harness knows backends by name: {naming}"


def test_a_probe_that_raises_makes_every_cell_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "Mine.probe = lambda self: 1 / 0\ndef implementations(): return [Mine()]")
    session = MatrixSession(Options(load=(path,), backends=("MY_ATTN",), tier="smoke"))
    cell = next(cell for cell in session.cells("semantics") if cell.flaw is None)
    record = session.run(cell)
    assert record.verdict is Verdict.ERROR, "what nobody could find out counts as found absent"
    assert record.reasons == ("its probe raised ZeroDivisionError: division by zero",)
    assert not session.availability(cell.implementation).available


@pytest.mark.parametrize(
    ("available", "reason"),
    [
        ("Availability(version=7)", "its probe gives the version 7, which must be a string"),
        ("Availability(reason=None)", "its probe gives the reason None, which must be a string"),
        ("Availability(device='abacus')", "its probe names the device 'abacus': RuntimeError: Expected one of"),
        ("None", "its probe returned None and not an Availability"),
    ],
)
def test_a_probe_that_answers_nonsense_has_failed(tmp_path: Path, available: str, reason: str) -> None:
    body = f"Mine.probe = lambda self: {available}\ndef implementations(): return [Mine()]"
    registry = load_registry([write(tmp_path, body)])
    (mine,) = registry.select(backends=["MY_ATTN"])
    availability = registry.availability(mine)
    assert availability.probe_failed
    assert availability.reason.startswith(reason)


def install(site: Path, name: str, source: str) -> None:
    """A distribution whose one module is a backend, with its entry point."""
    (site / f"{name}.py").write_text(source)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[samebits.backends]\n{name.upper()} = {name}:implementations\n")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What `samebits list --json` says beside an installed package that is right and one that is broken."""
    site = tmp_path_factory.mktemp("site")
    install(site, "third_party", HEAD + "def implementations(): return [Mine()]")
    install(site, "broken_party", "raise OSError('libmine.so: undefined symbol')")
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


def test_an_installed_package_adds_its_backend_by_entry_point(listed: list[dict[str, object]]) -> None:
    mine = [entry for entry in listed if entry["backend"] == "MY_ATTN"]
    assert [entry["label"] for entry in mine] == ["MY_ATTN/mine"]
    assert mine[0]["available"] is True


def test_a_broken_installed_package_is_unavailable_and_stops_nobody(listed: list[dict[str, object]]) -> None:
    (broken,) = [entry for entry in listed if entry["backend"] == "BROKEN_PARTY"]
    assert broken["available"] is False
    assert "OSError: libmine.so: undefined symbol" in str(broken["reason"])
    available = {entry["backend"] for entry in listed if entry["available"]}
    assert "CPU" in available, "a broken package took another backend with it"
