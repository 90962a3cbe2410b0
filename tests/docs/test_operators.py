"""The guide to operators."""

import re

import pytest

from graphopt.operators import OPERATORS
from tests.helpers.documents import blocks, printed
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "operators.md").read_text("utf-8")


def test_the_snippets_run_and_print_what_their_comments_say(capsys):
    names = {}
    for snippet in blocks("python", DOCUMENT):
        exec(compile(snippet, "operators.md", "exec"), names)
        assert capsys.readouterr().out.splitlines() == printed(snippet)


def test_there_are_as_many_gradients_as_it_says():
    (said,) = re.findall(r"some (\d+) operators", DOCUMENT)
    trained = [o for o in OPERATORS.values() if callable(o.gradient) or o.rewrite is not None]
    assert abs(len(trained) - int(said)) < 10
