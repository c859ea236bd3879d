"""The page of implementations tells at once who holds batch invariance, who does not, and by which smallest batch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from samebits.backends.subject import Claims
from samebits.harness.matrix import Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry
from samebits.harness.relations import Relation
from samebits.harness.suite_cells import SUITES
from samebits.reports.audits import CLAIMS, claim_attribute
from samebits.reports.baseline import Baseline
from samebits.reports.baseline_files import read_baseline
from samebits.reports.commands import portable
from samebits.reports.findings import easiest
from samebits.reports.implementations_page import implementations_page
from samebits.reports.regression import compare

from .samples import FAILS, GREEN, UNAVAILABLE, UNSUPPORTED, VARIES, cell, control, run_of

FA3 = "FLASH_ATTN/vllm-fa3[num_splits=1]"
DOCS = Path(__file__).parent.parent / "docs" / "h100.md"
H100 = Path(__file__).parent.parent / "reports" / "baselines" / "h100.jsonl"
MARKER = "<!-- generated: implementations.md of the run, as samebits report writes it -->\n"


def relations_of_the_suites() -> list[Relation]:
    """Every relation that a cell may have, from the cells themselves, so that none can be left out."""
    selection = Selection(load_registry().select(["CPU"]), (), "smoke")
    cells = (cell for of_suite in SUITES.values() for cell in of_suite(selection))
    return list({(cell.relation.name, cell.relation.claim): cell.relation for cell in cells}.values())


JUDGED = [relation for relation in relations_of_the_suites() if relation.claim is not None]


def page_of(*records: Record) -> str:
    return implementations_page(compare(run_of(*records), Baseline("none", ())))


def group_of(page: str, title: str) -> str:
    """The lines under a title of the first list."""
    found = re.search(rf"\*\*{re.escape(title)}\*\*\n\n((?:- .*\n)+)", page)
    return found.group(1) if found else ""


def section_of(page: str, label: str) -> str:
    return page.split(f"\n## {label}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("relation", JUDGED, ids=lambda relation: relation.name)
def test_each_relation_counts_for_the_claim_that_the_harness_judges_by_it(relation: Relation) -> None:
    told = claim_attribute(relation.name)
    assert told == relation.claim, f"{relation.name} counts for {told}, but judges {relation.claim}"


def test_every_claim_that_is_judged_has_a_column() -> None:
    judged = {relation.claim for relation in JUDGED}
    assert {claim.attribute for claim in CLAIMS} == judged
    assert judged <= {field.name for field in dataclasses.fields(Claims)}


def test_a_broken_claim_comes_first_with_its_smallest_batch_and_its_command() -> None:
    broken = [
        cell(FA3, "position", **FAILS | {"smallest_batch": "[r1:q1c9] against [r1:q1c9 r2:q200c0]"}),
        cell(FA3, "pages", **FAILS | {"smallest_batch": "[r1:q1c10] against [r1:q1c10 r2:q16c0]"}),
        cell(FA3, "padding"),
    ]
    page = page_of(*broken, cell("CPU/bundled"), control())
    told = group_of(page, "Claimed, and broken")
    assert "2 of 3 cells, smallest batch `[r1:q1c10] against [r1:q1c10 r2:q16c0]`" in told, told
    assert page.index(told) < page.index("## Claims and findings"), "the main fact is not told first"
    assert "CPU/bundled" in group_of(page, "Claimed, and held in every cell")
    section = section_of(page, r"FLASH_ATTN/vllm-fa3\[num_splits=1\]")
    for record in broken[:2]:
        assert f"{record.relation} 1/1" in section
        assert record.smallest_batch in section
        assert f"reproduce: `{record.command}`" in section
    assert "**broken** in 2 of 3 cells; held in padding" in section


def test_what_nobody_promised_varies_and_is_not_broken() -> None:
    page = page_of(*GREEN, cell("FLASH_ATTN/torch", "pages", **VARIES))
    assert "FLASH_ATTN/torch" in group_of(page, "Not claimed, and the bits differ")
    assert not group_of(page, "Claimed, and broken")
    assert "**broken" not in page


def test_cells_that_are_wrong_as_is_known_hold_no_claim() -> None:
    known: dict[str, Any] = {
        "verdict": Verdict.KNOWN,
        "error_budget": 9.0,
        "reasons": ("known: issue 7", "9 of the error budget"),
    }
    page = page_of(cell(dtype="fp32", **known), cell(dtype="bf16"))
    assert "(bf16); 1 wrong cell aside (fp32)" in group_of(page, "Claimed, and held in every cell")
    assert "- **known: issue 7**: 1 cell (fp32) of position" in page
    page = page_of(cell(dtype="fp32", **known))
    assert "CPU/bundled" in group_of(page, "Not judged: no cell of it was right")
    assert "no cell judges it; 1 wrong cell aside (fp32)" in page


def test_a_known_gap_does_not_hide_that_bits_differ() -> None:
    known = FAILS | {"verdict": Verdict.KNOWN, "reasons": ("known: issue 8", *FAILS["reasons"])}
    page = page_of(cell(**known), cell(relation="pages"))
    assert "1 of 2 cells" in group_of(page, "Claimed, and broken"), "a claim that is known to be broken passes for held"


def test_wrong_values_and_errors_are_told_beside_a_claim_that_holds() -> None:
    wrong = cell(relation="sinks", claimed=None, verdict=Verdict.FAIL, error_budget=4.0, reasons=("4 of the budget",))
    raised = cell(relation="window", claimed=None, verdict=Verdict.ERROR, error_budget=None, reasons=("Boom: no",))
    right = [cell(relation="groups", claimed=None), cell(relation="sinks", dtype="fp32", claimed=None)]
    page = page_of(cell(), wrong, raised, *right)
    assert "CPU/bundled" in group_of(page, "Claimed, and held in every cell")
    row = next(line for line in page.splitlines() if line.startswith("| [CPU/bundled]"))
    assert "**wrong 1**, **raised 1** of 5" in row
    assert row.rstrip(" |").endswith("4"), f"the worst error budget of bf16 is not 4: {row}"
    section = section_of(page, "CPU/bundled")
    assert "sinks 1/2, bf16, causal: 4 of the budget" in section
    assert "window 1/1, bf16, causal: Boom: no" in section
    assert "right in the one cell of groups" in section, "a relation with a wrong cell is among those that are right"


def test_other_operations_have_a_row_and_do_not_mix_with_attention() -> None:
    rope = cell(relation="decode", operation="rope", geometry="rope", mask="", **VARIES)
    page = page_of(cell(), rope)
    assert not group_of(page, "Not claimed, and the bits differ"), "rope was told as attention"
    assert re.search(r"^\| \[CPU/bundled\]\(#cpubundled\) \| varies 1, right 1 +\|$", page, flags=re.MULTILINE)
    assert "**rope, schedule invariance**, not claimed: varies in 1 of 1 cell" in section_of(page, "CPU/bundled")


def test_what_did_not_run_has_a_reason_and_no_section() -> None:
    absent = cell("AITER/triton[kvcache]", reasons=("no module",), **UNAVAILABLE)
    page = page_of(cell(), cell(relation="pages", reasons=("page_size 1 is not supported",), **UNSUPPORTED), absent)
    assert "## AITER" not in page
    assert "- AITER/triton\\[kvcache\\]: no module\n" in page
    assert "<summary>Unsupported: 1 cell, and why</summary>" in page
    assert "- **CPU/bundled**: page_size 1 is not supported (1)" in page


def test_controls_are_no_implementations() -> None:
    assert "breaks_position" not in page_of(cell(), control())


def test_the_links_of_the_tables_lead_to_sections() -> None:
    page = page_of(cell(FA3), cell("CPU/bundled"), cell("AITER/triton[kvcache]"))
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#(.*?)\)", page))
    assert links, "no table links to a section"
    assert links <= anchors, f"{links - anchors} lead nowhere"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pytest -m dtype --cell 'CPU/b[x]:y'", "pytest -m dtype --cell 'CPU/b[x]:y'"),
        ("pytest --libs /home/me/libs -m dtype --cell a", "pytest --libs DIR -m dtype --cell a"),
        ("pytest --libs '/home/me/my libs' --libs /x --cell a", "pytest --libs DIR --libs DIR --cell a"),
        ("pytest --load /home/me/mine.py --cell a", "pytest --load mine.py --cell a"),
        ("pytest --cell 'unclosed", "pytest --cell 'unclosed"),
    ],
)
def test_a_published_command_names_no_folder_of_its_machine(command: str, told: str) -> None:
    assert portable(command) == told
    assert told.replace("`", "") in page_of(cell(**FAILS | {"command": command}))


def test_the_easiest_cell_is_that_of_the_fewest_tokens_all_of_them_told() -> None:
    batches = (
        "",
        "[r1:q1c2] against [r1:q1c2 (9 more) r2:q1c2]",
        "[r1:q1c1000] against [r1:q1c1000 r2:q2c0]",
        "[r1:q1c16e3] against [r1:q1c16e3 r1001:q2c0]",
        "[r1:q1c16e40] against [r1:q1c16e40 r2:q2c0]",
    )
    found = easiest(cell(case=f"case-{place}", smallest_batch=batch) for place, batch in enumerate(batches))
    assert found.smallest_batch == batches[3]


def test_the_committed_page_is_generated_below_its_marker_and_names_no_machine() -> None:
    written, marker, generated = DOCS.read_text(encoding="utf-8").partition(MARKER)
    assert marker, f"{DOCS.name} has no line {MARKER!r}"
    assert written.count("\n") < 25, "what is written by hand pushes the facts off the first screen"
    assert generated.startswith("# samebits: implementations on cuda NVIDIA H100")
    paths = re.findall(r"(?<![\w.])/(?:root|home|work|tmp|mnt|data)/\S*", generated)
    assert not paths, f"the page names folders of the machine that ran it: {paths[:3]}"


@pytest.mark.skipif(not H100.exists(), reason="the H100 baseline is not committed yet")
def test_every_example_of_the_committed_page_is_a_cell_of_the_baseline_that_did_not_pass() -> None:
    verdicts = {row.cell_id: row.verdict for row in read_baseline(H100).rows}
    examples = re.findall(r"--cell (?:'([^']+)'|([^'`\s]+))`", DOCS.read_text(encoding="utf-8"))
    assert examples, "the page has no command"
    for quoted, bare in examples:
        verdict = verdicts.get(quoted or bare)
        assert verdict not in (None, Verdict.PASS), f"{quoted or bare} is {verdict} in {H100.name}, and told as broken"
