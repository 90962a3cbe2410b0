"""How loss scales, skipped steps and clipping are shown, and what is said of their states."""

import json

import numpy as np
import pytest

import graphopt
from graphopt import Accumulation, DynamicLossScale, Parameter, RMSProp, Session
from graphopt.inspection import diff
from graphopt.inspection.checkpoints import diff_checkpoints, inspect_checkpoint
from graphopt.inspection.show.formula import update_lines
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.inspection.show.page.page_facts import payload
from graphopt.schedules import FromCaller
from tests.helpers.configurations import inlined
from tests.helpers.tables import drawn

pytestmark = pytest.mark.any_runtime

PARAMETERS = [Parameter("w", (3, 5)), Parameter("b", (5,))]
DYNAMIC = DynamicLossScale(65536.0, floor=1.0)


def built(**optimizer):
    return graphopt.update_graph(RMSProp(PARAMETERS, 0.01, **optimizer))


@pytest.mark.parametrize(
    ("optimizer", "words", "lines"),
    [
        (
            {"loss_scale": DYNAMIC, "clip_norm": 5.0, "weight_decay": 0.1},
            (
                "loss scale dynamic from 65536, x2 after 2000 steps, x0.5 on overflow, at least 1",
                "skips steps that overflow",
                "clips the norm of all gradients to 5",
            ),
            (
                "g ← g / loss_scale",
                "g ← g · min(1, 5 / (‖g‖ + 1e-06))",
                "g ← g + 0.1 · w",
                "only where all gradients are finite",
            ),
        ),
        (
            {"loss_scale": FromCaller("loss_scale"), "clip_value": 0.5},
            ("loss scale fed as 'loss_scale'", "clips gradients to 0.5"),
            ("g ← g / loss_scale", "g ← max(−0.5, min(0.5, g))"),  # noqa: RUF001
        ),
        (
            {"clip_norm": 2.0, "clip_norm_per": "parameter"},
            ("clips the norm of the gradient of each parameter to 2",),
            ("g ← g · min(1, 2 / (‖g‖ + 1e-06))",),
        ),
        (
            {"loss_scale": 8.0, "weight_decay": 0.1},
            ("loss scale 8",),
            ("g ← g + 0.1 · 8 · w", "g ← g / 8"),
        ),
    ],
)
def test_words_and_formulas(optimizer, words, lines):
    found = graphopt.inspect(built(**optimizer))
    shown = " ".join(drawn(graph_tables(found)).split())
    assert all(word in shown for word in words), shown
    formula = [line for line, _ in update_lines(found.optimizer, found.parameters[0])]
    assert [line for line in formula if line in lines] == list(lines)
    on_page = payload(found, None)["optimizer"]
    assert on_page["loss_scale"] in ("1", *(w.removeprefix("loss scale ") for w in words))
    if "clip_norm" in optimizer:
        limit, over = on_page["clip_norm"].split(", of ")
        assert f"clips the norm of {over} to {limit}" in words
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (3, "applies the mean of 3 gradients"),
        (Accumulation(None, "sum"), "applies the sum of gradients when told"),
    ],
)
def test_the_terminal_and_the_page_say_how_many_gradients_are_applied(rule, words):
    graph = graphopt.update_graph(RMSProp(PARAMETERS, 0.01), accumulation=rule)
    found = graphopt.inspect(graph)
    assert words in " ".join(drawn(graph_tables(found)).split())
    assert payload(found, None)["optimizer"]["accumulation"] == words


def test_the_table_says_what_is_carried():
    kinds = {s.input: s.kind for s in graphopt.inspect(built(loss_scale=DYNAMIC)).state}
    assert kinds == {
        "bucket0": "parameter",
        "mean_square.bucket0": "mean_square",
        "global_step": "step",
        "loss_scale": "loss scale",
        "loss_scale_steps": "counter",
        "skipped_steps": "counter",
    }


def test_diff_shows_what_was_changed():
    before = graphopt.inspect(built(loss_scale=8.0))
    after = graphopt.inspect(built(loss_scale=DYNAMIC, clip_norm=5.0, clip_norm_per="parameter"))
    changes = [c for c in diff(before, after).changes if c.part == "optimizer"]
    assert {c.what: (c.before, c.after) for c in changes} == {
        "loss_scale": (8.0, DYNAMIC.describe()),
        "skip_on_overflow": (False, True),
        "clip_norm": (None, 5.0),
        "clip_norm_per": ("all", "parameter"),
    }


