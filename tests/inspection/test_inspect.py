"""What `graphopt.inspect` finds is what the graph was built from."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.schedules import (
    CosineDecayLR,
    FromCaller,
    OnnxSchedule,
)
from models import zoo
from tests.helpers.configurations import (
    CONFIGURATIONS,
    MODEL,
    PARAMETERS,
    ROOT,
    WARM_UP,
    assert_clean,
    built,
    by_nodes,
    check,
    configured,
    described,
    inlined,
    without_declarations,
    without_metadata,
)

pytestmark = pytest.mark.any_runtime


@cache
def inspected(name, strip=None):
    """What is found in the graph of a configuration, or in what is left of it."""
    _, model = configured(name)
    return graphopt.inspect(strip(model) if strip else model)


@pytest.mark.parametrize("name", CONFIGURATIONS)
class TestConfigurations:
    @pytest.mark.quick
    def test_with_metadata(self, name):
        opt, model = configured(name)
        found = inspected(name)
        check(found, opt, "metadata and graph", described, opt.initial_mean_square)
        assert found.optimizer.use_locking == opt.use_locking
        assert found.optimizer.group_mask == CONFIGURATIONS[name][1].get("group_mask", False)
        assert [p.name for p in found.parameters] == [p.name for p in opt.params]
        assert [p.group for p in found.parameters] == [rule.group for rule in opt.rules]
        for group, wanted in zip(found.groups, opt.groups, strict=True):
            assert group.parameters == tuple(p.name for p in wanted.params)
            assert group.learning_rate == described(wanted.learning_rate)
            assert group.weight_decay == described(wanted.weight_decay)
            assert group.grad_centralization == wanted.grad_centralization
        assert found.layout == graphopt.graph.TrainingGraph(model).layout["name"]
        assert_clean(found, opt)

    @pytest.mark.quick
    def test_without_metadata(self, name):
        opt, _ = configured(name)
        found = inspected(name, without_metadata)
        check(found, opt, "graph", by_nodes, opt.initial_mean_square)
        self.check_groups(found, opt)
        assert_clean(found, opt)

    @pytest.mark.quick
    @pytest.mark.parametrize("strip", [without_declarations, inlined])
    def test_nodes_alone(self, name, strip):
        opt, _ = configured(name)
        found = inspected(name, strip)
        check(found, opt, "graph", by_nodes, None)
        self.check_groups(found, opt)
        if strip is inlined:
            assert_clean(found, opt)

    def check_groups(self, found, opt):
        """Those with another rule are others; nodes do not say more."""
        together: dict[int, set[int]] = {}
        indices = {p.name: rule.group for p, rule in zip(opt.params, opt.rules, strict=True)}
        for parameter in found.parameters:
            together.setdefault(parameter.group, set()).add(indices[parameter.name])
        rules = {(repr(r.learning_rate), repr(r.weight_decay)) for r in opt.rules}
        masked = found.optimizer.group_mask
        assert len(found.groups) == (len(opt.groups) if masked else len(rules))
        assert sorted(n for g in found.groups for n in g.parameters) == sorted(indices)
        if masked:
            assert together == {index: {index} for index in range(len(opt.groups))}


def test_curves_are_the_schedules():
    for name in CONFIGURATIONS:
        opt, _ = configured(name)
        for found in (inspected(name), inspected(name, inlined)):
            for group in found.groups:
                rule = next(r for p, r in zip(opt.params, opt.rules, strict=True)
                            if p.name == group.parameters[0])  # fmt: skip
                if isinstance(rule.learning_rate, FromCaller):
                    assert group.curve == ()
                    continue
                assert group.curve, name
                for step, value in group.curve[::9]:
                    wanted = rule.learning_rate.value(step)
                    assert value == pytest.approx(wanted, rel=1e-6, abs=1e-12), (name, step)


def test_a_schedule_of_onnx_text_is_an_expression_without_metadata():
    _, model = built({"learning_rate": OnnxSchedule(ROOT)}, {})
    assert graphopt.inspect(model).groups[0].learning_rate == {
        "schedule": "OnnxSchedule",
        "text": ROOT,
    }
    (group,) = graphopt.inspect(inlined(model)).groups
    assert group.learning_rate == {
        "schedule": "expression",
        "formula": "0.1 / sqrt((global_step + 1))",
    }
    assert group.curve[3] == (3, pytest.approx(0.05))


def test_steps_bound_the_curve():
    _, model = built({"learning_rate": CosineDecayLR(0.0, 0.1, 100)}, {})
    curve = graphopt.inspect(model, steps=1000).groups[0].curve
    assert curve[0] == (0, pytest.approx(0.1))
    assert curve[-1] == (999, 0.0)
    assert len(curve) <= 200


class TestWhatTheNodesSayCounts:
    """Where the metadata says something else."""

    def changed(self, optimizer, key, change):
        _, model = built(optimizer, {})
        for entry in model.metadata_props:
            if entry.key == key:
                value = json.loads(entry.value)
                change(value)
                entry.value = json.dumps(value)
        return graphopt.inspect(model)

    @pytest.mark.parametrize(
        ("name", "value", "wanted"),
        [
            ("decay", 0.8, 0.9),
            ("momentum", 0.0, 0.5),
            ("epsilon", 1e-3, 1e-10),
            ("centered", False, True),
            ("loss_scale", 1.0, 8.0),
            ("nesterov", True, False),
            ("initial_mean_square", 0.0, 1.0),
        ],
    )
    def test_optimizer(self, name, value, wanted):
        optimizer = {"momentum": 0.5, "centered": True, "loss_scale": 8.0}
        found = self.changed(
            optimizer, "graphopt.optimizer", lambda said: said.update({name: value})
        )
        assert getattr(found.optimizer, name) == wanted
        assert found.optimizer.source == "graph"
        (hazard,) = (h for h in found.hazards if h.kind == "metadata-differs")
        assert name in hazard.why
        assert hazard.level == "error"

    @pytest.mark.parametrize(
        ("name", "value", "wanted"),
        [
            ("learning_rate", 0.5, 0.1),
            ("weight_decay", 0.5, 0.0),
            ("grad_centralization", True, False),
            ("shape", [16, 1, 9], (16, 1, 3, 3)),
        ],
    )
    def test_parameters(self, name, value, wanted):
        found = self.changed({}, "graphopt.parameters", lambda said: said[0].update({name: value}))
        assert getattr(found.parameters[0], name) == wanted
        (hazard,) = (h for h in found.hazards if h.kind == "metadata-differs")
        assert f"{name} of 'conv1.weight'" in hazard.why

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"name": 1}', '{"name": "RMSProp"}', "[" * 5000, "1e999"]
    )
    def test_damaged_metadata(self, text):
        _, model = built({"momentum": 0.9}, {})
        for entry in model.metadata_props:
            if entry.key == "graphopt.optimizer":
                entry.value = text
        found = graphopt.inspect(model)
        assert found.optimizer.source == "graph"
        assert found.optimizer.momentum == 0.9
        assert [hazard.kind for hazard in found.hazards] == ["metadata-damaged"]


UPDATE = [
    Parameter("w", (3, 4)),
    Parameter("scalar", ()),
    Parameter("conv", (5, 2, 3, 3), op_type="Conv"),
    Parameter("large", (300, 400)),
    Parameter("half", (7, 2), dtype="float16"),
]


@pytest.mark.parametrize("layout", ["chunks", "buckets", "separate"])
@pytest.mark.parametrize("strip", [lambda model: model, without_metadata, inlined])
def test_update_graphs(layout, strip):
    opt = RMSProp(
        [{"params": UPDATE, "grad_centralization": True}], momentum=0.9, weight_decay=0.01
    )
    found = graphopt.inspect(strip(graphopt.update_graph(opt, layout=layout).model))
    assert found.model.kind == "update graph"
    shapes = {parameter.name: (parameter.shape, parameter.dtype) for parameter in found.parameters}
    assert shapes == {p.name: (p.shape, p.dtype) for p in UPDATE}
    centralized = {p.name for p in found.parameters if p.grad_centralization}
    assert centralized == {"conv"}
    assert {p.weight_decay for p in found.parameters} == {0.01}
    assert {p.gradient for p in found.parameters} == {f"{p.name}_grad" for p in UPDATE}
    assert {value.name for value in found.inputs} == {f"{p.name}_grad" for p in UPDATE}
    assert [value.name for value in found.outputs] == ["updated"]


def test_state():
    opt, model = built({"momentum": 0.9, "centered": True}, {"layout": "separate"})
    found = graphopt.inspect(model)
    kinds = {state.input: (state.output, state.kind, state.initial) for state in found.state}
    assert kinds["conv1.weight"] == ("conv1.weight.next", "parameter", "values")
    assert kinds["mean_square.conv1.weight"][1:] == ("mean_square", 1.0)
    assert kinds["mean_grad.conv1.weight"][1:] == ("mean_grad", 0.0)
    assert kinds["moment.conv1.weight"][1:] == ("moment", 0.0)
    assert kinds["global_step"][1] == "step"
    assert len(kinds) == 4 * len(opt.params) + 1
    assert all(state.overwritable for state in found.state)
    assert sum(state.bytes for state in found.state) == 16 * sum(p.size for p in opt.params) + 8


def test_running_statistics_are_state():
    model = zoo.ZOO["resnet"].build()
    opt = RMSProp(graphopt.parameters(model))
    found = graphopt.inspect(graphopt.training_graph(model, "cross_entropy", opt))
    statistics = [state.input for state in found.state if state.kind == "statistic"]
    assert statistics
    assert all("running" in name or "mean" in name or "var" in name for name in statistics)


def test_a_forward_model():
    found = graphopt.inspect(MODEL)
    assert found.model.kind == "model"
    assert found.optimizer is None
    assert found.groups == ()
    assert found.state == ()
    assert [(p.name, p.shape, p.op_type) for p in found.parameters] == [
        (p.name, p.shape, p.op_type) for p in PARAMETERS
    ]
    assert {stage.stage for stage in found.stages if stage.nodes} == {"forward"}
    assert [value.name for value in found.inputs] == ["x"]


def test_an_optimizer_that_is_not_known():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
    sign (float[3] w, float[3] g) => (float[3] w.next)
    { s = Sign(g)  "w.next" = Sub(w, s) }""".replace("w.next)", '"w.next")')
    )
    found = graphopt.inspect(model)
    assert found.optimizer is not None
    assert (found.optimizer.name, found.optimizer.source) == ("unknown", "none")
    assert found.state[0].input == "w"


