"""A place that cannot be written, a clock that jumps, two runs into one directory: what each costs."""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from samebits.harness import resuming, session
from samebits.harness.merging import merge
from samebits.harness.record_files import RecordWriter, check_results, read_run
from samebits.harness.records import UnusableInput
from samebits.harness.resuming import CutOffRun
from samebits.reports.baseline_files import check_update, write_baseline
from samebits.reports.files import replace_file

from .samples import GREEN, HEADER, cell, run_of, save

UNWRITABLE = {
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EIO: "Input/output error",
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "the records of a run": lambda folder: RecordWriter(folder / "new", HEADER),
    "a trial before a run": lambda folder: check_results(folder / "new"),
    "a page": lambda folder: replace_file(folder / "new" / "regression.md", "# page\n"),
    "a baseline": lambda folder: write_baseline(run_of(*GREEN), folder / "new" / "cpu.jsonl"),
    "a trial of a baseline": lambda folder: check_update(folder / "cpu.jsonl"),
    "a merged run": lambda folder: merge([folder / "run"], folder / "new"),
    "a resumed run": lambda folder: CutOffRun(folder / "cut"),
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("code", UNWRITABLE, ids=lambda code: errno.errorcode[code])
def test_a_place_that_cannot_be_written_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    """The user of these tests may be one whom no permission stops, so the system's answer is given here."""
    save(tmp_path / "run", *GREEN)
    save(tmp_path / "cut", *GREEN, finished=False)
    before = sorted(tmp_path.rglob("*"))

    open_path: Callable[..., object] = Path.open

    def refuse(*arguments: object, **options: object) -> object:
        raise OSError(code, os.strerror(code), "the place")

    def refuse_writing(path: Path, mode: str = "r", **options: object) -> object:
        return (refuse if set(mode) & set("wx+a") else open_path)(path, mode, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        patched.setattr(Path, "open", refuse_writing)
        patched.setattr("tempfile.TemporaryFile", refuse)
        with pytest.raises(UnusableInput) as told:
            WRITERS[what](tmp_path)
    assert f"({UNWRITABLE[code]}); give a place that can be written" in str(told.value)
    assert str(told.value).startswith(f"cannot write '{tmp_path}/"), f"the place is not named: {told.value}"
    assert sorted(tmp_path.rglob("*")) == before, "something was left, or is gone"


def test_the_second_of_two_runs_into_one_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    # Both looked before either wrote.
    check_results(tmp_path)
    check_results(tmp_path)
    with RecordWriter(tmp_path, HEADER) as first:
        first.write(GREEN[0])
        with pytest.raises(UnusableInput, match="holds the records of another run; give a new directory"):
            RecordWriter(tmp_path, replace(HEADER, run_id="second"))
        first.write(GREEN[1])
    assert read_run(tmp_path).records == GREEN[:2]


def test_a_clock_that_jumps_back_changes_nothing_but_the_times_that_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    class Backwards(datetime.datetime):
        """Each time that is asked for is a day before the one that was asked for last."""

        days = 0

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Backwards:
            cls.days += 1
            return cls(2026, 11, 21, tzinfo=tz) - datetime.timedelta(days=cls.days)

    for module in (session, resuming):
        monkeypatch.setattr(module, "datetime", SimpleNamespace(datetime=Backwards, UTC=datetime.UTC))
    few = ("-m", "rope", "--implementation", "CPU/torch", "--tier", "smoke", "--dtype", "fp32", "-k", "cache_dtype")
    assert run_here(*few, "--results", tmp_path) == 0, capfd.readouterr().out
    path = tmp_path / "records.jsonl"
    whole = read_run(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    assert run_here("--resume", tmp_path, *few[-2:]) == 0, capfd.readouterr().out
    again = read_run(tmp_path)
    assert [record.digest for record in again.records] == [record.digest for record in whole.records]
    assert all(record.seconds >= 0 for record in again.records), "a cell took less than no time"
    (resumption,) = again.header.resumed
    assert resumption.started < again.header.started, "this clock did not go backwards"


def test_a_backend_that_is_named_as_a_tag_is_one_only_in_records(tmp_path: Path) -> None:
    from samebits.reports.report import write_report

    from .samples import NO_BASELINE

    tag = "<img src=x onerror=alert(1)>"
    records = [replace(record, backend=tag, cell_id=f"{tag}{number}") for number, record in enumerate(GREEN)]
    report = write_report(run_of(*records, cell()), NO_BASELINE, tmp_path)
    for path in report.paths:
        if path.suffix == ".html":
            assert "<img" not in path.read_text(encoding="utf-8"), f"{path.name} has it as a tag"
