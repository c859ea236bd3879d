"""Mutants of the bundled kernels: made as they should be, tried as users' cells would, told as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.cli import main
from samebits.harness.mutation.accepted import ACCEPTED, Accepted, reason_for, stale
from samebits.harness.mutation.cpp_operators import cpp_edits
from samebits.harness.mutation.findings import Fate, Finding, read_findings
from samebits.harness.mutation.mutants import Edit, Mutant, Operator, numbered, sampled
from samebits.harness.mutation.page import as_page, told_of, unexplained
from samebits.harness.mutation.python_operators import python_edits
from samebits.harness.mutation.sources import SOURCES
from samebits.harness.records import UnusableInput

from .suite_runs import ROOT

MUTANTS = tuple(mutant for source in SOURCES for mutant in source.mutants())
PAGE = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")


def changes(edits: Callable[[bytes], list[Edit]], source: str) -> set[tuple[str, str]]:
    """Kind and result of each mutant of a source."""
    return {
        (str(mutant.operator), mutant.after) for mutant in numbered("source", source.encode(), edits(source.encode()))
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("return a < b", {("comparison", "return a <= b")}),
        ("return a == b", {("comparison", "return a != b")}),
        ("return x[2]", {("off by one", "return x[3]"), ("off by one", "return x[1]")}),
        ("return a * b // c", {("arithmetic", "return (a + b) // c"), ("arithmetic", "return (a * b % c)")}),
        ("return tl.maximum(a, b)", {("extremum", "return tl.minimum(a, b)")}),
        (
            "return t * stride_key_token + h * stride_key_head",
            {
                ("arithmetic", "return (t + stride_key_token) + h * stride_key_head"),
                ("arithmetic", "return t * stride_key_token + (h + stride_key_head)"),
                ("arithmetic", "return (t * stride_key_token - h * stride_key_head)"),
                ("stride", "return t * stride_key_head + h * stride_key_head"),
                ("stride", "return t * stride_key_token + h * stride_key_token"),
            },
        ),
        (
            "return tl.load(p, mask=a & b, other=c)",
            {
                ("mask", "return tl.load(p)"),
                ("mask", "return tl.load(p, mask=(a), other=c)"),
                ("mask", "return tl.load(p, mask=(b), other=c)"),
            },
        ),
        ("return x.to(tl.float32)", {("type", "return x.to(tl.float16)")}),
        ("if a: return", {("guard", "if False: return"), ("guard", "if True: return")}),
        ("if a:\n        return", {("guard", "if False:")}),
        ("return tl.where(a, b, c)", {("branch", "return b"), ("branch", "return c")}),
        ("return b if a else c", {("branch", "return b"), ("branch", "return c")}),
        ("return a and not b", {("logic", "return a or not b"), ("logic", "return a and b")}),
        ("return 0.0", {("constant", "return 1.0")}),
        ("return -a", {("sign", "return a")}),
        ("total += a", {("arithmetic", "total -= a"), ("statement", "pass")}),
        ("store(a)", {("statement", "pass")}),
        ('raise ValueError(f"{a + 1}")', set()),
        ("a: list[1] = b", set()),
    ],
)
def test_python_is_changed_in_each_way_that_it_should_be(line: str, expected: set[tuple[str, str]]) -> None:
    assert changes(python_edits, f'@jit(1)\ndef f(a=1):\n    """Text 1."""\n    {line}\n') == expected


def test_of_a_module_constants_and_the_chosen_functions_are_changed_and_no_declaration() -> None:
    source = "SIZE = 2\nclass K:\n    tile = 3\n    def __init__(self): self.x = 4\n    def run(self): return 5\n"
    assert {after for _, after in changes(python_edits, source)} == {
        f"{line}{number}" for line, number in (("SIZE = ", 3), ("SIZE = ", 1))
    } | {f"def run(self): return {number}" for number in (4, 6)}
    of_class = changes(lambda content: python_edits(content, ("K",)), source)
    assert {after for _, after in of_class} == {f"def run(self): return {number}" for number in (4, 6)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("return a <= b;", {("comparison", "return a < b;")}),
        ("return a && !b;", {("logic", "return (a || !b);"), ("logic", "return a && b;")}),
        ("return a * b % c;", {("arithmetic", "return (a + b) % c;"), ("arithmetic", "return (a * b / c);")}),
        ("return 0x7fu;", {("off by one", "return 128u;"), ("off by one", "return 126u;")}),
        ("return 0x1.8p1f;", {("constant", "return 6.0f;")}),
        ("return std::min<int64_t>(a, b);", {("extremum", "return std::max<int64_t>(a, b);")}),
        ("return a ? b : c;", {("branch", "return (b);"), ("branch", "return (c);")}),
        ("if (a) continue;", {("guard", "if (false) continue;")}),
        ("if (a) b = c;", {("guard", "if (false) b = c;"), ("guard", "if (true) b = c;")}),
        ("copy(a);", {("statement", ";")}),
        ("const double a = b;", {("type", "const float a = b;")}),
        ("total += a;", {("arithmetic", "total -= a;"), ("statement", "total;")}),
        ("static_assert(sizeof(a) == 4); // 5", set()),
    ],
)
def test_cpp_is_changed_in_each_way_that_it_should_be(line: str, expected: set[tuple[str, str]]) -> None:
    source = (
        f"#include <a>\n#define SIZE 8\nSAMEBITS_INLINE void f() {{\n#pragma omp for schedule(dynamic, 1)\n{line}\n}}\n"
    )
    assert changes(cpp_edits, source) == expected


def test_mutants_of_a_source_are_numbered_by_place_and_a_sample_depends_on_its_seed_alone() -> None:
    paths = {mutant.path for mutant in MUTANTS}
    assert paths == {source.path for source in SOURCES}, "a source has no mutant"
    of_merge = [mutant for mutant in MUTANTS if mutant.path == "kernels/cpu/merge.cpp"]
    assert [mutant.number for mutant in of_merge] == list(range(1, len(of_merge) + 1))
    assert [mutant.edit.start for mutant in of_merge] == sorted(mutant.edit.start for mutant in of_merge)
    drawn = sampled(MUTANTS, 5, seed=1)
    assert all(sum(mutant.path == path for mutant in drawn) <= 5 for path in paths)
    assert [mutant for mutant in drawn if mutant.path == "kernels/cpu/merge.cpp"] == list(sampled(of_merge, 5, seed=1))
    assert drawn != sampled(MUTANTS, 5, seed=2)


# Changes of a normalisation, one for each fate, tried by three of its cells; and a process that hangs.
_TRIAL = """
import time
from samebits.harness.mutation import fork, trials
from samebits.harness.mutation.mutants import Edit, Operator, numbered
from samebits.harness.mutation.sources import SOURCES

