"""The reference that is made of docstrings: what it names is there, and what is public is named."""

import importlib
import re

import pytest

import graphopt
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

PAGES = sorted(page.stem for page in (DOCS / "reference").glob("*.md") if page.stem != "index")
DIRECTIVE = re.compile(r"^ *\.\. auto(\w+):: ([\w.]+)$", re.MULTILINE)


def named(page):
    return DIRECTIVE.findall((DOCS / "reference" / f"{page}.md").read_text("utf-8"))


def resolved(name):
    """What a dotted name means; the longest module of it is imported."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    return None


@pytest.mark.parametrize("page", PAGES)
def test_names(page):
    found = named(page)
    assert found
    for kind, name in found:
        value = resolved(name)
        assert value.__doc__, name
        assert isinstance(value, type) or kind not in {"class", "exception"}, name


def test_what_is_public_is_named():
    """A module by what is in it."""
    every = [(name, resolved(name)) for page in PAGES for _, name in named(page)]
    missing = [
        name
        for name in graphopt.__all__
        if name != "__version__"
        and not any(
            value is getattr(graphopt, name) or dotted.startswith(f"graphopt.{name}.")
            for dotted, value in every
        )
    ]
    assert missing == []
