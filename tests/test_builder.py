"""Appending nodes to a graph."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import GraphBuilder


@pytest.fixture
def op():
    return GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="test"))


def run(op, **feeds):
    """What the graph computes in ONNX Runtime; its model is checked."""
    for value in op.graph.outputs:
        value.dtype = value.dtype or ir.DataType.FLOAT
        value.shape = value.shape or ir.Shape([None])
    model = onnx.shape_inference.infer_shapes(ir.to_proto(ir.Model(op.graph, ir_version=8)))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def constants(op):
    return {name: value.const_value.numpy() for name, value in op.graph.initializers.items()}


@pytest.mark.quick
def test_nodes_and_attributes(op):
    x = op.input("x", np.float32, ["N", 4])
    y = op.ReduceSum(op.Concat(x, op.Neg(x), axis=0), [1], keepdims=0)
    op.output(y, "y")
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    (result,) = run(op, x=rows)
    np.testing.assert_array_equal(result, [6, 22, -6, -22])
    assert [node.op_type for node in op.graph] == ["Neg", "Concat", "ReduceSum"]


def test_several_outputs(op):
    x = op.input("x", np.float32, [6])
    parts = op.node("Split", [x, [1, 2, 3]], outputs=3, axis=0)
    assert [part.name for part in parts] == ["Split", "Split_1", "Split_2"]
    for index, part in enumerate(parts):
        op.output(part, f"y{index}")
    results = run(op, x=np.arange(6, dtype=np.float32))
    assert [list(result) for result in results] == [[0], [1, 2], [3, 4, 5]]


def test_optional_operands_and_attributes(op):
    x = op.input("x", np.float32, [3])
    clipped = op.Clip(x, None, np.float32(1))
    assert clipped.producer().inputs[1] is None
    assert "axis" not in op.Flatten(x, axis=None).producer().attributes
    op.output(clipped, "y")
    (result,) = run(op, x=np.array([-5, 0, 5], np.float32))
    np.testing.assert_array_equal(result, [-5, 0, 1])


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (0.5, "float32", ()),
        (2, "int64", ()),
        (True, "bool", ()),
        ([1, 2], "int64", (2,)),
        ([0.5, 1.5], "float32", (2,)),
        (np.float64(0.5), "float64", ()),
        (np.float16(0.5), "float16", ()),
        (np.zeros((2, 3)), "float64", (2, 3)),
        (np.zeros((1,), np.int32), "int32", (1,)),
    ],
)
def test_constant(op, value, dtype, shape):
    constant = op.constant(value)
    array = constant.const_value.numpy()
    assert (array.dtype.name, array.shape) == (dtype, shape)
    np.testing.assert_array_equal(array, value)
    assert op.graph.initializers[constant.name] is constant


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (0.5, 0.5, True),
        (0.5, np.float32(0.5), True),
        ([1, 2], np.array([1, 2]), True),
        (float("nan"), float("nan"), True),
        (1.0, 1, False),
        (np.float32(0), np.int32(0), False),
        (1, True, False),
        (0.5, np.float64(0.5), False),
        (0.5, [0.5], False),
        ([[1, 2]], [1, 2], False),
        (0.0, -0.0, False),
        (0.1, 0.2, False),
    ],
)
def test_equal_constants_are_shared(op, one, other, shared):
    assert (op.constant(one) is op.constant(other)) == shared
    assert len(op.graph.initializers) == (1 if shared else 2)


def test_equal_constants_with_different_names_are_different(op):
    rate, decay = (op.constant(0.5, name=name) for name in ("learning_rate", "weight_decay"))
    assert (rate.name, decay.name) == ("learning_rate", "weight_decay")
    assert op.constant(0.5, name="weight_decay") is decay
    assert op.constant(0.5) is rate
    unnamed = op.constant(0.25)
    assert op.constant(0.25, name="learning_rate") is unnamed


def test_a_constant_that_was_removed_is_made_again(op):
    removed = op.constant(0.5)
    del op.graph.initializers[removed.name]
    made = op.constant(0.5)
    assert op.graph.initializers[made.name] is made


def test_changing_an_array_does_not_change_its_constant(op):
    array = np.zeros(3, np.float32)
    constant = op.constant(array)
    array[:] = 7
    np.testing.assert_array_equal(constant.const_value.numpy(), np.zeros(3))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64"])
def test_a_number_takes_the_dtype_of_the_value_beside_it(op, dtype):
    x = op.input("x", dtype, [2])
    y = op.Add(op.Mul(x, 3), 1)
    op.output(op.Sub(2, y), "y")
    assert {array.dtype.name for array in constants(op).values()} == {dtype}
    (result,) = run(op, x=np.array([1, 2], dtype))
    np.testing.assert_array_equal(result, np.array([-2, -5], dtype), strict=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda op, x: op.Mul(x, 0.5),
        lambda op, x: op.Div(x, 2.5),
        lambda op, x: op.Pow(0.5, x),
        lambda op, x: op.Less(x, 0.5),
    ],
    ids=["Mul", "Div", "Pow", "Less"],
)
def test_a_fraction_beside_integers_is_not_cut_off(op, call):
    x = op.input("x", np.int64, [2])
    with pytest.raises((TypeError, ValueError)):
        call(op, x)


def test_fresh_names(op):
    op.input("Add", np.float32, [])
    op.constant(1, name="Add_1")
    names = [op.fresh_name("Add") for _ in range(3)]
    assert names == ["Add_2", "Add_3", "Add_4"]
    assert op.fresh_name("Mul") == "Mul"
    assert op.fresh_name("Mul") == "Mul_1"


TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
{
  Add = Neg(x)
  s = If (c) <
    then_branch = then () => (float[2] Mul) { Mul = Abs(x) },
    else_branch = otherwise () => (float[2] Sub) { Sub = Sqrt(x) }
  >
  y = Add(Add, s)
}"""


