"""What a graph declares agrees with itself, and its loss is the one that the metadata names."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import RMSProp
from graphopt.loss_scale import DynamicLossScale

RNG = np.random.default_rng(3)
TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,6] x) => (float[N,3] y) { h = MatMul (x, w) t = Tanh (h) y = MatMul (t, v) }"""


def built(loss="mse", layout="separate", **settings):
    model = parser.parse_model(TEXT)
    for name, shape in (("w", (6, 4)), ("v", (4, 3))):
        array = RNG.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    optimizer = RMSProp(graphopt.parameters(model), **settings)
    graph = onnx.ModelProto()
    graph.CopyFrom(graphopt.training_graph(model, loss, optimizer, layout=layout).model)
    return graph


def check_told(model, *expected):
    found = graphopt.verify(model, steps=1)
    assert not found.verified
    assert len(found.differences) == len(expected), found.differences
    for told, part in zip(found.differences, expected, strict=True):
        assert part in told


def said(model, key, change):
    """Change what the metadata says."""
    entry = next(entry for entry in model.metadata_props if entry.key == f"graphopt.{key}")
    value = json.loads(entry.value)
    entry.value = json.dumps(change(value) or value)


def started(model, name, place, value):
    """Change what an element of a carried value starts at."""
    info = model.training_info[0].initialization
    for node in info.node:
        if name in node.output:
            shape = next(
                [dim.dim_value for dim in v.type.tensor_type.shape.dim]
                for v in model.graph.input
                if v.name == name
            )
            (old,) = (numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value")
            array = np.full(shape, old.item(), old.dtype)
            info.node.remove(node)
            break
    else:
        tensor = next(t for t in info.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        info.initializer.remove(tensor)
    array.reshape(-1)[place] = value
    info.initializer.append(numpy_helper.from_array(array, name))


SETTINGS = {
    "momentum": 0.9,
    "centered": True,
    "loss_scale": DynamicLossScale(8.0),
    "initial_mean_square": 0.25,
}


class TestStarts:
    @pytest.mark.parametrize("layout", ["separate", "buckets", "chunks"])
    def test_right(self, layout):
        assert graphopt.verify(built(layout=layout, **SETTINGS), steps=1).verified

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("mean_square.w", "0.25"),
            ("mean_grad.v", "0"),
            ("moment.w", "0"),
            ("loss_scale", "8"),
            ("loss_scale_steps", "0"),
            ("skipped_steps", "0"),
            ("global_step", "0"),
        ],
    )
    def test_elsewhere(self, name, expected):
        model = built(**SETTINGS)
        started(model, name, -1, 3)
        check_told(model, f"'{name}' starts at 3, expected {expected}")

    def test_parameters_may_start_anywhere(self):
        model = built()
        started(model, "w", 0, 0.5)
        assert graphopt.verify(model, steps=1).verified


class TestMetadata:
    def test_parts_that_do_not_fit(self):
        model = built()
        said(model, "views", lambda views: views["w"][0].__setitem__(1, [6, 5]))
        check_told(model, "'w' of shape [6, 4] does not hold what the metadata says")

    def test_names_of_states(self):
        model = built(momentum=0.9, layout="buckets")
        said(model, "views", lambda views: views["moment.bucket0"][0].__setitem__(0, "moment.x"))
        check_told(model, "no state is called 'moment.w'")

    def test_names_of_labels(self):
        model = built("cross_entropy")
        said(model, "class_labels", lambda labels: labels[0].__setitem__("name", "classes"))
        check_told(model, "the metadata names 'classes' as what is fed, which is no input")

    def test_more_classes_than_there_are(self):
        model = built("cross_entropy")
        said(model, "class_labels", lambda labels: labels[0].__setitem__("classes", 300))
        check_told(model, "a step does not run with feeds that were made up")

    @pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
    def test_the_name_of_the_loss(self, loss):
        model = built("bce_with_logits")
        said(model, "loss", lambda entry: entry.__setitem__("name", loss))
        check_told(model, "'loss' is not what the forward model computes")

    def test_an_output_that_there_is_not(self):
        model = built()
        said(model, "loss", lambda entry: entry.__setitem__("output", "z"))
        check_told(model, "the loss that the metadata names: loss_output: got 'z', expected one of")


class TestStatistics:
    TEXT = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x) => (float[N,3] y) {
        a = BatchNormalization <momentum = 0.8> (x, s, b, m, v)
        c = BatchNormalization (a, s, b, m, v2)
        y = MatMul (c, w)
    }"""

    @pytest.mark.parametrize("settings", [{}, {"skip_on_overflow": True}])
    @pytest.mark.parametrize(("name", "momentum"), [("m", 0.72), ("v", 0.8), ("v2", 0.9)])
    def test_momentum(self, name, momentum, settings):
        model = parser.parse_model(self.TEXT)
        shapes = {"s": (4,), "b": (4,), "m": (4,), "v": (4,), "v2": (4,), "w": (4, 3)}
        for initializer, shape in shapes.items():
            array = RNG.random(shape).astype(np.float32) + 0.5
            model.graph.initializer.append(numpy_helper.from_array(array, initializer))
        optimizer = RMSProp(graphopt.parameters(model), **settings)
        graph = graphopt.training_graph(model, "mse", optimizer, layout="separate").model
        found = graphopt.verify(graph, steps=1)
        assert found.verified, found.differences
        node = next(n for n in graph.graph.node if n.op_type == "MovingAverage" and name in n.input)
        node.attribute[0].f += 0.01
        check_told(
            graph,
            f"'{name}' moves with momentum {momentum + 0.01:.6g}, and the forward model says "
            f"{momentum:.6g}",
        )


class TestLoss:
    """The gradients are those of the loss, which is another one."""

    def test_a_threshold(self):
        model = built("huber")
        assert graphopt.verify(model, steps=1).verified
        node = next(node for node in model.graph.node if node.op_type == "Min")
        (name,) = {t.name for t in model.graph.initializer} & set(node.input)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.float32(1.25), name))
        found = graphopt.verify(model, steps=1)
        assert "'loss' is not what the forward model computes" in found.differences[0]


def test_types_that_do_not_fit():
    model = built()
    node = next(node for node in model.graph.node if node.op_type == "Unsqueeze")
    node.input[:] = node.input[::-1]
    found = graphopt.verify(model, steps=1)
    assert not found.verified
    assert "onnxruntime" in found.differences[-1]


def test_two_sizes_of_the_batch():
    """The batch is no other size by chance."""
    model = built("cross_entropy")
    assert graphopt.verify(model, steps=1).verified
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 6]), "three"))
    for node in model.graph.node:
        node.input[:] = ["x/three" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["x", "three"], ["x/three"]))
    found = graphopt.verify(model, steps=1)
    assert not found.verified
