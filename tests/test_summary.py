"""The summary that a run ends with, and what makes it red."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.graphs.relations import GRAPH_RELATIONS, TOKEN_GRAPH_RELATIONS
from samebits.harness.inputs import INPUTS, TOKEN_INPUTS
from samebits.harness.record_files import read_run
from samebits.harness.records import Record, Run, Verdict
from samebits.harness.relation_order import merged_order
from samebits.harness.relations import RELATIONS
from samebits.harness.semantics import MEANINGS
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES
from samebits.harness.tokens.relations import ROTARY_RULES, TOKEN_RELATIONS
from samebits.reports.baseline_files import read_baseline, write_baseline
from samebits.reports.findings import findings, guards
from samebits.reports.regression import compare
from samebits.reports.report import Report, write_report
from samebits.reports.sentences import run_sentences
from samebits.reports.tables import budget_table, cell_table, claim_held, implementation_table

from .samples import (
    CPU,
    FAILS,
    GREEN,
    NO_BASELINE,
    REGRESSED,
    UNAVAILABLE,
    UNSUPPORTED,
    VARIES,
    cell,
    control,
    run_of,
    save,
)


def report_of(tmp_path: Path, *records: Record, baseline: Path | None = None, **header: Any) -> Report:  # noqa: ANN401
    read = NO_BASELINE if baseline is None else read_baseline(baseline)
    return write_report(run_of(*records, **header), read, tmp_path)


def test_the_summary_of_a_green_run_reads_so(tmp_path: Path) -> None:
    report = report_of(tmp_path, *GREEN)
    assert report.summary == (
        "Run 20261121T093400Z: batch_invariant, default tier, fp32, bf16; 7 cells and 2 controls.\n"
        "On cpu x86_64+avx512, 1 thread, torch 2.13.0, triton 3.7.1.\n"
        "\n"
        "                       relations  relations                                   un-        un-   worst  worst\n"
        "implementation           claimed       held  cells  pass  varies  fail  supported  available  budget    ULP\n"
        "-----------------------------------------------------------------------------------------------------------\n"
        "FLASH_ATTN/torch               -        1/2      3     2       1     -          -          -     0.3  1,234\n"
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


def test_the_smallest_batch_of_a_summary_is_that_of_the_fewest_tokens_not_of_the_shortest_text(tmp_path: Path) -> None:
    few = "[r1:q1c1] against [r1:q1c1 r2:q1c0 r3:q1c0]"
    long_prefill = VARIES | {"smallest_batch": "[r1:q1c9000] against [r1:q1c9000 r2:q1c0]"}
    cells = [
        cell("CPU/bundled", "pages", **long_prefill),
        cell("CPU/bundled", "decode", **VARIES | {"smallest_batch": few}),
    ]
    assert f"    smallest batch, decode: {few}\n" in report_of(tmp_path, *cells).summary


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
    folded = "<details><summary>Implementations</summary>"
    assert page.index("## What changed") < page.index("## What failed") < page.index(folded)
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
        ((), {}, "RED: no cell ran."),
        ((control(),), {}, "NOTHING RAN: no implementation was checked, every control was caught."),
        (
            (cell("CPU/bundled", **UNAVAILABLE), cell("CPU/torch", **UNSUPPORTED)),
            {"narrowed": True},
            "NOTHING RAN: no implementation was checked.",
        ),
        ((cell("CPU/bundled", **UNAVAILABLE), control(verdict=Verdict.PASS)), {}, "RED: 1 control not caught."),
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
    report = write_report(read_run(tmp_path), NO_BASELINE, tmp_path)
    assert report.summary.endswith("RED: the run was cut off.")
    assert "Cut off: it was killed or has not finished yet" in report.summary
    assert "No cell of FLASH_ATTN/torch, AITER/triton[kvcache] finished." in report.summary


def test_an_implementation_without_cells_in_the_suites_is_not_awaited() -> None:
    session = MatrixSession(Options(backends=("TRITON_ATTN", "CPU"), tier="smoke", dtypes=("bf16",)))
    header = session.header(("compile",), narrowed=False, cell_ids=())
    assert set(header.expected) == {"TRITON_ATTN/bundled"} < set(header.implementations)
    told = run_sentences(compare(Run(header, (control(),)), NO_BASELINE))
    assert told[-1] == "No cell of TRITON_ATTN/bundled finished."


def test_the_summary_fits_a_terminal_of_120_columns(tmp_path: Path) -> None:
    long = {"reasons": ("a sentence that goes on and on " * 12,), "smallest_batch": "[r1:q1c1 r2:q1c0] " * 20}
    cells = [
        cell(label, relation, dtype, **(wanted | long))
        for label, wanted in (("FLASH_ATTN/torch", VARIES), ("CPU/bundled", FAILS), ("CPU/torch", {}))
        for relation in list(RELATIONS)[:12]
        for dtype in ("fp32", "bf16")
    ]
    cells += [cell("AITER/triton[kvcache]", f"x{i}", reasons=(f"{i} " * 90,), **UNSUPPORTED) for i in range(20)]
    summary = report_of(tmp_path, *cells).summary
    wide = [line for line in summary.splitlines() if len(line) > 120 and "reproduce: " not in line]
    assert not wide, f"lines of more than 120 columns: {wide}"
    assert len(summary.splitlines()) < 110, f"{len(summary.splitlines())} lines are no summary"
    assert "and 4 more groups, in the files" in summary
    assert "and 12 more reasons, in the files" in summary
    nine = report_of(tmp_path, *cells[-9:]).summary
    assert "and 1 more reason, in the files" in nine


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
    assert "<summary>Error budgets</summary>" in report.paths[0].read_text()


def test_a_cell_that_fails_as_is_known_is_counted_and_hides_no_figure(tmp_path: Path) -> None:
    known = cell("CPU/bundled", "ties", "bf16", suite="dtype", claimed=None, verdict=Verdict.KNOWN, error_budget=1e9)
    right = [replace(known, cell_id=f"x{i}", verdict=Verdict.PASS, error_budget=i / 10, max_ulp=i) for i in (1, 2)]
    cells = cell_table(compare(run_of(known, *right, suites=("dtype",)), NO_BASELINE))
    (of_implementation,) = implementation_table(cells).to_dict("records")
    (of_dtype,) = budget_table(cells).to_dict("records")
    assert (of_implementation["error_budget"], of_implementation["max_ulp"]) == (0.2, 2)
    assert (of_dtype["worst"], of_dtype["max_ulp"], of_dtype["cells"]) == (0.2, 2, 2)
    assert (of_implementation["cells"], of_implementation["known"]) == (3, 1), "the known failure is not counted"


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


@pytest.mark.parametrize("suite", SUITES)
def test_relations_are_told_in_the_order_of_the_suite(suite: str) -> None:
    session = MatrixSession(Options(backends=("TRITON_ATTN", "CPU"), tier="smoke", dtypes=("fp32",)))
    order = session.header((suite,), narrowed=False, cell_ids=()).relations
    cells = list(SUITES[suite](session.selection))
    assert set(order) == {cell.relation.name for cell in cells}, "relations without their place"
    assert len(order) == len(set(order))
    of_tokens = (TOKEN_INPUTS, ROTARY_RULES, TOKEN_RELATIONS, TOKEN_GRAPH_RELATIONS)
    for declared in (RELATIONS, INPUTS, MEANINGS, GRAPH_RELATIONS, *of_tokens):
        assert [name for name in order if name in declared] == [name for name in declared if name in order]


def test_findings_and_controls_are_told_in_the_order_of_the_header() -> None:
    told = ("decode", "position", "a_later_one", "unheard_of")
    records = [make(relation) for relation in sorted(told) for make in (control, _fails)]
    run = run_of(*records, relations=("decode", "position", "never_run"))
    assert tuple(finding.relation for finding in findings(run.records, run.header)) == told
    assert tuple(guard.relation for guard in guards(run)) == told


def _fails(relation: str) -> Record:
    return cell("CPU/bundled", relation, **FAILS)


@pytest.mark.parametrize(
    ("sequences", "order"),
    [
        ([], ""),
        (["abd", "bcd"], "abcd"),
        (["bd", "abc", "cd"], "abcd"),
        (["a", "b", "c"], "abc"),
        (["ab", "ba"], "ab"),
    ],
)
def test_each_relation_is_placed_between_its_neighbours(sequences: list[str], order: str) -> None:
    assert "".join(merged_order([tuple(sequence) for sequence in sequences])) == order
