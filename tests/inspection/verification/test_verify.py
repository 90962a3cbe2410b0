"""The update of a graph is run and compared: what is RMSProp is verified, all else is found out."""

import json
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import helper, inliner, numpy_helper, parser

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.examples import digits_cnn
from graphopt.inspection.verification.verdict import Verification, in_words
from graphopt.schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    FromCaller,
    InverseDecayLR,
    MultiStepLR,
    NaturalExpDecayLR,
    OnnxSchedule,
    PolynomialDecayLR,
    SequentialLR,
    WarmUpLR,
)
from models import zoo
from tests.helpers.configurations import ROOT, WARM_UP, without_metadata
from tests.helpers.environments import typical
from tests.helpers.on_device import SHAPES, VARIANTS, linear_in, parameters
from tests.helpers.random_configurations import configurations
from tests.helpers.zoo import zoo_graph

CALLED = SequentialLR([WarmUpLR(0.1, 2), FromCaller("rate")], [2])
FALLING = ExponentialDecayLR(0.5, 0.5, 4)

CONV, FILTERS = (
    Parameter("conv", (5, 3, 2, 2), op_type="Conv"),
    Parameter("filters", (4, 7), op_type="Conv"),
)
DENSE, BIAS = Parameter("dense", (33, 40)), Parameter("bias", (40,))
SCALAR, ONE = Parameter("scalar", ()), Parameter("one", (1,))
HALF, HALVES = Parameter("half", (), "float16"), Parameter("halves", (9, 30), "float16")
SOME = [CONV, DENSE, BIAS, SCALAR, ONE]
TWO = [{"params": [CONV, BIAS]}, {"params": [DENSE, SCALAR], "lr": 0.3}]
CENTRALIZED = [{"params": [CONV, FILTERS, BIAS], "grad_centralization": True}]

# Arguments of the optimizer, and of the graph.
CONFIGURATIONS = {
    "plain": ({}, {}),
    "momentum": ({"momentum": 0.9, "decay": 0.99}, {}),
    "nesterov": ({"momentum": 0.5, "nesterov": True}, {}),
    "centered": ({"centered": True}, {}),
    "centered, momentum": ({"centered": True, "momentum": 0.9, "epsilon": 1e-3}, {}),
    "decay of zero": ({"decay": 0.0, "momentum": 0.9}, {}),
    "decay above one": ({"decay": 1.5, "centered": True, "epsilon": 1e-3}, {}),
    "decay of almost zero": ({"decay": 1e-7, "centered": True}, {}),
    "degenerate": (
        {"params": CENTRALIZED, "decay": 0.0, "centered": True, "weight_decay": 0.1},
        {},
    ),
    "epsilon outside": ({"epsilon_inside_root": False, "epsilon": 1e-6}, {}),
    "large epsilon": ({"epsilon": 30.0, "centered": True}, {}),
    "rate outside": ({"learning_rate_inside_moment": False, "momentum": 0.9}, {}),
    "weight decay": ({"weight_decay": 1e-4}, {}),
    "decoupled": ({"weight_decay": 0.01, "decoupled_weight_decay": True}, {}),
    "loss scale": ({"loss_scale": 1000.0, "weight_decay": 3e-4}, {}),
    "groups": ({"params": [TWO[0] | {"weight_decay": 0.02}, TWO[1]]}, {}),
    "centralized": ({"params": CENTRALIZED, "weight_decay": 0.07, "loss_scale": 7.0}, {}),
    "float16": ({"params": [HALF, HALVES, DENSE], "momentum": 0.9, "loss_scale": 65536.0}, {}),
    "float16, decayed": ({"params": [HALF, HALVES], "weight_decay": 1e-4, "centered": True}, {}),
    "exponential": ({"learning_rate": FALLING}, {}),
    "exponential stairs": ({"learning_rate": ExponentialDecayLR(0.1, 0.5, 4, True)}, {}),
    "natural": ({"learning_rate": NaturalExpDecayLR(0.1, 0.9, 4)}, {}),
    "natural stairs": ({"learning_rate": NaturalExpDecayLR(0.1, 0.9, 4, True)}, {}),
    "inverse": ({"learning_rate": InverseDecayLR(0.1, 0.3, 7)}, {}),
    "cosine": ({"learning_rate": CosineDecayLR(0.0, 0.1, 1_000_000), "momentum": 0.9}, {}),
    "polynomial": ({"learning_rate": PolynomialDecayLR(0.1, 0.01, 10, 0.5)}, {}),
    "polynomial again": ({"learning_rate": PolynomialDecayLR(0.1, 0.01, 9, 2.0, True)}, {}),
    "milestones": ({"learning_rate": MultiStepLR(0.1, 0.5, [2, 5])}, {}),
    "sequence": ({"learning_rate": WARM_UP}, {}),
    "list": ({"learning_rate": [0.1, 0.2, 0.3]}, {}),
    "onnx text": ({"learning_rate": OnnxSchedule(ROOT)}, {}),
    "from the caller": ({"learning_rate": FromCaller("rate")}, {}),
    "both from the caller": (
        {"learning_rate": FromCaller("rate"), "weight_decay": FromCaller("decay")},
        {},
    ),
    "later from the caller": ({"learning_rate": CALLED, "weight_decay": 0.1}, {}),
    "falling decay": ({"weight_decay": FALLING, "loss_scale": 3.0}, {}),
    "falling, decoupled": (
        {"weight_decay": FALLING, "loss_scale": 3.0, "decoupled_weight_decay": True},
        {},
    ),
    "group mask": ({"params": TWO, "momentum": 0.9}, {"group_mask": True}),
    "everything": (
        {
            "params": [
                CENTRALIZED[0] | {"weight_decay": 0.01, "lr": WARM_UP},
                {"params": [DENSE, HALVES, SCALAR], "lr": [0.1, 0.2, 0.3, 0.4]},
            ],
            "momentum": 0.9,
            "centered": True,
            "loss_scale": 512.0,
            "decay": 0.95,
        },
        {"group_mask": True},
    ),
}


