"""The guide to half precision: its snippets run, its tables are those of the code."""

import pytest

from tests.helpers.documents import blocks, broken_links, printed
from tests.helpers.folders import DOCS
from tools import precision_tables

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "precision.md").read_text(encoding="utf-8")


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for snippet in blocks("python", DOCUMENT):
        exec(compile(snippet, "precision.md", "exec"), namespace)
        assert capsys.readouterr().out.splitlines() == printed(snippet)


def test_tables():
    assert precision_tables.operators() in DOCUMENT
    assert precision_tables.kernels() in DOCUMENT


def test_links():
    assert not broken_links(DOCS / "precision.md")
