"""Files that are no records, given to every command that reads some: each is told in one sentence, with exit code 2."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.harness.cli import main
from samebits.harness.record_files import unwritable
from samebits.harness.records import RECORDS_FILE

from .samples import GREEN, save
from .suite_runs import NO_BASELINES

WHOLE = "whole"
# How each is made of the bytes of sound records, and what is told of it.
ODD: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "empty": (lambda path, _: path.write_bytes(b""), "is empty"),
    "half a header": (lambda path, whole: path.write_bytes(whole[:100]), "is cut off inside its first line"),
    "an id twice": (
        lambda path, whole: path.write_bytes(b"".join(whole.splitlines(keepends=True)[i] for i in (0, 1, 2, 1))),
        "occurs twice; each may occur once",
    ),
    "half a record in the middle": (
        lambda path, whole: path.write_bytes(whole.replace(b'"suite"', b"\n", 1)),
        "is not JSON; it must be one JSON object",
    ),
    "packed": (lambda path, whole: path.write_bytes(gzip.compress(whole)), "is compressed; unpack it first"),
    "packed nothing": (lambda path, _: path.write_bytes(gzip.compress(b"")), "is compressed; unpack it first"),
    "a pipe that nobody writes": (lambda path, _: os.mkfifo(path), "is a pipe or a device"),
    "a device without an end": (lambda path, _: path.symlink_to("/dev/zero"), "is a pipe or a device"),
    "a directory": (lambda path, _: path.mkdir(), "Is a directory"),
    "a link to itself": (lambda path, _: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "nothing": (lambda _, __: None, "No such file or directory"),
}
COMMANDS = {
    "report": ["report", "odd"],
    "report --baseline": ["report", WHOLE, "--baseline", f"odd/{RECORDS_FILE}"],
    "report --history": ["report", WHOLE, "--baseline", str(NO_BASELINES), "--history", "odd"],
    "compare to": ["compare", WHOLE, "odd"],
    "compare from": ["compare", "odd", WHOLE],
    "merge": ["merge", WHOLE, "odd", "-o", "merged"],
}


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Sound records, which lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    return (save(tmp_path / WHOLE, *GREEN) / RECORDS_FILE).read_bytes()


@pytest.mark.parametrize("odd", ODD)
def test_every_command_tells_an_odd_file_in_one_sentence(
    odd: str, tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make, told = ODD[odd]
    (tmp_path / "odd").mkdir()
    make(tmp_path / "odd" / RECORDS_FILE, whole)
    for name, words in COMMANDS.items():
        # A directory may be one of baselines, and hold none of them.
        if (name, odd) == ("report --baseline", "a directory"):
            continue
        assert main(words) == 2, f"samebits {name} takes {odd}"
        output = capsys.readouterr()
        assert told in output.err, f"samebits {name} says of {odd}: {output.err}"
        assert output.err.count("\n") == 1, f"more than one line: {output.err}"
        assert output.out == ""


def test_an_earlier_run_that_cannot_be_read_is_left_out_of_the_history_and_told(
    tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all runs of a month, one was killed before it wrote anything."""
    save(tmp_path / "earlier", *GREEN, run_id="before", started="2026-11-20T09:34:00+00:00")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / RECORDS_FILE).write_text("")
    words = ["report", WHOLE, "--baseline", str(NO_BASELINES), "--history", "killed", "earlier", WHOLE]
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.err == (
        "samebits: left out of the history: 'killed/records.jsonl' is empty; it must hold the records of a run\n"
    )
    assert "over 2 runs" in output.out
    page = (tmp_path / WHOLE / "index.html").read_text(encoding="utf-8")
    assert "1 run left out: not to be read." in page


def test_a_run_whose_pages_cannot_be_written_says_where_its_cells_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise unwritable(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("samebits.reports.report.replace_file", full)
    few = ("-m", "rope", "--implementation", "CPU/torch", "--tier", "smoke", "--dtype", "fp32", "-k", "cache_dtype")
    assert run_here(*few, "--results", tmp_path) == 2
    output = capfd.readouterr().out
    assert "regression.md' (No space left on device); give a place that can be written; the records" in output
    assert f"are whole: samebits report {tmp_path} tells them" in output
    monkeypatch.undo()
    assert main(["report", str(tmp_path), "--baseline", str(NO_BASELINES)]) == 0, "what was left cannot be reported"
