"""The museum of bugs: it holds all of them, the suites see its smoke part, and what is wrong with it is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from samebits.harness.cli import main
from samebits.harness.matrix import Cell
from samebits.harness.museum import catalogue
from samebits.harness.museum.catalogue import Exhibit, chosen, read_catalogue
from samebits.harness.museum.sources import SourceChanged, planted_library, planted_module
from samebits.harness.records import UnusableInput
from samebits.harness.registry import load_registry
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

from .suite_runs import ROOT

# Of the bugs that were gathered from public projects, those that the museum is about.
NUMBERS = re.findall(
    r"B\d+",
    """
    B01 B03 B05 B06 B09 B10 B12 B17 B18 B21 B22 B23 B25 B26 B28 B30 B31 B33 B34 B36 B37 B39 B42 B44 B47 B48 B50 B51
    B53 B58 B60 B61 B62 B63 B64 B66 B68 B70 B72 B76 B78 B80 B81 B82 B83 B84 B86 B92 B94 B96 B100 B102 B104 B105 B106
    B109 B110 B112 B116 B121 B122
    """,
)
ENTRIES = read_catalogue()
EXHIBITS = [entry for entry in ENTRIES if isinstance(entry, Exhibit)]
# The fewest that tell of the whole.
SMOKE = 20
# In a process of its own, as what a bug reads may be nobody's memory. The smallest batches are told nowhere.
SMOKE_PART = """
import sys
from samebits.harness import judgement
from samebits.harness.cli import main
judgement.smallest_failure = lambda *_, **_expected: None
sys.exit(main(["museum", "--smoke"]))
"""


def test_every_bug_is_in_the_catalogue_once() -> None:
    found = Counter(entry.number for entry in ENTRIES)
    assert found == Counter(NUMBERS), f"missing or too many: {(Counter(NUMBERS) - found) + (found - Counter(NUMBERS))}"


def test_every_exhibit_is_registered_by_its_file_under_its_number() -> None:
    registered = {
        subject.label for subject in load_registry(sorted({exhibit.path for exhibit in EXHIBITS})).implementations
    }
    unknown = {label for exhibit in EXHIBITS for label in (exhibit.label, exhibit.parent)} - registered
    assert not unknown, f"no file registers {unknown}"
    misnamed = [e.label for e in EXHIBITS if not re.search(rf"/{e.number.lower()}-[a-z0-9-]+$", e.label)]
    assert not misnamed, f"not named by their numbers: {misnamed}"
    mutants = {label for label in registered if re.search(r"/b\d+-", label)}
    assert mutants == {exhibit.label for exhibit in EXHIBITS}, "a mutant is registered, and not in the catalogue"


def test_the_suites_see_the_smoke_part_and_nothing_in_its_parents() -> None:
    assert len(chosen(ENTRIES, [], smoke=True)) >= SMOKE
    run = subprocess.run([sys.executable, "-c", SMOKE_PART], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"the museum ended with {run.returncode}:\n{run.stdout}{run.stderr}"
    assert "**missed**" not in run.stdout


def test_a_bug_that_nobody_sees_ends_the_run_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What sees it does not get to see anything.
    monkeypatch.setattr("samebits.harness.museum.visit.is_searched", lambda cell, search: is_plain(cell))
    assert main(["museum", "--only", "B26"]) == 1
    told = capsys.readouterr().out
    assert "**missed**" in told
    assert "0 of 1 planted bugs are caught; missed: B26" in told


def is_plain(cell: Cell) -> bool:
    """Whether a cell is one that knows no windows."""
    return cell.case.case_id == "llama3-8b-causal-draft" and cell.dtype == "fp32"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "B02"], "unknown bug 'B02'; known are B01, B03"),
        (["--only", "B12"], "bug B12 is not planted: The harness checks no backward pass."),
        (["--smoke", "--write", "museum.md"], "--write makes the page of all bugs; leave out --only and --smoke"),
    ],
)
def test_unusable_input_is_told(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["museum", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_where_there_is_no_checkout_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MUSEUM", tmp_path / "museum")
    with pytest.raises(UnusableInput, match=r"the museum is part of a checkout, and there is no .*catalogue\.py; run"):
        read_catalogue()


def test_the_kernels_without_a_bug_are_run_under_several_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["museum", "--only", "B26", "--seeds", "2"]) == 0
    told = capsys.readouterr().out
    searched = sum(int(count) for count in re.findall(r"(\d+) pass +\|", told))
    (passed,) = re.findall(r"^Without a bug, under 2 seeds, the same cells come to: (\d+) pass; ", told, re.MULTILINE)
    # Of those in which the bug is looked for, and of those that its own implementation does not have.
    assert int(passed) >= 2 * searched > 0, f"{passed} cells of 2 seeds passed, and the parent has {searched}:\n{told}"


@pytest.mark.parametrize(("piece", "count"), [("a line that is gone", 0), ("return", None)])
def test_a_source_that_has_changed_is_told_in_one_sentence(piece: str, count: int | None) -> None:
    times = "0" if count == 0 else r"\d\d+"
    for origin, plant in (
        ("cpu", lambda: planted_library(SOURCE_DIRECTORY, "attention.cpp", (piece, "a bug"))),
        ("samebits.backends.cpu", lambda: planted_module("samebits.backends.cpu", "never_planted", (piece, "a bug"))),
    ):
        with pytest.raises(SourceChanged, match=rf"^'{piece}', which .* occurs {times} times in {origin}, not once$"):
            plant()


def test_a_source_that_has_changed_ends_the_command_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "gone.py"
    file.write_text(
        "from samebits.harness.museum.sources import planted_module\n"
        "def implementations():\n"
        "    return [planted_module('samebits.backends.cpu', 'never_planted', ('a line that is gone', ''))]\n"
    )
    with pytest.raises(UnusableInput, match=r"raised SourceChanged: 'a line that is gone', which a bug"):
        load_registry([file])


def test_the_nightly_script_puts_the_table_into_the_summary_of_its_step(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    command = [sys.executable, str(ROOT / "ci" / "museum.py"), "--only", "B26"]
    environment = os.environ | {"GITHUB_STEP_SUMMARY": str(summary)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, f"the script ended with {run.returncode}:\n{run.stdout}{run.stderr}"
    assert run.stdout.endswith("1 of 1 planted bugs are caught\n")
    assert run.stdout in summary.read_text(encoding="utf-8")


def test_the_page_names_every_bug_and_that_each_is_caught() -> None:
    page = (ROOT / "docs" / "museum.md").read_text(encoding="utf-8")
    for entry in ENTRIES:
        words = (f"| {entry.number} ", entry.title) if isinstance(entry, Exhibit) else (entry.number, entry.reason)
        missing = [word for word in words if word not in page]
        assert not missing, f"docs/museum.md lacks {missing}; write it again with samebits museum --write"
    assert f"{len(EXHIBITS)} of {len(EXHIBITS)} planted bugs are caught." in page
