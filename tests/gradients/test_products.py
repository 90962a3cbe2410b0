"""Products of matrices become functions, with what is around them, and train as they did."""

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.graphs import without_functions

pytestmark = pytest.mark.any_runtime

W, V, K, Q = (96, 64), (64, 96), (80, 64), (64, 80)

# What there is between x and y, and the functions that stand for products in the training graph.
CASES = {
    "layer": (
        "float[N,96]",
        {"w": W, "b": (64,)},
        "p = MatMul(x, w) y = Add(p, b)",
        ["MatMulAdd", "MatMulTransA"],
    ),
    "layer whose weight lies transposed": (
        "float[N,5,96]",
        {"w": V, "b": (64,)},
        "t = Transpose<perm=[1,0]>(w) p = MatMul(x, t) y = Add(b, p)",
        ["MatMulTransA", "MatMulTransBAdd"],
    ),
    "two layers": (
        "float[N,96]",
        {"w": W, "v": K},
        "h = MatMul(x, w) t = Transpose<perm=[1,0]>(v) y = MatMul(h, t)",
        ["MatMul", "MatMul", "MatMulTransA", "MatMulTransA", "MatMulTransB"],
    ),
    "residual": (
        "float[N,3,64]",
        {"w": (64, 64), "v": (64, 64)},
        "h = MatMul(x, w) a = Tanh(h) p = MatMul(a, v) y = Add(h, p)",
        ["MatMul", "MatMulAdd", "MatMulTransA", "MatMulTransA", "MatMulTransB"],
    ),
    "of which more is read than the sum": (
        "float[N,96]",
        {"w": W, "b": (64,)},
        "p = MatMul(x, w) s = Add(p, b) y = Mul(s, p)",
        ["MatMul", "MatMulTransA"],
    ),
    "several rows that are added": (
        "float[N,96]",
        {"w": W, "b": (1, 64)},
        "p = MatMul(x, w) y = Add(p, b)",
        ["MatMul", "MatMulTransA"],
    ),
    "a sum of the same": (
        "float[N,96]",
        {"w": W},
        "p = MatMul(x, w) y = Add(p, p)",
        ["MatMul", "MatMulTransA"],
    ),
    "Gemm": (
        "float[N,96]",
        {"w": V, "b": (64,), "v": K, "c": (80,)},
        "h = Gemm<transB=1>(x, w, b) a = Tanh(h) y = Gemm<transB=1>(a, v, c)",
        ["MatMul", "MatMulTransA", "MatMulTransA", "MatMulTransBAdd", "MatMulTransBAdd"],
    ),
    "Gemm before a sum": (
        "float[N,96]",
        {"w": W, "b": (64,)},
        "p = Gemm(x, w) y = Add(p, b)",
        ["MatMulAdd", "MatMulTransA"],
    ),
    "Gemm of a row": (
        "float[N,96]",
        {"w": W, "b": (1, 64)},
        "y = Gemm(x, w, b)",
        ["MatMulTransA"],
    ),
    "Gemm by a factor": ("float[N,96]", {"w": W}, "y = Gemm<alpha=0.5>(x, w)", []),
    "Gemm of both transposed": (
        "float[N,96]",
        {"w": V},
        "t = Transpose<perm=[1,0]>(x) y = Gemm<transA=1, transB=1>(t, w)",
        [],
    ),
    "Gemm of a bias by a factor": (
        "float[N,96]",
        {"w": W, "b": (64,)},
        "y = Gemm<beta=0.5>(x, w, b)",
        ["MatMulTransA"],
    ),
    "narrow": ("float[N,96]", {"w": (96, 32)}, "y = MatMul(x, w)", []),
}

HEADS = """
    q = MatMul(x, wq) q4 = Reshape(q, split) qt = Transpose<perm=[0,2,1,3]>(q4)
    k = MatMul(x, wk) k4 = Reshape(k, split) kt = Transpose<perm=[0,2,3,1]>(k4)
    v = MatMul(x, wv) v4 = Reshape(v, split) vt = Transpose<perm=[0,2,1,3]>(v4)
    s = MatMul(qt, kt) {scaled} a = Softmax<axis=-1>({scores}) o = MatMul(a, vt)
    ot = Transpose<perm=[0,2,1,3]>(o) y = Reshape(ot, joined)"""
