"""Loss scales, skipped steps and clipping: what is right is verified, all else is found out."""

import numpy as np
import onnx
import pytest
from onnx import helper, inliner, numpy_helper, parser

import graphopt
from graphopt import Accumulation, DynamicLossScale, Parameter, RMSProp
from graphopt.average import ParameterAverage
from graphopt.schedules import FromCaller
from tests.helpers.configurations import (
    CONFIGURATIONS,
    MODEL,
    PARAMETERS,
    configured,
    inlined,
    without_metadata,
)
from tests.helpers.environments import typical

DENSE, BIAS, SCALAR = Parameter("dense", (33, 40)), Parameter("bias", (40,)), Parameter("one", ())
CONV = Parameter("conv", (5, 3, 2, 2), op_type="Conv")
HALF = Parameter("half", (9, 30), "float16")
DOUBLE = Parameter("double", (9, 30), "float64")
SOME = [CONV, DENSE, BIAS, SCALAR]
TWO = [
    {"params": [CONV, BIAS], "grad_centralization": True, "weight_decay": 0.02},
    {"params": [DENSE, SCALAR], "lr": 0.3},
]
DYNAMIC = DynamicLossScale(1024.0, growth_interval=5, floor=1.0, ceiling=2.0**20)
MOST = {"loss_scale": DYNAMIC, "momentum": 0.9, "centered": True, "epsilon": 1e-3}

# Arguments of the optimizer, and of the graph.
RIGHT = [
    (MOST | {"clip_norm": 5.0}, {}),
    (MOST | {"clip_norm": 0.5, "clip_norm_per": "group", "params": TWO}, {"group_mask": True}),
    (MOST | {"clip_norm": 0.5, "clip_norm_per": "group", "params": TWO}, {"layout": "foreach"}),
    ({"params": TWO, "clip_norm": 2.0, "loss_scale": 3.0}, {"group_mask": True}),
    ({"params": TWO, "clip_norm": 1.0, "clip_norm_per": "parameter"}, {"layout": "separate"}),
    ({"params": TWO, "clip_value": 0.2, "loss_scale": FromCaller("loss_scale")}, {}),
    ({"clip_value": 0.2, "weight_decay": 0.1}, {}),
    ({"clip_value": 1e-5, "loss_scale": 1000.0, "weight_decay": 0.1}, {"layout": "foreach"}),
    ({"skip_on_overflow": True, "loss_scale": 64.0, "weight_decay": 0.1}, {"layout": "buckets"}),
    ({"skip_on_overflow": True, "params": TWO, "nesterov": True, "momentum": 0.5}, {}),
    ({"params": [HALF, BIAS], "loss_scale": DynamicLossScale(2.0**24), "clip_norm": 1e-3}, {}),
    ({"loss_scale": DynamicLossScale.mindspore_update_cell(2.0**12, 2.0, 1)}, {}),
    ({"loss_scale": DynamicLossScale.flax(3)}, {}),
    ({"average": 0.99, "momentum": 0.9}, {"layout": "foreach"}),
    ({"average": ParameterAverage(0.9, warm_up=True), "params": TWO} | MOST, {"group_mask": True}),
    ({"average": ParameterAverage(0.0), "params": [HALF, BIAS], "clip_value": 0.5}, {}),
    ({"loss_scale": DynamicLossScale(3.0, 1.7, 0.3, 2), "learning_rate": FromCaller("rate")}, {}),
]
# Gradients of several steps.
FED, SUM = Accumulation(None), Accumulation(2, "sum")
RIGHT += [
    ({}, {"accumulation": 3}),
    ({"loss_scale": 8.0, "weight_decay": 0.1, "average": 0.9}, {"accumulation": 1}),
    (MOST | {"clip_norm": 5.0, "average": 0.9}, {"accumulation": 3}),
    (MOST | {"clip_norm": 5.0, "params": TWO}, {"accumulation": FED, "group_mask": True}),
    ({"skip_on_overflow": True, "params": TWO}, {"accumulation": SUM, "layout": "foreach"}),
    ({"clip_value": 0.2, "params": [HALF, BIAS], "average": 0.5}, {"accumulation": FED}),
    ({"loss_scale": FromCaller("loss_scale"), "params": TWO}, {"accumulation": SUM}),
    (
        {"params": TWO, "clip_norm": 1.0, "clip_norm_per": "group", "skip_on_overflow": True},
        {"accumulation": Accumulation(None, "sum"), "group_mask": True},
    ),
    (
        {"params": TWO, "clip_norm": 1.0, "clip_norm_per": "parameter", "momentum": 0.9},
        {"accumulation": FED},
    ),
    ({"params": [DOUBLE], "clip_norm": 1.0, "average": 0.9}, {"accumulation": 2}),
]