def test_checkpoints(tmp_path):
    graph = built(loss_scale=DYNAMIC)
    start = {p.name: np.ones(p.shape, np.float32) for p in PARAMETERS}
    session = Session(graph, parameters=start)
    gradients = {f"{name}_grad": array for name, array in start.items()}
    session.step(gradients)
    session.save_checkpoint(tmp_path / "first")
    session.step(gradients | {"b_grad": np.full(5, np.inf, np.float32)})
    session.save_checkpoint(tmp_path / "second")
    found = inspect_checkpoint(tmp_path / "second", graphopt.inspect(graph))
    assert (found.problems, found.step) == ((), 1)
    assert {value.name for value in found.others} == {
        "loss_scale", "loss_scale_steps", "skipped_steps",
    }  # fmt: skip
    changed = diff_checkpoints(tmp_path / "first", tmp_path / "second").tensors
    assert {t.name: t.kind for t in changed if not t.equal} == {
        "loss_scale": "loss scale",
        "loss_scale_steps": "counter",
        "skipped_steps": "counter",
    }
    plain = Session(built(), parameters=start)
    plain.save_checkpoint(tmp_path / "plain")
    lacks = inspect_checkpoint(tmp_path / "plain", graphopt.inspect(graph)).problems
    assert {(p.kind, *p.where) for p in lacks} == {
        ("missing-tensor", name) for name in ("loss_scale", "loss_scale_steps", "skipped_steps")
    }


@pytest.mark.parametrize("layout", ["chunks", "foreach"])
@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"loss_scale": DYNAMIC, "average": 0.9, "clip_norm": 1.0},
        {"clip_value": 0.5, "loss_scale": FromCaller("loss_scale"), "skip_on_overflow": True},
    ],
)
def test_gradients_of_several_steps(optimizer, layout):
    """All of it is read in the nodes, and is what the metadata says."""
    opt = RMSProp(PARAMETERS, 0.01, **optimizer)
    graph = graphopt.update_graph(opt, layout=layout, accumulation=3)
    found = graphopt.inspect(graph)
    assert found.hazards == ()
    assert found.optimizer.source == "metadata and graph"
    kinds = {state.input: state.kind for state in found.state}
    assert kinds["accumulation_count"] == "counter"
    assert {"accumulated", "mean_square", "parameter"} <= set(kinds.values())
    assert "other" not in kinds.values()
    assert graphopt.inspect(inlined(graph.model)).optimizer.accumulation == Accumulation(3)


@pytest.mark.parametrize("layout", ["chunks", "buckets", "separate"])
@pytest.mark.parametrize("per", ["all", "group", "parameter"])
def test_norms_of_sums_whose_parts_are_centralized(per, layout):
    """A bucket is added up whole; then the gradient of each convolution loses its own mean."""
    kernels = [Parameter(name, (4, 3, 3, 3), op_type="Conv") for name in ("k", "l")]
    groups = [{"params": kernels, "grad_centralization": True}, {"params": PARAMETERS}]
    opt = RMSProp(groups, 0.01, clip_norm=1.0, clip_norm_per=per)
    graph = graphopt.update_graph(opt, layout=layout, accumulation=2)
    found = graphopt.inspect(graph)
    assert found.hazards == ()
    assert found.optimizer.clip_norm_per == per
    assert graphopt.inspect(inlined(graph.model)).optimizer.clip_norm_per == per


@pytest.mark.parametrize("part", [0, 1])
def test_a_norm_of_a_whole_bucket_that_limits_a_part_of_it(part):
    """It is not the norm of what it limits, though the other part is limited by one that is."""
    kernels = [Parameter(name, (4, 3, 3, 3), op_type="Conv") for name in ("k", "l")]
    opt = RMSProp(
        [{"params": kernels, "grad_centralization": True}],
        0.01,
        clip_norm=1.0,
        clip_norm_per="parameter",
    )
    model = inlined(graphopt.update_graph(opt, layout="chunks", accumulation=2).model)
    (split,) = (node for node in model.graph.node if node.op_type == "Split")
    squares = [node for node in model.graph.node if node.op_type == "ReduceSumSquare"]
    squares[part].input[0] = split.input[0]
    assert graphopt.inspect(model).optimizer.clip_norm_per == "other"
