"""Pages of the site that are files elsewhere in the repository, and links to such files."""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
ROOT = DOCS.parent
ELSEWHERE = {
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "results": "bench/results.md",
    "growth": "bench/growth.md",
}
"""The pages that only say where their text stands, and that place."""
_PAGES = {(ROOT / path).resolve(): DOCS / f"{name}.md" for name, path in ELSEWHERE.items()} | {
    ROOT / "README.md": DOCS / "index.md"
}
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|\[([^]]+)\]\(([^)#\s]*)(#[^)]*)?\)", re.MULTILINE | re.DOTALL
)


def place(name: str) -> Path:
    """The file with the text of a page."""
    return ROOT / ELSEWHERE[name] if name in ELSEWHERE else DOCS / f"{name}.md"


def text(file: Path) -> str:
    """The text of a page, with its links as they are on the site."""
    return linked(file.read_text(encoding="utf-8"), file)


def linked(source: str, file: Path) -> str:
    """What stands in a file, with its links as they are on the site.

    A link to a file that is no page becomes one to a copy of the file; what links to a folder, or
    to a text that is no page, becomes plain text.
    """

    def as_on_the_site(match: re.Match[str]) -> str:
        words, path, anchor = match[1], match[2], match[3] or ""
        if not path or "://" in path:
            return match[0]
        target = (file.parent / path).resolve()
        target = _PAGES.get(target, target)
        is_text = target.suffix == ".md" and target.parent not in (DOCS, DOCS / "reference")
        if target.is_dir() or (is_text and target.is_relative_to(ROOT)):
            return words
        return f"[{words}]({os.path.relpath(target, page.parent)}{anchor})"

    page = _PAGES.get(file, file)
    return _CODE_OR_LINK.sub(as_on_the_site, source)
