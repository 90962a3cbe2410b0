"""Gradients where a slope is infinite at an element that a mask then leaves out."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import (
    Case,
    cases,
    normal,
    onnx_gradients,
    onnx_model,
    torch_gradients,
)

X = np.array([[2, 0.5, 0], [-3, 1, -1]], np.float32)
BOUNDS = {
    "low": np.float32(-1),
    "high": np.float32(1),
    "zero": np.float32(0),
    "half": np.float32(0.5),
}


def case(node, compute, **inputs):
    """A case of ``x`` whose constants are named in the text."""
    used = {name: value for name, value in BOUNDS.items() if name in node}
    return Case(
        node,
        {"x": X, **inputs, **used},
        lambda x, *rest: compute(x, *rest[: len(inputs)]),
        constants=tuple(BOUNDS),
    )


def log_of_positive(x):
    return torch.where(x > 0, torch.where(x > 0, x, 1).log(), 0)


LABELS = np.array([2, 0])
CASES = {
    "Clip, Acos": case("c = Clip(x, low, high) y = Acos(c)", lambda x: x.clamp(-1, 1).acos()),
    "Clip, Asin": case("c = Clip(x, low, high) y = Asin(c)", lambda x: x.clamp(-1, 1).asin()),
    "Clip, Atanh": case(
        "c = Clip(x, low, high) d = Atanh(c) q = Abs(x) r = Less(q, high) y = Where(r, d, zero)",
        lambda x: torch.where(x.abs() < 1, torch.where(x.abs() < 1, x, 0).atanh(), 0),
    ),
    "Clip, Acosh": case("c = Clip(x, high) y = Acosh(c)", lambda x: x.clamp(min=1).acosh()),
    "Relu, Sqrt": case("c = Relu(x) y = Sqrt(c)", lambda x: x.relu().sqrt()),
    "Relu, Reshape, Sqrt": case(
        "c = Relu(x) r = Constant<value_ints=[-1]>() d = Reshape(c, r) y = Sqrt(d)",
        lambda x: x.relu().reshape(-1).sqrt(),
    ),
    "Relu, Identity, Sqrt": case(
        "c = Relu(x) d = Identity(c) y = Sqrt(d)", lambda x: x.relu().sqrt()
    ),
    "Relu, Mul, Sqrt": case(
        "c = Relu(x) d = Mul(c, half) y = Sqrt(d)", lambda x: (x.relu() / 2).sqrt()
    ),
    "Relu, frozen MatMul, Sqrt": Case(
        "c = Relu(x) d = MatMul(c, w) y = Sqrt(d)",
        {"x": X.reshape(-1, 1), "w": np.full((1, 1), 2, np.float32)},
        lambda x, w: (x.relu() @ w).sqrt(),
        constants=("w",),
    ),
    "Relu, Transpose, Pow": case(
        "c = Relu(x) d = Transpose(c) y = Pow(d, half)", lambda x: x.relu().T ** 0.5
    ),
    "Relu, Log, Where": case(
        "c = Relu(x) l = Log(c) q = Greater(x, zero) y = Where(q, l, zero)", log_of_positive
    ),
    "Relu, ReduceLogSum, Where": case(
        "c = Relu(x) l = ReduceLogSum<axes=[1]>(c) q = Greater(l, low) y = Where(q, l, zero)",
        lambda x: x.relu().sum(1, keepdim=True).log(),
    ),
    "Relu, Div, Where": case(
        "c = Relu(x) l = Div(half, c) q = Greater(x, zero) y = Where(q, l, zero)",
        lambda x: torch.where(x > 0, 0.5 / torch.where(x > 0, x, 1), 0),
    ),
    "Relu, Reciprocal, Where": case(
        "c = Relu(x) l = Reciprocal(c) q = Greater(x, zero) y = Where(q, l, zero)",
        lambda x: torch.where(x > 0, 1 / torch.where(x > 0, x, 1), 0),
    ),
    "Max, Sqrt": case(
        "m = Sub(x, half) c = Max(m, zero) d = Identity(c) y = Sqrt(d)",
        lambda x: torch.maximum(x - 0.5, torch.zeros(()).double()).sqrt(),
    ),
    "HardSwish, Sqrt": case(
        "m = Sub(x, high) c = HardSwish(m) d = Neg(c) q = Less(x, low) e = Where(q, d, high) "
        "y = Sqrt(e)",
        lambda x: torch.where(x < -1, -functional.hardswish(x - 1), 1).sqrt(),
    ),
    "HardSigmoid, Sqrt": case(
        "c = HardSigmoid<alpha=0.5>(x) y = Sqrt(c)",
        lambda x: torch.where(x.abs() < 1, x / 2 + 0.5, x >= 1).sqrt()
    ),
    "ThresholdedRelu, Sqrt": case(
        "c = ThresholdedRelu(x) y = Sqrt(c)", lambda x: functional.threshold(x, 1, 0).sqrt()
    ),
    "Shrink, Sqrt": case(
        "c = Shrink(x) e = Sqrt(c) q = Greater(x, zero) y = Where(q, e, zero)",
        lambda x: torch.where(x > 0.5, torch.where(x > 0.5, x, 1).sqrt(), 0),
    ),
    "PRelu, Sqrt": case(
        "p = PRelu(x, s) d = Sub(high, p) e = Abs(d) y = Sqrt(e)",
        lambda x, s: (1 - torch.where(x > 0, x, x * s)).abs().sqrt(),
        s=np.array([0.25], np.float32),
    ),
    "MaxPool, Sqrt": Case(
        "c = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) y = Sqrt(c)",
        {"x": np.array([0, -1, 2, -3, -2, -3, 1, 0], np.float32).reshape(1, 1, 2, 4)},
        lambda x: functional.max_pool2d(x, 2).sqrt(),
    ),
    "Gather, Sqrt": Case(
        "c = Gather(x, i) y = Sqrt(c)",
        {"x": np.array([[0, 1], [2, 3], [4, 5]], np.float32), "i": np.array([0, 1, 1])},
        lambda x, i: x.index_select(0, i).sqrt(),
    ),
    "Einsum of a diagonal, Sqrt": Case(
        'c = Einsum<equation="ii->i">(x) y = Sqrt(c)',
        {"x": np.array([[0, 1], [2, 3]], np.float32)},
        lambda x: torch.einsum("ii->i", x).sqrt(),
    ),
    "an ignored label, Sqrt": Case(
        'c = SoftmaxCrossEntropyLoss<reduction="none", ignore_index=2>(x, t) y = Sqrt(c)',
        {"x": normal(2, 3), "t": LABELS},
        lambda x, t: functional.cross_entropy(x, t, reduction="none", ignore_index=2).sqrt(),
    ),
    "NegativeLogLikelihoodLoss, Sqrt": Case(
        'c = NegativeLogLikelihoodLoss<reduction="none">(x, t) y = Sqrt(c)',
        {"x": -np.abs(X), "t": LABELS},
        lambda x, t: functional.nll_loss(x, t, reduction="none").sqrt(),
    ),
}  # fmt: skip


@pytest.mark.quick
@cases(CASES)
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_gradients(case, dynamic, provider):
    names = [n for n, a in case.inputs.items() if a.dtype == np.float32 and n not in case.constants]
    expected = torch_gradients(case, names)
    case.options["provider"] = provider
    got = onnx_gradients(case, names, dynamic=dynamic)
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# A zero vector, and one that is the mean throughout.
ROWS = np.array([[3, 1, -2], [0, 0, 0], [2, 2, 2]], np.float32)
EYE = np.array([[2, 1, 0], [0, 1, 0], [1, 0, 1]], np.float32)


def rows(node, compute, **constants):
    return Case(
        node, {"x": ROWS, **constants}, lambda x, *_: compute(x), constants=tuple(constants)
    )


def norm(p):
    return lambda x: torch.linalg.vector_norm(x, p, dim=1, keepdim=True)


CENTERED = "m = ReduceMean<axes=[1]>(x) d = Sub(x, m)"
ROOTS = {
    "Mul, ReduceSum, Sqrt": rows(
        "q = Mul(x, x) a = Constant<value_ints=[1]>() s = ReduceSum(q, a) y = Sqrt(s)", norm(2)
    ),
    "Pow, ReduceSum, Pow": rows(
        "q = Pow(x, two) a = Constant<value_ints=[1]>() s = ReduceSum(q, a) y = Pow(s, half)",
        norm(2),
        two=np.float32(2),
        half=np.float32(0.5),
    ),
    "Abs, Pow, ReduceSum, Pow": rows(
        "b = Abs(x) q = Pow(b, three) a = Constant<value_ints=[1]>() s = ReduceSum(q, a) "
        "y = Pow(s, third)",
        norm(3),
        three=np.float32(3),
        third=np.float32(1 / 3),
    ),
    "ReduceSumSquare, Squeeze, Sqrt": rows(
        "s = ReduceSumSquare<axes=[1]>(x) a = Constant<value_ints=[1]>() r = Squeeze(s, a) "
        "y = Sqrt(r)",
        lambda x: torch.linalg.vector_norm(x, dim=1),
    ),
    "a standard deviation": rows(
        f"{CENTERED} q = Mul(d, d) v = ReduceMean<axes=[1]>(q) y = Sqrt(v)",
        lambda x: x.std(1, correction=0, keepdim=True),
    ),
    "a standard deviation of a sample": rows(
        f"{CENTERED} q = Mul(d, d) v = ReduceMean<axes=[1]>(q) h = Shape<start=1>(x) "
        "n = Cast<to=1>(h) w = Mul(v, n) l = Sub(n, one) u = Div(w, l) y = Sqrt(u)",
        lambda x: x.std(1, keepdim=True),
        one=np.float32(1),
    ),
    "a hypotenuse": rows(
        "z = Mul(x, two) p = Mul(x, x) q = Mul(z, z) s = Add(p, q) y = Sqrt(s)",
        lambda x: torch.linalg.vector_norm(torch.stack([x, 2 * x]), dim=0),
        two=np.float32(2),
    ),
}


@cases(ROOTS)
def test_the_root_of_a_sum_of_powers_is_flat_at_0(case, dynamic):
    expected = torch_gradients(case, ["x"])["x"]
    assert np.isfinite(expected).all()
    got = onnx_gradients(case, ["x"], dynamic=dynamic)["x"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


def test_a_vector_that_is_divided_by_its_norm():
    case = rows(
        "w = MatMul(x, e) q = Mul(w, w) a = Constant<value_ints=[1]>() s = ReduceSum(q, a) "
        "n = Sqrt(s) c = Max(n, half) y = Div(w, c)",
        lambda x: x @ torch.tensor(EYE).double()
        / torch.linalg.vector_norm(x @ torch.tensor(EYE).double(), dim=1, keepdim=True).clamp(0.5),
        e=EYE,
        half=np.float32(0.5),
    )  # fmt: skip
    expected = torch_gradients(case, ["x"])["x"]
    got = onnx_gradients(case, ["x"], dynamic=False)["x"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "node",
    [
        "q = Mul(x, x) s = Add(q, x) y = Sqrt(s)",
        "q = Mul(x, x) s = Mul(q, x) y = Sqrt(s)",
        "q = Pow(x, half) y = Sqrt(q)",
        "q = Abs(x) y = Sqrt(q)",
    ],
)
def test_other_roots_are_steep_at_0(node):
    case = Case(node, {"x": np.zeros(1, np.float32), **BOUNDS}, lambda x, *_: x,
                constants=tuple(BOUNDS))  # fmt: skip
    assert not np.isfinite(onnx_gradients(case, ["x"], dynamic=False)["x"]).any()


def test_what_is_not_the_largest_gets_nothing():
    x = np.array([0, -1, -2], np.float32)
    case = Case("c = ReduceMax<keepdims=0>(x) y = Sqrt(c)", {"x": x}, lambda x: x.amax().sqrt())
    np.testing.assert_array_equal(np.isfinite(onnx_gradients(case, ["x"], dynamic=False)["x"]),
                                  [False, True, True])  # fmt: skip


def test_one_hot_values_on_the_other_side():
    case = Case(
        "c = OneHot(i, n, x) y = Sqrt(c)",
        {"x": np.array([0, 4], np.float32), "i": np.array([0, 1]), "n": np.array([2])},
        lambda x, *_: torch.stack([x[1], x[0], x[0], x[1]]).reshape(2, 2).sqrt(),
    )
    expected = torch_gradients(case, ["x"])["x"]
    got = onnx_gradients(case, ["x"], dynamic=False)["x"]
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5)
    assert np.isinf(got[0])


def backward_operators(node, trained, **inputs):
    """Those after a Relu, whose mask is a Where or a product."""
    arrays = {"x": X, **inputs}
    case = Case(node, arrays, lambda x, *_: x.new_zeros(()))
    prepared, statistics = prepare(onnx_model(case, trained, dynamic=False), trained)
    built = differentiate(prepared, trained, prepared.graph.outputs[0], statistics)
    return {n.op_type for n in built.model.graph if n.name and n.name.startswith("backward/c/")}


SQUARE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("node", "trained", "is_product"),
    [
        ("c = Relu(x) d = MatMul(c, w) e = Softmax(d) y = Log(e)", ["x", "w"], True),
        ("c = Relu(x) v = Transpose(w) d = Gemm(c, v) y = Sqrt(d)", ["x", "w"], True),
        ("c = Relu(x) d = MatMul(c, w) e = Softmax(d) y = Log(e)", ["x"], False),
        ("c = Relu(x) y = Div(c, w)", ["x"], True),
        ("c = Relu(x) two = Constant<value_float=2.0>() y = Pow(c, two)", ["x"], True),
        ("c = Relu(x) third = Constant<value_float=0.33>() y = Pow(c, third)", ["x"], False),
        ("c = Relu(x) y = LayerNormalization(c, w)", ["x"], True),
        ("c = Relu(x) y = Softmax(c)", ["x"], True),
    ],
)
def test_a_product_where_every_slope_is_finite(node, trained, is_product):
    operators = backward_operators(node, trained, w=SQUARE[0] if "Layer" in node else SQUARE[:1] if
                                   "Div" in node else SQUARE)  # fmt: skip
    product = operators & {"Mul", "ReluGradient1"}
    assert (bool(product), "Where" in operators) == (is_product, not is_product)
