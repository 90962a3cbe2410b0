"""Gradients are compared with differences of the loss, and values with those of the nodes."""

import re
import time
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

import graphopt
from graphopt import RMSProp
from graphopt._runtime_session import runtime_session
from graphopt.graph import TrainingGraph
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.verification import training_part
from graphopt.inspection.verification.declared import declared_graph
from graphopt.inspection.verification.derivatives import Derivatives
from graphopt.inspection.verification.interpreter import Interpreter
from graphopt.inspection.verification.made_feeds import Maker
from graphopt.inspection.verification.sample import Sampler
from graphopt.inspection.verification.training_part import TrainingPart
from graphopt.marks import STOP_GRADIENT
from models import zoo

RNG = np.random.default_rng(7)
TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,2,6,6] x, bool[N,4] kept, int64[N,3] tokens) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, conv, bias)
    r = Relu (c)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    f = Flatten (m)
    h = Gemm <transB = 1> (f, dense, offset)
    t = Tanh (h)
    zero = Constant <value_float = 0.0> ()
    k = Where (kept, t, zero)
    e = Gather (table, tokens)
    axes = Constant <value_ints = [1]> ()
    s = ReduceSum <keepdims = 0> (e, axes)
    a = Add (k, s)
    n = LayerNormalization (a, scale, shift)
    y = MatMul (n, head)
}"""
SHAPES = {
    "conv": (3, 2, 3, 3),
    "bias": (3,),
    "dense": (4, 27),
    "offset": (4,),
    "table": (6, 4),
    "scale": (4,),
    "shift": (4,),
    "head": (4, 5),
}


def forward(text=TEXT, shapes=SHAPES):
    model = parser.parse_model(text)
    values = np.random.default_rng(3)  # the same, whichever tests come before
    for name, shape in shapes.items():
        array = (values.standard_normal(shape) * 0.5).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@cache
def built(layout="separate", loss="cross_entropy"):
    model = forward()
    optimizer = RMSProp(graphopt.parameters(model), loss_scale=4.0)
    return graphopt.training_graph(model, loss, optimizer, layout=layout).model


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def scaled(model, name, factor):
    """A value of a graph times something."""
    graph = model.graph
    index, node = next((i, n) for i, n in enumerate(graph.node) if name in n.output)
    node.output[list(node.output).index(name)] = f"{name}/right"
    graph.node.insert(index + 1, helper.make_node("Mul", [f"{name}/right", "factor"], [name]))
    graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    return model


def check(found):
    assert found.differences == ()
    assert found.verified
    assert found.unchecked == ()
    assert found.gradients.precision == "float64"
    assert 0 < found.gradients.deviation <= 1
    assert found.forward.deviation <= 1
    assert found.forward.forward_model


@pytest.mark.parametrize("layout", ["separate", "buckets", "chunks"])
def test_right(layout):
    found = graphopt.verify(built(layout), steps=1)
    check(found)
    assert found.gradients.parameters == len(SHAPES)
    assert found.gradients.directions == 8  # two at each point
    assert found.forward.samples == 4  # two usual ones, and rows that are all the same
    assert found.forward.values == 2 + len(SHAPES)


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "bce_with_logits"])
def test_losses(loss):
    check(graphopt.verify(built(loss=loss), steps=1))


# Their values are ranks of ties, which are compared with each other only.
RANKS = {"backward/m/CastLike", "backward/m/Mul"}


def sampled(model):
    reading = read(model)
    graph = declared_graph(reading)
    part = TrainingPart(graph, reading, reading.recovered, ["CPUExecutionProvider"])
    return Sampler(part, 0, None, time.monotonic() + 300)


def missed(model, monkeypatch):
    """The nodes of the backward pass that compute something else, and nobody sees it."""
    sampler = sampled(model)
    part, interpreter = sampler.part, sampler.interpreter
    nodes = [
        node
        for node in interpreter.needed(part.gradients)
        if node.name.startswith("backward/")
        and node.op_type not in {"Constant", "Shape", "Cast"}
        and node.outputs[0].dtype == ir.DataType.DOUBLE
    ]
    right = Interpreter.computed
    unseen = []
    for wrong in nodes:

        def damaged(self, node, values, wrong=wrong):
            found = right(self, node, values)
            if node is wrong:
                return {k: np.asarray(v * 1.01, np.float64) for k, v in found.items()}
            return found

        monkeypatch.setattr(Interpreter, "computed", damaged)
        point = sampler.sample(sampler.kinds[0])
        monkeypatch.setattr(Interpreter, "computed", right)
        assert sampler.differentiates
        derivatives = Derivatives(sampler, point, np.random.default_rng(0))
        verdicts = (derivatives.along(part.parameters)[0] for _ in range(4))
        if "different" not in verdicts:
            unseen.append(wrong.name)
    return len(nodes), unseen


@pytest.mark.any_runtime
class TestDamagedGradients:
    def test_every_node_of_the_backward_pass_counts(self, monkeypatch):
        count, unseen = missed(built(), monkeypatch)
        assert count > 30
        assert set(unseen) == RANKS

    def test_every_node_of_a_network_counts(self, monkeypatch):
        network = zoo.ZOO["mlp"]
        model = network.build()
        optimizer = RMSProp(graphopt.parameters(model))
        graph = graphopt.training_graph(model, network.loss, optimizer)
        count, unseen = missed(graph.model, monkeypatch)
        assert count > 10
        assert unseen == []

    def differing(self, model):
        found = graphopt.verify(model, steps=1)
        assert not found.verified
        assert found.gradients.deviation > 1
        told = [text for text in found.differences if "is not the derivative" in text]
        assert [text for text in found.differences if text not in told] in ([], ["and 4 more"])
        return set(re.findall(r"the gradient of '(\w+)'", " ".join(told)))

    def test_the_parameter_is_named(self):
        model = copied(built())
        name = next(n for node in model.graph.node for n in node.output if n == "offset_grad")
        assert self.differing(scaled(model, name, 1.001)) == {"offset"}

    def test_a_scaled_loss(self):
        model = scaled(copied(built()), "loss", 0.5)
        (told,) = graphopt.verify(model, steps=1).differences
        assert told == (
            "'loss' is not what the forward model computes: it is off by 0.5 of its largest element"
        )
        no_forward(model)
        assert self.differing(model) == set(list(SHAPES)[:4])  # and more, which are not listed

    def test_swapped_operands(self):
        model = copied(built())
        node = next(
            n for n in model.graph.node if n.op_type == "Sub" and n.name.startswith("backward/t/")
        )
        node.input[:] = node.input[::-1]
        assert self.differing(model) == {"conv", "bias", "dense", "offset"}

    def test_a_transposed_weight(self):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,4] x) => (float[N,4] y) {
            h = MatMul (x, first)
            t = Tanh (h)
            y = MatMul (t, second)
        }"""
        model = forward(text, {"first": (4, 4), "second": (4, 4)})
        optimizer = RMSProp(graphopt.parameters(model))
        model = graphopt.training_graph(model, "mse", optimizer, layout="separate").model
        check(graphopt.verify(model, steps=1))
        turned = next(
            n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] == "second"
        )
        turned.op_type = "Identity"
        turned.ClearField("attribute")
        assert self.differing(model) == {"first"}

    def test_an_omitted_factor(self):
        model = copied(built())
        node = next(
            n for n in model.graph.node if n.op_type == "Mul" and n.name.startswith("backward/t/")
        )
        node.op_type = "Identity"
        del node.input[1]
        assert {"conv", "bias", "dense"} <= self.differing(model)

    def test_not_finite_for_rows_that_are_all_false(self):
        model = copied(built())
        graph = model.graph
        index, node = next((i, n) for i, n in enumerate(graph.node) if "shift_grad" in n.output)
        node.output[list(node.output).index("shift_grad")] = "shift/right"
        added = parser.parse_graph(
            """g () => () {
            number = Cast <to = 1> (kept)
            rows = ReduceMax <axes = [1], keepdims = 0> (number)
            least = ReduceMin <keepdims = 0> (rows)
            ratio = Div (least, least)
            shift_grad = Mul (shift/right, ratio)
        }""".replace("shift/right", "shift_right")
        )
        node.output[list(node.output).index("shift/right")] = "shift_right"
        for place, new in enumerate(added.node):
            graph.node.insert(index + 1 + place, new)
        found = graphopt.verify(model, steps=1)
        assert not found.verified
        assert found.gradients.deviation <= 1  # where the masks are usual
        (told,) = found.differences
        assert re.fullmatch(
            "with feeds of the kind 'rows of zeros', the gradient of 'shift' is NaN in 4 of 4 "
            r"elements, and the loss is [\d.]+",
            told,
        )