def built(optimizer, graph=None):
    opt = RMSProp(**{"params": SOME, "learning_rate": 0.01} | optimizer)
    return graphopt.update_graph(opt, **graph or {}).model


@pytest.mark.parametrize(
    "strip",
    typical({"": lambda model: model, "nodes alone": inlined}, ""),
)
@pytest.mark.parametrize(("optimizer", "graph"), RIGHT)
def test_what_is_right_is_verified(optimizer, graph, strip):
    found = graphopt.verify(strip(built(optimizer, graph)))
    assert found.differences == ()
    assert found.verified
    assert 0 <= found.deviation <= 1


@pytest.mark.parametrize(
    "name",
    typical(
        [name for name in CONFIGURATIONS if "clip" in name or "loss scale" in name],
        "dynamic loss scale",
        "clipped by group",
    ),
)
def test_training_graphs(name):
    found = graphopt.verify(configured(name)[1])
    assert (found.differences, found.unchecked, found.verified) == ((), (), True)
    assert found.gradients.precision == "float64"


@pytest.mark.parametrize("rule", [2, Accumulation(None)], ids=["counted", "fed"])
def test_training_graphs_that_add_gradients_up(rule):
    opt = RMSProp(PARAMETERS, 0.01, loss_scale=DYNAMIC, clip_norm=1.0, average=0.9)
    found = graphopt.verify(graphopt.training_graph(MODEL, "cross_entropy", opt, accumulation=rule))
    assert (found.differences, found.unchecked, found.verified) == ((), (), True)
    assert "applies the mean of" in found.optimizer
    assert found.gradients.precision == "float64"


def test_a_limit_that_is_hardly_reached_is_said():
    found = graphopt.verify(built({"clip_norm": 1e30}))
    assert found.verified
    assert any(line.startswith("clipping: ") for line in found.unchecked)


# Changes of a graph whose functions are written out.
def the(model, op_type, which=lambda _: True):
    (node,) = [node for node in model.graph.node if node.op_type == op_type and which(node)]
    return node


def constant(model, array):
    name = f"constant{len(model.graph.initializer)}.of the test"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def number_of(model, name):
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor).tolist()
    made = next((node for node in model.graph.node if name in node.output), None)
    if made is None or made.op_type != "Constant":
        return None
    attribute = made.attribute[0]
    value = helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value).tolist() if attribute.name == "value" else value


def another_number(model, op_type, before, after):
    """Some operand that is this number becomes another one."""
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == op_type else ()):
            found = number_of(model, name)
            if isinstance(found, int | float) and found == pytest.approx(before):
                dtype = np.int64 if isinstance(before, int) else np.float32
                node.input[place] = constant(model, np.array(after, dtype))
                return
    raise AssertionError((op_type, before))


def inserted(model, value, op_type, *operands):
    """Put an operator behind a value."""
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == value:
                node.output[place] = f"{value}.before"
    model.graph.node.append(helper.make_node(op_type, [f"{value}.before", *operands], [value]))
    ordered = inserted_in_order(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def inserted_in_order(nodes):
    """The nodes, each behind what it reads."""
    waiting, known, made = list(nodes), set(), {name for node in nodes for name in node.output}
    ordered = []
    while waiting:
        ready = [n for n in waiting if all(i in known or i not in made for i in n.input)]
        ordered += ready
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if node not in ready]
    return ordered


def without_check(model):
    """Whether gradients are finite is always true."""
    check = the(model, "Not", lambda node: "is_nan" in node.input[0])
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == check.output[0]:
                node.input[place] = constant(model, True)


def without_check_of_one(model):
    """A parameter is written whatever its gradient is."""
    wheres = [n for n in model.graph.node if n.op_type == "Where" and "AllFinite" in n.input[0]]
    wheres[2].input[0] = constant(model, True)


def without_one_gradient(model):
    product = the(model, "Mul", lambda n: n.input[0] == "dense_grad" and "zeros" in n.output[0])
    product.input[0] = "bias_grad"


def norm_of_others(model):
    the(model, "ReduceSumSquare", lambda n: n.input[0] == "dense_grad").input[0] = "bias_grad"


def another_floor(model):
    another_number(model, "Max", 1.0, 0.25)


def another_ceiling(model):
    another_number(model, "Min", 2.0**20, 2.0**21)


def another_interval(model):
    another_number(model, "GreaterOrEqual", 5, 6)


def another_backoff(model):
    another_number(model, "Mul", 0.5, 0.25)


def another_limit(model):
    another_number(model, "Div", 5.0, 6.0)