ON_EACH_RUNTIME = ("plain", "falling, decoupled", "float16, decayed", "onnx text", "everything")


@cache
def configured(name, layout="auto"):
    """The graph of a configuration, which nobody changes."""
    optimizer, graph = CONFIGURATIONS[name]
    opt = RMSProp(**{"params": SOME} | optimizer)
    return graphopt.update_graph(opt, layout=layout, **graph).model


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def inlined(model):
    return inliner.inline_local_functions(without_metadata(model))


def check(found, steps=5):
    assert found.differences == ()
    assert found.verified
    assert found.steps == steps
    assert 0 <= found.deviation <= 1


class TestVerified:
    @pytest.mark.quick
    @pytest.mark.parametrize("name", typical(CONFIGURATIONS.keys(), *ON_EACH_RUNTIME))
    def test_configurations(self, name):
        check(graphopt.verify(configured(name)))

    @pytest.mark.any_runtime
    @pytest.mark.parametrize("change", [without_metadata, inlined])
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_nodes_alone(self, name, change):
        check(graphopt.verify(change(configured(name))))

    @pytest.mark.any_runtime
    @pytest.mark.parametrize("layout", ["chunks", "buckets", "separate"])
    @pytest.mark.parametrize("name", ["plain", "centered, momentum", "everything", "groups"])
    def test_layouts(self, name, layout):
        check(graphopt.verify(configured(name, layout)))
        check(graphopt.verify(inlined(configured(name, layout))))

    @pytest.mark.parametrize(
        "name",
        typical(zoo.ZOO.keys(), "mlp_bce", "digits_cnn", "resnet", "language_model", "lstm"),
    )
    def test_networks(self, name):
        graph = zoo_graph(name)
        found = graphopt.verify(graph, steps=2)
        check(found, 2)
        assert found.unchecked == ()
        assert found.gradients.precision == found.forward.precision == "float64"
        assert found.gradients.parameters == len(graphopt.parameters(zoo.ZOO[name].build()))
        assert found.gradients.directions == 4
        assert found.forward.forward_model

    @pytest.mark.parametrize(
        ("name", "accumulate"),
        [
            ("mlp", False),
            ("mlp", True),
            ("digits_cnn", False),
            ("lstm", True),
            ("mobilenet_v3", False),
        ],
    )
    def test_on_device_training_models(self, name, accumulate, tmp_path):
        network = zoo.ZOO[name]
        model = network.build()
        opt = RMSProp(
            graphopt.parameters(model), WARM_UP, momentum=0.9, weight_decay=0.1, loss_scale=8.0
        )
        files = graphopt.export_on_device(
            model, network.loss, opt, tmp_path, gradient_accumulation=accumulate
        )
        check(graphopt.verify(files.training_model, steps=2), 2)

    @pytest.mark.parametrize("settings", typical(VARIANTS, *list(VARIANTS)[::4]))
    def test_on_device_optimizer_models(self, settings, tmp_path):
        model = optimizer_model(RMSProp(parameters(SHAPES), 0.05, **settings), tmp_path)
        check(graphopt.verify(model))
        if "falling" not in repr(settings) and not isinstance(
            settings.get("weight_decay"), ExponentialDecayLR
        ):
            check(graphopt.verify(without_metadata(model)))

    @pytest.mark.parametrize("settings", [{}, {"decoupled_weight_decay": True, "momentum": 0.9}])
    def test_on_device_optimizer_model_with_groups(self, settings, tmp_path):
        groups = [
            {"params": [ONE, BIAS], "lr": 0.01},
            {"params": [DENSE], "lr": 0.03, "weight_decay": 0.1},
            {"params": [CONV], "weight_decay": FALLING, "grad_centralization": True},
        ]
        model = optimizer_model(RMSProp(groups, 0.002, **settings), tmp_path)
        check(graphopt.verify(model))
        found = graphopt.verify(without_metadata(model))
        assert not found.verified
        assert "tells parameters apart by their shapes" in found.differences[0]

    def test_damaged_metadata_is_left_aside(self):
        model = copied(configured("momentum"))
        for entry in model.metadata_props:
            if entry.key == "graphopt.optimizer":
                entry.value = "{"
        check(graphopt.verify(model))

    @pytest.mark.any_runtime
    @settings(
        derandomize=True,
        deadline=None,
        max_examples=25,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(configurations())
    def test_random_configurations(self, configuration):
        optimizer, masks, seed = configuration
        graph = graphopt.update_graph(optimizer, group_mask=masks is not None)
        check(graphopt.verify(graph, seed=seed % 1000, steps=3), 3)

    @pytest.mark.any_runtime
    def test_many_seeds(self):
        model = configured("degenerate")
        for seed in range(10):
            check(graphopt.verify(model, seed=seed, steps=4), 4)

    @pytest.mark.any_runtime
    def test_a_large_tensor_holds_little_memory(self, tmp_path):
        opt = RMSProp([Parameter("w", (2048, 1024))], momentum=0.9, centered=True)
        path = tmp_path / "large.onnx"
        graphopt.update_graph(opt).save(path)
        check(graphopt.verify(path, steps=2), 2)

    def test_the_random_numbers_depend_on_the_seed_alone(self):
        model = configured("everything")
        first, again, other = (graphopt.verify(model, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.deviation != other.deviation


def optimizer_model(opt, folder):
    values = {p.name: np.zeros(p.shape, np.float32) for p in opt.params}
    files = graphopt.export_on_device(
        linear_in(values), "objective", opt, folder / "device", optimizer_model=True
    )
    return onnx.load(files.optimizer_model)


# What the graph is built with, and what its metadata says instead.
SAID_OTHERWISE = {
    "epsilon": ({"epsilon": 1e-8}, {"epsilon": 1e-10}),
    "epsilon, centered": (
        {"epsilon": 1e-8, "centered": True},
        {"epsilon": 1e-10, "centered": True},
    ),
    "epsilon outside": (
        {"epsilon": 1e-8, "epsilon_inside_root": False},
        {"epsilon": 1e-10, "epsilon_inside_root": False},
    ),
    "decay": ({"decay": 0.901}, {"decay": 0.9}),
    "weight decay": ({"weight_decay": 2e-4}, {"weight_decay": 1e-4}),
    "weight decay, scaled": (
        {"weight_decay": 2e-4, "loss_scale": 1024.0},
        {"weight_decay": 1e-4, "loss_scale": 1024.0},
    ),
    "weight decay, centralized": (
        {"params": CENTRALIZED, "weight_decay": 2e-4},
        {"params": CENTRALIZED, "weight_decay": 1e-4},
    ),
    "weight decay, decoupled": (
        {"weight_decay": 2e-4, "decoupled_weight_decay": True},
        {"weight_decay": 1e-4, "decoupled_weight_decay": True},
    ),
    "no weight decay": ({}, {"weight_decay": 1e-4}),
    "decoupled": (
        {"weight_decay": 1e-4},
        {"weight_decay": 1e-4, "decoupled_weight_decay": True},
    ),
    "momentum": ({"momentum": 0.9}, {"momentum": 0.9001}),
    "nesterov": ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    "rate outside": (
        {"momentum": 0.9},
        {"momentum": 0.9, "learning_rate_inside_moment": False},
    ),
    "loss scale": ({"loss_scale": 1024.0}, {"loss_scale": 1000.0}),
    "learning rate": ({"learning_rate": 0.1}, {"learning_rate": 0.10001}),
    "learning rate of float16": (
        {"params": [HALVES], "learning_rate": 0.1},
        {"params": [HALVES], "learning_rate": 0.11},
    ),
    "schedule": ({"learning_rate": WARM_UP}, {"learning_rate": 0.1}),
    "a later part": (
        {"learning_rate": WARM_UP},
        {"learning_rate": SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 91)], [10])},
    ),
    "centralized": (
        {"params": CENTRALIZED},
        {"params": CENTRALIZED[0]["params"]},
    ),
    "not centralized": (
        {"params": CENTRALIZED[0]["params"]},
        {"params": CENTRALIZED},
    ),
    "falling decay": (
        {"weight_decay": FALLING},
        {"weight_decay": ExponentialDecayLR(0.5, 0.49, 4)},
    ),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", SAID_OTHERWISE)
def test_numbers_that_the_metadata_gets_wrong(name):
    """Both readings differ, and so does what is computed: the comparison can fail."""
    built, said = (
        graphopt.update_graph(RMSProp(**{"params": SOME} | arguments)).model
        for arguments in SAID_OTHERWISE[name]
    )
    model = copied(built)
    entries = {entry.key: entry.value for entry in said.metadata_props}
    for entry in model.metadata_props:
        if entry.key in ("graphopt.optimizer", "graphopt.groups", "graphopt.parameters"):
            entry.value = entries[entry.key]
    found = graphopt.verify(model)
    assert not found.verified
    assert found.deviation > 1
    assert any(line.startswith("step ") for line in found.differences)
    check(graphopt.verify(built))
    check(graphopt.verify(said))


# Changes of a graph. What tells of each, as a part of one of the differences.
def node_of(model, op_type, index=0):
    return [node for node in model.graph.node if op_type in node.op_type][index]


def set_attribute(model, op_type, index, name, value):
    for attribute in node_of(model, op_type, index).attribute:
        if attribute.name == name:
            attribute.f = value
            return
    raise AssertionError(name)


def after(model, value, op_type, *operands, **attributes):
    """Put an operator behind a value that is an output."""
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == value:
                node.output[place] = f"{value}.before"
    model.graph.node.append(
        helper.make_node(op_type, [f"{value}.before", *operands], [value], **attributes)
    )


def number(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def function_of(model, name):
    return next(function for function in model.functions if function.name == name)


def fed_back(model, name):
    """The output that feeds an input."""
    (entry,) = (e for info in model.training_info for e in info.update_binding if e.key == name)
    return entry.value


def another_decay(model):
    set_attribute(model, "RMSProp", 1, "decay", 0.91)


def another_epsilon(model):
    set_attribute(model, "RMSProp", 1, "epsilon", 1e-8)


def no_momentum(model):
    set_attribute(model, "RMSProp", 1, "momentum", 0.0)


def larger_state(model):
    number(model, "a_little", 1.001)
    after(model, fed_back(model, "mean_square.dense"), "Mul", "a_little")


def larger_moment(model):
    number(model, "a_little", 1.001)
    after(model, fed_back(model, "moment.dense"), "Mul", "a_little")


def larger_parameter(model):
    number(model, "a_little", 1.001)
    after(model, fed_back(model, "dense"), "Mul", "a_little")


def stopped_clock(model):
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == fed_back(model, "global_step"):
                node.output[place] = f"{name}.before"
    node = helper.make_node("Identity", ["global_step"], [fed_back(model, "global_step")])
    model.graph.node.append(node)


def swapped_states(model):
    """Each is fed by what the other one is to be."""
    for info in model.training_info:
        for entry in info.update_binding:
            kind = entry.key.partition(".")[0]
            other = {"mean_square": "moment", "moment": "mean_square"}.get(kind)
            if other and entry.key.endswith(".dense"):
                entry.value = entry.value.replace(kind, other)


def without_guard(model):
    function = function_of(model, "Guard")
    del function.node[:]
    function.node.append(helper.make_node("Identity", ["u"], ["guarded"]))


def other_direction(model):
    """Away from the minimum."""
    for function in model.functions:
        for node in function.node:
            if node.op_type == "Sub" and node.output[0] == "w1":
                node.op_type = "Add"


def without_moment(model):
    """One that updates without the moment, which stays as it is."""
    node = node_of(model, "RMSPropMomentum", 1)
    parameter, gradient, square, moment, rate = node.input
    new, square_after, moment_after = node.output
    attributes = {a.name: a.f for a in node.attribute if a.name != "momentum"}
    plain = helper.make_node(
        "RMSProp", [parameter, gradient, square, rate], [new, square_after],
        domain="graphopt", **attributes,
    )  # fmt: skip
    node.CopyFrom(plain)
    model.graph.node.append(helper.make_node("Identity", [moment], [moment_after]))
    donor = graphopt.update_graph(RMSProp([DENSE]), layout="separate").model
    model.functions.append(function_of(donor, "RMSProp"))


def other_group(model):
    """The mask of another group."""
    gathers = [node for node in model.graph.node if "group_mask" in node.input]
    first, last = gathers[0], gathers[-1]
    assert first.input[1] != last.input[1]
    first.input[1], last.input[1] = last.input[1], first.input[1]


def always(model):
    """Nothing asks the mask of one bucket."""
    node = node_of(model, "RMSProp", 0)
    assert "Mask" in node.op_type
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    node.input[-1] = "always"


MOMENTUM = {"params": [BIAS, DENSE], "momentum": 0.9}
CENTERED = {"params": [BIAS, DENSE], "momentum": 0.9, "centered": True}
CHANGES = [
    (another_decay, MOMENTUM, {}, "mean_square.dense["),
    (another_decay, CENTERED, {}, "mean_grad.dense["),
    (another_epsilon, MOMENTUM, {}, "moment.dense["),
    (no_momentum, MOMENTUM, {}, "moment.dense["),
    (without_moment, MOMENTUM, {}, "there is no 'moment.dense'"),
    (larger_state, MOMENTUM, {}, "mean_square.dense["),
    (larger_moment, MOMENTUM, {}, "moment.dense["),
    (larger_parameter, MOMENTUM, {}, "how 'dense' changes was not recognised"),
    (stopped_clock, MOMENTUM | {"learning_rate": FALLING}, {}, "expected 1"),
    (swapped_states, MOMENTUM, {}, "mean_square.dense["),
    (without_guard, CENTERED, {}, "nothing keeps elements of 'dense'"),
    (without_guard, CENTERED, {}, "is nan"),
    (other_direction, MOMENTUM, {}, "no optimizer"),
    (other_group, {"params": TWO}, {"group_mask": True}, "conv["),
    (always, {"params": TWO}, {"group_mask": True}, "conv"),
]


@pytest.mark.any_runtime
@pytest.mark.quick
@pytest.mark.parametrize("strip", [False, True], ids=["", "without_metadata"])
@pytest.mark.parametrize(
    ("change", "optimizer", "graph", "told"),
    CHANGES,
    ids=[f"{change.__name__}-{index}" for index, (change, *_) in enumerate(CHANGES)],
)
def test_graphs_that_compute_something_else(change, optimizer, graph, told, strip):
    model = graphopt.update_graph(RMSProp(**optimizer), layout="separate", **graph).model
    check(graphopt.verify(model))
    model = copied(model)
    change(model)
    onnx.checker.check_model(model)
    if strip:
        if change is other_group:
            pytest.skip("NOT RUN: without metadata this is another valid optimizer")
        model = without_metadata(model)
    found = graphopt.verify(model)
    assert not found.verified
    assert any(told in line for line in found.differences), found


def all_nodes(graph):
    """Those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def set_number(model, before, value):
    """The one constant that is this number."""
    (tensor,) = (
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and np.allclose(numpy_helper.to_array(tensor), before)
    )
    tensor.CopyFrom(numpy_helper.from_array(np.float32(value), tensor.name))


def decay_of_optimizer_model(model):
    first = next(node for node in all_nodes(model.graph) if node.op_type.startswith("RMSProp"))
    (attribute,) = (attribute for attribute in first.attribute if attribute.name == "decay")
    attribute.f = 0.91


def rate_of_group(model):
    """The ratio of a group to the first."""
    set_number(model, 3.0, 3.1)


def moved_twice(model):
    """The parameters are moved by twice the step."""
    (write,) = (
        node
        for node in all_nodes(model.graph)
        if node.op_type == "SGDOptimizerV2" and node.input[1] == "params"
    )
    write.input[0] = number(model, "twice", -2.0)


def added_once_more(model):
    """The mean square starts from something else."""
    set_number(model, 0.7, 0.6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (decay_of_optimizer_model, "mean_square."),
        (rate_of_group, "dense"),
        (moved_twice, "bias["),
        (added_once_more, "step 0: mean_square."),
    ],
)
def test_optimizer_models_that_compute_something_else(change, told, tmp_path):
    groups = [{"params": [BIAS], "lr": 0.1}, {"params": [DENSE], "lr": 0.3}]
    opt = RMSProp(groups, momentum=0.9, initial_mean_square=0.7)
    model = optimizer_model(opt, tmp_path)
    check(graphopt.verify(model))
    changed = copied(model)
    change(changed)
    assert changed != model
    found = graphopt.verify(changed)
    assert not found.verified
    assert found.deviation > 1
    assert any(told in line for line in found.differences), found


class TestNotRun:
    def test_a_model_without_an_optimizer(self):
        found = graphopt.verify(zoo.ZOO["mlp"].build())
        assert found == Verification(
            "no optimizer", False, differences=("no optimizer was recognised in the graph",)
        )

    def test_gradients_alone(self, tmp_path):
        opt = RMSProp([ONE])
        files = graphopt.export_on_device(
            linear_in({"one": np.ones(1, np.float32)}), "objective", opt, tmp_path,
            optimizer_model=True,
        )  # fmt: skip
        found = graphopt.verify(files.training_model)
        assert not found.verified
        assert found.differences == (
            "the graph computes gradients only: its update is in the optimizer model",
        )

    def test_another_optimizer(self):
        model = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            sgd (float[3] w, float[3] g) => (float[3] w.next) <float rate = {0.1}> {
                step = Mul (g, rate)
                w.next = Sub (w, step)
            }""".replace("w.next", "w_next")
        )
        model.training_info.add().update_binding.add(key="w", value="w_next")
        found = graphopt.verify(model)
        assert found.optimizer == "SGD"
        assert found.differences == ("the graph computes SGD, not RMSProp",)

    def test_a_learning_rate_of_something_else(self):
        model = copied(graphopt.update_graph(RMSProp([ONE], FromCaller("rate"))).model)
        node = helper.make_node("Erf", ["rate"], ["rate.odd"])
        for other in model.graph.node:
            other.input[:] = ["rate.odd" if name == "rate" else name for name in other.input]
        model.graph.node.insert(0, node)
        found = graphopt.verify(without_metadata(model))
        assert not found.verified
        assert "not computed by arithmetic on the step alone" in found.differences[-1]

    def test_a_state_of_another_size(self):
        model = copied(graphopt.update_graph(RMSProp([BIAS, DENSE]), layout="separate").model)
        other = fed_back(model, "mean_square.bias")
        for info in model.training_info:
            for entry in info.update_binding:
                if entry.key == "mean_square.dense":
                    entry.value = other
        found = graphopt.verify(model)
        assert not found.verified
        assert "has the shape [40], and 'mean_square.dense'" in found.differences[-2]
        assert "it carries 'mean_square.bias.next' twice" in found.differences[-1]

    def test_too_large(self):
        model = copied(graphopt.update_graph(RMSProp([DENSE]), layout="separate").model)
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value *= 2**22
                break
        found = graphopt.verify(without_metadata(model))
        assert not found.verified
        assert "more than the 8.0 GiB" in found.differences[-1]

    def test_unknown_operators(self):
        model = copied(graphopt.update_graph(RMSProp([DENSE]), layout="separate").model)
        output = fed_back(model, "mean_square.dense")
        after(model, output, "Unheard", domain="odd\n\x1b[31m")
        model.opset_import.append(helper.make_opsetid("odd\n\x1b[31m", 1))
        found = graphopt.verify(model)
        assert not found.verified
        update, graph = found.differences
        assert update.startswith("the update does not run by itself: ")
        assert graph.startswith("onnxruntime ")
        assert update.isprintable()
        assert graph.isprintable()


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match="steps"):
        graphopt.verify(configured("plain"), steps=steps)


