"""The page that people look at: all of a run is on it, it is sound HTML, and no record's text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.explanation import Addends, Explanation, Manner, Order, Side, Sum
from samebits.harness.records import Record, Verdict
from samebits.reports.baseline import Baseline, BaselineRow
from samebits.reports.html.marks import MARKS
from samebits.reports.html.page import html_page
from samebits.reports.html.palette import DAY, HEAT, NIGHT, TONES, Palette, contrast
from samebits.reports.regression import compare

from .html_pages import Element, data_of, listed_cells, parsed
from .samples import FAILS, GREEN, HEADER, NO_BASELINE, REGRESSED, UNAVAILABLE, VARIES, cell, control, run_of, save

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;]]>\u2028\udc80\x1b[31m"


def page_of(*records: Record, baseline: Baseline = NO_BASELINE) -> str:
    return html_page(compare(run_of(*records), baseline))


def baseline_of(*records: Record) -> Baseline:
    return Baseline("before", tuple(BaselineRow.of(record, HEADER) for record in records))


@pytest.fixture(scope="module")
def page() -> Element:
    """Of a run with everything: it failed, regressed, lost a cell, and one of its controls was not caught."""
    missed = control("extend", verdict=Verdict.PASS)
    lost = cell(relation="extend")
    known = cell("FLASH_ATTN/torch", "extend", verdict=Verdict.KNOWN, reasons=("issue 7",), error_budget=float("nan"))
    raised = cell(relation="batch_size", verdict=Verdict.ERROR, reasons=("SIGSEGV",), digest="", max_ulp=None)
    baseline = baseline_of(*GREEN, lost, raised)
    return parsed(page_of(*REGRESSED, missed, known, raised, baseline=baseline))


def test_the_page_is_the_same_to_the_byte_in_any_order_and_under_any_seed_of_hashing(tmp_path: Path) -> None:
    save(tmp_path, *REGRESSED)
    expected = page_of(*REGRESSED)
    assert expected == page_of(*REGRESSED[::-1]), "the order in which cells finish is told"
    program = (
        "import hashlib, sys\nfrom pathlib import Path\n"
        "from samebits.harness.record_files import read_run\nfrom samebits.reports.baseline import Baseline\n"
        "from samebits.reports.html.page import html_page\nfrom samebits.reports.regression import compare\n"
        "page = html_page(compare(read_run(Path(sys.argv[1])), Baseline('baselines', ())))\n"
        "print(hashlib.sha256(page.encode()).hexdigest(), 'torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told == [hashlib.sha256(expected.encode()).hexdigest(), "False"], "another page, or torch was imported"


def test_every_cell_is_on_the_page_with_its_verdict_and_its_reasons(page: Element) -> None:
    cells = listed_cells(page)
    missing = "CPU/bundled:extend:llama3-8b-causal-mixed:bf16"
    assert Counter(cells.pop(name)["mark"] for name in list(cells) if name == missing) == {"missing": 1}
    assert len(cells) == len(REGRESSED) + 3
    for record in REGRESSED:
        told = cells[record.cell_id]
        expected = "caught" if record.control else record.verdict.value
        assert (told["mark"], tuple(told["reasons"]), told["digest"]) == (expected, record.reasons, record.digest)
    assert cells["CONTROL/breaks_extend:extend:llama3-8b-causal-mixed:fp32"]["mark"] == "not caught"
    assert cells["FLASH_ATTN/torch:extend:llama3-8b-causal-mixed:bf16"]["budget"] == "nan"
    assert cells[REGRESSED[2].cell_id]["state"] == "regressed"


def test_what_repeats_is_told_once(page: Element) -> None:
    """Thousands of cells differ in little, and what they share would be most of the page."""
    cells = [
        cell(case=f"case_{number}", cell_id=f"CPU/bundled:position:case_{number}:bf16", digest=f"{number:032}")
        for number in range(100)
    ]
    few, many = (page_of(*cells[:count]) for count in (20, 100))
    assert len(listed_cells(parsed(many))) == 100
    assert len(many) - len(few) < 80 * 90, f"a cell more is {(len(many) - len(few)) / 80:.0f} characters more"


def test_the_worst_cells_are_listed_first(page: Element) -> None:
    marks = [told["mark"] for told in listed_cells(page).values()]
    order = [mark.name for mark in MARKS]
    assert marks == sorted(marks, key=order.index)


def test_the_first_screen_tells_why_a_run_is_red_and_leads_to_the_cell(page: Element) -> None:
    assert page.one("h1").text.startswith("✗ RED 1 cell failed, 1 cell raised an error, 1 control not caught")
    failures = next(panel for panel in page.all("section", css="panel") if "What failed" in panel.text)
    assert "claims batch_invariant, but 7 of 100 elements differ" in failures.text
    assert "CONTROL/breaks_extend:extend" in failures.text, "a control that was not caught is not told"
    links = [link.attributes["href"] for link in failures.all("a")]
    assert "#cell=CPU%2Fbundled%3Aposition%3Allama3-8b-causal-mixed%3Abf16" in links
    since = next(panel for panel in page.all("section", css="panel") if "Since the baseline" in panel.text)
    assert "▼1 regressed ?1 missing +2 new =9 same" in since.text
    environment = next(panel for panel in page.all("section", css="panel") if "Environment" in panel.text)
    assert "cpu x86_64+avx512" in environment.text
    assert "torch2.13.0" in environment.text


def test_the_first_screen_tells_each_reason_once_and_every_broken_implementation_first() -> None:
    broken = [
        cell(relation=relation, dtype=dtype, **(FAILS | {"reasons": (f"first {value} at 0x{value}f, -inf", "and so")}))
        for value, relation in ((7, "decode"), (8, "position"))
        for dtype in ("bf16", "fp32")
    ]
    others = [cell(relation=f"of_{name}", **(FAILS | {"reasons": (f"because of {name}",)})) for name in "abcdef"]
    raised = {"verdict": Verdict.ERROR, "digest": ""}
    died = [
        cell(
            "FLASH_ATTN/torch",
            "extend",
            dtype,
            reasons=(f"it died (after {n} other cells, the last of them X)",),
            **raised,
        )
        for n, dtype in enumerate(("bf16", "fp32"))
    ]
    page = parsed(page_of(*broken, *others, *died, cell(relation="position", dtype="fp16")))
    panel = next(panel for panel in page.all("section", css="panel") if "What failed" in panel.text)
    lines = [item.text for item in panel.all("li")]
    assert lines[0] == (
        "✗ fail CPU/bundled 4 of 5 cells first 7 at 0x7f, -inf; and so batch_invariant: position, decode"
    ), "cells that differ in numbers alone are not one failure"
    assert lines[1].startswith("! error FLASH_ATTN/torch 2 of 2 cells it died (after"), lines
    assert [line.rpartition("because")[2] for line in lines[2:]] == [
        f" of {name} batch_invariant: of_{name}" for name in "abc"
    ]
    assert panel.text.endswith("3 reasons more, by implementation")
    first = panel.all("li")[0].all("a")
    stops = [link.attributes["href"] for link in first if link.attributes.get("tabindex") != "-1"]
    assert len(stops) == len(set(stops)) == len({link.attributes["href"] for link in first}), "a cell has two tab stops"
    links = {link.text: link.attributes["href"] for link in first}
    assert links["decode"] == "#cell=CPU%2Fbundled%3Adecode%3Allama3-8b-causal-mixed%3Abf16"


def test_the_heat_map_counts_every_cell_in_words_beside_symbols_and_tints(page: Element) -> None:
    heat_map = page.one("div", css="heat-map")
    places = {
        link.attributes["href"]: (link.parent, link.text)
        for link in heat_map.all("a")
        if "suite=" in str(link.attributes["href"])
    }
    place, told = places["#implementation=CPU%2Fbundled&suite=batch_invariant"]
    assert told == "!1 error ✗1 fail ?1 missing ✓1 pass ▼1 regressed"
    assert place is not None
    assert "alarm" in str(place.attributes["class"]), "a failure must be seen from afar"
    place, told = places["#implementation=FLASH_ATTN%2Ftorch&suite=batch_invariant"]
    assert told == "◆1 known ≈1 varies ✓2 pass"
    assert "CONTROL" not in heat_map.text


def test_the_page_is_sound_html_that_can_be_found_ones_way_in(page: Element) -> None:
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == [], "ids that occur twice"
    for landmark in ("main", "header", "nav", "footer"):
        assert page.all(landmark), f"no <{landmark}>"
    assert page.one("html").attributes["lang"] == "en"
    levels = [int(heading.name[1]) for heading in page.one("main").all() if re.fullmatch("h[1-6]", heading.name)]
    assert levels[0] == 1
    assert not [pair for pair in pairwise(levels) if pair[1] > pair[0] + 1], "a level is left out"
    assert not [head.text for head in page.all("th") if head.attributes.get("scope") not in ("col", "row")]
    for table in page.all("table"):
        region = table.parent
        assert table.all("caption") or (region and region.attributes.get("aria-label")), "a table without a name"
    for section in page.all("section") + page.all("dialog"):
        assert section.attributes["aria-labelledby"] in ids
    for form_control in page.all("select") + page.all("input"):
        assert form_control.parent is not None
        assert form_control.parent.name == "label", "a control without a label"
    for drawing in page.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert drawing.attributes["aria-label"]


def test_every_link_leads_to_a_place_a_cell_or_a_list_of_cells_of_the_page(page: Element) -> None:
    places = {element.attributes["id"] for element in page.all() if "id" in element.attributes}
    cells = {f"#cell={name}" for name in listed_cells(page)}
    for link in page.all("a"):
        href = str(link.attributes["href"])
        assert href.startswith("#"), f"{href} leads off the page"
        if href.startswith("#cell="):
            assert re.sub("%([0-9A-F]{2})", lambda hex_: chr(int(hex_[1], 16)), href) in cells
        elif not re.match(r"#(implementation|since|verdict)=", href):
            assert href[1:] in places, f"{href} leads nowhere"
    for link in page.one("div", css="heat-map").all("a"):
        assert str(link.attributes["href"])[1:] in places, "without a script, a place of the matrix leads nowhere"


def test_symbols_are_not_read_out_and_words_always_stand_beside_them(page: Element) -> None:
    for symbol in page.all("i"):
        if symbol.parent is not None and {"badge", "count"} & set(str(symbol.parent.attributes.get("class")).split()):
            assert symbol.attributes.get("aria-hidden") == "true"
    for counted in page.all("span", css="count"):
        if counted.parent is not None and counted.parent.name != "a":
            assert counted.all("span", css="heard"), f"{counted.text!r} is told by a symbol alone"
    assert len({mark.symbol for mark in MARKS if mark.name not in ("caught", "not caught")}) == len(MARKS) - 2


@pytest.mark.parametrize("palette", [DAY, NIGHT], ids=["day", "night"])
def test_text_and_symbols_stand_out_from_what_is_behind_them(palette: Palette) -> None:
    """WCAG 2.2: 4.5 for text, 3 for symbols and edges that carry a meaning."""
    plain = [(name, behind, 4.5) for name in ("ink", "quiet", "link", *TONES) for behind in ("surface", "raised")]
    plain += [("edge", behind, 3.0) for behind in ("surface", "raised")]
    for name, behind, least in plain:
        found = contrast(getattr(palette, name), getattr(palette, behind))
        assert found >= least, f"{name} on {behind} has a contrast of {found:.2f}; it must be {least}"
    for tone, level in product(TONES, range(1, len(HEAT) + 1)):
        tint = palette.heat(tone, level)
        assert contrast(palette.ink, tint) >= 4.5, f"numbers on {tone} {level}"
        for symbol in TONES:
            found = contrast(getattr(palette, symbol), tint)
            assert found >= 3.0, f"a symbol of {symbol} on {tone} {level} has a contrast of {found:.2f}"


def test_what_a_record_holds_is_text_and_never_markup() -> None:
    foreign: dict[str, Any] = dict.fromkeys(
        ("relation", "case", "mask", "geometry", "version", "smallest_batch", "command"), HOSTILE
    )
    foreign |= {"backend": HOSTILE, "implementation": HOSTILE, "variant": HOSTILE, "dtype": HOSTILE, "suite": HOSTILE}
    bad = cell(**(FAILS | {"reasons": (HOSTILE,), "cell_id": f"{HOSTILE}:1"} | foreign))
    gone = cell(**(UNAVAILABLE | {"reasons": (HOSTILE,), "cell_id": f"{HOSTILE}:2"} | foreign))
    caught = replace(control(), cell_id=f"{HOSTILE}:3", **foreign)
    told = page_of(bad, gone, caught, baseline=baseline_of(replace(bad, digest="b")))
    told.encode()
    hostile = parsed(told)
    assert len(hostile.all("script")) == 2, "a record's text became a script"
    assert not hostile.all("img")
    assert not [name for element in hostile.all() for name in element.attributes if name.startswith("on")]
    assert "\x1b" not in told
    assert "<img src=x" in hostile.one("main").text, "what the record holds is not shown as it is"
    assert {name[-2:] for name in listed_cells(hostile)} == {":1", ":2", ":3"}


def test_the_page_allows_its_own_style_and_script_and_nothing_from_a_network(page: Element) -> None:
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    for name, element in (("style-src", page.one("style")), ("script-src", page.all("script")[1])):
        digest = hashlib.sha256(element.raw.encode()).digest()
        assert rules.pop(name) == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert set(rules.values()) == {"'none'"}
    assert not [element.name for element in page.all() if "src" in element.attributes or "style" in element.attributes]
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]


@pytest.mark.parametrize("records", [(), (control(),), (cell(**UNAVAILABLE),), (cell("FLASH_ATTN/torch", **VARIES),)])
def test_runs_of_which_little_is_known_have_a_sound_page(records: tuple[Record, ...]) -> None:
    assert len(listed_cells(parsed(page_of(*records)))) == len(records)


def test_why_both_sides_of_a_failure_differ_is_told_and_drawn() -> None:
    chain = Sum(0, 3, 4, 1, Manner.ONE_BY_ONE)
    halves = Sum(0, 3, 4, 1, Manner.AT_ONCE, (Addends(2, 2, (Sum(0, 1, 2, 1),)),))
    sides = tuple(Side(f"[{HOSTILE}]", Order(each), Order(note="not asked")) for each in (chain, halves))
    explained = Explanation("r1", 3, "output", "1.0 and 2.0", {"0": 90, "1": 7, "2 to 3": 3}, sides)
    repro = "samebits repro CPU/bundled position '[r1:q1c3] against [r1:q1c3 r2:q1c0]'"
    bad = cell(**(FAILS | {"explanation": explained, "repro": repro, "smallest_batch": "[r1:q1c3] against [r1:q1c3]"}))
    page = parsed(page_of(bad))
    section = page.one("details", id="of-CPU%2Fbundled")
    assert "units in the last place apart: 0 in 90, 1 in 7, 2 to 3 in 3" in section.text
    assert repro in section.text
    assert [str(drawing.attributes["aria-label"])[:9] for drawing in section.all("svg")] == [
        "One side ", "Elements ", "Order of ", "Error bud", "Largest U",
    ]  # fmt: skip
    rare = data_of(page)["rare"]
    assert rare["repro"]["0"] == repro
    assert rare["why"]["0"][0].startswith("units in the last place apart")
