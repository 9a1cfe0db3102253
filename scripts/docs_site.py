"""What mkdocs does for this project's pages: links that leave docs/ lead to copies of those files in the site.

The pages are read on the repository's own host as well, where `../results/...` is right as it stands.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)(#[^)]*)?\)")
COPIES = "repository"  # the folder of the site for them


def target(path: str) -> str:
    """The file that a link leads to in the site: of a report the interactive page instead of the Markdown."""
    return path.replace("report.md", "report.html")


def on_files(files: Files, config) -> Files:
    """Adds each file outside docs/ that a page links to."""
    found = set()
    for page in files.documentation_pages():
        found |= {target(match[3]) for match in OUTSIDE.finditer(page.content_string)}
    for path in sorted(path for path in found if (ROOT / path).is_file()):
        files.append(File.generated(config, f"{COPIES}/{_name(path)}", abs_src_path=str(ROOT / path)))  # fmt: skip
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Turns those links to the copies; a link to a folder becomes its name."""
    return OUTSIDE.sub(_link, markdown)


def _link(match: re.Match) -> str:
    mark, text, path, anchor = match[1], match[2], target(match[3]), match[4] or ""
    if not (ROOT / path).is_file():
        return text
    return f"{mark}[{text}]({COPIES}/{_name(path)}{anchor})"


def _name(path: str) -> str:
    """A Markdown file is shown as text: as a page it would have links of its own."""
    return path + ".txt" if path.endswith(".md") else path
