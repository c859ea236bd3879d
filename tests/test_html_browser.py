"""The page in a real browser: from red to its reason in two clicks, filters, addresses, keys; and nothing is asked for.

It needs Debian's chromium, or another of its kind, and playwright: `apt-get install chromium`, `pip install
'samebits[browser]'`. Where they are absent these tests are skipped and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from samebits.harness.records import Record
from samebits.reports.baseline import Baseline, BaselineRow
from samebits.reports.html.page import html_page
from samebits.reports.regression import compare

from .samples import FAILS, HEADER, UNSUPPORTED, VARIES, cell, control, run_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = next(filter(None, map(shutil.which, BROWSERS)), None)
if EXECUTABLE is None:
    pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is installed", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'samebits[browser]'"
)

REASON = "claims batch_invariant, but 412 of 4608 elements differ <b>here</b>"
PLANTED = cell(relation="decode", dtype="fp32", **(FAILS | {"reasons": (REASON,), "case": "a case:1 + 2 & 'more'"}))
PLANTED = replace(PLANTED, cell_id="CPU/bundled:decode:a case:1 + 2 & 'more':fp32")
CELLS = (
    *(cell(relation=f"relation_{number}", dtype=dtype) for number in range(70) for dtype in ("bf16", "fp32")),
    PLANTED,
    cell("FLASH_ATTN/torch", "decode", suite="dtype", **VARIES),
    cell("FLASH_ATTN/torch", "extend", "fp16", suite="dtype", reasons=("no fp16",), **UNSUPPORTED),
    control(),
    control("decode", backend='<img src=x onerror="alert(1)">', cell_id="CONTROL/<script>alert(2)</script>"),
)
SCREENS = [(1280, 800), (390, 844)]


@dataclass
class Watched:
    """What a page did besides what it was asked: nothing of it may be.

    Attributes:
        tab: playwright's page.
        requests: addresses that it asked for.
        complaints: of its console and of its script, and dialogs that it opened.
    """

    tab: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def status(self) -> str:
        """What the list of cells says of itself."""
        return str(self.tab.text_content("#status"))

    def rows(self) -> int:
        """How many cells are listed."""
        return int(self.tab.locator("#list tbody tr").count())


def page_of(*records: Record) -> str:
    lost = cell(relation="extend")
    baseline = Baseline("before", tuple(BaselineRow.of(record, HEADER) for record in (*CELLS[:9], lost)))
    return html_page(compare(run_of(*records, suites=("batch_invariant", "dtype")), baseline))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(page_of(*CELLS), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def opened(browser: Browser, address: str, **settings: Any) -> Iterator[Watched]:  # noqa: ANN401 -- settings of a context
    """Opens a page in a window of its own, which may ask for nothing but the page and complain of nothing."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | settings))
    context.set_default_timeout(10_000)
    watched = Watched(context.new_page())
    tab = watched.tab
    tab.on("request", lambda request: watched.requests.append(request.url.partition("#")[0]))
    tab.on("console", lambda message: watched.complaints.append(message.text))
    tab.on("pageerror", lambda error: watched.complaints.append(str(error)))
    tab.on("dialog", lambda dialog: watched.complaints.append(f"a dialog says {dialog.message}"))
    tab.goto(address)
    yield watched
    context.close()
    assert watched.complaints == []
    assert set(watched.requests) == {address.partition("#")[0]}, "something is asked for besides the page"


