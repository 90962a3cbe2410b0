"""The guide to checkpoints: its snippets run, and the tests that it names are there."""

import ast
import re

import pytest

from tests.helpers.documents import blocks, broken_links, check_snippets
from tests.helpers.folders import DOCS, ROOT

pytestmark = pytest.mark.any_runtime

GUIDE = DOCS / "checkpoints.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(blocks("python", TEXT)) == 4
    check_snippets(TEXT, GUIDE.name, capsys)


def test_each_promise_names_a_test():
    rows = re.findall(r"^\| [^|]+ \| `(tests/[^`]+)` \|$", TEXT, re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        file, _, name = row.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, row


def test_links():
    assert broken_links(GUIDE) == []
