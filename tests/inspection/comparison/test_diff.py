"""What is different between two graphs: exactly what was changed, and nothing else."""

import io
import json
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from rich.console import Console

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.inspection import diff
from graphopt.inspection.comparison.differences import Change, Difference
from graphopt.inspection.facts import Contents, Hazard, OptimizerFacts, TargetFacts
from graphopt.inspection.show.difference_tables import graph_difference_tables
from graphopt.schedules import CosineDecayLR
from models import zoo

pytestmark = pytest.mark.any_runtime

PARTS = (
    "model", "optimizer", "groups", "parameters", "layout", "state", "interface", "nodes", "values",
    "requirements", "targets", "hazards",
)  # fmt: skip
W, B, C = Parameter("w", (3, 4)), Parameter("b", (4,)), Parameter("c", (5,))
COSINE = {"schedule": "CosineDecayLR", "min_lr": 0.0, "max_lr": 0.1, "decay_steps": 9}


def inspected(params, layout="separate", **arguments):
    return graphopt.inspect(graphopt.update_graph(RMSProp(params, **arguments), layout=layout))


def graph(*arguments, **options):
    """What `inspected` takes; it is done when a test asks for the pair."""
    return partial(inspected, *arguments, **options)


@cache
def pair(name):
    """The first and the second inspection, and what is different between them."""
    first, second, wanted = PAIRS[name]
    return first(), second(), wanted


def there(part, where, *, after):
    return (part, where, "there", not after, after)


def both(what, before, after):
    """What changes with every parameter of the only group."""
    return [("parameters", name, what, before, after) for name in ("w", "b")]


# The first and the second graph, and what is different between them.
PAIRS = {
    "nothing": (graph([W, B]), graph([W, B]), []),
    "decay": (
        graph([W, B]),
        graph([W, B], decay=0.95),
        [("optimizer", "", "decay", 0.9, 0.95)],
    ),
    "epsilon": (
        graph([W, B]),
        graph([W, B], epsilon=1e-3),
        [("optimizer", "", "epsilon", 1e-10, 1e-3)],
    ),
    "locking": (
        graph([W, B]),
        graph([W, B], use_locking=True),
        [("optimizer", "", "use_locking", False, True)],
    ),
    "momentum": (
        graph([W, B]),
        graph([W, B], momentum=0.5),
        [
            ("optimizer", "", "momentum", 0.0, 0.5),
            *both("states", ("mean_square",), ("mean_square", "moment")),
            there("state", "moment.w", after=True),
            there("state", "moment.b", after=True),
            there("requirements", "function graphopt::RMSProp", after=False),
            there("requirements", "function graphopt::Moment", after=True),
            there("requirements", "function graphopt::RMSPropMomentum", after=True),
        ],
    ),
    "learning rate": (
        graph([W, B]),
        graph([W, B], learning_rate=CosineDecayLR(0.0, 0.1, 9)),
        [
            ("groups", "group 0", "learning_rate", 0.1, COSINE),
            *both("learning_rate", 0.1, COSINE),
        ],
    ),
    "initial value": (
        graph([W, B]),
        graph([W, B], initial_mean_square=0.0),
        [
            ("optimizer", "", "initial_mean_square", 1.0, 0.0),
            ("state", "mean_square.w", "initial", 1.0, 0.0),
            ("state", "mean_square.b", "initial", 1.0, 0.0),
        ],
    ),
    "moved to another group": (
        graph([{"params": [W]}, {"params": [B, C], "lr": 0.3}]),
        graph([{"params": [W, B]}, {"params": [C], "lr": 0.3}]),
        [
            ("groups", "group 0", "parameters", 1, 2),
            ("groups", "group 1", "parameters", 2, 1),
            ("parameters", "b", "group", 1, 0),
            ("parameters", "b", "learning_rate", 0.3, 0.1),
        ],
    ),
    "another group": (
        graph([{"params": [W]}, {"params": [B]}]),
        graph([{"params": [W, B]}]),
        [
            ("groups", "group 0", "parameters", 1, 2),
            there("groups", "group 1", after=False),
            ("parameters", "b", "group", 1, 0),
        ],
    ),
    "another parameter": (
        graph([W], layout="buckets"),
        graph([W, B], layout="buckets"),
        [
            ("groups", "group 0", "parameters", 1, 2),
            there("parameters", "b", after=True),
            there("interface", "input b_grad", after=True),
            there("state", "w", after=False),
            there("state", "mean_square.w", after=False),
            there("state", "bucket0", after=True),
            there("state", "mean_square.bucket0", after=True),
        ],
    ),
    "another name": (
        graph([W, B], layout="buckets"),
        graph([W, Parameter("d", (4,))], layout="buckets"),
        [
            there("parameters", "b", after=False),
            there("parameters", "d", after=True),
            there("interface", "input b_grad", after=False),
            there("interface", "input d_grad", after=True),
        ],
    ),
    "another shape": (
        graph([W]),
        graph([Parameter("w", (4, 4))]),
        [
            ("parameters", "w", "shape", (3, 4), (4, 4)),
            ("state", "w", "shape", (3, 4), (4, 4)),
            ("state", "mean_square.w", "shape", (12,), (16,)),
            ("interface", "input w_grad", "shape", (3, 4), (4, 4)),
        ],
    ),
    "another dtype": (
        graph([W]),
        graph([Parameter("w", (3, 4), "float16")]),
        [
            ("parameters", "w", "dtype", "float32", "float16"),
            ("state", "w", "dtype", "float32", "float16"),
            ("interface", "input w_grad", "dtype", "float32", "float16"),
            there("requirements", "function graphopt::RMSPropFloat16", after=True),
        ],
    ),
    "layout": (
        graph([W, B], layout="buckets"),
        graph([W, B], layout="separate"),
        [
            ("layout", "", "name", "buckets", "separate"),
            ("layout", "", "buckets", 1, 2),
            *(there("state", name, after=False) for name in ("bucket0", "mean_square.bucket0")),
            *(there("state", f"{k}{n}", after=True) for k in ("", "mean_square.") for n in "wb"),
        ],
    ),
}
# What the emitted nodes are is not what the pairs are about.
INCIDENTAL = {("model", "nodes")}