def test_a_newcomer_finds_the_reason_of_a_failure_in_two_clicks(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        assert REASON in page.tab.locator(".panel").first.inner_text(), "the first screen says why without any click"
        page.tab.click(".heat-map td.alarm a >> nth=0")
        page.tab.click("#list tbody tr:first-child a")
        assert page.tab.locator("#details").is_visible()
        told = page.tab.locator("#details").inner_text()
        assert REASON in told
        assert PLANTED.cell_id in told
        assert PLANTED.command.partition("--cell")[0].strip() in told


@pytest.mark.parametrize(("width", "height"), SCREENS, ids=["desk", "phone"])
def test_one_failure_among_many_others_is_two_clicks_away(
    browser: Browser, tmp_path: Path, width: int, height: int
) -> None:
    """What somebody planted in one implementation, where another breaks everything in one way."""
    reason = "claims batch_invariant, but {} of 4608 elements differ; first 1.5 and 1.625, 3 ULP apart"
    broken = [cell(relation=f"relation_{n}", **(FAILS | {"reasons": (reason.format(n),)})) for n in range(40)]
    planted = cell("FLASH_ATTN/torch", "extend", **(FAILS | {"reasons": ("0x7f: the planted reason",)}))
    controls = [control(record.relation) for record in (*broken, planted)]
    file = tmp_path / "index.html"
    file.write_text(page_of(*broken, planted, *controls), encoding="utf-8")
    with opened(browser, file.as_uri(), viewport={"width": width, "height": height}) as page:
        told = page.tab.get_by_text("the planted reason").first.bounding_box()
        assert told is not None
        assert told["y"] + told["height"] < height, f"the reason is below the first screen, at {told}"
        bar, *links = [found.bounding_box() for found in page.tab.locator("body > header, body > header nav a").all()]
        outside = [
            link
            for link in links
            if not (bar and link and link["x"] + link["width"] <= width and link["y"] + link["height"] <= bar["height"])
        ]
        assert links, "there are no links to the sections"
        assert not outside, f"links to sections are cut, at {outside}"
        page.tab.click(".panel >> text=FLASH_ATTN/torch")
        page.tab.locator("#details-title", has_text=planted.cell_id).wait_for()
        assert "the planted reason" in page.tab.locator("#details .reasons").inner_text()
        page.tab.click("#close")
        # Whatever is not named is behind the last link of a failure, and there with its reason.
        page.tab.click(".panel >> text=32 relations more")
        page.tab.locator("#status", has_text="40 of").wait_for()
        assert "relation_39" in page.tab.locator("#list").inner_text()


def test_each_filter_leaves_its_cells_and_the_address_brings_them_back(browser: Browser, address: str) -> None:
    expected = {
        ("backend", "FLASH_ATTN"): 2,
        ("implementation", "CPU/bundled"): 142,
        ("suite", "dtype"): 2,
        ("relation", "decode"): 3,
        ("dtype", "fp16"): 1,
        ("since", "missing"): 1,
    }
    with opened(browser, address) as page:
        assert page.status() == "144 of 146 cells, the worst first."
        for (name, value), cells in expected.items():
            page.tab.select_option(f"select[name={name}]", value)
            shown = cells - (name == "relation")
            assert page.status().startswith(f"{shown} of"), f"{name} {value}: {page.status()}"
            page.tab.select_option(f"select[name={name}]", "")
        page.tab.uncheck("input[value=pass]")
        assert page.status().startswith("4 of"), "a verdict that is not ticked is listed"
        page.tab.fill("input[name=text]", "<B>HERE")
        assert (page.status(), page.rows()) == ("1 of 146 cells, the worst first.", 1)
        page.tab.reload()
        assert page.status() == "1 of 146 cells, the worst first.", "the address does not hold the filters"
        page.tab.click("button[type=reset]")
        page.tab.locator("#status", has_text="144 of").wait_for()


def test_every_cell_is_listed_with_a_link_of_its_own(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.tab.check("input[value=caught]")
        while page.tab.locator("#more").is_visible():
            page.tab.click("#more")
        links = page.tab.eval_on_selector_all("#list tbody a", "links => links.map(link => link.getAttribute('href'))")
        assert len(links) == len(set(links)) == 146
        first = page.tab.locator("#list tbody tr").first.inner_text()
        assert "fail" in first, "the worst is not first"


def test_an_address_opens_a_cell_and_keys_lead_on_and_out(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}#cell=CPU%2Fbundled%3Arelation_3%3Allama3-8b-causal-mixed%3Abf16") as page:
        title = page.tab.locator("#details-title")
        assert "relation_3:" in title.inner_text()
        assert page.tab.evaluate("document.activeElement.id") == "details-title", "what is opened has no focus"
        page.tab.keyboard.press("ArrowRight")
        assert "relation_3:llama3-8b-causal-mixed:fp32" in title.inner_text()
        assert "fp32" in page.tab.url
        page.tab.keyboard.press("Escape")
        assert not page.tab.locator("#details").is_visible()
        page.tab.keyboard.press("/")
        assert page.tab.evaluate("document.activeElement.name") == "text"
        page.tab.keyboard.type("no fp16")
        page.tab.keyboard.press("Tab")
        assert page.rows() == 1
        page.tab.focus("#list tbody a")
        page.tab.keyboard.press("Enter")
        # An address is followed when the browser comes to it.
        title.filter(has_text="FLASH_ATTN/torch:extend").wait_for()
    with opened(browser, f"{address}#cell=nobody%3Aknows") as page:
        assert page.status() == "No cell of this page is nobody:knows."


def test_the_page_fits_a_desk_and_a_phone_by_day_and_by_night(browser: Browser, address: str, tmp_path: Path) -> None:
    """The pictures that it takes are for those who build the page: pytest's --basetemp says where they lie."""
    surfaces: dict[Literal["light", "dark"], str] = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
    with opened(browser, address) as page:
        for scheme, surface in surfaces.items():
            page.tab.emulate_media(color_scheme=scheme)
            colour = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert colour == surface, f"{scheme} is {colour}"
            for width, height in SCREENS:
                page.tab.set_viewport_size({"width": width, "height": height})
                page.tab.screenshot(path=tmp_path / f"{width}-{scheme}.png")
        page.tab.eval_on_selector_all("details", "every => every.forEach(details => { details.open = true; })")
        for width, height in SCREENS:
            page.tab.set_viewport_size({"width": width, "height": height})
            assert page.tab.evaluate("document.documentElement.scrollWidth") <= width, "it has to be moved sideways"


def test_without_a_script_a_place_of_the_matrix_leads_to_its_figures(browser: Browser, address: str) -> None:
    with opened(browser, address, java_script_enabled=False) as page:
        assert not page.tab.locator("#filters").is_visible()
        page.tab.click(".heat-map td a >> nth=0")
        row = page.tab.locator("tr:target")
        assert row.is_visible(), "the section that it is in stays closed"
        assert "dtype" in row.inner_text()
