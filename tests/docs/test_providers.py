"""The page about other execution providers: its snippet runs, its table is what the tool makes."""

import pytest

from tests.helpers.documents import broken_links, check_snippets
from tests.helpers.folders import DOCS
from tools import provider_table

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "providers.md").read_text(encoding="utf-8")


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_snippets(DOCUMENT, "providers.md", capsys)


def test_table():
    assert provider_table.table() in DOCUMENT


def test_links():
    assert not broken_links(DOCS / "providers.md")