def test_fresh_names_in_a_graph_that_has_nodes():
    graph = ir.from_proto(parser.parse_model(TEXT)).graph
    op = GraphBuilder(graph)
    for name in ("x", "c", "w", "Add", "s", "y"):
        assert op.fresh_name(name) != name


def test_fresh_names_are_not_those_of_subgraphs():
    """In ONNX an inner graph may not use a name of the graph around it for another value."""
    op = GraphBuilder(ir.from_proto(parser.parse_model(TEXT)).graph)
    assert op.fresh_name("Mul") != "Mul"
    assert op.fresh_name("Sub") != "Sub"


def test_names_of_outputs_stay_unique(op):
    x = op.input("x", np.float32, [])
    names = [op.Neg(x).name for _ in range(3)] + [op.Abs(x).name]
    assert names == ["Neg", "Neg_1", "Neg_2", "Abs"]


@pytest.mark.parametrize("name", ["x", "w", "y", "Add"])
def test_input_name_taken(name):
    op = GraphBuilder(ir.from_proto(parser.parse_model(TEXT)).graph)
    with pytest.raises(ValueError, match=f"'{name}'"):
        op.input(name, np.float32, [])
    assert len(op.graph.inputs) == 2


@pytest.mark.parametrize("name", ["x", "w", "y", "Add"])
def test_output_name_taken(name):
    op = GraphBuilder(ir.from_proto(parser.parse_model(TEXT)).graph)
    with pytest.raises(ValueError, match=f"'{name}'"):
        op.output(op.Neg(op.graph.inputs[0]), name)
    assert len(op.graph.outputs) == 1


def test_input_shapes(op):
    x = op.input("x", ir.DataType.FLOAT16, ["N", 3, None])
    assert x.dtype == ir.DataType.FLOAT16
    assert [dim if isinstance(dim, int) else dim.value for dim in x.shape] == ["N", 3, None]
    assert op.graph.inputs == [x]


def test_output_renames_an_inner_value(op):
    x = op.input("x", np.float32, [2])
    y = op.output(op.Neg(x), "y")
    assert (y.name, y.producer().op_type) == ("y", "Neg")
    assert op.fresh_name("Neg") == "Neg"  # free again


def test_outputs_that_have_a_name_already(op):
    """Inputs, initializers and outputs keep theirs; a copy takes the new one."""
    x = op.input("x", np.float32, [2])
    y = op.output(op.Neg(x), "y")
    op.output(y, "again")
    op.output(x, "same")
    op.output(op.constant([1.0, 2.0]), "constant_out")
    assert [value.name for value in op.graph.outputs] == ["y", "again", "same", "constant_out"]
    assert [value.name for value in op.graph.inputs] == ["x"]
    results = run(op, x=np.array([3, 4], np.float32))
    np.testing.assert_array_equal(results, [[-3, -4], [-3, -4], [3, 4], [1, 2]])


@pytest.mark.parametrize("name", ["conv", "_Conv", "graph_", "1x"])
def test_what_is_no_operator(op, name):
    with pytest.raises(AttributeError, match=name):
        getattr(op, name)


def test_a_model_whose_subgraphs_use_names_of_operators_trains():
    model = parser.parse_model(
        TEXT.replace("Neg(x)", "Mul(x, w)").replace("<float[2] w = {1, 2}>", "")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.1)
    session = graphopt.Session(graphopt.training_graph(model, "bce_with_logits", opt))
    feeds = {"x": np.ones(2, np.float32), "labels": np.ones(2, np.float32)}
    outputs = session.step({**feeds, "c": np.array(True)})
    np.testing.assert_allclose(outputs["loss"], np.log1p(np.exp(-2)), rtol=1e-5)


def test_names_of_nodes(op):
    x = op.input("x", np.float32, [3])
    with op.named("outer"):
        op.Neg(x)
        with op.named("inner"):
            op.Neg(x)
        op.Neg(x)
    op.Neg(x)
    assert [node.name for node in op.graph] == ["outer/Neg", "inner/Neg", "outer/Neg_1", "Neg"]


def test_dtypes_of_results(op):
    x, i = op.input("x", np.float64, [3]), op.input("i", np.int64, [3])
    dtypes = {
        "Reshape": op.Reshape(x, [-1]),
        "ReduceSum": op.ReduceSum(x, [0]),
        "MatMul": op.MatMul(x, x),
        "Gather": op.Gather(x, i),
        "OneHot": op.OneHot(i, 3, np.array([0.0, 1.0])),
        "CastLike": op.CastLike(i, x),
    }
    assert {name: value.dtype for name, value in dtypes.items()} == dict.fromkeys(
        dtypes, ir.DataType.DOUBLE
    )
    assert op.Shape(x).dtype == ir.DataType.INT64
    assert op.Less(x, 0.0).dtype == ir.DataType.BOOL