def with_runtime(monkeypatch, change):
    """Let sessions compute something else than they are given."""

    def session(graph, providers, options, *, kernels):
        model = copied(graph.model)
        change(model)
        wrong = TrainingGraph(model, graph.carried)
        return runtime_session(wrong, providers, options, kernels=kernels)

    monkeypatch.setattr(training_part, "runtime_session", session)


class TestRuntime:
    """What a session computes is not what the nodes say."""

    @pytest.mark.parametrize(
        ("value", "operator"), [("t", "Tanh"), ("c", "Conv"), ("n", "LayerNormalization")]
    )
    def test_the_first_value_is_named(self, value, operator, monkeypatch):
        with_runtime(monkeypatch, lambda model: scaled(model, value, 1.003))
        found = graphopt.verify(built(), steps=1)
        assert not found.verified
        (told,) = found.differences
        assert "the runtime computes 'loss' (and " in told
        assert f"the first value that deviates is '{value}', of {operator} " in told
        assert found.forward.deviation > 1

    def test_a_fusion_that_an_output_prevents(self, monkeypatch):
        def fused(model):
            if not any(value.name == "h" for value in model.graph.output):
                scaled(model, "t", 1.003)

        with_runtime(monkeypatch, fused)
        (told,) = graphopt.verify(built(), steps=1).differences
        assert (
            "the first value that deviates is 't', of Tanh ('h'), where 'h' is still right" in told
        )

    def test_a_gradient(self, monkeypatch):
        with_runtime(monkeypatch, lambda model: scaled(model, "dense_grad", 1.003))
        (told,) = graphopt.verify(built(), steps=1).differences
        assert "the runtime computes 'dense_grad' otherwise" in told
        assert "the first value that deviates is 'dense_grad', of " in told

    def test_rounding_is_none(self, monkeypatch):
        with_runtime(monkeypatch, lambda model: scaled(model, "t", 1 + 1e-6))
        check(graphopt.verify(built(), steps=1))

    def test_another_forward_model(self):
        model = copied(built())
        node = next(n for n in model.graph.node if n.op_type == "Relu")
        node.op_type = "LeakyRelu"  # its gradient is that of Relu
        found = graphopt.verify(model, steps=1)
        assert found.differences[0].startswith("'y' is not what the forward model computes")