@pytest.mark.parametrize("name", ["no.onnx", "text.onnx"])
def test_files_that_are_no_model(name, tmp_path):
    path = tmp_path / name
    if name == "text.onnx":
        path.write_text("no model at all")
    error = FileNotFoundError if name == "no.onnx" else ValueError
    with pytest.raises(error, match=name):
        graphopt.verify(path)


def test_one_step_beyond_a_list_is_not_tried():
    check(graphopt.verify(configured("list"), steps=40), 40)


def test_to_dict():
    model = copied(configured("momentum"))
    found = graphopt.verify(model)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == {
        "optimizer": "RMSProp (momentum 0.9)",
        "verified": True,
        "steps": 5,
        "deviation": found.deviation,
        "differences": [],
        "gradients": None,
        "forward": None,
        "unchecked": ["gradients and forward values: the gradients are fed, nothing computes them"],
    }


def test_an_infinite_deviation_is_json():
    model = graphopt.update_graph(RMSProp(**CENTERED), layout="separate").model
    without_guard(model)
    json.dumps(graphopt.verify(model).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "RMSProp"),
        ({"momentum": 0.9, "nesterov": True}, "RMSProp (momentum 0.9, nesterov)"),
        (
            {"momentum": 0.5, "learning_rate_inside_moment": False},
            "RMSProp (momentum 0.5, learning rate outside the moment)",
        ),
        ({"epsilon_inside_root": False}, "RMSProp (epsilon outside the root)"),
        (
            {"weight_decay": 0.1, "decoupled_weight_decay": True, "loss_scale": 8.0},
            "RMSProp (decoupled weight decay, loss scale 8)",
        ),
        ({"centered": True}, "RMSProp (centered)"),
    ],
)
def test_words(arguments, words):
    opt = RMSProp([BIAS], **arguments)
    assert graphopt.verify(graphopt.update_graph(opt), steps=1).optimizer == words
    assert in_words(None) == "no optimizer"


def test_feeds_may_leave_out_the_group_mask():
    model = digits_cnn.build()
    params = graphopt.parameters(model)
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.01}]
    graph = graphopt.training_graph(
        model, "cross_entropy", graphopt.RMSProp(groups), group_mask=True
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.random((4, 1, 8, 8), np.float32), "labels": rng.integers(0, 10, 4)}
    assert graphopt.verify(graph, steps=1, feeds=feeds).verified


@pytest.mark.parametrize("name", ["mlp", "digits_cnn"])
def test_the_graph_of_a_session(name):
    """It has no values that parameters start from."""
    session = graphopt.Session(zoo_graph(name))
    assert graphopt.verify(session.graph, steps=1).verified
