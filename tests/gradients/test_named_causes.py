"""What a model lacks is said by name, and sizes that are none are open."""

import re

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import graphopt
from graphopt import RMSProp, Session

TEXT = """<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
net (float[N,3] x) => (float[N,2] y) {
    p = MatMul (x, first)
    r = com.example.Foreign (p)
    s = MatMul (x, second)
    t = Mul (s, r)
    y = MatMul (t, last)
}"""


def model(text, **shapes):
    made = parser.parse_model(text)
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return made


@pytest.mark.any_runtime
def test_parameters_before_operators_without_a_gradient():
    forward = model(TEXT, first=(3, 2), second=(3, 2), last=(2, 2))
    forward.graph.value_info.append(helper.make_tensor_value_info("r", 1, ["N", 2]))
    parameters = graphopt.parameters(forward)
    names = {parameter.name for parameter in parameters}
    assert names == {"first", "second", "last"}
    told = re.escape("out of the optimizer: 'first'") + "$"
    with pytest.raises(ValueError, match=told):
        graphopt.training_graph(forward, "mse", RMSProp(parameters))
    rest = parameters.without(parameters.matching("first"))
    graph = graphopt.training_graph(forward, "mse", RMSProp(rest))
    assert {parameter.name for parameter in rest} <= {
        view.name for value in graph.carried for view in value.views
    }


@pytest.mark.parametrize("size", [-1, "?"])
def test_sizes_that_are_none(size):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", 1, [size, 1, size, size])
    y = helper.make_tensor_value_info("y", 1, [size, 1])
    w = numpy_helper.from_array(np.full((1, 1, 1, 1), 2, np.float32), "w")
    forward = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], [w]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph = graphopt.training_graph(forward, "mse", RMSProp(graphopt.parameters(forward)))
    session = Session(graph)
    assert session.inputs[0].shape == (None, 1, None, None)
    image = np.ones((4, 1, 3, 5), np.float32)
    found = session.step({"x": image, "labels": np.zeros((4, 1), np.float32)})
    assert found["loss"] == 4
    np.testing.assert_array_equal(found["y"], np.full((4, 1), 2, np.float32))


@pytest.mark.any_runtime
def test_no_opset():
    forward = model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,3] x) => (float[N,2] y) { y = MatMul (x, w) }""",
        w=(3, 2),
    )
    forward.opset_import[0].domain = "ai.onnx.ml"
    with pytest.raises(ValueError, match="does not say which version of ONNX's own operators"):
        graphopt.training_graph(forward, "mse", RMSProp([graphopt.Parameter("w", (3, 2))]))


def test_no_opset_where_none_is_needed():
    node = helper.make_node("Scaler", ["w"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])
    w = numpy_helper.from_array(np.array([[3, 5]], np.float32), "w")
    forward = helper.make_model(
        helper.make_graph([node], "net", [], [y], [w]),
        opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)],
        ir_version=8,
    )
    optimizer = RMSProp([graphopt.Parameter("w", (1, 2))])
    graph = graphopt.training_graph(forward, "mse", optimizer)
    found = Session(graph).step({"labels": np.zeros((1, 2), np.float32)})
    np.testing.assert_array_equal(found["y"], [[4, 8]])
    assert found["loss"] == 40


@pytest.mark.any_runtime
def test_values_in_another_file(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N,3] x) => (float[N,2] y) { y = MatMul (x, w) }"""
    path = tmp_path / "net.onnx"
    onnx.save(
        model(text, w=(3, 2)), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    optimizer = RMSProp([graphopt.Parameter("w", (3, 2))])
    graph = graphopt.training_graph(path, "mse", optimizer)
    np.testing.assert_array_equal(
        graph.carried[0].initial, np.ones(6).reshape(graph.carried[0].shape)
    )
    left = onnx.load(path, load_external_data=False)
    with pytest.raises(ValueError, match=r"'w' has its values in the file 'w\.bin', which was not"):
        graphopt.training_graph(left, "mse", optimizer)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file '.*w.bin', which holds .* 'w'; put it"):
        graphopt.training_graph(path, "mse", optimizer)


BODIES = {
    "SequenceMap": """
        s = SplitToSequence<axis = 0, keepdims = 0>(a)
        t = SequenceMap<body = each (float[3] r) => (float[3] o) { k = Mul(r, r) o = Tanh(k) }>(s)
        b = ConcatFromSequence<axis = 0, new_axis = 1>(t)""",
    "OptionalGetElement": "o = Optional(a) b = OptionalGetElement(o)",
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("op_type", "body"), BODIES.items(), ids=BODIES)
def test_containers_of_tensors(op_type, body):
    """An operator that is defined by a function with a graph, and types that are none."""
    forward = model(
        f"""<ir_version: 8, opset_import: ["": 18]> net (float[4,3] x) => (float[4,3] y) {{
            a = MatMul(x, w) {body} y = Erf(b) }}""",
        w=(3, 3),
    )
    told = rf"^these operators have no gradient: .*{op_type} \('[bt]'\).*: 'w'$"
    with pytest.raises(ValueError, match=told):
        graphopt.training_graph(forward, "mse", RMSProp(graphopt.parameters(forward)))


@pytest.mark.any_runtime
def test_a_sequence_that_is_fed():
    forward = model(
        """<ir_version: 8, opset_import: ["": 17]> net (seq(float[4,3]) xs, float[N,3] x) => (y) {
            c = ConcatFromSequence<axis = 0>(xs) n = Shape(c) s = Cast<to = 1>(n)
            m = ReduceMax(s) h = MatMul(x, w) y = Mul(h, m) }""",
        w=(3, 3),
    )
    graph = graphopt.training_graph(forward, "mse", RMSProp(graphopt.parameters(forward)))
    with pytest.raises(ValueError, match=r"^'xs' is no tensor but a sequence; what is fed to a"):
        Session(graph)