class TestSurrogates:
    """What is drawn, stopped or rounded is no derivative of the loss, and is what is meant."""

    def test_dropout(self):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,8] x) => (float[N,3] y) <float ratio = {0.3}, bool mode = {1}> {
            h = MatMul (x, w)
            d, kept = Dropout (h, ratio, mode)
            t = Tanh (d)
            n = RandomNormalLike (t)
            m = Mul (t, n)
            y = MatMul (m, v)
        }"""
        model = forward(text, {"w": (8, 6), "v": (6, 3)})
        optimizer = RMSProp(graphopt.parameters(model).matching("[vw]"))
        graph = graphopt.training_graph(model, "mse", optimizer, layout="separate")
        found = graphopt.verify(graph, steps=1)
        assert found.verified
        assert found.gradients.precision == "float64"
        assert found.gradients.directions == 4
        (told,) = found.unchecked
        assert told.startswith("the forward model: 'Dropout")
        assert told.endswith("' draws random numbers")
        wrong = graphopt.verify(scaled(graph.model, "w_grad", 1.01), steps=1)
        assert "the gradient of 'w' is not the derivative" in wrong.differences[0]

    def test_stopped(self):
        model = forward(
            """<ir_version: 10, opset_import: ["": 17]>
            net (float[N,8] x) => (float[N,6] y) {
                h = MatMul (x, w)
                s = Sigmoid (h)
                stopped = Identity (s)
                y = Mul (h, stopped)
            }""",
            {"w": (8, 6)},
        )
        optimizer = RMSProp(graphopt.parameters(model))
        whole = graphopt.training_graph(model, "mse", optimizer, layout="separate").model
        check(graphopt.verify(whole, steps=1))
        entry = model.graph.node[2].metadata_props.add()
        entry.key, entry.value = STOP_GRADIENT, "detach"
        stopped = graphopt.training_graph(model, "mse", optimizer, layout="separate").model
        check(graphopt.verify(stopped, steps=1))
        for node in stopped.graph.node:  # the gradient is still that of a stopped one
            del node.metadata_props[:]
        assert not graphopt.verify(stopped, steps=1).verified

    @pytest.mark.parametrize("kind", ["int8", "uint8"])
    def test_quantized(self, kind):
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N,8] x) => (float[N,4] y)
            <float[6] size = {{0.01, 0.02, 0.01, 0.03, 0.01, 0.02}}, float step = {{0.02}},
             {kind}[6] zeros = {{3, 3, 3, 3, 3, 3}}, {kind} zero = {{100}}> {{
            q = QuantizeLinear <axis = 1> (w, size, zeros)
            d = DequantizeLinear <axis = 1> (q, size, zeros)
            h = MatMul (x, d)
            r = QuantizeLinear (h, step, zero)
            s = DequantizeLinear (r, step, zero)
            y = MatMul (s, v)
        }}"""
        model = forward(text, {"w": (8, 6), "v": (6, 4)})
        optimizer = RMSProp(graphopt.parameters(model).matching("[vw]"))
        graph = graphopt.training_graph(
            model, "mse", optimizer, layout="separate", straight_through=True
        )
        check(graphopt.verify(graph, steps=1))
        wrong = scaled(graph.model, "w_grad", 1.01)
        assert "the gradient of 'w'" in graphopt.verify(wrong, steps=1).differences[0]


