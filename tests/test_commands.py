"""The `samebits` command: its exit codes, what it writes and where, and unusable input told in one sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from samebits.harness.cli import main
from samebits.harness.records import Record
from samebits.reports.baseline import require_device
from samebits.reports.baseline_files import read_baseline, write_baseline

from .samples import CPU, FAILS, GREEN, REGRESSED, cell, control, run_of, save
from .suite_runs import NO_BASELINES

# To read the baselines that come with samebits takes longer than all else that is tested here.
NO_BASELINE = ("--baseline", NO_BASELINES)


def told_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_report_writes_beside_the_records_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = save(tmp_path / "results", *GREEN)
    code, out, err = told_by(capsys, "report", results)
    assert (code, err) == (0, "")
    assert "GREEN" in out
    for name in ("regression.md", "regression.csv", "implementations.md", "index.html"):
        assert f"written: {results / name}\n" in out
        assert (results / name).stat().st_size > 0
    again = told_by(capsys, "report", results / "records.jsonl", *NO_BASELINE)
    assert again[0] == 0, "the file itself may be named, and again"


@pytest.mark.parametrize(
    ("old", "new", "of_report", "of_compare"),
    [
        (GREEN, GREEN, 0, 0),
        (GREEN, REGRESSED, 1, 1),
        (REGRESSED, GREEN, 0, 0),
        (REGRESSED, REGRESSED, 1, 0),
        (GREEN, GREEN[:-1], 1, 1),
        (GREEN[:-1], GREEN, 0, 0),
    ],
)
def test_exit_codes_tell_a_regression(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: tuple[Record, ...],
    new: tuple[Record, ...],
    of_report: int,
    of_compare: int,
) -> None:
    earlier, later = save(tmp_path / "old", *old, run_id="run-0"), save(tmp_path / "new", *new)
    code, out, _ = told_by(capsys, "report", later, "--baseline", earlier)
    assert code == of_report, out
    code, out, _ = told_by(capsys, "compare", earlier, later, "-o", tmp_path / "out")
    assert code == of_compare, out
    told = out.splitlines()[-1]
    assert ("no regression" if code == 0 else "a regression") in told
    assert (" is red for what fails in " in told) == (of_report == 1 and of_compare == 0), told
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["implementations.md", "index.html", "regression.csv", "regression.md"]
    assert "Against the baseline 'run-0'" in out


def test_of_a_run_that_was_cut_off_a_regression_is_not_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = save(tmp_path / "old", *GREEN, run_id="run-0")
    later = save(tmp_path / "new", *GREEN[:-1], finished=False, run_id="run-1")
    code, out, _ = told_by(capsys, "compare", earlier, later)
    assert code == 1, out
    assert out.splitlines()[-1] == f"{later} was cut off, so a regression from {earlier} cannot be excluded"
    later = save(tmp_path / "worse", *REGRESSED[:-1], finished=False, run_id="run-2")
    _, out, _ = told_by(capsys, "compare", earlier, later)
    assert out.splitlines()[-1] == f"a regression from {earlier} to {later}", (
        "what did regress is told as if it had not"
    )


def test_compare_leaves_both_runs_as_they_were_and_says_where_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, later = save(tmp_path / "old", *GREEN), save(tmp_path / "new", *REGRESSED)
    for results in (earlier, later):
        told_by(capsys, "report", results, *NO_BASELINE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    baseline = tmp_path / "cpu.jsonl"
    write_baseline(run_of(*GREEN), baseline)
    for old, name in ((earlier, "against-old"), (earlier / "records.jsonl", "against-old"), (baseline, "against-cpu")):
        code, out, err = told_by(capsys, "compare", old, later)
        assert (code, err) == (1, "")
        for file in ("regression.md", "regression.csv", "implementations.md", "index.html"):
            written = later / name / file
            assert f"written: {written}\n" in out
            assert written.stat().st_size > 0
    assert {path: path.read_bytes() for path in before} == before, "a comparison changed the files of a run"


def test_a_full_disk_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = save(tmp_path / "results", *GREEN)
    told_by(capsys, "report", results, *NO_BASELINE)
    before = {path: path.read_bytes() for path in results.iterdir()}

    def full(path: Path, *arguments: object, **more: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    code, out, err = told_by(capsys, "report", results, *NO_BASELINE)
    assert (code, out) == (2, "")
    told = f"cannot write '{results / 'regression.md'}' (No space left on device); give a place that can be written"
    assert err == f"samebits: {told}\n"
    assert {path: path.read_bytes() for path in results.iterdir()} == before, "the earlier report was changed"


def test_a_directory_of_baselines_for_other_devices_is_no_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(CPU, device="cuda NVIDIA H100")
    results = save(tmp_path / "results", *GREEN)
    file = tmp_path / "baselines" / "h100.jsonl"
    write_baseline(run_of(*[replace(record, environment=other) for record in GREEN], environment=other), file)
    code, out, _ = told_by(capsys, "report", results, "--baseline", file.parent)
    assert code == 0
    assert "No baseline in 'baselines' for cpu x86_64+avx512 with 1 thread" in out
    code, out, err = told_by(capsys, "report", results, "--baseline", file)
    assert (code, out) == (2, ""), "a file is meant, so it must fit"
    assert "is for device 'cuda NVIDIA H100'; it must be for 'cpu x86_64+avx512'" in err
    require_device(read_baseline(file), {other.device, CPU.device})
    with pytest.raises(ValueError, match="it must be for 'cpu x86_64"):
        require_device(read_baseline(file), {CPU.device})


def test_the_packaged_baselines_can_be_read() -> None:
    assert read_baseline(None).rows, "the packaged baselines hold no row"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["repot"], "invalid choice: 'repot' (choose from"),
        (["report"], "the following arguments are required: DIR"),
        (["report", "results", "--colour"], "unrecognized arguments: --colour"),
        (["report", "absent"], "cannot read 'absent' (No such file or directory); give a directory with records.jsonl"),
        (["report", "empty"], "cannot read 'empty/records.jsonl' (No such file or directory); give a directory with"),
        (
            ["report", "results", "--baseline", "absent"],
            "cannot read 'absent' (No such file or directory); give a file",
        ),
        (["report", "results", "--baseline", "broken.jsonl"], "'broken.jsonl', line 1: '<html>' is not JSON"),
        (["report", "results", "--baseline", "\ud800"], "cannot read"),
        (["report", "a" * 5000], "(File name too long)"),
        (["compare", "results"], "the following arguments are required: NEW"),
        (["compare", "results", "absent"], "cannot read 'absent'"),
        (["compare", "broken.jsonl", "results"], "'broken.jsonl', line 1"),
        (["compare", "killed", "results"], "is of a run that was cut off; it must be of one that finished"),
        (["compare", "results", "results", "-o", "broken.jsonl"], "cannot write 'broken.jsonl/regression.md'"),
        (
            ["compare", "dtype", "results"],
            "the later run is of batch_invariant, and the earlier one of dtype; they must",
        ),
        (
            ["merge", "-o", "merged", "absent"],
            "cannot read 'absent' (No such file or directory); give a directory with",
        ),
        (["matrix", "--json", "-o", "out"], "--json prints the matrix and runs nothing; leave out --output, or give"),
        (["matrix", "--json", "--set", "a=b", "--cluster", "local"], "leave out --cluster, --set, or give --slurm"),
        (
            ["list", "--libs", "absent"],
            "absent is no bundle of libraries: bundle.json cannot be read there (No such file",
        ),
        (["matrix", "--json", "--libs", "absent"], "absent is no bundle of libraries"),
        (["list", "--load", "absent.py"], "cannot load 'absent.py'"),
    ],
)
def test_unusable_input_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    save(tmp_path / "results", *GREEN)
    save(tmp_path / "killed", *GREEN, finished=False)
    save(tmp_path / "dtype", cell(suite="dtype"), suites=("dtype",))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text("<html>\n")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = told_by(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("samebits: ")
    assert err.count("\n") == 1, f"more than one line: {err}"
    assert told in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, "files changed"


BACKEND = """
print("a library that talks")
from samebits.backends.contract import Availability, Claims, Implementation
from samebits.backends.support import Support

