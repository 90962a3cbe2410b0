"""Formulations for a device mean the same as the nodes whose place they take."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt.builder import GraphBuilder
from graphopt.gradients._for_device import suit_device
from graphopt.operators.backward import Backward

REDUCTIONS = {
    "ends": ("ReduceSum<keepdims=0>(x, axes)", [0, 2, 3], 2),
    "ends, kept": ("ReduceSum(x, axes)", [0, 2, 3], 2),
    "in any order": ("ReduceSum<keepdims=0>(x, axes)", [3, 0], 2),
    "three runs": ("ReduceSum<keepdims=0>(x, axes)", [0, 2, 4], 3),
    "one run": ("ReduceSum<keepdims=0>(x, axes)", [1, 2], 1),
    "all": ("ReduceSum<keepdims=0>(x, axes)", [0, 1, 2, 3, 4], 1),
    "from the end": ("ReduceSum<keepdims=0>(x, axes)", [0, -1], 1),
    "mean": ("ReduceMean<axes=[0, 2, 3], keepdims=0>(x)", [], 2),
    "mean, kept": ("ReduceMean<axes=[0, 3], keepdims=1>(x)", [], 2),
}


def parsed(text):
    """A model whose output may have any shape."""
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def model(node, axes, opset=17):
    initializer = f"<int64[{len(axes)}] axes = {{{', '.join(map(str, axes))}}}>" if axes else ""
    return parsed(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 3, 4, 5, 2] x) => (float y)'
        f"{initializer} {{ y = {node} }}"
    )


def suited(proto):
    read = ir.from_proto(proto)
    suit_device(GraphBuilder(read.graph), read)
    return ir.to_proto(read)


def run(proto, **feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    node, axes, steps = REDUCTIONS[name]
    before = model(node, axes)
    after = suited(before)
    assert [n.op_type for n in after.graph.node] == [
        node.partition("<")[0].partition("(")[0]
    ] * steps
    x = np.random.default_rng(0).standard_normal((6, 3, 4, 5, 2)).astype(np.float32)
    got, expected = run(after, x=x), run(before, x=x)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_means_whose_axes_are_an_input():
    before = model("ReduceMean<keepdims=0>(x, axes)", [0, 2, 3], opset=18)
    after = suited(before)
    assert [n.op_type for n in after.graph.node] == ["ReduceMean"] * 2
    x = np.random.default_rng(0).standard_normal((6, 3, 4, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(run(after, x=x), run(before, x=x), rtol=1e-5, atol=1e-6)


RESHAPES = {
    "one is open": ("n, four", True),
    "all are known": ("four, fifteen", False),
    "two are open": ("n, n", False),
    "none left": ("n, zero", False),
    "open already": ("n, open", False),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_a_size_that_follows_from_the_others(name):
    parts, becomes_constant = RESHAPES[name]
    proto = parsed(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 60] x) => (float y)
        <int64[2] four = {{4, 15}}, int64[1] fifteen = {{15}}, int64[1] zero = {{0}},
         int64[1] open = {{-1}}>
        {{
            n = Shape <start = 0, end = 1> (x)
            shape = Concat <axis = 0> ({parts})
            y = Reshape (x, shape)
        }}"""
    )
    inferred = onnx.shape_inference.infer_shapes(proto)
    after = suited(inferred)
    (reshape,) = (node for node in after.graph.node if node.op_type == "Reshape")
    assert (reshape.input[1] != "shape") == becomes_constant
    if becomes_constant:
        x = np.zeros((7, 60), np.float32)
        assert run(after, x=x).shape == run(proto, x=x).shape == (7, 4, 15)


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
@pytest.mark.parametrize("axes", [[0], [0, 2], [0, 1, 2], [1, 2], [2]])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_counts(provider, axes, dtype):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="g")
    op = GraphBuilder(graph)
    x = op.input("x", dtype, ["N", 3, None])
    y = op.Relu(x)
    backward = Backward(op, y.producer(), [None], [0], provider, None)
    count = backward.count(x, axes)
    if isinstance(count, float):
        assert count == 3.0
        return
    output = op.output(count, "count")
    output.dtype, output.shape = dtype, ir.Shape([])
    proto = ir.to_proto(ir.Model(graph, ir_version=8))
    fed = np.zeros((5, 3, 7), dtype.numpy())
    assert run(proto, x=fed) == np.prod([fed.shape[axis] for axis in axes])
    assert any(node.op_type == "Size" for node in proto.graph.node) == (
        provider == "CPUExecutionProvider" and len(axes) == 3
    )


@pytest.mark.parametrize("name", ["?", "", None, "N"])
def test_sizes_of_one_name_or_none(name):
    """Only a real name says that two sizes are the same."""
    other = "M" if name == "N" else name
    shape = [name, other, 3]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [*shape[:2], 2])
    w = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w]
    )
    opset = onnx.helper.make_opsetid("", 17)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((5, 7, 3)).astype(np.float32),
        "labels": rng.standard_normal((5, 7, 2)).astype(np.float32),
    }
    states = []
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        optimizer = graphopt.RMSProp(graphopt.parameters(proto), learning_rate=0.1)
        session = graphopt.Session(
            graphopt.training_graph(proto, "mse", optimizer, provider=provider)
        )
        session.step(feeds)
        states.append(session.state["w"])
    np.testing.assert_allclose(states[0], states[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("pads", "left"),
    [
        ([0, 0, 3, 0], 0),
        ([0, 2, 0, 0], 0),
        ([0, 2, 0, 1], 0),
        ([0, 0, 0, 0], 1),
        ([1, 0, 1, 1], 1),
        ([0, -1, 0, 2], 1),
    ],
)
def test_zeros_beside(pads, left):
    proto = parsed(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float y)
        <int64[4] pads = {{{", ".join(map(str, pads))}}}> {{ y = Pad(x, pads) }}"""
    )
    after = suited(proto)
    assert [node.op_type for node in after.graph.node].count("Pad") == left
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run(after, x=x), run(proto, x=x))