class TestFeeds:
    def test_given(self):
        feeds = {
            "x": RNG.standard_normal((5, 2, 6, 6)).astype(np.float32),
            "kept": np.ones((5, 4), np.bool_),
            "tokens": RNG.integers(0, 6, (5, 3)),
            "labels": RNG.integers(0, 5, 5),
        }
        found = graphopt.verify(built(), steps=1, feeds=feeds)
        check(found)
        assert found.forward.samples == 2

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"tokens": np.full((5, 3), 6)}, ValueError, "'tokens': got 6, expected .* below 6"),
            ({"tokens": np.zeros((5, 3))}, TypeError, "'tokens': got dtype float64"),
            ({"x": np.zeros((5, 6, 6), np.float32)}, ValueError, "'x': got shape"),
            ({"x": np.zeros((4, 2, 6, 6), np.float32)}, ValueError, "'kept'"),
            ({"labels": np.full(5, 5)}, ValueError, "'labels': got label 5"),
            ({"image": np.zeros(5)}, ValueError, "'image' is not a feed"),
            ({"kept": None}, ValueError, "'kept' is missing"),
        ],
    )
    def test_that_do_not_fit(self, change, error, message):
        feeds = {
            "x": RNG.standard_normal((5, 2, 6, 6)).astype(np.float32),
            "kept": np.ones((5, 4), np.bool_),
            "tokens": np.zeros((5, 3), np.int64),
            "labels": np.zeros(5, np.int64),
        }
        feeds = {k: v for k, v in (feeds | change).items() if v is not None}
        with pytest.raises(error, match=message):
            graphopt.verify(built(), steps=1, feeds=feeds)

    @pytest.mark.any_runtime
    def test_for_an_update_alone(self):
        graph = graphopt.update_graph(RMSProp([graphopt.Parameter("w", (3,))]))
        given = {"w_grad": np.ones(3, np.float32)}
        assert graphopt.verify(graph, steps=1, feeds=given).verified
        with pytest.raises(ValueError, match="'x' is not a feed"):
            graphopt.verify(graph, steps=1, feeds=given | {"x": np.ones(3)})

    @pytest.mark.any_runtime
    def test_integers_are_in_the_range_of_what_they_look_up(self):
        model = copied(built())
        del model.metadata_props[:]  # which say what the labels are
        maker = sampled(model)._maker
        assert maker.bounds == {"tokens": 6, "labels": 5}
        assert maker.masks == ["kept"]
        feeds = maker.make("rows of zeros", 4, np.random.default_rng(0))
        assert feeds["x"].shape == (3, 2, 6, 6)
        assert feeds["kept"].any(axis=1).tolist() == [False, True, True]
        feeds = maker.make("rows of ones", 4, np.random.default_rng(0))
        assert feeds["kept"].all(axis=1)[0]
        assert not feeds["kept"].all()

    def test_open_sizes(self):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,1,H,W] x) => (float[N,2,A,B] y) { y = Conv (x, w) }"""
        model = forward(text, {"w": (2, 1, 9, 9)})
        graph = graphopt.training_graph(model, "mse", RMSProp(graphopt.parameters(model)))
        found = graphopt.verify(graph, steps=1)  # of x and of labels, and no size fits both
        assert not found.verified
        (told,) = found.differences
        assert told.startswith("a step does not run with feeds that were made up: ")
        assert told.endswith("; give others (feeds, --data)")
        feeds = {
            "x": RNG.standard_normal((2, 1, 12, 10)).astype(np.float32),
            "labels": RNG.standard_normal((2, 2, 4, 2)).astype(np.float32),
        }
        check(graphopt.verify(graph, steps=1, feeds=feeds))
        feeds["labels"] = np.zeros((2, 2, 4, 3), np.float32)
        found = graphopt.verify(graph, steps=1, feeds=feeds)
        assert not found.verified
        assert found.differences[0].startswith("a step does not run with the feeds that were given")


def with_node(model, node):
    """A node that nothing reads."""
    model.graph.node.append(node)


def no_values(model):
    del model.training_info[:]


def no_loss(model):
    """Two numbers, of which none is called a loss."""
    next(value for value in model.graph.output if value.name == "loss").name = "first"
    node = next(node for node in model.graph.node if "loss" in node.output)
    node.output[list(node.output).index("loss")] = "first"
    for other in model.graph.node:
        other.input[:] = ["first" if name == "loss" else name for name in other.input]
    model.graph.node.append(helper.make_node("Neg", ["first"], ["second"]))
    model.graph.output.append(helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, []))


def no_forward(model):
    entries = [entry for entry in model.metadata_props if entry.key != "graphopt.forward"]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)


def nothing(model):
    """All is compared."""


UNKNOWN = helper.make_node("Nonexistent", ["x"], ["dead"], domain="ai.onnx.ml")
MISTYPED = helper.make_node("MatMul", ["x", "kept"], ["dead"])
IMPOSSIBLE = helper.make_node("Expand", ["x", "sizes"], ["dead"])


def impossible(model):
    """Only a run finds out."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 5, 5, 5]), "sizes"))
    with_node(model, IMPOSSIBLE)