source = next(source for source in SOURCES if source.path == "kernels/cpu/rms_norm.cpp")
content = source.content()
edits = []
for before, after in (
    ("// Normalisation", "// A normalisation"),
    ("for schedule(static)", "for schedule(dynamic)"),
    ("kChunk = 256", "kChunk = 128"),
    ("(row + first, count,", "(row + first, count - 1,"),
    ("widen_row<element>(call.input", "__builtin_trap(); widen_row<element>(call.input"),
    ("const float factor", "const float float"),
):
    start = content.index(before.encode())
    edits.append(Edit(start, start + len(before), Operator.STATEMENT, after))
every = trials.cells_of
trials.cells_of = lambda session, group: every(session, group)[:3]
for finding in trials.tried([(source, mutant) for mutant in numbered(source.path, content, edits)]):
    print(finding.to_line())

def compute(say):
    while True:
        pass

for what, waited in ((lambda say: time.sleep(60), 1), (compute, 1000)):
    fork._WAITED = waited
    try:
        list(fork.answers(what, seconds=0.5))
    except fork.Hung as error:
        print(error)
"""


def test_mutants_come_to_what_they_should(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _TRIAL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    *lines, waits, computes = run.stdout.splitlines()
    (tmp_path / "findings.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = {finding.mutant.after: finding for finding in read_findings(tmp_path / "findings.jsonl")}
    fates = {after: (finding.fate, finding.ran) for after, finding in found.items()}
    assert fates == {
        "// A normalisation by the root mean square, row by row.": (Fate.UNCHANGED, 0),
        "#pragma omp for schedule(dynamic)": (Fate.UNCHANGED, 3),
        "constexpr int kChunk = 128;": (Fate.SURVIVED, 3),
        "round_row<element>(row + first, count - 1, call.output, index * call.size + first);": (Fate.KILLED, 1),
        "__builtin_trap(); widen_row<element>(call.input, call.rows.first_of(index), call.size, row);": (
            Fate.KILLED,
            0,
        ),
        "const float float = 1.0f / std::sqrt(mean_square + static_cast<float>(call.epsilon));": (Fate.INVALID, 0),
    }
    told = {finding.told.partition(":")[0] for finding in found.values() if finding.ran == 0}
    assert told >= {"the same machine code", "crashed"}
    survivor = found["constexpr int kChunk = 128;"]
    assert survivor.changed > 0, "it adds up in another order"
    assert not survivor.regressed, "other bits are no regression"
    assert (waits, computes) == ("starting: waits", "starting: no end")


def _finding(fate: Fate, **values: Any) -> Finding:  # noqa: ANN401 -- any attributes
    return Finding(Mutant("a.py", 1, Edit(0, 1, Operator.SIGN, ""), 7, "x = -1", "x = 1"), fate, **values)


def test_survivors_are_told_with_their_reasons_and_one_without_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = _finding(Fate.KILLED, suite="dtype", relation="plain", ran=3, changed=1)
    survivor = _finding(Fate.SURVIVED, ran=9, changed=2)
    findings = [killed, killed, killed, survivor]
    assert unexplained(findings) == [survivor]
    page = as_page(findings, [finding.mutant for finding in findings], "samebits mutants")
    assert "Of these 4, 3 are killed (75.0%) and 1 survive, of which 0 are as right as the source" in page
    assert "line 7, sign: `x = -1` becomes `x = 1`. Other bits in 2 of 9 cells (new bits). **unexplained**" in page
    monkeypatch.setattr("samebits.harness.mutation.page.reason_for", lambda mutant: "It is symmetric.")
    assert unexplained(findings) == []
    told = told_of(findings, [survivor.mutant])
    assert "of which 1 are as right as the source; of all others 100.0% are killed" in told


def test_a_reason_whose_source_has_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Accepted("kernels/cpu/merge.cpp", "a line that is gone", "another", "Nobody knows.")
    monkeypatch.setattr("samebits.harness.mutation.command.stale", lambda mutants: stale(mutants, [gone]))
    assert main(["mutants", "--only", "merge.cpp"]) == 2
    assert "kernels/cpu/merge.cpp has no mutant any more that makes 'another' of 'a line that is gone'" in (
        capsys.readouterr().err
    )


def test_every_reason_fits_its_source_and_is_on_the_page() -> None:
    assert stale(MUTANTS) == [], "remove these from harness/mutation/accepted.py"
    assert [known.reason for known in ACCEPTED if known.reason not in PAGE] == [], "write docs/mutants.md again"


def test_every_survivor_of_the_page_is_a_mutant_of_todays_sources_and_has_a_reason() -> None:
    survivors = re.findall(r"^\* `(\S+)` line \d+, [\w ]+: `(.*?)` becomes `(.*?)`\. Other bits", PAGE, re.MULTILINE)
    assert len(survivors) == PAGE.count("Other bits in "), "a survivor is told in other words"
    known = {(mutant.path, mutant.before, mutant.after): mutant for mutant in MUTANTS}
    gone = [survivor for survivor in survivors if survivor not in known]
    assert gone == [], "these lines have changed: write docs/mutants.md again"
    assert [survivor for survivor in survivors if not reason_for(known[survivor])] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "build.py"], "unknown source 'build.py'; known are kernels/cpu/attention.cpp"),
        (["--sample", "0"], "--sample is 0; it must be at least 1"),
    ],
)
def test_unusable_input_is_told(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutants", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UnusableInput, match=r"results holds no findings of mutants: 'mutant'; give another file$"):
        read_findings(tmp_path / "results")
