"""The report in a real browser: nothing fails or is fetched, choices work with mouse and keyboard, it fits a phone and prints."""

import json
import shutil

import pandas as pd
import pytest

from analysis.present import report as present_report
from analysis.present import report_charts

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: no `chromium` on PATH"),
]


@pytest.fixture(scope="module")
def address(study):
    return f"file://{present_report.build(study).resolve()}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser, address):
    """Opens the report; the test fails where the page logs an error or asks for anything but itself."""
    faults, pages = [], []

    def opened(width=1280, height=800, **settings):
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)  # fmt: skip
        page.on("request", lambda r: faults.append(r.url) if not r.url.startswith(("data:", "blob:", address)) else None)  # fmt: skip
        page.goto(address)
        page.wait_for_selector("#explore-figure1 svg.marks")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not faults


@pytest.fixture
def frontier_page(browser, tmp_path):
    """A page with the frontier of four methods alone, drawn by the script of the report."""
    methods = pd.DataFrame(
        [("lora", 1000, 80.0, 1.0), ("condlora", 100, 70.0, 1.2), ("vera", 300, 75.0, 0.7), ("bitfit", 500, 78.0, 0.5)],
        columns=["method", "parameters", "score", "time"],
    ).assign(sd=1.0, n=3, memory_mib=500.0, low=lambda t: t.score - 1, high=lambda t: t.score + 1,
             minus_lora=0.0, minus_condlora=0.0, on_frontier=[True, True, True, False])  # fmt: skip
    (spec,) = report_charts.frontier_chart(methods).views
    script = (present_report.TEMPLATES / "report.js").read_text(encoding="utf-8")
    path = tmp_path / "frontier.html"
    path.write_text(
        f'<meta charset="utf-8"><div data-chart="f"></div><script type="application/json" id="f">{json.dumps(spec)}</script>'
        f'<script type="module">{report_charts.javascript()}</script><script type="module">{script}</script>',
        encoding="utf-8",
    )
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("svg.marks")
    yield page
    page.close()


def test_families_of_the_frontier_are_switched_off_and_methods_found(frontier_page):
    page = frontier_page
    marks = page.locator("svg.marks path[aria-roledescription=point]")
    names = page.locator("svg.marks .mark-text.role-mark text")
    assert names.all_text_contents() == ["LoRA", "CondLoRA", "VeRA"]  # those on the frontier
    page.get_by_role("checkbox", name="shared or generated A and B").uncheck()
    page.wait_for_timeout(200)
    assert "VeRA" not in names.all_text_contents()
    page.get_by_placeholder("part of its name").fill("bit")
    page.wait_for_timeout(200)
    assert names.all_text_contents() == ["BitFit"]
    marks.last.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "method" in page.locator("#vg-tooltip-element").inner_text()


def chart(page):
    return page.locator("#explore-figure1 .chart").first


def test_the_first_screen_holds_four_panels(open_page):
    page = open_page()
    boxes = [panel.bounding_box() for panel in page.locator(".panel").all()]
    assert len(boxes) == 4 and all(box["y"] + box["height"] <= 830 for box in boxes)
    assert len({box["y"] for box in boxes}) == 1
    assert page.locator(".banner.not-comparable").is_visible()


def test_links_of_a_panel_lead_to_its_numbers_and_open_what_is_folded(open_page):
    page = open_page()
    scores = page.get_by_role("heading", name="Table 2: GLUE scores in points")
    assert not scores.is_visible()
    page.locator("#panel-1").get_by_text("All numbers").click()
    assert scores.is_visible()
    page.locator("#panel-2").get_by_text("Choose panel and scale").click()
    assert page.locator("#explore-figure1 h2").bounding_box()["y"] < 200
    page.locator(".not-comparable a").click()
    assert page.locator("#limits").is_visible()


def test_a_phone_needs_no_scrolling_to_the_side(open_page):
    page = open_page(390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    badges = [b.bounding_box()["y"] for b in page.locator("nav .badge").all()]
    assert len(badges) == 4 and max(badges) < 844
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_every_choice_of_figure_1_changes_the_map_and_only_its_own(open_page):
    page = open_page()
    other = page.locator("#explore-figure1 .chart svg.marks").nth(1).inner_html()
    for select in chart(page).locator("select").all():
        options = select.locator("option").all()
        if len(options) < 2:
            continue  # the study has one kind of modules
        before = chart(page).locator("svg.marks").inner_html()
        current = select.evaluate("s => s.selectedIndex")
        select.select_option(index=(current + 1) % len(options))
        page.wait_for_timeout(200)
        assert chart(page).locator("svg.marks").inner_html() != before
        select.select_option(index=current)
    before = chart(page).locator("svg.marks").inner_html()
    chart(page).get_by_label("0 to 1 (paper)").check()
    page.wait_for_timeout(200)
    assert chart(page).locator("svg.marks").inner_html() != before
    assert page.locator("#explore-figure1 .chart svg.marks").nth(1).inner_html() == other


def test_choices_are_reached_with_the_keyboard(open_page):
    page = open_page()
    before = chart(page).locator("svg.marks").inner_html()
    chart(page).locator("select").nth(2).focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(200)
    assert chart(page).locator("svg.marks").inner_html() != before
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"


def test_a_cell_shows_its_value(open_page):
    page = open_page()
    chart(page).scroll_into_view_if_needed()
    chart(page).locator("svg.marks .mark-rect path").nth(1).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "φ" in page.locator("#vg-tooltip-element").inner_text()


def test_a_table_sorts_and_filters(open_page):
    page = open_page()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    table = page.locator("table", has=page.locator("th", has_text="claim")).filter(has_text="estimate").first  # fmt: skip
    estimates = table.locator("tbody tr td:nth-child(4)")
    head = table.locator("th button", has_text="estimate")
    head.press("Enter")
    shown = [float(t.replace("−", "-").replace(",", "")) for t in estimates.all_inner_texts() if t != "–"]  # fmt: skip
    assert shown == sorted(shown) and len(shown) > 20
    field = page.locator("input.filter").first
    field.fill("Holds")
    rows = [text for text in page.locator(".scroll table").first.locator("tbody tr").all() if text.is_visible()]  # fmt: skip
    assert rows and all("holds" in row.inner_text().lower() for row in rows)


def test_it_prints_with_what_is_folded_and_in_light_colours(open_page):
    page = open_page(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 22)"
    page.set_viewport_size({"width": 740, "height": 1000})  # a page of A4
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 740  # no table is cut
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf()[:5] == b"%PDF-"
    hidden = "getComputedStyle(document.querySelector('details.part'), '::details-content').contentVisibility"
    assert page.evaluate(hidden) == "visible"
