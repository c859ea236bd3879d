"""What users see of a run: the summary, the page, the table, and the exit codes of the commands that make them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.harness.cli import main
from samebits.harness.inputs import INPUTS
from samebits.harness.record_files import RecordWriter, read_run
from samebits.harness.records import Environment, Record, Run, RunHeader, Verdict
from samebits.harness.relations import RELATIONS
from samebits.reports import text
from samebits.reports.baseline_files import write_baseline
from samebits.reports.findings import RELATION_ORDER
from samebits.reports.report import Report, check_baseline, write_report
from samebits.reports.tables import claim_held

CPU = Environment("cpu x86_64+avx512", {"torch": "2.13.0", "triton": "3.7.1"}, 1)
HEADER = RunHeader(
    run_id="run-1",
    started="2026-11-21T09:34:00+00:00",
    suites=("batch_invariant",),
    implementations=("FLASH_ATTN/torch", "CPU/bundled", "AITER/triton[kvcache]"),
    dtypes=("fp32", "bf16"),
    tier="default",
    narrowed=False,
    environment=CPU,
)


def cell(label: str, relation: str = "position", dtype: str = "bf16", **changes: Any) -> Record:  # noqa: ANN401
    backend, implementation, variant = re.fullmatch(r"(\w+)/([\w-]+)(?:\[(.*)\])?", label).groups("")  # type: ignore[union-attr]
    cell_id = f"{label}:{relation}:llama3-8b-causal-mixed:{dtype}"
    record = Record(
        cell_id=cell_id,
        suite="batch_invariant",
        relation=relation,
        case="llama3-8b-causal-mixed",
        backend=backend,
        implementation=implementation,
        variant=variant,
        version="1.0",
        operation="attention",
        dtype=dtype,
        mask="causal",
        geometry="llama3-8b",
        tier="smoke",
        verdict=Verdict.PASS,
        environment=CPU,
        seed=0,
        command=f"pytest -m batch_invariant --cell '{cell_id}'",
        claimed=True,
        compared=100,
        max_ulp=0,
        error_budget=0.25,
        digest="aa",
    )
    return replace(record, **changes)


def control(relation: str = "position", **changes: Any) -> Record:  # noqa: ANN401
    caught = {"control": True, "verdict": Verdict.FAIL, "mismatches": 5, "error_budget": 9.0}
    return cell(f"CONTROL/breaks_{relation}", relation, "fp32", **(caught | changes))


VARIES: dict[str, Any] = {
    "verdict": Verdict.VARIES,
    "claimed": False,
    "mismatches": 7,
    "max_ulp": 1234,
    "reasons": ("claims no batch_invariant: 7 of 100 elements differ",),
    "smallest_batch": "[r1:q1c1] against [r1:q1c1 r2:q1c0]",
}
FAILS: dict[str, Any] = VARIES | {
    "verdict": Verdict.FAIL,
    "claimed": True,
    "reasons": ("claims batch_invariant, but 7 of 100 elements differ",),
}
DID_NOT_RUN: dict[str, Any] = {"compared": 0, "max_ulp": None, "error_budget": None, "digest": ""}
GREEN = (
    control(),
    control("decode"),
    cell("CPU/bundled"),
    cell("CPU/bundled", "decode", error_budget=0.5),
    cell("FLASH_ATTN/torch", claimed=False),
    cell("FLASH_ATTN/torch", "decode", **VARIES),
    cell("FLASH_ATTN/torch", "decode", "fp32", claimed=False),
    cell("AITER/triton[kvcache]", verdict=Verdict.UNSUPPORTED, reasons=("dtype fp64 is not supported",), **DID_NOT_RUN),
    cell("AITER/triton[kvcache]", "decode", verdict=Verdict.UNAVAILABLE, reasons=("no module",), **DID_NOT_RUN),
)
REGRESSED = (*GREEN[:2], cell("CPU/bundled", **FAILS), *GREEN[3:])


def run_of(*records: Record, **header: Any) -> Run:  # noqa: ANN401
    return Run(replace(HEADER, **header), records)


def save(directory: Path, *records: Record, finished: bool = True, **header: Any) -> Path:  # noqa: ANN401
    writer = RecordWriter(directory, replace(HEADER, **header))
    for record in records:
        writer.write(record)
    writer.close(finished=finished)
    return directory


def report_of(tmp_path: Path, *records: Record, baseline: Path | None = None, **header: Any) -> Report:  # noqa: ANN401
    return write_report(run_of(*records, **header), baseline, tmp_path)


def test_the_summary_of_a_green_run_reads_so(tmp_path: Path) -> None:
    report = report_of(tmp_path, *GREEN)
    assert report.summary == (
        "Run run-1: batch_invariant, default tier, fp32, bf16; 7 cells and 2 controls.\n"
        "On cpu x86_64+avx512, 1 thread, torch 2.13.0, triton 3.7.1.\n"
        "\n"
        "                       relations  relations                                   un-        un-   worst  worst\n"
        "implementation           claimed       held  cells  pass  varies  fail  supported  available  budget    ULP\n"
        "-----------------------------------------------------------------------------------------------------------\n"
        "FLASH_ATTN/torch               -        1/2      3     2       1     -          -          -    0.25  1,234\n"
        "CPU/bundled                    2        2/2      2     2       -     -          -          -     0.5      0\n"
        "AITER/triton[kvcache]          -          -      2     -       -     -          1          1       -      -\n"
        "\n"
        "Varies where nothing is claimed, which is not red:\n"
        "  FLASH_ATTN/torch: decode 1 of 2\n"
        "    smallest batch, decode: [r1:q1c1] against [r1:q1c1 r2:q1c0]\n"
        "\n"
        "Did not run:\n"
        "  AITER/triton[kvcache]: 1 cell unavailable: no module\n"
        "  AITER/triton[kvcache]: 1 cell unsupported: dtype fp64 is not supported\n"
        "\n"
        "No baseline in 'baselines' for cpu x86_64+avx512 with 1 thread; write one with --update-baseline FILE.\n"
        "\n"
        "Controls: 2 of 2 caught, over 2 relations.\n"
        "GREEN: nothing failed, every control was caught, there is no baseline to compare with."
    )
    assert (report.red, report.regressed) == (False, False)


def test_the_summary_of_a_regressed_run_names_what_changed(tmp_path: Path) -> None:
    write_baseline(run_of(*GREEN), tmp_path / "cpu.jsonl")
    upgraded = replace(CPU, versions={"torch": "2.14.0", "triton": "3.7.1"})
    cells = [replace(record, environment=upgraded) for record in REGRESSED[:-1]]
    report = report_of(tmp_path, *cells, baseline=tmp_path / "cpu.jsonl", environment=upgraded)
    command = REGRESSED[2].command
    for section in (
        "Failed:\n"
        "  CPU/bundled  position  1 of 1 cells\n"
        "    claims batch_invariant, but 7 of 100 elements differ\n"
        "    smallest batch: [r1:q1c1] against [r1:q1c1 r2:q1c0]\n"
        f"    reproduce: {command}\n",
        "Against the baseline 'cpu.jsonl': 7 same, 1 regressed, 1 missing.\n"
        "Versions changed since: torch 2.13.0 -> 2.14.0 (8 cells).\n"
        "\n"
        "implementation         same  regressed  missing\n"
        "-----------------------------------------------\n"
        "CPU/bundled               1          1        -\n"
        "AITER/triton[kvcache]     1          -        1\n"
        "\n"
        "  regressed: CPU/bundled:position:llama3-8b-causal-mixed:bf16, pass -> fail\n"
        "  missing: AITER/triton[kvcache]:decode:llama3-8b-causal-mixed:bf16\n",
    ):
        assert section in report.summary, f"absent:\n{section}\nfrom:\n{report.summary}"
    assert report.summary.endswith("RED: 1 cell failed, 1 regressed, 1 missing.")
    assert (report.red, report.regressed) == (True, True)
    page = report.paths[0].read_text()
    assert page.index("## What changed") < page.index("## Findings") < page.index("## Implementations")
    assert "| CPU/bundled:position:llama3-8b-causal-mixed:bf16 | pass -> fail | torch 2.13.0 -> 2.14.0 |" in page
    assert f"reproduce: `{command}`" in page


@pytest.mark.parametrize(
    ("records", "header", "told"),
    [
        ((cell("CPU/bundled", **FAILS), control()), {}, "RED: 1 cell failed."),
        ((cell("CPU/bundled", verdict=Verdict.ERROR), control()), {}, "RED: 1 cell raised an error."),
        ((cell("CPU/bundled"), control(verdict=Verdict.PASS)), {}, "RED: 1 control not caught."),
        ((cell("CPU/bundled"), control(verdict=Verdict.ERROR)), {}, "RED: 1 control not caught."),
        ((cell("CPU/bundled"), cell("CPU/bundled", "extend"), control()), {}, "RED: no control for extend."),
        ((cell("CPU/bundled"),), {"narrowed": True}, "GREEN: nothing failed, there is no baseline to compare with."),
        (
            (cell("CPU/bundled", verdict=Verdict.KNOWN), control()),
            {},
            "GREEN: nothing failed, every control was caught",
        ),
        ((), {}, "GREEN: nothing failed, there is no baseline to compare with."),
    ],
)
def test_a_run_is_red_for_what_it_says(
    tmp_path: Path, records: tuple[Record, ...], header: dict[str, Any], told: str
) -> None:
    report = report_of(tmp_path, *records, **header)
    assert told in report.summary.splitlines()[-1]
    assert report.red is told.startswith("RED")
    assert told in report.paths[0].read_text()


def test_a_run_that_was_cut_off_is_red_and_says_what_is_absent(tmp_path: Path) -> None:
    save(tmp_path, control(), cell("CPU/bundled"), finished=False)
    report = write_report(read_run(tmp_path), None, tmp_path)
    assert report.summary.endswith("RED: the run was cut off.")
    assert "Cut off: it was killed or has not finished yet" in report.summary
    assert "No cell of FLASH_ATTN/torch, AITER/triton[kvcache] finished." in report.summary


def test_the_summary_fits_a_terminal_of_120_columns(tmp_path: Path) -> None:
    long = {"reasons": ("a sentence that goes on and on " * 12,), "smallest_batch": "[r1:q1c1 r2:q1c0] " * 20}
    cells = [
        cell(label, relation, dtype, **(wanted | long))
        for label, wanted in (("FLASH_ATTN/torch", VARIES), ("CPU/bundled", FAILS), ("CPU/torch", {}))
        for relation in RELATION_ORDER[:12]
        for dtype in ("fp32", "bf16")
    ]
    unsupported = {"verdict": Verdict.UNSUPPORTED} | DID_NOT_RUN
    cells += [cell("AITER/triton[kvcache]", f"x{i}", reasons=(f"{i} " * 90,), **unsupported) for i in range(20)]
    summary = report_of(tmp_path, *cells).summary
    wide = [line for line in summary.splitlines() if len(line) > 120 and "reproduce: " not in line]
    assert not wide, f"lines of more than 120 columns: {wide}"
    assert len(summary.splitlines()) < 110, f"{len(summary.splitlines())} lines are no summary"
    assert "and 4 more groups, in the files" in summary
    assert "and 12 more reasons, in the files" in summary


def test_suites_have_lines_of_their_own(tmp_path: Path) -> None:
    other = cell("CPU/bundled", "rounding", suite="dtype", claimed=None)
    lines = report_of(tmp_path, *GREEN, other, suites=("batch_invariant", "dtype")).summary.splitlines()
    told = [line.split()[:2] for line in lines if line.startswith("CPU/bundled")]
    assert told[:2] == [["CPU/bundled", "batch_invariant"], ["CPU/bundled", "dtype"]]


def test_the_dtype_suite_tells_the_worst_and_the_median_budget_of_each_dtype(tmp_path: Path) -> None:
    cells = [
        cell("CPU/bundled", data, dtype, suite="dtype", claimed=None, error_budget=used, max_ulp=ulp)
        for dtype, budgets in (("fp32", (0.1, 0.2, 0.6)), ("bf16", (0.3, 0.3, 0.4)))
        for ulp, (data, used) in enumerate(zip(("normal", "ties", "large_scores"), budgets, strict=True))
    ]
    report = report_of(tmp_path, *GREEN, *cells, suites=("batch_invariant", "dtype"))
    lines = [line.split() for line in report.summary.splitlines()]
    assert ["CPU/bundled", "fp32", "3", "0.6", "0.2", "2"] in lines, report.summary
    assert ["CPU/bundled", "bf16", "3", "0.4", "0.3", "2"] in lines, report.summary
    assert "## Error budgets" in report.paths[0].read_text()


def test_nothing_of_the_report_depends_on_the_order_cells_finished_in(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    summaries = [report_of(first, *REGRESSED).summary, report_of(second, *REGRESSED[::-1]).summary]
    assert summaries[0] == summaries[1]
    for name in ("regression.md", "regression.csv"):
        assert (first / name).read_text() == (second / name).read_text(), f"{name} differs"


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ([{}], "held"),
        ([{"claimed": False}], "holds, unclaimed"),
        ([{"claimed": None}], "pass"),
        ([{}, FAILS], "broken 1/2"),
        ([{}, {"verdict": Verdict.FAIL, "error_budget": 2.0}], "wrong 1/2"),
        ([{}, FAILS, {"verdict": Verdict.ERROR}], "broken 1/3, error 1/3"),
        ([VARIES, VARIES], "varies 2/2"),
        ([{}, {"verdict": Verdict.UNSUPPORTED}], "held"),
        ([{"verdict": Verdict.UNSUPPORTED}], "unsupported"),
        ([{"verdict": Verdict.UNAVAILABLE}], "unavailable"),
        ([{"verdict": Verdict.KNOWN}], "known 1/1"),
    ],
)
def test_a_claim_is_set_against_what_was_found(records: list[dict[str, Any]], word: str) -> None:
    assert claim_held([cell("CPU/bundled", **changes) for changes in records]) == word


def test_relations_are_told_in_the_order_of_the_suite() -> None:
    assert (*RELATIONS, *INPUTS) == RELATION_ORDER


# What records hold is not trusted.

HOSTILE = "=1+1|`rm`<script>alert(1)</script>\x1b[31m\nnext\r\u2028line\udc80 &lt; [link](x) **bold** _it_"


def test_the_page_shows_foreign_text_as_it_is(tmp_path: Path) -> None:
    cells = [
        cell("CPU/bundled", **(FAILS | {"reasons": (HOSTILE,), "smallest_batch": HOSTILE, "command": HOSTILE})),
        cell("AITER/triton", verdict=Verdict.UNSUPPORTED, reasons=(HOSTILE,), version=HOSTILE, **DID_NOT_RUN),
        control(),
    ]
    report = report_of(tmp_path, *cells)
    page = report.paths[0].read_text(encoding="utf-8")
    assert "\x1b" not in page + report.summary, "an escape sequence reached the terminal or the page"
    outside_code = re.sub(r"(`+)[^`].*?\1(?!`)", "", page.replace("\\`", ""))
    assert "<script" not in outside_code, "HTML of a message reached the page"
    widths: dict[int, int] = {}
    for block, rows in enumerate(re.findall(r"(?:^\|.*\n?)+", page, flags=re.MULTILINE)):
        for row in rows.splitlines():
            columns = len(re.findall(r"(?<!\\)\|", row))
            assert widths.setdefault(block, columns) == columns, f"a cell broke its table: {row}"


def test_the_table_holds_one_line_per_cell_and_no_formula(tmp_path: Path) -> None:
    cells = [cell("CPU/bundled", reasons=(HOSTILE, '"quoted", with commas'), command=HOSTILE), *GREEN[3:]]
    path = report_of(tmp_path, *cells).paths[1]
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + len(cells)
    assert len(lines) == len(cells)
    assert not [value for line in lines for value in line.values() if value.startswith(("=", "+", "-", "@"))]
    by_id = {line["cell_id"]: line for line in lines}
    told = by_id[cells[0].cell_id]
    assert (told["state"], told["verdict"], told["compared"], told["error_budget"]) == (
        "no baseline",
        "pass",
        "100",
        "0.25",
    )
    assert told["reasons"].endswith('; "quoted", with commas')
    assert by_id[GREEN[-1].cell_id]["error_budget"] == "", "nothing was computed"


@given(st.text(st.characters(codec=None)))
@settings(max_examples=200, deadline=None)
def test_any_text_stays_within_its_line_and_its_cell(value: str) -> None:
    for shown in (text.plain(value), text.markdown(value), text.markdown_code(value), text.csv_cell(value)):
        assert shown.isprintable(), f"{shown!r} holds a control character"
    assert not re.search(r"(?<!\\)(\\\\)*\|", text.markdown(value)), "a pipe that ends a cell"
    assert "<" not in text.markdown(value), "the beginning of a tag"


# Commands.


def told_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_report_writes_beside_the_records_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = save(tmp_path / "results", *GREEN)
    code, out, err = told_by(capsys, "report", results)
    assert (code, err) == (0, "")
    assert "GREEN" in out
    for name in ("regression.md", "regression.csv"):
        assert f"written: {results / name}\n" in out
        assert (results / name).stat().st_size > 0
    assert told_by(capsys, "report", results / "records.jsonl")[0] == 0, "the file itself may be named, and again"


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
    assert ("no regression" if code == 0 else "a regression") in out.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["regression.csv", "regression.md"]
    assert "Against the baseline 'run-0'" in out


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
    check_baseline(file, {other.device, CPU.device})
    with pytest.raises(ValueError, match="it must be for 'cpu x86_64"):
        check_baseline(file, {CPU.device})


def test_the_packaged_baselines_can_be_read() -> None:
    check_baseline(None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["repot"], "invalid choice: 'repot' (choose from"),
        (["report"], "the following arguments are required: DIR"),
        (["report", "results", "--colour"], "unrecognized arguments: --colour"),
        (["report", "absent"], "cannot read 'absent' (No such file or directory); give a file that holds the records"),
        (["report", "empty"], "cannot read 'empty/records.jsonl' (No such file or directory); give a file that holds"),
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
        ["MY_ATTN/mine", "cpu", "1.2", "claimed", "-", "claimed"],
        ["MY_ATTN/mine[fast]", "unavailable", "-", "claimed", "-", "claimed"],
    ]
    assert "  MY_ATTN/mine[fast]: importing mine raised ImportError: no such luck" in lines
    assert "  MY_ATTN/mine: its README" in lines
    assert max(map(len, lines)) <= 120


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
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "report", str(results)], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (1, b""), "characters that the terminal has not"
    assert b"n\\xe4her \\u2192 weiter" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "report", str(results)], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b""), "a reader that left"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"samebits \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
