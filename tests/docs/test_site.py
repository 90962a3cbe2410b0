"""The site of the documentation: its navigation, its links to the repository, its formulas."""

import re
from xml.etree import ElementTree as ET

import pytest

import graphopt
from tests.helpers.folders import DOCS, ROOT
from tools.site import formulas, pages

pytestmark = pytest.mark.any_runtime

NOT_ON_THE_SITE = {"package"}


def entries(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    pattern = r"^```{toctree}\n(?::[^\n]*\n)+\n(.*?)^```$"
    trees = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return [re.sub(r".*<(.*)>", r"\1", line) for tree in trees for line in tree.splitlines()]


def test_each_page_is_in_the_navigation_once():
    named = [*entries("index"), *(f"reference/{name}" for name in entries("reference/index"))]
    found = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert sorted(named) == sorted(found - NOT_ON_THE_SITE - {"index"})


@pytest.mark.parametrize(("name", "place"), pages.ELSEWHERE.items())
def test_a_page_that_stands_elsewhere_says_where(name, place):
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8").count(f"](../{place})") == 1


def test_links_lead_to_pages_to_files_or_nowhere():
    source = (
        "[a](gpu.md#measured) [b](https://example.org/) [`c`][] [d](#e)\n```python\nx[0](y)\n```\n"
    )
    assert pages.linked(source, DOCS / "page.md") == source
    architecture = pages.text(DOCS / "architecture.md")
    assert "](contributing.md)" in architecture
    assert "[`build.py`](../graphopt/build.py)" in architecture
    assert "](../graphopt/operators)" not in architecture
    assert "(`operators/`)" in architecture
    contributing = pages.text(ROOT / "CONTRIBUTING.md")
    assert "](changelog.md)" in contributing
    assert "](metadata.md)" in contributing
    assert "](../graphopt/states.py)" in contributing


FORMULAS = {
    "w ← w - m": "w←w-m",
    "s ← decay · s + (1 - decay) · g²": "s←decay·s+(1-decay)·g[2]",
    "m ← b · m + rate · g / √(s - a² + eps)   centered": "m←b·m+{rate·g|√s-a[2]+eps}centered ",
    "g ← (g + w) / scale": "g←{g+w|scale}",
    "c, n ← max(c · b, floor), 0   where n is 5": "c,n←max(c·b,floor),0where n is 5 ",
    "g ← w - (Σ n_k · w) / (Σ n_k)": "g←w-{∑nk·w|∑nk}",
    "d ← 1   centered: √(s + e)": "d←1centered:  √s+e",
}


def written(element):
    """A formula in one line: the parts of it that are not one after another are marked."""
    parts = [element.text or "", *map(written, element)]
    match element.tag:
        case "msqrt":
            return "√" + "".join(parts)
        case "mfrac":
            return "{" + "|".join(parts[1:]) + "}"
        case "msup":
            return f"{parts[1]}[{parts[2]}]"
    return "".join(parts)


@pytest.mark.parametrize(("formula", "expected"), FORMULAS.items())
def test_formulas(formula, expected):
    found = ET.fromstring(formulas.mathml(formula).replace("&#160;", " "))
    assert written(found).replace("\N{MINUS SIGN}", "-") == expected


def test_help_shows_formulas_as_text():
    """Not as the source of something that is typeset."""
    sources = {path: path.read_text("utf-8") for path in (ROOT / "graphopt").rglob("*.py")}
    marks = re.compile(r":math:|\.\. math::|\\(?:frac|sqrt|cdot|leftarrow)")
    assert [str(path) for path, text in sources.items() if marks.search(text)] == []
    assert "s ← decay · s + (1 - decay) · g²" in (graphopt.RMSProp.__doc__ or "")
