"""The pages for who does not see them, or has no mouse: what Chromium tells screen readers."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.examples import digits_cnn
from graphopt.inspection import diff, diff_checkpoints, inspect_checkpoint
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.page import (
    checkpoint_difference_page,
    checkpoint_page,
    difference_page,
    page,
)
from graphopt.schedules import CosineDecayLR
from tests.helpers.devtools import tab

pytestmark = [pytest.mark.any_runtime, pytest.mark.exhaustive]

CONTROLS = {
    *("button", "link", "searchbox", "checkbox", "combobox", "option"),
    "treeitem",
}
ROLES_THAT_FOCUS = {
    *CONTROLS,
    "region",  # of a table that scrolls
    "image",  # the drawing and the curves, which arrow keys go through
    "row",  # of modules
    "main",  # where "Skip to the content" leads
}
KINDS = ("graph", "difference", "checkpoint", "checkpoint_difference")
FOCUSED = """(() => {
  const element = document.activeElement;
  if (element === document.body) return null;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    at: [...document.querySelectorAll("*")].indexOf(element),
    text: `${element.tagName} ${element.getAttribute("class")} ${element.textContent.slice(0, 30)}`,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
})()"""
REACHABLE = """[...document.querySelectorAll("*")].flatMap((element, at) => (
  element.tabIndex >= 0 && !element.disabled
    && element.checkVisibility({ visibilityProperty: true }) ? [at] : []))"""


def training_graph(activation="Relu"):
    model = digits_cnn.build()
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = activation
    params = graphopt.parameters(model)
    conv = params.matching("conv*")
    groups = [
        {"params": conv},
        {"params": params.without(conv), "lr": CosineDecayLR(0.0, 0.01, 90)},
    ]
    optimizer = graphopt.RMSProp(groups, learning_rate=0.01, momentum=0.9)
    return graphopt.training_graph(model, "cross_entropy", optimizer).model


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    models = [read(training_graph()), read(training_graph("Sigmoid"))]
    before, after = [(graphopt.inspect(model, steps=200), model) for model in models]
    session = graphopt.Session(training_graph())
    files = [folder / f"{name}.safetensors" for name in "ab"]
    session.save_checkpoint(files[0])
    x = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
    session.step({"x": x, "labels": np.arange(4)})
    session.save_checkpoint(files[1])
    made = {
        "graph": page(*before),
        "difference": difference_page(diff(before[0], after[0]), before, after),
        "checkpoint": checkpoint_page(inspect_checkpoint(files[1], before[0])),
        "checkpoint_difference": checkpoint_difference_page(diff_checkpoints(*files)),
    }
    assert tuple(made) == KINDS
    for kind, html in made.items():
        (folder / f"{kind}.html").write_text(html, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with tab(Path(tmp_path_factory.mktemp("chromium"))) as opened:
        yield opened


def value(node, key):
    return node.get(key, {}).get("value")


def properties(node):
    return {entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_screen_reader_is_given(kind, pages, chromium):
    chromium.show(pages / f"{kind}.html")
    nodes = chromium.accessible()
    roles = Counter(value(node, "role") for node in nodes)
    focusable = [node for node in nodes if properties(node).get("focusable")]
    roots = {"RootWebArea", "WebArea"}
    assert {value(node, "role") for node in focusable} <= ROLES_THAT_FOCUS | roots
    named = CONTROLS | {"image", "table", "treegrid", "tree", "region", "toolbar", "navigation"}
    nameless = [
        (value(node, "role"), node.get("backendDOMNodeId"))
        for node in nodes
        if value(node, "role") in named and not str(value(node, "name") or "").strip()
    ]
    assert nameless == []
    pictures = "[...document.querySelectorAll('svg, img, canvas')]"
    seen = chromium.run(f"{pictures}.filter((picture) => picture.checkVisibility()).length")
    assert roles["image"] == seen
    assert (roles["main"], roles["navigation"], roles["search"]) == (1, 1, 1)
    assert roles["columnheader"] > 3
    assert roles["rowheader"] > 0
    levels = [int(properties(n)["level"]) for n in nodes if value(n, "role") == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    focus(chromium, "#search")
    keys(chromium, *"conv1")
    nodes = chromium.accessible()  # a curve says its value in the same way
    said = [properties(node)["live"] for node in nodes if value(node, "role") == "status"]
    assert set(said) == {"polite"}
    assert " " in chromium.run("document.getElementById('found').textContent")  # "2 parameters"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_tab_key_reaches_all_in_order_and_shows_where_it_is(kind, width, pages, chromium):
    chromium.show(pages / f"{kind}.html", width=width)
    reachable = chromium.run(REACHABLE)
    chromium.press("Tab")
    there = []
    while (here := chromium.run(FOCUSED)) is not None:
        there.append(here)
        assert len(there) <= len(reachable) + 5
        chromium.press("Tab")
    assert [here["at"] for here in there] == reachable
    assert len(reachable) > 5
    assert [here["text"] for here in there if not (here["ring"] and here["seen"])] == []
    back = []
    for _ in there:
        chromium.press("Tab", shift=True)
        back.append(chromium.run(FOCUSED))
    assert [here and here["at"] for here in reversed(back)] == reachable


def keys(chromium, *names):
    for name in names:
        chromium.press(name)


def focus(chromium, selector):
    chromium.run(f"document.querySelector({selector!r}).focus()")


def test_keys_alone_use_a_graph(pages, chromium):
    chromium.show(pages / "graph.html")
    keys(chromium, "Tab", "Enter")
    assert chromium.run("document.activeElement.id") == "content"
    focus(chromium, "#search")
    keys(chromium, *"dense1.bias")
    assert chromium.run("document.querySelectorAll('#parameters tr.row').length") == 1
    focus(chromium, "#parameters .toggle")
    chromium.press("Enter")
    assert chromium.run("document.querySelectorAll('#parameters tr.detail').length") == 1
    focus(chromium, "#search")
    chromium.run("document.getElementById('search').select()")
    keys(chromium, *"conv")
    focus(chromium, "#parameters thead button")
    keys(chromium, "Enter", "Enter")
    first = "document.querySelector('#parameters tr.row th').textContent"
    assert chromium.run(first) == "conv2.weight"
    focus(chromium, ".outline [tabindex='0']")
    chosen = "document.activeElement.querySelector('.label').textContent"
    unfolded = "document.activeElement.getAttribute('aria-expanded')"
    keys(chromium, "Home")
    assert (chromium.run(chosen), chromium.run(unfolded)) == ("forward", "true")
    keys(chromium, "ArrowLeft")
    assert chromium.run(unfolded) == "false"
    keys(chromium, "ArrowRight", "ArrowRight", "Enter")
    assert chromium.run(chosen) == "conv1"
    assert "Conv" in chromium.run("document.querySelector('.chosen').textContent")
    focus(chromium, ".picture")
    moved = "document.querySelector('.picture > g').getAttribute('transform')"
    before = chromium.run(moved)
    keys(chromium, "ArrowDown")
    assert chromium.run(moved) != before
    focus(chromium, ".chart svg[tabindex]")
    keys(chromium, "ArrowRight", "ArrowRight")
    assert "step" in chromium.run(
        "[...document.querySelectorAll('.chart output')].at(-1).textContent"
    )


def test_keys_alone_use_a_checkpoint(pages, chromium):
    chromium.show(pages / "checkpoint.html")
    name = "document.activeElement.querySelector('.name').textContent"
    seen = "document.querySelectorAll('#modules tbody tr').length"
    focus(chromium, "#modules [tabindex='0']")
    assert (chromium.run(name), chromium.run(seen)) == ("conv1", 12)
    keys(chromium, "ArrowLeft")
    assert chromium.run(seen) == 10
    keys(chromium, "ArrowDown", "ArrowRight", "ArrowDown", "Enter")
    assert chromium.run("document.getElementById('search').value") == "conv2.bias"
    assert chromium.run("document.querySelectorAll('#parameters tbody tr').length") == 1
    chromium.run("searchFor('')")
    rows = [node for node in chromium.accessible() if value(node, "role") == "row"]
    module = next(node for node in rows if properties(node).get("level") == 1)
    assert properties(module)["expanded"] is True
    assert value(module, "name").startswith("conv1 2 160 ")
