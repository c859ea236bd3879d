"""A run that was cut off is resumed: nothing is lost, nothing done twice, and nothing done otherwise."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.code_state import loaded_code
from samebits.harness.record_files import RecordWriter, read_run
from samebits.harness.records import RECORDS_FILE, LoadedCode, Record, Resumable, Resumption, UnusableInput
from samebits.harness.resuming import CutOffRun

from .samples import CPU, HEADER, cell, save

RESUMABLE = Resumable(dtypes=(), cell_ids=(), seed=0, cells=4, cells_digest="all four", code_digest="of today")
LEFT = replace(HEADER, resumable=RESUMABLE)
CELLS = [cell(relation=relation) for relation in ("position", "decode", "extend", "padding")]


def cut_off(directory: Path, cells: int = 2, **header: object) -> Path:
    """The records of a run that was killed after some of its cells."""
    return save(directory, *CELLS[:cells], finished=False, **{"resumable": RESUMABLE} | header)


def test_a_file_cut_at_any_byte_is_gone_on_with_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = cut_off(tmp_path / "whole", cells=4) / RECORDS_FILE
    content = whole.read_bytes()
    header_end = content.index(b"\n") + 1
    breaks = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for length in sorted({*range(header_end, len(content), 41), *breaks[1:], *(place + 1 for place in breaks)}):
        directory = tmp_path / str(length)
        directory.mkdir()
        path = directory / RECORDS_FILE
        path.write_bytes(content[:length])
        # A line without its break is a whole cell when all of its JSON is there.
        there = content[: length + 1].count(b"\n") - 1
        left = CutOffRun(directory)
        assert left.done == {cell.cell_id for cell in CELLS[:there]}, f"cut at byte {length}: other cells count as done"
        with left.writer() as writer:
            for record in CELLS[there:]:
                writer.write(record)
        run = read_run(path)
        assert run.records == tuple(CELLS), f"cut at byte {length}: a cell was lost, doubled or changed"
        assert not run.truncated, f"cut at byte {length}: the run that finished looks cut off"
        assert [resumption.cells for resumption in run.header.resumed] == [there]
        assert replace(run.header, resumed=()) == LEFT, "the header lost what the run was"
        assert list(directory.iterdir()) == [path], "something is left beside the records"


def test_a_run_is_resumed_again_and_again_whatever_the_clock_says(tmp_path: Path) -> None:
    cut_off(
        tmp_path, cells=1, started="2099-01-01T00:00:00+00:00", resumed=(Resumption("2150-01-01T00:00:00+00:00", 0),)
    )
    for number in (1, 2, 3):
        writer = CutOffRun(tmp_path).writer()
        writer.write(CELLS[number])
        writer.close(finished=number == 3)
    run = read_run(tmp_path)
    assert run.records == tuple(CELLS)
    assert [resumption.cells for resumption in run.header.resumed] == [0, 1, 2, 3], "the resumptions lost their order"


def test_a_process_that_dies_while_it_takes_over_leaves_the_records_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cut_off(tmp_path) / RECORDS_FILE
    before = path.read_bytes()

    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        left = CutOffRun(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            left.writer()
        left.release()
    assert path.read_bytes() == before
    (tmp_path / f".{RECORDS_FILE}.resumed").write_text("half of it, left by a process that was killed")
    CutOffRun(tmp_path).writer().close()
    assert read_run(tmp_path).records == tuple(CELLS[:2])


def test_a_disk_that_is_full_while_it_is_taken_over_is_told_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cut_off(tmp_path) / RECORDS_FILE
    before = path.read_bytes()
    (tmp_path / f".{RECORDS_FILE}.resumed").symlink_to("/dev/full")
    left = CutOffRun(tmp_path)
    with pytest.raises(UnusableInput, match=r"cannot write '.*' \(No space left on device\); give a place that can be"):
        left.writer()
    left.release()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "the file that could not be written is left"


def test_a_run_that_is_still_written_cannot_be_resumed(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, LEFT)
    taken = "another process writes it; wait for it, or give another directory"
    with pytest.raises(UnusableInput, match=taken):
        CutOffRun(tmp_path)
    writer.close(finished=False)
    left = CutOffRun(tmp_path)
    with pytest.raises(UnusableInput, match=taken):
        CutOffRun(tmp_path)
    resumed = left.writer()
    with pytest.raises(UnusableInput, match=taken):
        CutOffRun(tmp_path)
    resumed.close(finished=False)
    CutOffRun(tmp_path).release()


def test_the_records_of_a_process_that_was_killed_are_free(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from samebits.harness.record_files import hold_records\n"
        "held = hold_records(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = cut_off(tmp_path) / RECORDS_FILE
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, f"it could not hold the records:\n{done.stderr}"
    CutOffRun(tmp_path).release()


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (
            lambda folder: folder.mkdir(),
            "there are no records at '{}/records.jsonl'; give the directory of a run that has some",
        ),
        (lambda folder: None, "there are no records at"),
        (
            lambda folder: save(folder, *CELLS, resumable=RESUMABLE),
            "has finished, all 4 of its cells, so nothing is left",
        ),
        (
            lambda folder: cut_off(folder, resumable=None),
            "does not say what is left of it, as an older samebits wrote it",
        ),
        (lambda folder: cut_off(folder, shards=(HEADER,)), "was merged from others; resume the one that was cut off"),
        (
            lambda folder: (folder.mkdir(), (folder / RECORDS_FILE).touch()),
            "is empty; it must hold the records of a run",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / RECORDS_FILE).write_text('{"kind": "ru')),
            "is cut off inside its first line; it must hold the records of a run",
        ),
    ],
    ids=["no records", "no directory", "finished", "of an older samebits", "merged", "no header", "half a header"],
)
def test_what_cannot_be_resumed_is_told_in_one_sentence(
    tmp_path: Path, prepare: Callable[[Path], object], told: str
) -> None:
    folder = tmp_path / "results"
    prepare(folder)
    with pytest.raises(UnusableInput) as refused:
        CutOffRun(folder)
    assert told.format(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tier": "nightly"}, "was of tier 'default', and this one is of tier 'nightly'"),
        ({"suites": ("rope", "dtype")}, "was of suite batch_invariant, and this one is of suite rope, dtype"),
        ({"asked": ("CPU",)}, "was of backend or implementation none by name, and this one is of .* CPU"),
        ({"shard": "CPU-cpu-fp32"}, "was of shard '', and this one is of shard 'CPU-cpu-fp32'"),
        ({"seed": 7}, "was of seed 0, and this one is of seed 7"),
        ({"draw_seed": 7}, "was of draw-seed None, and this one is of draw-seed 7"),
        ({"dtypes": ("fp16",)}, "was of dtype none by name, and this one is of dtype fp16"),
        ({"cell_ids": ("a:b:c:d",)}, "was of cell none by name, and this one is of cell a:b:c:d"),
        ({"environment": replace(CPU, device="cuda Z9")}, "was on 'cpu x86_64.avx512', and this one is on 'cuda Z9'"),
        ({"environment": replace(CPU, threads=2)}, "was with --threads 1, and this one is with 2"),
        (
            {"environment": replace(CPU, versions={"torch": "2.14.0", "triton": "3.7.1"})},
            "was with torch 2.13.0, and this one is with 2.14.0",
        ),
        (
            {"environment": replace(CPU, versions={"torch": "2.13.0"})},
            "was with triton 3.7.1, and this one is with absent",
        ),
        ({"code_digest": "of tomorrow"}, "was of other code: samebits itself, or what --load and --libs name"),
        (
            {"cells_digest": "of three", "cells": 3},
            "set out to run 4 cells, and this one runs others, 3 with those that",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_process_that_would_have_begun_another_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    of_header = {name: value for name, value in changes.items() if hasattr(HEADER, name) and name != "dtypes"}
    of_resumable = {name: value for name, value in changes.items() if name not in of_header}
    here = replace(LEFT, resumable=replace(RESUMABLE, **of_resumable), **of_header)
    left = CutOffRun(cut_off(tmp_path))
    left.require_same(replace(LEFT, run_id="another", started="at another time", narrowed=True))
    with pytest.raises(UnusableInput, match=f"^the run in '.*' {told}.*; it can only be resumed as it began$"):
        left.require_same(here)
    left.release()


ONE, TWO, BUNDLE = (
    LoadedCode("--load", "/a/1.py", "aa"),
    LoadedCode("--load", "2.py", "bb"),
    LoadedCode("--libs", "v", "cc"),
)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), r"was with --load '/a/1\.py' --load '2\.py' --libs 'v', which must be given again"),
        ((TWO, BUNDLE), r"was with --load '/a/1\.py', which must be given again"),
        ((ONE, TWO), r"was with --libs 'v', which must be given again"),
        ((ONE, replace(TWO, digest="dd"), BUNDLE), r"was with another content of --load '2\.py'"),
        ((ONE, TWO, BUNDLE, LoadedCode("--load", "3.py", "dd")), r"was without --load '3\.py'; leave that out"),
        ((TWO, ONE, BUNDLE), r"was with --load '/a/1\.py' --load '2\.py' --libs 'v' in this order"),
    ],
    ids=["none", "a file is missing", "a bundle is missing", "changed", "one more", "another order"],
)
def test_loaded_code_that_is_not_given_again_is_told_by_name(
    tmp_path: Path, given: tuple[LoadedCode, ...], told: str
) -> None:
    left = CutOffRun(cut_off(tmp_path, resumable=replace(RESUMABLE, loaded=(ONE, TWO, BUNDLE))))
    left.require_loaded((replace(ONE, path="/elsewhere/1.py"), TWO, BUNDLE))
    with pytest.raises(UnusableInput, match=f"^the run in '.*' {told}"):
        left.require_loaded(given)
    left.release()


def test_a_run_of_a_loaded_backend_names_the_file_before_it_looks_for_the_backend(
    tmp_path: Path, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def implementations():\n    return []\n")
    (loaded,) = loaded_code([file])
    resumable = replace(RESUMABLE, loaded=(loaded,))
    directory = cut_off(tmp_path / "run", resumable=resumable, asked=("MINE/kernel",))
    assert run_here("--resume", directory) == 2
    assert f"was with --load '{file}', which must be given again" in capfd.readouterr().err
    assert run_here("--resume", directory, "--load", file) == 2
    assert "must be given again" not in capfd.readouterr().err, "what was given is not known again"


def test_a_cell_of_another_library_or_machine_is_not_added(tmp_path: Path) -> None:
    left = CutOffRun(cut_off(tmp_path))
    left.require_alike(CELLS[2])
    left.require_alike(cell("AITER/triton", version="0.1.7"))
    with pytest.raises(UnusableInput, match=r"is of '0\.2\.0', and cell '.*' of the run in '.*' of '0\.1\.0'"):
        left.require_alike(replace(CELLS[2], version="0.2.0"))
    with pytest.raises(UnusableInput, match=r"is of '0\.1\.8', and cell 'AITER/.*' of the run in '.*' of '0\.1\.7'"):
        left.require_alike(cell("AITER/triton", relation="decode", version="0.1.8"))
    with pytest.raises(UnusableInput, match="a run can only be resumed as it began"):
        left.require_alike(replace(CELLS[2], environment=replace(CPU, threads=2)))
    left.release()


def without_time(record: Record) -> Record:
    return replace(record, seconds=0.0)


FEW = ("-m", "rope", "--implementation", "CPU/torch", "--tier", "smoke", "--dtype", "fp32", "-k", "large_values")


def test_a_resumed_run_ends_as_an_undisturbed_one_and_other_options_are_refused(
    tmp_path: Path, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    assert run_here(*FEW, "--results", undisturbed) == 0, capfd.readouterr().out
    lines = (undisturbed / RECORDS_FILE).read_text().splitlines(keepends=True)
    resumed.mkdir()
    half = "".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:100]
    (resumed / RECORDS_FILE).write_text(half)
    capfd.readouterr()
    for other, told in (
        ([], f"set out to run {len(lines) - 2} cells"),
        (["--seed", "1"], "was of seed 0, and this one is of seed 1"),
        (["--results", tmp_path / "there"], "--resume DIR goes on with the records in DIR; leave --results out"),
    ):
        assert run_here("--resume", resumed, *other) == 2
        output = "".join(capfd.readouterr())
        assert told in output, output
        assert "Traceback" not in output, output
        assert (resumed / RECORDS_FILE).read_text() == half, "a run that was refused changed the records"
    # What the run's own header says need not be given again.
    assert run_here("--resume", resumed, "-k", FEW[-1]) == 0, capfd.readouterr().out
    whole, again = read_run(undisturbed), read_run(resumed)
    assert list(map(without_time, again.records)) == list(map(without_time, whole.records))
    assert not again.truncated
    done = len(lines) // 2 - 1
    assert [resumption.cells for resumption in again.header.resumed] == [done]
    for cells in (resumed, undisturbed):
        table = (cells / "regression.csv").read_text()
        assert table.count("\n") == len(lines) - 1, f"{table.count(chr(10))} lines of {len(lines) - 2} cells and a head"
    capfd.readouterr()
    assert run_here("--resume", resumed) == 2
    assert f"has finished, all {len(lines) - 2} of its cells, so nothing is left to resume" in capfd.readouterr().err
    # It was killed after its last cell: its end is written, and its report.
    (resumed / RECORDS_FILE).write_text("".join(lines[:-1]))
    shutil.rmtree(tmp_path / "undisturbed")
    assert run_here("--resume", resumed, "-k", FEW[-1]) == 0, capfd.readouterr().out
    assert "GREEN" in capfd.readouterr().out
    assert not read_run(resumed).truncated


def test_a_file_that_is_loaded_and_changed_since_is_other_code(tmp_path: Path) -> None:
    from samebits.harness.code_state import code_digest

    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("one = 1\n")
    second.write_text("two = 2\n")
    before = code_digest([first, second])
    assert before == code_digest([first, second])
    assert before != code_digest([first])
    first.write_text("one = 1\ntwo = 2\n")
    second.write_text("")
    assert before != code_digest([first, second]), "what moved from one file to the next is not seen"


def test_the_code_is_all_that_decides_a_cell() -> None:
    from samebits.harness.code_state import _sources

    found = {path.resolve() for path in _sources()}
    for name in ("harness/judgement.py", "harness/tokens/rotary.py", "backends/cpu.py", "suites/test_rope.py"):
        assert any(path.match(name) for path in found), f"{name} is not among the code"
    assert any(path.suffix == ".cpp" for path in found), "no C++ is among the code"