def told(difference):
    """The changes, without how many nodes there are and which operators."""
    return [
        (c.part, c.where, c.what, c.before, c.after)
        for c in difference.changes
        if (c.part, c.what) not in INCIDENTAL and not c.where.startswith("operator ")
    ]


@pytest.mark.quick
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    before, after, wanted = pair(name)
    found = diff(before, after)
    got = told(found)
    assert sorted(got, key=repr) == sorted(wanted, key=repr)
    changed = {change.part for change in found.changes}
    assert found.same == tuple(part for part in PARTS if part not in changed)
    if not wanted:
        assert found.same == PARTS


@pytest.mark.parametrize("name", PAIRS)
def test_the_other_way_round(name):
    before, after, _ = pair(name)
    forth, back = diff(before, after), diff(after, before)
    mirrored = [(c.part, c.where, c.what, c.after, c.before) for c in back.changes]
    there = [(c.part, c.where, c.what, c.before, c.after) for c in forth.changes]
    assert sorted(mirrored, key=repr) == sorted(there, key=repr)
    assert forth.same == back.same


def test_another_loss():
    model = zoo.ZOO["mlp"].build()
    opt = RMSProp(graphopt.parameters(model))
    first, other = (graphopt.training_graph(model, loss, opt) for loss in ("cross_entropy", "mse"))
    found = diff(graphopt.inspect(first), graphopt.inspect(other))
    labels = [c for c in found.changes if c.part == "interface"]
    assert [(c.where, c.what) for c in labels] == [
        ("input labels", "shape"),
        ("input labels", "dtype"),
    ]
    assert {"optimizer", "groups", "parameters", "state", "layout"} <= set(found.same)
    assert there("requirements", "operator ai.onnx::LogSoftmax", after=False) in [
        (c.part, c.where, c.what, c.before, c.after) for c in found.changes
    ]