WEIGHTS = {"wq": (96, 96), "wk": (96, 96), "wv": (96, 96)}
ATTENTION = {
    "attention": HEADS.format(scaled="z = Mul(s, factor)", scores="z"),
    "attention without a factor": HEADS.format(scaled="", scores="s"),
    "attention whose scores are read": HEADS.format(
        scaled="z = Mul(s, factor) r = Mul(s, s) u = Add(z, r)", scores="u"
    ),
    "attention whose keys are read": HEADS.format(scaled="z = Mul(s, factor)", scores="z")
    .replace(
        "v = MatMul(x, wv)", "km = ReduceMean<keepdims=1>(kt) xk = Add(x, m) v = MatMul(xk, wv)"
    )
    .replace("xk = Add(x, m)", "m = Squeeze(km, ends) xk = Add(x, m)"),
    "attention by a factor that is trained": HEADS.format(scaled="z = Mul(s, g)", scores="z"),
}
SHAPES = {"split": [0, 0, 3, 32], "joined": [0, 0, 96], "ends": [1]}


def network(kind, weights, lines):
    text = (
        f"""<ir_version: 8, opset_import: ["": 17]> network ({kind} x) => (float y) {{ {lines} }}"""
    )
    model = onnx.parser.parse_model(
        text.replace("(float y)", f"({kind.split('[')[0]}[{dims(kind)}] y)")
    )
    values = np.random.default_rng(0)
    arrays = {n: (values.standard_normal(s) / 8).astype(np.float32) for n, s in weights.items()}
    arrays |= {name: np.array(shape, np.int64) for name, shape in SHAPES.items()}
    arrays["factor"] = np.float32(0.25)
    read = {name for node in model.graph.node for name in node.input}
    for name, array in arrays.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return onnx.shape_inference.infer_shapes(model)


def dims(kind):
    return ",".join(["N", *(f"d{i}" for i in range(kind.count(",")))])


def products(graph):
    """The functions that a graph calls, without their numbers, and its own products."""
    names = (node.op_type.rstrip("0123456789") for node in graph.model.graph.node)
    return sorted(name for name in names if name.startswith("MatMul"))


def trained(model, **options):
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)

    def loss(op, y):
        return op.ReduceMean(op.Mul(y, y), keepdims=0)

    return graphopt.training_graph(model, loss, optimizer, **options)


def states(graph, shape, **options):
    """What some steps lead to."""
    session, values = graphopt.Session(graph, **options), np.random.default_rng(1)
    for _ in range(3):
        session.step({"x": values.standard_normal(shape).astype(np.float32)})
    return session.state


def assert_trains_as_without(model, shape, graph):
    """Without functions for products is a graph for another provider, which runs here too."""
    wanted = states(trained(model, provider="CUDAExecutionProvider"), shape)
    assert any(np.abs(value).max() > 1e-3 for name, value in wanted.items() if "square" in name)
    for kernels in (False, True):
        got = states(graph, shape, kernels=kernels)
        for name, value in wanted.items():
            near = 1e-4 * np.abs(value).max()
            np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=near, err_msg=name)


@pytest.mark.parametrize(("kind", "weights", "lines", "found"), CASES.values(), ids=CASES)
def test_products_of_weights(kind, weights, lines, found):
    model = network(kind, weights, lines)
    graph = trained(model)
    names = products(graph)
    assert [name for name in names if found or name != "MatMul"] == found
    assert_trains_as_without(model, (7, *map(int, kind[6:-1].split(",")[1:])), graph)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", ATTENTION)
def test_products_of_heads(name, memory):
    weights = WEIGHTS | ({"g": ()} if "trained" in name else {})
    model = network("float[N,20,96]", weights, ATTENTION[name])
    graph = trained(model, memory=memory)
    found = Counter(products(graph))
    assert found["MatMul"] == found["MatMulTransA"] + found["MatMul"] - 3
    assert found["MatMulAxes"] >= 6
    if memory == "fast" and "read" not in name:
        left = Counter(node.op_type for node in graph.model.graph.node)
        assert not left["Transpose"]
    assert_trains_as_without(model, (2, 20, 96), graph)


def test_where_there_are_no_functions_there_are_the_nodes():
    model = network("float[N,20,96]", WEIGHTS, ATTENTION["attention"])
    nodes = without_functions(trained(model).model).graph.node
    assert not any(node.op_type.startswith("MatMul") and node.domain for node in nodes)
    assert sum(node.op_type == "MatMul" for node in nodes) == 3 + 6 + 3


def test_the_gradient_of_two_parameters_that_is_one_value():
    """It is known by name, so that nothing is added within the product."""
    model = network("float[N,96]", {"w": W, "v": W}, "s = Add(w, v) h = MatMul(x, s) y = Tanh(h)")
    assert_trains_as_without(model, (7, 96), trained(model))


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "WebGpuExecutionProvider"])
def test_devices_have_products_of_their_own(provider):
    model = network("float[N,20,96]", WEIGHTS, ATTENTION["attention"])
    assert set(products(trained(model, provider=provider))) == {"MatMul"}
