"""The page of a benchmark, made from records: ratios, targets, prices, and a reason for what is not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from samebits.harness.bench.mark import is_asked_for
from samebits.harness.bench.options import Options
from samebits.harness.bench.records import (
    BENCH_FILE,
    Bench,
    Group,
    LeftOut,
    Role,
    SuiteRate,
    SuiteShare,
    Timing,
    read_bench,
)
from samebits.harness.cli import main
from samebits.harness.record_files import RecordWriter, Written
from samebits.harness.records import UnusableInput
from samebits.reports.bench import words
from samebits.reports.bench.page import CURVE, PAGE, as_page, as_summary
from samebits.reports.bench.price import prices
from samebits.reports.bench.standings import standings
from samebits.reports.bench.targets import TARGETS, Beside, Target, outcomes

from .bench_samples import bench_of, measured
from .suite_runs import ROOT, WITHOUT_PLUGINS

FA3_AUTO, FA3_ONE = "FLASH_ATTN/vllm-fa3[num_splits=0]", "FLASH_ATTN/vllm-fa3[num_splits=1]"
OURS = "TRITON_ATTN/bundled"
FEW = (measured(OURS, 150), measured(FA3_AUTO, 120), measured(FA3_ONE, 300), measured("AITER/triton[unified]", None))
ABSENT = LeftOut("FLASH_ATTN/fa4", "attention", "flash-attn-4 is not installed")


def save(directory: Path, bench: Bench, *, finished: bool = True) -> Path:
    writer = RecordWriter(directory, bench.header, BENCH_FILE)
    entries: list[Written] = [*bench.rates.values(), *bench.left_out, *bench.suite_rates, *bench.measurements]
    for entry in entries:
        writer.write(entry)
    writer.close(finished)
    return directory


def rows_of(page: str, heading: str) -> list[list[str]]:
    """Cells of the table behind a heading, without those above its rule."""
    lines = page[page.index(f"# {heading}\n") :].splitlines()[1:]
    first = next(place for place, line in enumerate(lines) if line.startswith("|:"))
    table = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("\\", "") for cell in line.strip("|").split("|")])
    return table


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    replayed = measured(OURS, 150, replayed=Timing(1e-4, 1e-4, 1e-4, 3), configuration={"kv_split": "64"})
    rate = SuiteRate("CPU/bundled", ("-n", "2"), 2, 0, 17.5, (SuiteShare("dtype", 70, 30.0),))
    bench = replace(bench_of(replayed, *FEW[1:], left_out=(ABSENT,)), suite_rates=(rate,))
    assert read_bench(save(tmp_path / "whole", bench)) == bench
    assert read_bench(save(tmp_path / "cut", bench, finished=False)) == replace(bench, truncated=True)
    file = tmp_path / "whole" / BENCH_FILE
    file.write_text(file.read_text() + FEW[0].to_line() + "\n")
    with pytest.raises(UnusableInput, match=r"line 12: it stands behind the end"):
        read_bench(tmp_path / "whole")
    with pytest.raises(UnusableInput, match=r"give a directory with bench\.jsonl, or that file"):
        read_bench(tmp_path / "absent")


def test_a_time_stands_beside_the_best_of_the_others_and_beside_the_limit() -> None:
    page = as_page(bench_of(*FEW, left_out=(ABSENT,)))
    times = {row[1]: row for row in rows_of(page, "Attention, bf16")}
    # 200 MB at the faster of 2 and 1 TB/s, which is more than 1e6 operations take at 1e15 a second.
    assert list(times) == [FA3_AUTO, OURS, FA3_ONE], "the fastest comes first, and who failed is not among them"
    assert {label: row[3:8] for label, row in times.items()} == {
        FA3_AUTO: ["120 us", "20%", "7", "1.00", "0.83"],
        OURS: ["150 us", "20%", "7", "1.25", "0.67"],
        FA3_ONE: ["300 us", "20%", "7", "2.50", "0.33"],
    }
    (row,) = rows_of(page, "bf16")
    assert row[1:] == [OURS, FA3_AUTO, "100 us", "150 us", "120 us", "1.25", "0.67"]
    assert rows_of(page, "Not timed") == [
        ["FLASH_ATTN/fa4", "attention", "flash-attn-4 is not installed"],
        ["AITER/triton[unified]", "D8 bf16", "it raised ValueError: no such luck"],
    ]


def test_a_limit_of_arithmetic_is_that_of_the_dtype_and_a_norm_is_held_against_a_copy() -> None:
    arithmetic = measured(OURS, 150, "P1", flops=120_000_000_000)
    norm = measured(OURS, 400, "norm-64", group=Group.NORM, operation="rms_norm", flops=0)
    other_dtype = measured(OURS, 150, "P1", dtype="fp32", flops=120_000_000_000)
    found = {
        (standing.problem, standing.dtype): standing for standing in standings(bench_of(arithmetic, norm, other_dtype))
    }
    assert found["P1", "bf16"].limit == pytest.approx(120e-6)
    assert found["P1", "bf16"].limited_by == "arithmetic"
    assert found["norm-64", "bf16"].limit == pytest.approx(200e-6), "a norm writes as much as it reads"
    assert found["P1", "fp32"].limit is None, "no product of float32 was measured"


def test_what_is_asked_is_held_against_what_is_reached() -> None:
    bench = bench_of(
        *(measured(OURS, 100, problem) for problem in ("D1", "D8")),
        *(measured(FA3_ONE, peer, problem) for problem, peer in (("D1", 100), ("D8", 99))),
        measured(OURS, None, "D64"),
        measured(FA3_ONE, 99, "D64"),
    )
    rows = {tuple(row[:3]): row[3:] for row in rows_of(as_page(bench), "Asked and reached")}
    assert rows[OURS, "bf16", "at most 1.00 of the best peer"] == ["D1 1.00, D8 1.01, D64 -", "1 of 3"]
    assert rows[OURS, "bf16", "at least 0.90 of the limit"] == ["D1 1.00, D8 1.00, D64 -", "2 of 3"]
    assert not any(label == "CPU/bundled" for label, *_ in rows), "what was not timed here is asked nothing"
    named = Target(
        OURS, Beside.OTHER, 1.15, problems=("D1",), other="FLASH_ATTN/vllm-fa3", other_variant="num_splits=0"
    )
    (outcome,) = outcomes(standings(bench), [named])
    assert outcome.reached == (("D1", None),), "the other setting of that library was not timed"
    assert outcome.asked == "at most 1.15 of FLASH_ATTN/vllm-fa3[num_splits=0]"
    lines = [line.split("  ") for line in as_summary(bench).splitlines()]
    assert [OURS, "bf16", "at most 1.00 of the best peer", "1 of 3", "D8 1.01"] in [
        [cell.strip() for cell in line if cell.strip()] for line in lines
    ]


def test_every_target_says_what_it_covers() -> None:
    for target in TARGETS:
        assert target.problems or target.groups, f"{target} covers nothing"
        assert bool(target.other) == (target.beside is Beside.OTHER), f"{target} names no other, or one for nothing"


def test_the_price_of_invariance_is_told_of_each_library_by_batch_and_length() -> None:
    longer = [
        replace(row, problem="decode-8x65536", kv_len=65536, group=Group.PRICE)
        for row in (measured(OURS, 600), measured(FA3_AUTO, 500), measured(FA3_ONE, 500))
    ]
    prefill = measured(OURS, 10, "P1", query_len=8192)
    off_table = measured(OURS, 10, "hd64-decode", group=Group.OFF_TABLE)
    yardstick = measured("torch/flex_attention", 10, role=Role.YARDSTICK)
    found = prices(standings(bench_of(*FEW, *longer, prefill, off_table, yardstick)))
    assert [(price.library, price.kv_len, round(price.own, 2), round(price.over_best, 2)) for price in found] == [
        ("FLASH_ATTN/vllm-fa3", 16384, 2.5, 2.5),
        (OURS, 16384, 1.0, 1.25),
        ("FLASH_ATTN/vllm-fa3", 65536, 1.0, 1.0),
        (OURS, 65536, 1.0, 1.2),
    ]


def test_the_page_and_its_curve_are_made_from_records_alone_without_torch(tmp_path: Path) -> None:
    results = save(tmp_path / "results", bench_of(*FEW[:3]))
    copy = tmp_path / "docs" / "bench-h100.md"
    code = (
        "import sys; sys.modules['torch'] = None; from samebits.harness.cli import main; "
        f"sys.exit(main(['bench', '--report', {str(results)!r}, '--write', {str(copy)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    written = [line.removeprefix("written: ") for line in done.stdout.splitlines() if line.startswith("written: ")]
    drawing = copy.with_suffix(".svg")
    assert written == list(map(str, (results / PAGE, results / CURVE, copy, drawing)))
    assert "![The price of invariance by batch and length](bench-h100.svg)" in copy.read_text()
    svg = drawing.read_text()
    assert svg == (results / CURVE).read_text()
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Invariant over the fastest setting of the same library", "batch 8", OURS, "16k", "2x"} <= set(texts)
    assert "@media(prefers-color-scheme:dark)" in svg


@pytest.mark.parametrize(
    ("bench", "code", "told"),
    [
        (bench_of(*FEW[:3]), 0, "at most 1.00 of the best peer"),
        (bench_of(*FEW), 1, "1 row failed:"),
        (bench_of(measured("MY/own", 10, "mine")), 0, "mine     bf16   MY/own"),
        (bench_of(), 0, "Nothing was timed."),
    ],
)
def test_a_row_that_failed_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bench: Bench, code: int, told: str
) -> None:
    assert main(["bench", "--report", str(save(tmp_path / "results", bench))]) == code
    assert told in capsys.readouterr().out
    cut_off = save(tmp_path / "cut", bench, finished=False)
    main(["bench", "--report", str(cut_off)])
    assert "The run was cut off." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "-"), (1.234e-6, "1.23 us"), (2.05e-4, "205 us"), (0.012345, "12.3 ms"), (0.5, "500 ms"), (2.0, "2.00 s")],
)
def test_times_are_told_with_three_digits(seconds: float | None, told: str) -> None:
    assert words.seconds(seconds) == told


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ("", False),
        ("bench", True),
        ("bench or dtype", True),
        ("not batch_invariant", False),
        ("not bench", False),
        ("bench and not dtype", True),
        ("bench and", False),
    ],
)
def test_the_benchmark_runs_where_its_mark_is_named_alone(expression: str, asked: bool) -> None:
    assert is_asked_for(expression) is asked


def test_a_plain_pytest_leaves_the_benchmark_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    plain = [*WITHOUT_PLUGINS, "-q", "suites/test_bench.py"]
    assert pytest.main(plain) == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "1 deselected" in capsys.readouterr().out
    assert pytest.main([*plain, "-m", "bench", "--collect-only"]) == pytest.ExitCode.OK


def test_what_narrows_a_run_is_told_on_its_page() -> None:
    options = Options(problems=("D1", "D8"), dtypes=("bf16",), quick=True, rounds=3)
    asked = ("--problem", "D1", "--problem", "D8", "--dtype", "bf16", "--quick", "--rounds", "3")
    assert options.asked == asked
    bench = bench_of(*FEW)
    page = as_page(replace(bench, header=replace(bench.header, asked=asked)))
    assert "`samebits bench --problem D1 --problem D8 --dtype bf16 --quick --rounds 3`" in page


def test_unknown_names_are_told_in_one_line(capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    for arguments, told in (
        (["--problem", "D9"], "unknown problem 'D9'; known are D1-8k"),
        (["--backend", "NOPE"], "unknown backend 'NOPE'; known are FLASH_ATTN"),
        (["--rounds", "0"], "'0' is no whole number from 1 to 10000"),
    ):
        assert main(["bench", "--list", *arguments]) == 2
        assert told in capsys.readouterr().err
    assert main(["bench", "--list", "--problem", "D1", "norm-64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "D1       bf16              1 x 1 query on 131072 keys, 32 heads over 8 of 128, pages of 16",
        "norm-64  bf16              64 rows of 4096",
    ]