NORMALIZED = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3] x) => (float[N,3] y)
{
    h = MatMul(x, w) n = LayerNormalization<epsilon=EPSILON>(h, s) k = Mul(n, f)
    c = Constant<value_float=CONSTANT>() y = Add(k, c)
}"""
ARRAYS = {
    "w": np.arange(9, dtype=np.float32).reshape(3, 3),
    "s": np.ones(3, np.float32),
    "f": np.full(3, 2, np.float32),
}


def trained(epsilon=1e-5, constant=1.0, layout="buckets", **arrays):
    text = NORMALIZED.replace("EPSILON", str(epsilon)).replace("CONSTANT", str(constant))
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in (ARRAYS | arrays).items()
    )
    optimizer = RMSProp([p for p in graphopt.parameters(model) if p.name != "f"])
    return graphopt.training_graph(model, "mse", optimizer, layout=layout)


OTHER = ARRAYS["w"] + np.eye(3, dtype=np.float32) / 4
CONTENTS = {
    "nothing": ({}, []),
    "an attribute": ({"epsilon": 1e-3}, [("nodes", "epsilon", "1e-05", "0.001")]),
    "an initial value": ({"w": OTHER}, [("values", "values, at most 0.25 apart")]),
    "a frozen constant": ({"f": ARRAYS["f"] * 3}, [("values", "values, at most 4 apart")]),
    "a constant that is a node": ({"constant": 1.5}, [("values", "values, at most 0.5 apart")]),
}


@pytest.mark.parametrize("layout", ["buckets", "separate"])
@pytest.mark.parametrize("name", CONTENTS)
def test_what_the_forward_pass_is_made_of(name, layout):
    options, wanted = CONTENTS[name]
    before, after = (graphopt.inspect(trained(layout=layout, **o)) for o in ({}, options))
    found = diff(before, after)
    assert [(c.part, c.what, *(c.before, c.after)[: len(w) - 2]) for c, w in zip(
        found.changes, wanted, strict=True)] == wanted  # fmt: skip
    if wanted and wanted[0][0] == "values":
        (change,) = found.changes
        assert change.where == {"w": "w", "f": "f"}.get(next(iter(options)), change.where)
        assert change.before != change.after
        assert change.before.startswith("sha256 ")
    text = printed(found, 100)
    assert ("no difference" in text) == (not wanted)
    json.dumps(after.to_dict() | found.to_dict())
    assert "contents" not in after.to_dict()


def test_values_that_are_not_numbers_or_not_at_hand():
    strange = {"t": np.array(["a", "b"], object), "n": np.array([np.nan, np.inf], np.float32)}
    before = replace(inspected([W]), contents=Contents({}, strange))
    assert diff(before, before).changes == ()
    other = {"t": np.array(["a", "c"], object), "n": np.array([np.nan, 1], np.float32)}
    after = replace(before, contents=Contents({}, other))
    assert [(c.where, c.what) for c in diff(before, after).changes] == [
        ("t", "values"),
        ("n", "values, at most inf apart"),
    ]


def test_opset():
    opt = RMSProp([W])
    before = graphopt.inspect(graphopt.update_graph(opt))
    needed = replace(before.requirements, opsets={"": 21}, ir_version=10)
    found = diff(before, replace(before, requirements=needed))
    assert [c for c in found.changes if c.what == "opset of ai.onnx"] == [
        Change("requirements", "", "opset of ai.onnx", 17, 21)
    ]
    assert [c for c in found.changes if c.what == "ir_version"] == [
        Change("requirements", "", "ir_version", 8, 10)
    ]


def test_a_name_that_is_an_input_and_an_output():
    before = inspected([W])
    value = before.inputs[0]
    after = replace(before, outputs=(*before.outputs, replace(value, dtype="float16")))
    found = diff(before, after)
    assert found.changes == (Change("interface", "output w_grad", "there", False, True),)


def test_another_optimizer():
    before = inspected([W])
    adam = OptimizerFacts("AdamW", "graph", epsilon=1e-6, others={"alpha": 0.9})
    found = {
        c.what: (c.before, c.after) for c in diff(before, replace(before, optimizer=adam)).changes
    }
    assert found["name"] == ("RMSProp", "AdamW")
    assert found["alpha"] == (None, 0.9)
    assert found["decay"] == (0.9, None)
    nothing = diff(before, replace(before, optimizer=None))
    assert {c.after for c in nothing.changes} == {None}
    assert {c.part for c in nothing.changes} == {"optimizer"}


def test_hazards_and_targets():
    before = inspected([W])
    hazard = Hazard("no-gradient", "error", ("w", "b"), "why", "fix")
    targets = tuple(replace(target, runs=not target.runs) for target in before.targets[:1])
    after = replace(before, hazards=(hazard,), targets=(*targets, *before.targets[1:]))
    runs = before.targets[0].runs
    assert diff(before, after).changes == (
        Change("targets", before.targets[0].name, "runs", runs, not runs),
        Change("hazards", "no-gradient: w, b", "there", False, True),
    )


def test_nan_is_itself():
    before = inspected([W])
    strange = replace(before, optimizer=replace(before.optimizer, decay=float("nan")))
    again = replace(before, optimizer=replace(before.optimizer, decay=float("nan") * 1))
    assert diff(strange, again).changes == ()
    assert [c.what for c in diff(before, strange).changes] == ["decay"]


def test_to_dict_is_json():
    before, after, _ = pair("learning rate")
    found = diff(before, after)
    again = json.loads(json.dumps(found.to_dict()))
    (change,) = (change for change in again["changes"] if change["part"] == "groups")
    assert change == {
        "part": "groups", "where": "group 0", "what": "learning_rate", "before": 0.1,
        "after": COSINE, "distance": None,
    }  # fmt: skip
    assert again["same"] == list(found.same)


def printed(difference, width, title="a.onnx and b.onnx", rows=20):
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    for part in graph_difference_tables(title, difference, rows=rows):
        console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", PAIRS)
def test_tables(name, width):
    before, after, wanted = pair(name)
    found = diff(before, after)
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    lines = text.splitlines()
    assert lines[0].rstrip() == "a.onnx and b.onnx"
    if not wanted:
        assert "no difference" in text
        return
    squeezed = "".join(text.split())
    assert f"thesame:{','.join(found.same)}" in squeezed
    for change in found.changes:
        if len(change.where) < 20 and len(change.what) < 15:
            assert change.where in text
            assert change.what in text


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0.9, 0.95, ("0.9", "0.95")),
        (False, True, ("no", "yes")),
        (None, 3, ("-", "3")),
        ((3, 4), (), ("[3, 4]", "[]")),
        (0.1, COSINE, ("0.1", "CosineDecayLR(0 .. 0.1, 9)")),
        (None, {"steps": 3, "reduction": "mean"}, ("-", "steps 3, reduction mean")),
        ("values", 1e-10, ("values", "1e-10")),
        (float("inf"), float("nan"), ("inf", "nan")),
    ],
)
def test_values(before, after, shown):
    text = printed(Difference((Change("optimizer", "", "fact", before, after),), ()), 100)
    (line,) = (
        line for line in text.splitlines() if line.split()[:1] == ["fact"] and shown[1] in line
    )
    assert line.split("fact", 1)[1].split() == " ".join(shown).split()


@pytest.mark.parametrize("width", [60, 100])
def test_hostile_names(width):
    name = "[red]bold[/red]\x1b[31m\n\u202e" + "x" * 500
    text = printed(
        Difference(
            (Change(name, name, name, name, (name,)), Change(name, "", "a", {}, {})), (name,)
        ),
        width,
        title=name,
    )
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]bold" in text
    assert max(map(len, text.splitlines())) <= width
    assert len(text) < 10_000


def test_rows_are_limited():
    changes = tuple(Change("parameters", f"p{i}", "group", 0, 1) for i in range(50))
    text = printed(Difference(changes, ()), 100, rows=7)
    assert "p6" in text
    assert "p7" not in text
    assert "43 more" in text


def test_targets_are_told():
    before = inspected([W])
    after = replace(before, targets=(TargetFacts("something", True),))
    text = printed(diff(before, after), 100)
    assert "something" in text
