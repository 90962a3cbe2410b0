"""Which nodes of a forward model compute in half precision, and in what they read and give."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from graphopt.gradients import prepare

pytestmark = pytest.mark.any_runtime

HALF = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def model(body, signature="(float[N,4] x) => (float[N,4] y)", **initializers):
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> m {signature} {{ {body} }}')
    arrays = {"w": np.eye(4), "b": np.ones(4)} | initializers
    for name, array in arrays.items():
        array = np.asarray(array)  # noqa: PLW2901
        if array.dtype == np.float64:
            array = array.astype(np.float32)  # noqa: PLW2901
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def in_half(proto, precision="float16", trained=("w", "b")):
    return prepare(proto, trained, None, half=HALF[precision])[0]


def kinds(prepared):
    """The dtype of what each node gives, but for casts, in order."""
    return {
        node.op_type: node.outputs[0].dtype.name
        for node in prepared.graph
        if node.op_type != "Cast" and node.outputs[0].dtype is not None
    }


MASK = np.array([[0, -3.4e38, 0, 0]])
CASES = {
    "products": ("y = MatMul(x, w)", {"MatMul": "FLOAT16"}),
    "a bias goes with them": (
        "h = MatMul(x, w) y = Add(h, b)",
        {"MatMul": "FLOAT16", "Add": "FLOAT16"},
    ),
    "an input is float32": (
        "h = MatMul(x, w) y = Add(h, x)",
        {"MatMul": "FLOAT16", "Add": "FLOAT"},
    ),
    "elementwise behind them": (
        "h = MatMul(x, w) r = Relu(h) y = Tanh(r)",
        {"MatMul": "FLOAT16", "Relu": "FLOAT16", "Tanh": "FLOAT16"},
    ),
    "moving": (
        "h = MatMul(x, w) t = Transpose(h) y = Transpose<perm = [1, 0]>(t)",
        {"MatMul": "FLOAT16", "Transpose": "FLOAT16"},
    ),
    "exponentials": ("h = MatMul(x, w) y = Exp(h)", {"MatMul": "FLOAT16", "Exp": "FLOAT"}),
    "float32 stays beside exponentials": (
        "h = MatMul(x, w) e = Exp(h) y = Mul(e, h)",
        {"MatMul": "FLOAT16", "Exp": "FLOAT", "Mul": "FLOAT"},
    ),
    "normalization, and back": (
        "h = MatMul(x, w) n = LayerNormalization(h, b) y = Relu(n)",
        {"MatMul": "FLOAT16", "LayerNormalization": "FLOAT", "Relu": "FLOAT16"},
    ),
    "softmax, and back": (
        "h = MatMul(x, w) s = Softmax(h) y = MatMul(s, w)",
        {"MatMul": "FLOAT16", "Softmax": "FLOAT"},
    ),
    "a mask that float16 does not hold": (
        "h = MatMul(x, w) a = Add(h, mask) y = Softmax(a)",
        {"MatMul": "FLOAT16", "Add": "FLOAT", "Softmax": "FLOAT"},
    ),
    "a moved mask": (
        "h = MatMul(x, w) t = Expand(mask, two) a = Add(h, t) y = Softmax(a)",
        {"MatMul": "FLOAT16", "Expand": "FLOAT", "Add": "FLOAT", "Softmax": "FLOAT"},
    ),
    "a node with a number that float16 does not hold": (
        "k = Constant<value = float {1e5}>() h = MatMul(x, w) y = Mul(h, k)",
        {"Constant": "FLOAT", "MatMul": "FLOAT16", "Mul": "FLOAT"},
    ),
    "a product that float16 does not hold": (
        "k = Constant<value = float {300}>() q = Mul(k, k) h = MatMul(x, w) y = Add(h, q)",
        {"Constant": "FLOAT", "Mul": "FLOAT", "MatMul": "FLOAT16", "Add": "FLOAT"},
    ),
    "a node with another number": (
        "k = Constant<value = float {1e3}>() h = MatMul(x, w) y = Mul(h, k)",
        {"Constant": "FLOAT", "MatMul": "FLOAT16", "Mul": "FLOAT16"},
    ),
    "an epsilon that float16 does not hold": (
        "h = MatMul(x, w) y = Add(h, epsilon)",
        {"MatMul": "FLOAT16", "Add": "FLOAT"},
    ),
    "division by a constant": (
        "h = MatMul(x, w) y = Div(h, two_f)",
        {"MatMul": "FLOAT16", "Div": "FLOAT16"},
    ),
    "another division": (
        "h = MatMul(x, w) y = Div(h, b)",
        {"MatMul": "FLOAT16", "Div": "FLOAT"},
    ),
    "what is computed from parameters alone": (
        "v = Mul(w, w) y = MatMul(x, v)",
        {"Mul": "FLOAT", "MatMul": "FLOAT16"},
    ),
    "conditions": (
        "h = MatMul(x, w) c = Greater(h, two_f) y = Where(c, h, two_f)",
        {"MatMul": "FLOAT16", "Greater": "BOOL", "Where": "FLOAT16"},
    ),
    "a sum": (
        "h = MatMul(x, w) m = ReduceMean<keepdims = 1>(h) y = Sub(h, m)",
        {"MatMul": "FLOAT16", "ReduceMean": "FLOAT", "Sub": "FLOAT"},
    ),
    "a cast to float32 does nothing": (
        "h = MatMul(x, w) c = Cast<to = 1>(h) y = Add(c, b)",
        {"MatMul": "FLOAT16", "Identity": "FLOAT16", "Add": "FLOAT16"},
    ),
    "an attribute that half precision does not hold": (
        "h = MatMul(x, w) y = LeakyRelu<alpha = 0.000000001>(h)",
        {"MatMul": "FLOAT16", "LeakyRelu": "FLOAT"},
    ),
    "a factor of a product of matrices that it does not hold": (
        "y = Gemm<alpha = 100000.0>(x, w)",
        {"Gemm": "FLOAT"},
    ),
    "a matrix that it does not hold": (
        "h = MatMul(x, w) y = MatMul(h, least)",
        {"MatMul": "FLOAT"},
    ),
    "elements that would be zero": (
        "h = MatMul(x, w) y = Mul(h, some)",
        {"MatMul": "FLOAT16", "Mul": "FLOAT"},
    ),
    "elements that would be zero, in a sum": (
        "h = MatMul(x, w) y = Add(h, some)",
        {"MatMul": "FLOAT16", "Add": "FLOAT16"},
    ),
    "another operator": (
        "h = MatMul(x, w) y = CumSum(h, one)",
        {"MatMul": "FLOAT16", "CumSum": "FLOAT"},
    ),
}
CONSTANTS = {
    "mask": MASK,
    "epsilon": 1e-12,
    "some": np.array([1e-9, 1.0, 1.0, 1.0]),
    "least": np.full((4, 4), 1e-9),
    "two_f": 2.0,
    "two": np.array([1, 4]),
    "one": np.array(1),
}


@pytest.mark.parametrize("case", CASES)
def test_kinds(case):
    body, expected = CASES[case]
    trained = [name for name in ("w", "b") if f"{name})" in body or f"{name}," in body]
    prepared = in_half(model(body, **CONSTANTS), trained=trained)
    assert kinds(prepared) == expected


def test_bfloat16_holds_what_float16_does_not():
    body = "h = MatMul(x, w) y = Add(h, epsilon)"
    prepared = in_half(model(body, **CONSTANTS), "bfloat16", ["w"])
    assert kinds(prepared) == {"MatMul": "BFLOAT16", "Add": "BFLOAT16"}


def test_inputs_outputs_and_parameters_stay_float32():
    prepared = in_half(model("h = MatMul(x, w) y = Add(h, b)"))
    values = [*prepared.graph.inputs, *prepared.graph.outputs]
    assert [(value.name, value.dtype.name) for value in values] == [("x", "FLOAT"), ("y", "FLOAT")]
    stored = prepared.graph.initializers
    assert {stored[name].const_value.dtype.name for name in ("w", "b")} == {"FLOAT"}


def test_batch_normalization_and_its_statistics_are_float32():
    body = """h = Conv(x, k) n = BatchNormalization(h, s, b, mean, var) y = Relu(n)"""
    signature = "(float[N,2,3,3] x) => (float[N,4,3,3] y)"
    ones = dict.fromkeys(("s", "mean", "var"), np.ones(4))
    proto = model(body, signature, k=np.ones((4, 2, 1, 1)), **ones)
    prepared, statistics = prepare(proto, ["k", "s", "b"], None, half=HALF["float16"])
    found = kinds(prepared)
    assert (found["Conv"], found["BatchNormalization"], found["Relu"]) == (
        "FLOAT16",
        "FLOAT",
        "FLOAT16",
    )
    batch = {value.name: value.dtype.name for node in prepared.graph for value in node.outputs}
    assert [batch[statistic.batch] for statistic in statistics] == ["FLOAT", "FLOAT"]


def test_branches_read_float32():
    body = """h = MatMul(x, w)
        y = If(flag) <then_branch = t () => (float[N,4] r) { r = Relu(h) },
                      else_branch = e () => (float[N,4] r) { r = Neg(h) }>"""
    proto = model(body, "(float[N,4] x, bool flag) => (float[N,4] y)")
    prepared = prepare(proto, ["w"], None, half=HALF["float16"])[0]
    (branches,) = (node for node in prepared.graph if node.op_type == "If")
    inner = [n for a in branches.attributes.values() for n in a.as_graph()]
    assert {value.dtype.name for node in inner for value in node.inputs} == {"FLOAT"}
