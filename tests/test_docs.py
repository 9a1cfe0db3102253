"""README and docs/: every link and anchor leads somewhere, every command names settings that exist, the site builds."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from tests.tasks import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_anchor_leads_to_a_heading(page):
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)#([\w-]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in anchors(page.parent / path if path else page), (path, anchor)


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in PAGES[1:])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built strictly."""
    for name in ("material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(site):
    assert "CondLoraConfig" in (site / "api.html").read_text(encoding="utf-8")
    assert (site / "repository/results/reference/embedded/report.html").is_file()
    pages = [path.read_text(encoding="utf-8") for path in site.glob("*.html")]
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', "".join(pages))


@pytest.mark.slow
def test_the_site_can_be_searched_from_disk(site):
    browsers = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: no `chromium` on PATH")
    with browsers.sync_playwright() as started:
        page = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type("layers_per_map")
        page.wait_for_selector(".md-search-result__link")
        links = [link.get_attribute("href") for link in page.locator(".md-search-result__link").all()]  # fmt: skip
        assert any("condlora.html" in link for link in links)
        assert all(url.startswith("file://") for url in asked)


README = PAGES[0].read_text(encoding="utf-8")
REFERENCE = ROOT / "results" / "reference"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_measured_numbers_of_the_readme_stand_in_generated_blocks():
    """Outside of them are names and counts; `update_docs.py --check` compares the blocks with the results."""
    text = re.sub(r"<!-- table \w+ -->.*?<!-- end -->|```.*?```", "", README, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)  # links and code
    found = set(re.findall(r"\d+[.,]\d+|\d+ ?%|\B\.\d+", text))
    assert found == {"2403.14946", "3.11", "2.0"}  # arXiv, Python, Apache


def test_minutes_and_steps_in_the_readme_are_those_of_the_committed_runs():
    (low, high), (first, last) = (
        map(int, re.search(pattern, README).groups())
        for pattern in (r"(\d+) to (\d+) minutes on two CPU cores", r"MiniLM \((\d+) to (\d+) steps")
    )  # fmt: skip
    seconds = pd.read_csv(REFERENCE / "embedded/tables/table4.csv").total_seconds.sum()
    assert low <= seconds / 60 / 2 <= high
    tables = [REFERENCE / name / "tables/runs.csv"
              for name in ("embedded", "kinship", "kinship_rank", "kinship_glue", "minilm_glue", "minilm_rank")]  # fmt: skip
    steps = pd.concat([pd.to_numeric(pd.read_csv(t).steps, errors="coerce") for t in tables])
    assert (steps.min(), steps.max()) == (first, last)