def test_json_is_stable(tmp_path):
    _, model = built({"momentum": 0.9, "learning_rate": WARM_UP}, {})
    path = tmp_path / "train.onnx"
    onnx.save(model, path)
    found = graphopt.inspect(path)
    text = json.dumps(found.to_dict())
    assert json.loads(text) == json.loads(json.dumps(graphopt.inspect(str(path)).to_dict()))
    value = json.loads(text)
    assert value["version"] == 1
    assert value["model"]["name"] == str(path)
    assert value["optimizer"].items() >= {
        "name": "RMSProp", "decay": 0.9, "momentum": 0.9, "epsilon": 1e-10, "centered": False,
        "loss_scale": 1.0,
    }.items()  # fmt: skip
    assert value["parameters"][0]["name"] == "conv1.weight"
    assert value["parameters"][0]["shape"] == [16, 1, 3, 3]
    assert value["parameters"][0]["learning_rate"]["schedule"] == "SequentialLR"
    assert set(value) == {
        "version", "model", "optimizer", "groups", "parameters", "frozen", "state", "layout",
        "buckets", "inputs", "outputs", "stages", "layers", "memory", "requirements", "targets",
        "hazards",
    }  # fmt: skip


def test_takes_what_training_takes(tmp_path):
    _, model = built({}, {})
    graph = graphopt.graph.TrainingGraph(model)
    path = tmp_path / "train.onnx"
    graph.save(path)
    wanted = graphopt.inspect(model)
    for given in (graph, path, str(path), onnx.load(path)):
        found = graphopt.inspect(given)
        assert replace(found, model=wanted.model) == wanted


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.5}, TypeError, "steps"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"dims": {"batch": 0}}, ValueError, "batch"),
        ({"target": "tensorflow"}, ValueError, "target"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        graphopt.inspect(MODEL, **arguments)


def test_without_onnxruntime(tmp_path):
    """Inspecting imports no runtime, and calls nothing of the file."""
    _, model = built({}, {})
    onnx.save(model, tmp_path / "train.onnx")
    program = (
        "import sys, graphopt\n"
        "print(graphopt.inspect('train.onnx').optimizer.name)\n"
        "print([name for name in sys.modules if name.startswith(('onnxruntime', 'torch'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["RMSProp", "[]"]


def test_names_that_are_taken_apart_by_dots():
    """Parameters that are called like states."""
    parameters = [Parameter("moment.w", (2,)), Parameter("w.next", (2, 3))]
    found = graphopt.inspect(
        inlined(graphopt.update_graph(RMSProp(parameters, momentum=0.5)).model)
    )
    assert [(p.name, p.shape) for p in found.parameters] == [
        ("moment.w", (2,)),
        ("w.next", (2, 3)),
    ]


def test_memory():
    opt, model = built({"momentum": 0.9}, {})
    memory = graphopt.inspect(model, batch_size=8).memory
    size = 4 * sum(parameter.size for parameter in opt.params)
    assert (memory.parameters, memory.gradients, memory.states) == (size, size, 2 * size)
    assert memory.sizes == {"batch": 8}
    larger = graphopt.inspect(model, dims={"batch": 16}).memory
    with pytest.raises(ValueError, match="dims: 'rows' is not an open dimension; open: 'batch'"):
        graphopt.inspect(model, dims={"rows": 16})
    assert larger.activations > memory.activations > 0
    assert np.isclose(larger.activations, 2 * memory.activations, rtol=0.1)


def test_the_number_of_nodes_is_the_same_wherever_it_is_said():
    """Those of the stages and of the layers are those of the graph; those inside come beside it."""
    for name in ("digits_cnn", "lstm"):
        model = zoo.ZOO[name].build()
        optimizer = RMSProp(graphopt.parameters(model), learning_rate=0.1)
        graph = graphopt.training_graph(model, zoo.ZOO[name].loss, optimizer)
        found = graphopt.inspect(graph)
        nodes = len(graph.model.graph.node)
        assert found.model.nodes == nodes
        assert sum(stage.nodes for stage in found.stages) == nodes
        for stage in found.stages:
            of_layers = [layer.nodes for layer in found.layers if layer.stage == stage.stage]
            assert sum(of_layers) == stage.nodes
        assert sum(stage.inside for stage in found.stages) > 0  # the update is a function
        assert graphopt.profile(graph, steps=1, warm_up=0, threads=1).graph_nodes == nodes
