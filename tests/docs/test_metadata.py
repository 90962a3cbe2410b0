"""docs/metadata.md says what the records say."""

import re
from dataclasses import fields

import pytest

import graphopt
from graphopt.examples import digits_cnn
from graphopt.manifest import Manifest
from graphopt.states import STATES
from tests.helpers.documents import blocks, printed
from tests.helpers.folders import DOCS

DOCUMENT = (DOCS / "metadata.md").read_text("utf-8")
CALLED = {"parameter": "`{}.p`", "graph": "`{}`", "batch normalization": "its name in the model"}


def row(state):
    starts = {None: "its value in the model", 0.0: "0"}.get(state.initial, f"`{state.initial}`")
    return [
        CALLED[state.per].format(state.name),
        state.purpose + (f", {state.symbol} in formulas" if state.symbol else ""),
        state.per,
        state.dtype or "its own",
        starts,
        f"with `{state.kept_with}`" if state.kept_with else "always",
    ]


@pytest.mark.quick
def test_the_table_of_states_is_that_of_the_records():
    table = "".join(f"| {' | '.join(row(state))} |\n" for state in STATES)
    assert f"|---|---|---|---|---|---|\n{table}" in DOCUMENT
    assert DOCUMENT.endswith(table)


def test_the_table_of_entries_has_all():
    documented = re.findall(r"^\| `graphopt\.(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert documented == [field.name for field in fields(Manifest)]


def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = digits_cnn.build()
    opt = graphopt.RMSProp(graphopt.parameters(model), momentum=0.9)
    graphopt.training_graph(model, loss="cross_entropy", optimizer=opt).save("train.onnx")
    (snippet,) = blocks("python", DOCUMENT)
    exec(compile(snippet, "metadata.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == printed(snippet)
