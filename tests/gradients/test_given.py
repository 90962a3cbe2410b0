"""Training graphs from models that compute their gradients themselves."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt

# Linear regression with its gradient by hand; 2 / (N * 2) is 1 / N for two outputs.
BY_HAND = """<ir_version: 8, opset_import: ["" : OPSET]>
m (float[N,3] x, float[N,2] labelsPARAMETER) => (float[N,2] y, float mean, float[3,2] dw) {
    y = MatMul (x, w)
    error = Sub (y, labels)
    square = Mul (error, error)
    mean = ReduceMean <keepdims = 0> (square)
    transposed = Transpose <perm = [1, 0]> (x)
    product = MatMul (transposed, error)
    shape = Shape (x)
    zero = Constant <value_int = 0> ()
    size = Gather <axis = 0> (shape, zero)
    count = Cast <to = 1> (size)
    dw = Div (product, count)
}"""
FORWARD = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,3] x) => (float[N,2] y) { y = MatMul (x, w) }"""
W = np.random.default_rng(0).normal(size=(3, 2)).astype("f")
PARAMETER = graphopt.Parameter("w", (3, 2))


def parse(text, stored=True, opset=17):
    declared = "" if stored else ", float[3,2] w"
    model = onnx.parser.parse_model(
        text.replace("PARAMETER", declared).replace("OPSET", str(opset))
    )
    if stored:
        model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    return model


def batches(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        x, labels = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
        yield {"x": x.astype("f"), "labels": labels.astype("f")}


SETTINGS = {"learning_rate": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}


@pytest.mark.quick
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("stored", [True, False], ids=["initializer", "input"])
def test_trains_as_with_gradients_of_the_builder(stored, opset):
    optimizer = graphopt.RMSProp([PARAMETER], **SETTINGS)
    model = parse(BY_HAND, stored, opset)
    graph = graphopt.training_graph(model, "mean", optimizer, gradients={"w": "dw"})
    session = graphopt.Session(graph, parameters=None if stored else {"w": W})
    peer = graphopt.Session(graphopt.training_graph(parse(FORWARD), "mse", optimizer))
    for feeds in batches(10):
        outputs, expected = session.step(feeds), peer.step(feeds)
        assert list(outputs) == ["y", "mean", "loss", "updated"]
        np.testing.assert_allclose(outputs["loss"], expected["loss"], rtol=1e-5)
    for name, value in peer.state.items():
        np.testing.assert_allclose(session.state[name], value, rtol=1e-4, atol=1e-6)


def test_everything_is_overwritten_in_place():
    optimizer = graphopt.RMSProp([PARAMETER], **SETTINGS)
    graph = graphopt.training_graph(parse(BY_HAND), None, optimizer, gradients={"w": "dw"})
    proven = graphopt.in_place.overwritable(graph.model, graph.carried)
    assert proven == {value.input for value in graph.carried}
    assert {node.domain for node in graph.model.graph.node} == {"", "graphopt"}


def test_export_is_the_given_model(tmp_path):
    optimizer = graphopt.RMSProp([PARAMETER], **SETTINGS)
    given = parse(BY_HAND)
    graph = graphopt.training_graph(given, "mean", optimizer, gradients={"w": "dw"})
    session = graphopt.Session(graph)
    session.step(next(batches(1)))
    session.export(tmp_path / "m.onnx")
    exported = onnx.load(tmp_path / "m.onnx")
    assert exported.graph.node == given.graph.node
    (w,) = exported.graph.initializer
    assert np.array_equal(numpy_helper.to_array(w), session.state["w"])


ERRORS = {
    "no such tensor": ({"w": "nothing"}, "mean", ValueError, "'nothing', given for parameter 'w'"),
    "shape": ({"w": "mean"}, "mean", ValueError, r"'mean' has shape"),
    "missing": ({}, "mean", ValueError, "'w' has no gradient"),
    "unknown": ({"w": "dw", "v": "dw"}, "mean", ValueError, "'v' is not a parameter"),
    "loss": ({"w": "dw"}, "hinge", ValueError, "loss: got 'hinge'"),
    "one of the four": (
        {"w": "dw"},
        "mse",
        ValueError,
        "loss: got 'mse', expected a scalar output",
    ),
    "function": ({"w": "dw"}, lambda _op, y: y, TypeError, "computes its loss itself"),
}


@pytest.mark.parametrize(("gradients", "loss", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(gradients, loss, error, message):
    optimizer = graphopt.RMSProp([PARAMETER])
    with pytest.raises(error, match=message):
        graphopt.training_graph(parse(BY_HAND), loss, optimizer, gradients=gradients)


def test_loss_and_optimizer_are_needed():
    with pytest.raises(TypeError, match="optimizer"):
        graphopt.training_graph(parse(FORWARD), "mse")
    with pytest.raises(TypeError, match="'loss'"):
        graphopt.training_graph(parse(FORWARD), optimizer=graphopt.RMSProp([PARAMETER]))
    with pytest.raises(TypeError, match="loss: got None"):
        graphopt.training_graph(parse(FORWARD), None, graphopt.RMSProp([PARAMETER]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_output", "y"), ("output", "y"), ("labels", "target"), ("portable", False)],
)
def test_what_has_no_effect_beside_gradients_is_refused(name, value):
    optimizer = graphopt.RMSProp([PARAMETER])
    with pytest.raises(ValueError, match=f"{name}: has no effect beside gradients, .*leave it out"):
        graphopt.training_graph(
            parse(BY_HAND), "mean", optimizer, gradients={"w": "dw"}, **{name: value}
        )
