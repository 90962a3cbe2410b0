"""Reading Markdown: its code, its links, its headings; running its commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import command_line


def blocks(language: str, text: str) -> list[str]:
    """The code of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def printed(snippet: str) -> list[str]:
    """What the comments say that it prints."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)


def check_snippets(text: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run its Python, one snippet after the other: it prints what its comments say."""
    namespace: dict[str, object] = {}
    for snippet in blocks("python", text):
        exec(compile(snippet, name, "exec"), namespace)
        assert capsys.readouterr().out.splitlines() == printed(snippet)


def broken_links(page: Path) -> list[str]:
    """Those to files and headings that are not there."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    return [link for link in links if not _exists(page, link)]


def _exists(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def run(commands: list[list[str]]) -> None:
    """The first as the program that is installed, the others in this process, which is faster."""
    program, *arguments = commands[0]
    installed = Path(sys.executable).with_name(program)
    subprocess.run([installed, *arguments], check=True, capture_output=True)
    for name, *arguments in commands[1:]:
        assert name == program
        done = command_line.run(*arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"{arguments}: {done.output}"