def another_smallest(model):
    another_number(model, "Add", 1e-6, 1e-2)


def another_element(model):
    for place, value in ((1, -0.3), (2, 0.3)):
        the(model, "Clip").input[place] = constant(model, np.float32(value))


def without_factor(model):
    """The gradient of one parameter keeps the loss scale, and its size."""
    scaled = [n for n in model.graph.node if n.op_type == "Mul" and "factored" in n.output[0]]
    scaled[1].input[1] = constant(model, np.float32(1))


def always_updated(model):
    inserted(model, "updated", "Or", constant(model, True))
    for node in model.graph.node:
        node.input[:] = ["updated.before" if name == "updated" else name for name in node.input]


def larger_norm(model):
    inserted(model, "gradient_norm", "Mul", constant(model, np.float32(1.01)))


def never_skipped(model):
    added = the(model, "Add", lambda n: n.input[0] == "skipped_steps")
    added.input[1] = constant(model, np.int64(0))


def counted_twice(model):
    added = the(model, "Add", lambda n: n.input[0] == "global_step")
    added.input[1] = constant(model, np.int64(1))


def stopped_scale(model):
    """The scale grows and shrinks, and the steps since are counted on."""
    where = the(model, "Where", lambda n: n.output[0] == "loss_scale_steps.next")
    where.input[2] = where.input[1]


def another_average(model):
    another_number(model, "Mul", 0.875, 0.75)


def average_of_others(model):
    """The average is of the parameters before the step."""
    kept = [n for n in model.graph.node if n.output[0].startswith("new") and n.op_type == "Mul"]
    moved = {node.output[0]: node for node in model.graph.node}
    where = moved["average.dense.next"]
    while where.op_type not in ("Add", "Where"):
        where = moved[where.input[0]]
    added = where if where.op_type == "Add" else moved[where.input[1]]
    assert kept
    moved[added.input[1]].input[0] = constant(model, np.zeros([], np.float32))


def another_number_of_steps(model):
    another_number(model, "GreaterOrEqual", 3, 4)


def another_share(model):
    """A sum is applied that is not the mean."""
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Mul" else ()):
            if number_of(model, name) == pytest.approx(1 / 3):
                node.input[place] = constant(model, np.float32(1 / 4))


def without_older(model):
    """Only the last gradient is applied: the sum begins anew in each step."""
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Mul" else ()):
            if name == "accumulated.dense":
                node.input[place] = constant(model, np.zeros([], np.float32))


def with_what_was_applied(model):
    """The sum goes on where it should begin anew."""
    keeps = the(model, "Greater", lambda n: n.input[0] == "accumulation_count")
    keeps.input[1] = constant(model, np.int64(-1))


def never_counted(model):
    added = the(model, "Add", lambda n: n.input[0] == "accumulation_count")
    added.input[1] = constant(model, np.int64(2))


def scaled_sum(model):
    """The loss scale stays in what is added up."""
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Mul" else ()):
            if number_of(model, name) == pytest.approx(1 / 8):
                node.input[place] = constant(model, np.float32(1))


def applied_always(model):
    """Parameters are written in each step."""
    is_last = the(model, "GreaterOrEqual").output[0]
    kept = [n for n in model.graph.node if n.op_type == "Where" and n.input[0] == is_last]
    kept[2].input[0] = constant(model, True)


