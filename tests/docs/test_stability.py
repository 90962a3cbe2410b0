"""The guide to loss scales and the like: its snippets run, its recipes are optimizers."""

import re

import pytest

import graphopt
from tests.helpers.documents import broken_links, check_snippets
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "stability.md").read_text(encoding="utf-8")


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_snippets(DOCUMENT, "stability.md", capsys)
    assert (tmp_path / "average.onnx").is_file()


def test_recipes_are_optimizers():
    recipes = re.findall(r"`(RMSProp\(params.*?\))`", DOCUMENT)
    assert len(recipes) == 7
    params = [graphopt.Parameter("w", (3,))]
    for recipe in recipes:
        made = eval(recipe, {"RMSProp": graphopt.RMSProp, "params": params, "rate": 0.016})
        assert list(made.params) == params


def test_presets_are_there():
    names = re.findall(r"`DynamicLossScale\.(\w+)\(", DOCUMENT)
    assert len(names) == 5
    assert all(hasattr(graphopt.DynamicLossScale, name) for name in names)


def test_links():
    assert not broken_links(DOCS / "stability.md")
