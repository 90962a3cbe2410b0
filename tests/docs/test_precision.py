"""The guide to half precision: its snippets run, its tables are those of the code."""

import pytest

from tests.helpers.documents import broken_links, check_snippets
from tests.helpers.folders import DOCS
from tools import precision_tables

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "precision.md").read_text(encoding="utf-8")


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_snippets(DOCUMENT, "precision.md", capsys)


def test_tables():
    assert precision_tables.operators() in DOCUMENT
    assert precision_tables.kernels() in DOCUMENT


def test_links():
    assert not broken_links(DOCS / "precision.md")
