"""README and docs/: every link and anchor leads somewhere, every command names settings that exist, the site builds."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from condlora.commands.settings import check_command
from condlora.grid.cells import compose_cells
from condlora.paths import CONFIGS
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


def commands():
    """(script, words) of each `python SCRIPT words` in a code block of the pages, other than train.py's."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL):
            for script, words in re.findall(r"^(?:\w+ )*python ((?:analysis|scripts)/\w+\.py)(.*)$", block, re.MULTILINE):  # fmt: skip
                if script != "scripts/train.py":
                    yield script, shlex.split(words, comments=True)


def test_commands_of_the_pages_name_settings_that_exist():
    """Those with a Hydra config; the examples' own command is run in test_examples."""
    found = [(script, words) for script, words in commands() if (ROOT / script).exists()]
    assert len(found) >= 15
    for script, words in found:
        source = (ROOT / script).read_text(encoding="utf-8")
        module = re.search(r"from (condlora\.commands\.\w+) import main", source)
        if module:
            source = (ROOT / (module[1].replace(".", "/") + ".py")).read_text(encoding="utf-8")
        config = re.search(r'@command\("([\w/]+)"', source)
        # The others say what to do, or are settings of a submission, which has a file of its own.
        words = [
            w for w in words if w.startswith("-") or ("=" in w and not w.startswith("cluster."))
        ]
        words = [word for word in words if word not in ("--watch", "--dry-run")]
        if config is None or "--help" in words:
            continue
        if config[1] == "train":
            assert compose_cells(tuple(words))
            continue
        GlobalHydra.instance().clear()
        path = CONFIGS / config[1]
        with initialize_config_dir(str(path.parent), version_base="1.3"):
            check_command(config[1], compose(path.name, words))


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    for name in ("material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs the extra `docs`")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "CondLoraConfig" in (tmp_path / "site/api.html").read_text(encoding="utf-8")
    assert (tmp_path / "site/repository/results/reference/embedded/report.html").is_file()
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html")]
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', "".join(pages))