REFUSED = {
    "an operator that does not exist": lambda model: with_node(model, UNKNOWN),
    "types that do not fit": lambda model: with_node(model, MISTYPED),
    "shapes that do not fit": impossible,
}


class TestGraphsThatNoRuntimeRuns:
    """They are not verified, whatever could be compared of them."""

    @pytest.mark.parametrize("refused", REFUSED)
    @pytest.mark.parametrize("lacking", [nothing, no_values, no_loss, no_forward])
    def test_not_verified(self, refused, lacking):
        model = copied(built())
        lacking(model)
        before = graphopt.verify(model, steps=1)
        assert before.verified, before.differences
        assert bool(before.unchecked) == (lacking is not nothing)
        REFUSED[refused](model)
        found = graphopt.verify(model, steps=1)
        assert not found.verified
        (told,) = found.differences
        assert "ONNXRuntimeError" in told

    @pytest.mark.parametrize("refused", [UNKNOWN, MISTYPED])
    def test_an_update_alone(self, refused):
        parameter = graphopt.Parameter("x", (3,))
        graph = graphopt.update_graph(RMSProp([parameter]), layout="separate").model
        assert graphopt.verify(graph, steps=1).verified
        graph.graph.input.append(helper.make_tensor_value_info("kept", onnx.TensorProto.BOOL, [3]))
        assert graphopt.verify(graph, steps=1).verified
        with_node(graph, refused)
        found = graphopt.verify(graph, steps=1)
        assert not found.verified
        assert "onnxruntime" in found.differences[0]

    def test_the_forward_model_that_it_carries(self, monkeypatch):
        carried = TrainingGraph.forward

        def damaged(graph, values):
            model = carried(graph, values)
            node = next(node for node in model.graph.node if node.op_type == "Tanh")
            node.domain = "ai.onnx.ml"
            model.opset_import.append(helper.make_opsetid(node.domain, 3))
            return model

        monkeypatch.setattr(TrainingGraph, "forward", damaged)
        found = graphopt.verify(built(), steps=1)
        assert not found.verified
        assert found.differences[0].startswith("the forward model that it carries: onnxruntime")

    @pytest.mark.any_runtime
    def test_feeds_that_no_memory_holds(self):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[100000,100000] x) => (float[100000,2] y) { y = MatMul (x, w) }"""
        model = forward(text, {"w": (100000, 2)})
        graph = graphopt.training_graph(model, "mse", RMSProp(graphopt.parameters(model)))
        (told,) = graphopt.verify(graph, steps=1).differences
        assert "what is fed takes 37.3 GiB, more than the 8.0 GiB" in told

    @pytest.mark.any_runtime
    def test_providers_that_are_not_there(self):
        with pytest.raises(ValueError, match="providers: 'NoProvider' is not available"):
            graphopt.verify(built(), providers=["NoProvider"])


class TestNotCompared:
    @pytest.mark.any_runtime
    def test_no_values_to_start_from(self):
        model = copied(built())
        del model.training_info[:]
        found = graphopt.verify(model, steps=1)
        assert found.gradients is None
        (told,) = found.unchecked
        assert "it declares no values that are carried from step to step" in told

    def test_no_forward_model(self):
        model = copied(built())
        entries = [entry for entry in model.metadata_props if entry.key != "graphopt.forward"]
        del model.metadata_props[:]
        model.metadata_props.extend(entries)
        found = graphopt.verify(model, steps=1)
        assert found.verified
        assert found.gradients.directions == 8
        assert not found.forward.forward_model
        assert found.unchecked == ("the forward model: the graph carries no forward model",)

    def test_no_loss_that_is_finite(self):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,3] x) => (float[N,2] y) {
            s = Abs (x) n = Neg (s) l = Log (n) y = MatMul (l, w)
        }"""
        model = forward(text, {"w": (3, 2)})
        graph = graphopt.training_graph(model, "mse", RMSProp(graphopt.parameters(model)))
        found = graphopt.verify(graph, steps=1)
        assert not found.verified
        (told,) = found.differences
        assert told == (
            "the loss is not finite with any of the feeds that were made up; "
            "give others (feeds, --data)"
        )
        feeds = {"x": np.ones((2, 3), np.float32), "labels": np.ones((2, 2), np.float32)}
        found = graphopt.verify(graph, steps=1, feeds=feeds)
        assert found.differences == ("the loss is not finite with the feeds that were given",)

    def test_a_kind_of_feeds_that_fails(self, monkeypatch):
        make = Maker.make

        def too_large(maker, kind, size, random, batch):
            feeds = make(maker, kind, size, random, batch)
            return feeds | {"tokens": feeds["tokens"] + 6 * (kind == "rows of ones")}

        monkeypatch.setattr(Maker, "make", too_large)
        found = graphopt.verify(built(), steps=1)
        assert found.verified
        assert found.forward.samples == 3
        (told,) = found.unchecked
        assert told.startswith("feeds of the kind 'rows of ones': a step does not run with feeds")