SKIPS, CLIPS = {"skip_on_overflow": True}, {"clip_norm": 5.0}
ALL = {"loss_scale": DYNAMIC, "clip_norm": 5.0}
CHANGES = [
    (without_check, SKIPS, "skip_on_overflow"),
    (without_check_of_one, SKIPS, "dense"),
    (without_one_gradient, SKIPS, "an overflow of the gradient of 'dense' is not looked for"),
    (without_one_gradient, ALL, "an overflow of the gradient of 'dense' is not looked for"),
    (norm_of_others, CLIPS, "is not the norm of those gradients"),
    (norm_of_others, CLIPS, "gradient_norm is"),
    (norm_of_others, ALL, "is not the norm of those gradients"),
    (another_floor, {"loss_scale": DYNAMIC}, "loss_scale is"),
    (another_ceiling, {"loss_scale": DYNAMIC}, "loss_scale is"),
    (another_interval, {"loss_scale": DYNAMIC}, "loss_scale is"),
    (another_backoff, {"loss_scale": DYNAMIC}, "loss_scale is"),
    (stopped_scale, {"loss_scale": DYNAMIC}, "how 'loss_scale' changes was not recognised"),
    (another_limit, CLIPS, "clip_norm is 5.0 in the metadata and 6.0"),
    (another_limit, CLIPS, "step 0: "),
    (another_smallest, CLIPS, "step "),
    (another_element, {"clip_value": 0.5, "params": [DENSE]}, "clip_value is 0.5"),
    (without_factor, {"loss_scale": DYNAMIC}, "is not scaled and clipped like those of others"),
    (without_factor, CLIPS, "is not scaled and clipped like those of others"),
    (always_updated, SKIPS, "updated is True, expected False"),
    (larger_norm, CLIPS | {"loss_scale": 2.0}, "step 0: "),
    (never_skipped, SKIPS, "how 'skipped_steps' changes was not recognised"),
    (counted_twice, SKIPS, ", which overflows, expected "),
]
CHANGES += [
    (another_average, {"average": 0.875}, "average.dense["),
    (average_of_others, {"average": 0.875}, "average.dense"),
    (average_of_others, {"average": 0.875} | SKIPS, "average.dense"),
]
THREE = {"accumulation": 3}
CHANGES += [
    (another_number_of_steps, THREE, "how many steps make an update was not recognised"),
    (another_number_of_steps, {"accumulation": Accumulation(3, "sum")}, "accumulation is Acc"),
    (another_share, THREE, "how many steps make an update was not recognised"),
    (without_older, THREE, "accumulated"),
    (with_what_was_applied, {"accumulation": FED}, "accumulated."),
    (never_counted, THREE, "accumul"),
    (scaled_sum, THREE | {"loss_scale": 8.0}, "loss_scale is 8.0 in the metadata"),
    (applied_always, THREE, "how many steps make an update was not recognised"),
]
BY_METADATA = (
    another_number_of_steps,
    scaled_sum,
    another_average,
    another_floor,
    another_ceiling,
    another_interval,
    another_backoff,
)
BY_METADATA += (another_limit, another_element, without_check)


@pytest.mark.any_runtime
@pytest.mark.parametrize("layout", ["separate", "foreach"])
@pytest.mark.parametrize("strip", [False, True], ids=["", "without_metadata"])
@pytest.mark.parametrize(
    ("change", "optimizer", "told"),
    CHANGES,
    ids=[f"{change.__name__}-{index}" for index, (change, *_) in enumerate(CHANGES)],
)
def test_graphs_that_compute_something_else(change, optimizer, told, strip, layout):
    if strip and change in BY_METADATA:
        pytest.skip("NOT RUN: without metadata this is another valid optimizer")
    given = {"params": [BIAS, DENSE], "epsilon": 1e-3} | optimizer
    of_graph = {"layout": layout} | {k: given.pop(k) for k in ("accumulation",) if k in given}
    model = inliner.inline_local_functions(built(given, of_graph))
    change(model)
    onnx.checker.check_model(model)
    found = graphopt.verify(without_metadata(model) if strip else model, steps=4)
    assert not found.verified
    assert any(told in line for line in found.differences), found


def test_a_loss_that_is_not_scaled():
    """The gradients are divided by what the loss was not multiplied by."""
    model = inliner.inline_local_functions(configured("dynamic loss scale")[1])
    scaled = next(n for n in model.graph.node if n.op_type == "Mul" and "loss_scale" in n.input)
    scaled.input[list(scaled.input).index("loss_scale")] = constant(model, np.float32(1))
    found = graphopt.verify(model)
    assert any("derivative of the loss" in line for line in found.differences), found


NORMALIZED = """<ir_version: 8, opset_import: ["": 17]>
normalized (float[N, 3] x) => (float[N, 2] y)
<float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[2] scale = {1, 1}, float[2] bias = {0, 0},
 float[2] mean = {0, 0}, float[2] variance = {1, 1}>
{
    h = Gemm <transB = 1> (x, w)
    y = BatchNormalization (h, scale, bias, mean, variance)
}"""


@pytest.mark.parametrize("layout", ["chunks", "foreach"])
def test_statistics_that_take_in_a_batch_that_overflows(layout):
    forward = parser.parse_model(NORMALIZED)
    opt = RMSProp(graphopt.parameters(forward), 0.01, skip_on_overflow=True)
    graph = graphopt.training_graph(forward, "mse", opt, layout=layout)
    model = inliner.inline_local_functions(graph.model)
    kinds = {state.input: state.kind for state in graphopt.inspect(model).state}
    assert kinds["mean"] == kinds["variance"] == "statistic"
    assert kinds["skipped_steps"] == "counter"
    assert graphopt.verify(model).verified
    where = the(model, "Where", lambda n: n.output[0] == "mean.next")
    where.input[0] = constant(model, True)
    found = graphopt.verify(model)
    assert found.differences == ("'mean' changes also in steps that overflow",)