class Mine(Implementation):
    backend, name, support = "MY_ATTN", "mine", Support()
    claims = Claims(batch_invariant=True, source="its README")
    def __init__(self, variant, reason): self.variant, self.reason = variant, reason
    def probe(self): return Availability(reason=self.reason, version="" if self.reason else "1.2")
    def plan(self, config, metadata): return None
    def run(self, plan, query, key_cache, value_cache, output, lse): output.zero_()

def implementations(): return [Mine("", ""), Mine("fast", "importing mine raised ImportError: no such luck")]
"""


@pytest.fixture
def my_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a backend of two implementations, which are all there are."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    path = tmp_path / "mine.py"
    path.write_text(BACKEND)
    return path


def test_list_tells_what_runs_and_why_the_rest_does_not(my_backend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told_by(capsys, "list", "--load", my_backend)
    assert code == 0
    lines = out.splitlines()
    assert [line.split() for line in lines if line.startswith("MY_ATTN")] == [
        ["MY_ATTN/mine", "attention", "cpu", "1.2", "yes", "-", "-", "yes", "yes", "-", "-"],
        ["MY_ATTN/mine[fast]", "attention", "unavailable", "-", "yes", "-", "-", "yes", "yes", "-", "-"],
    ]
    assert "  MY_ATTN/mine[fast] attention: importing mine raised ImportError: no such luck" in lines
    assert "  MY_ATTN/mine attention: its README" in lines
    assert max(map(len, lines)) <= 120
    (headings,) = [line for line in lines if line.startswith("implementation")]
    assert headings.split()[-2:] == ["keys", "replay"], "what may be replayed is no property of CUDA alone"


def test_list_as_json_is_json_whatever_a_library_prints(my_backend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told_by(capsys, "list", "--json", "--load", my_backend)
    assert code == 0
    assert "a library that talks" in err
    listed = json.loads(out)
    assert set(listed["platform"]) == {"kind", "device", "name"}
    first, second = listed["implementations"]
    assert (first["label"], first["available"], first["version"], first["device"]) == (
        "MY_ATTN/mine",
        True,
        "1.2",
        "cpu",
    )
    assert first["claims"]["batch_invariant"] is True
    assert (second["variant"], second["available"], second["device"]) == ("fast", False, None)
    assert second["reason"] == "importing mine raised ImportError: no such luck"


def test_the_installed_command_survives_a_narrow_terminal_and_a_reader_that_leaves(tmp_path: Path) -> None:
    results = save(
        tmp_path / "results", cell("CPU/bundled", **(FAILS | {"reasons": ("näher \u2192 weiter",)})), control()
    )
    command = [sys.executable, "-c", "import sys; from samebits.harness.cli import main; sys.exit(main())"]
    command += ["report", str(results), *map(str, NO_BASELINE)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (1, b""), "characters that the terminal has not"
    assert b"n\\xe4her \\u2192 weiter" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b""), "a reader that left"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"samebits \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
