"""Gradients of operators that write elements to indices, or combine them with what is there."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.gradients import prepare
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients

TORCH = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scattered(axis, reduction):
    def compute(x, i, u):
        i = torch.where(i < 0, i + x.shape[axis], i)
        if reduction == "none":
            return x.scatter(axis, i, u)
        return x.scatter_reduce(axis, i, u, TORCH[reduction])

    return compute


def scattered_nd(reduction):
    """Rows are put, or combined, one after the other."""

    def compute(x, i, u):
        i = tuple(torch.where(k < 0, k + n, k) for k, n in zip(i.unbind(-1), x.shape, strict=False))
        if reduction in ("none", "add"):
            return x.index_put(i, u, accumulate=reduction == "add")
        depth = len(i)
        places = torch.zeros_like(i[0])
        for k, n in zip(i, x.shape, strict=False):
            places = places * n + k
        table = x.reshape(np.prod(x.shape[:depth]), -1)
        rows = u.reshape(places.numel(), table.shape[1])
        places = places.reshape(-1, 1).expand_as(rows)
        return table.scatter_reduce(0, places, rows, TORCH[reduction]).reshape(x.shape)

    return compute


def whole(*shape, seed):
    """Few different numbers, with zeros and ties among them."""
    return np.random.default_rng([seed, *shape]).integers(-1, 3, shape).astype(np.float32)


DISTINCT = [[0, 1, -1], [2, 0, 1]]
REPEATED = [[3, 3, 1, -1, 3], [0, 0, 0, 0, 0], [2, -2, 1, 1, 0]]
ELEMENTS = {
    f"ScatterElements {reduction} axis={axis} at {name}{suffix}": Case(
        f'y = ScatterElements<axis={axis}, reduction="{reduction}">(x, i, u)',
        {"x": fill(3, 4, seed=1), "i": np.array(indices), "u": fill(*np.shape(indices), seed=3)},
        scattered(axis % 2, reduction),
        opset=18,
    )
    for reduction in ("none", *TORCH)
    for suffix, fill in (("", lambda *s, seed: normal(*s, seed=seed)), (" with ties", whole))
    for axis, name, indices in (
        (0, "distinct", DISTINCT),
        (1, "distinct", [[3, 1], [0, -3], [-1, 2]]),
        (-1, "repeated", REPEATED),
        (0, "one", [[0]]),
    )
    if reduction != "none" or (name != "repeated" and not suffix)
}
ROWS = {
    f"ScatterND {reduction} of {name}{suffix}": Case(
        f'y = ScatterND<reduction="{reduction}">(x, i, u)',
        {"x": fill(3, 4, 2, seed=1), "i": np.array(i), "u": fill(*np.shape(i)[:-1], *row, seed=3)},
        scattered_nd(reduction),
        opset=18,
        constants=constants,
    )
    for reduction in ("none", *TORCH)
    for suffix, fill in (("", lambda *s, seed: normal(*s, seed=seed)), (" with ties", whole))
    for name, i, row, constants in (
        ("one element", [1, -1, 0], (), ()),
        ("rows", [[2], [-3]], (4, 2), ()),
        ("rows of two", [[[2, 1], [2, -4]], [[0, 1], [1, 1]]], (2,), ()),
        ("rows onto a constant", [[2], [0]], (4, 2), ("x",)),
        ("repeated rows", [[[2], [2]], [[0], [-1]]], (4, 2), ()),
        ("repeated rows of two", [[2, 1], [-1, -3], [0, 0]], (2,), ()),
    )
    if (reduction != "none" or ("repeated" not in name and not suffix))
    and (reduction == "none" or "repeated" in name or not suffix)
}


@pytest.mark.quick
@cases(ELEMENTS)
def test_scatter_elements(case, dynamic):
    check(case, dynamic)


@pytest.mark.quick
@cases(ROWS)
def test_scatter_nd(case, dynamic):
    check(case, dynamic)


def test_opset_17_has_sums_and_products():
    x, u = normal(3, 2, seed=1), normal(4, 2, seed=2)
    i = np.array([[0, 1], [0, 0], [2, 0], [0, 2]])
    for reduction in ("add", "mul"):
        node = f'y = ScatterElements<reduction="{reduction}">(x, i, u)'
        check(Case(node, {"x": x, "i": i, "u": u}, scattered(0, reduction)), dynamic=False)


def test_what_overflows_beside_a_zero_is_not_asked():
    """The product of the others of an element may overflow where it is not used."""
    x, u = np.zeros(1, np.float32), np.array([1e30, 1e30, 0], np.float32)
    case = Case(
        'y = ScatterElements<reduction="mul">(x, i, u)',
        {"x": x, "i": np.zeros(3, np.int64), "u": u},
        scattered(0, "mul"),
        opset=18,
    )
    got = onnx_gradients(case, ["x", "u"], dynamic=False)
    np.testing.assert_array_equal([*got["x"], *got["u"]], np.zeros(4))


@pytest.mark.parametrize("reduction", TORCH)
def test_float16(reduction):
    case = Case(
        f"h = Cast<to=10>(x) v = Cast<to=10>(u) "
        f'g = ScatterND<reduction="{reduction}">(h, i, v) y = Cast<to=1>(g)',
        {"x": normal(3, 4), "i": np.array([[1], [1], [0]]), "u": normal(3, 4, seed=5)},
        lambda x, i, u: x.scatter_reduce(0, i.expand_as(u), u, TORCH[reduction]),
        opset=18,
        tolerance=4e-3,
    )
    check(case, dynamic=False)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_the_model_combines_all_rows_with_several_threads(reduction):
    """ONNX Runtime's own ScatterND loses rows where indices repeat."""
    random = np.random.default_rng(0)
    feeds = {
        "x": random.normal(size=(4, 64)).astype(np.float32),
        "i": random.integers(0, 4, (3000, 1)),
        "u": random.uniform(0.99, 1.01, (3000, 64)).astype(np.float32),
    }
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> m (float[4,64] x, int64[R,1] i, float[R,64] u) '
        f'=> (float[4,64] y) {{ y = ScatterND<reduction="{reduction}">(x, i, u) }}'
    )
    model = onnx.parser.parse_model(text)
    prepared, _ = prepare(model, ["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 8
    proto = ir.to_proto(prepared)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    (got,) = session.run(None, feeds)
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_rows_of_inputs_are_combined_so_too():
    """What lies before the trained part."""
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> m (float[4,8] x, int64[R,1] i, float[R,8] u) '
        "=> (float[4,1] y) <float[8,1] w = {1, 2, 3, 4, 5, 6, 7, 8}> "
        '{ s = ScatterND<reduction="add">(x, i, u) y = MatMul(s, w) }'
    )
    model = onnx.parser.parse_model(text)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    graph = graphopt.training_graph(model, "mse", optimizer)
    assert "ScatterND" not in {node.op_type for node in graph.model.graph.node}
    feeds = {"x": normal(4, 8), "i": np.array([[1], [1], [0]]), "u": normal(3, 8, seed=1)}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    got = graphopt.Session(graph).step({**feeds, "labels": normal(4, 1)})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def cached(axis, first, circular=False):
    """Rows of a cache are replaced one after another from the first on."""

    def compute(past, update, *_):
        rows = np.arange(update.shape[axis]) + np.array(first)[:, None]
        indices = torch.tensor(rows % past.shape[axis] if circular else rows)
        shape = [1] * past.ndim
        shape[0], shape[axis] = indices.shape
        return past.scatter(axis, indices.reshape(shape).expand(update.shape), update)

    return compute


CACHED = {
    "TensorScatter": Case(
        "y = TensorScatter(x, u, i)",
        {"x": normal(2, 3, 5, 2), "u": normal(2, 3, 2, 2, seed=1), "i": np.array([3, 1])},
        cached(2, [3, 1]),
        opset=24,
    ),
    "TensorScatter from the start": Case(
        "y = TensorScatter<axis=1>(x, u)",
        {"x": normal(2, 5, 2), "u": normal(2, 3, 2, seed=1)},
        cached(1, [0, 0]),
        opset=24,
    ),
    "TensorScatter, circular": Case(
        'y = TensorScatter<mode="circular">(x, u, i)',
        {"x": normal(2, 5, 2), "u": normal(2, 3, 2, seed=1), "i": np.array([3, 1])},
        cached(1, [3, 1], circular=True),
        opset=24,
    ),
}


@cases(CACHED)
def test_tensor_scatter(case, dynamic):
    check(case, dynamic)
