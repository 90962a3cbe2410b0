"""Gradients where something else is selected than what is infinite, or has an infinite slope."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import (
    Case,
    cases,
    onnx_gradients,
    onnx_model,
    torch_gradients,
)

X = np.array([0, 1, -1, 2, 0.5], np.float32)
P = np.array([0, 1, 0.5, 0, 1], np.float32)
T = np.array([0, 1, 0.25, 1, 0], np.float32)
NUMBERS = {"zero": 0, "one": 1, "pi": np.pi, "least": -100, "two": 2, "half": 0.5, "ten": 10}


def case(node, compute, x=X, **inputs):
    """A case of ``x``, and of other inputs, that are constant."""
    words = re.findall(r"\w+", node)
    used = {name: np.float32(number) for name, number in NUMBERS.items() if name in words}
    return Case(
        node,
        {"x": x, **inputs, **used},
        lambda x, *rest: compute(x, *rest[: len(inputs)]),
        constants=(*inputs, *used),
    )


def chosen(condition, function):
    """What JAX calls a double where: the function sees only what is selected."""
    return lambda x, *_: torch.where(condition(x), function(torch.where(condition(x), x, 0.75)), 0)


def positive(x):
    return x > 0


def inside(x):
    return x.abs() < 1


SELECTED = {
    "sinc": case(
        "p = Mul(x, pi) s = Sin(p) q = Div(s, p) e = Equal(x, zero) y = Where(e, one, q)",
        torch.sinc,
    ),
    "Log": case(
        "l = Log(x) g = Greater(x, zero) y = Where(g, l, zero)", chosen(positive, torch.log)
    ),
    "Log, then linear": case(
        "l = Log(x) n = Neg(l) m = Mul(n, two) r = Reshape(m, shape) a = Add(r, one) "
        "g = Greater(x, zero) y = Where(g, a, zero)",
        chosen(positive, lambda x: 1 - 2 * x.log()),
        shape=np.array([-1]),
    ),
    "a sum of Log": case(
        "r = Reshape(x, shape) l = Log(r) a = Constant<value_ints=[1]>() "
        "s = ReduceSum<keepdims=0>(l, a) g = Greater(x, zero) h = Reshape(g, shape) "
        "k = Cast<to=1>(h) m = ReduceMin<axes=[1], keepdims=0>(k) "
        "c = Greater(m, zero) y = Where(c, s, zero)",
        chosen(positive, torch.log),
        shape=np.array([-1, 1]),
    ),
    "x log x": case(
        "l = Log(x) m = Mul(x, l) g = Greater(x, zero) y = Where(g, m, zero)",
        chosen(positive, lambda x: x * x.log()),
    ),
    "log² x": case(
        "l = Log(x) m = Pow(l, two) g = Greater(x, zero) y = Where(g, m, zero)",
        chosen(positive, lambda x: x.log() ** 2),
    ),
    "Sqrt": case(
        "l = Sqrt(x) g = Greater(x, zero) y = Where(g, l, zero)", chosen(positive, torch.sqrt)
    ),
    "Pow": case(
        "l = Pow(x, half) g = Greater(x, zero) y = Where(g, l, zero)", chosen(positive, torch.sqrt)
    ),
    "Reciprocal": case(
        "l = Reciprocal(x) g = Greater(x, zero) y = Where(g, l, zero)",
        chosen(positive, torch.reciprocal),
    ),
    "Acos": case(
        "l = Acos(x) q = Abs(x) g = Less(q, one) y = Where(g, l, zero)", chosen(inside, torch.acos)
    ),
    "Atanh": case(
        "l = Atanh(x) q = Abs(x) g = Less(q, one) y = Where(g, l, zero)",
        chosen(inside, torch.atanh),
    ),
    "Log, Max": case("l = Log(x) y = Max(l, least)", chosen(positive, torch.log), x=P),
    "Log, Clip": case(
        "l = Log(x) y = Clip(l, least)",
        lambda x: torch.where(x > 0, torch.where(x > 0, x, 1).log(), -100),
        x=P,
    ),
    "the quotient of what is masked": case(
        "n = Mul(x, m) s = Div(n, m) g = Greater(m, zero) y = Where(g, s, zero)",
        lambda x, m: torch.where(m > 0, x, 0),
        m=np.array([1, 0, 1, 0, 1], np.float32),
    ),
    "a factor that is -inf": case(
        "l = Log(t) m = Mul(x, l) e = Equal(t, zero) y = Where(e, zero, m)",
        lambda x, t: torch.where(t == 0, 0, x * torch.where(t == 0, 1, t).log()),
        t=T,
    ),
    "binary cross entropy": case(
        "a = Log(x) b = Max(a, least) c = Sub(one, x) d = Log(c) e = Max(d, least) "
        "f = Mul(b, t) o = Sub(one, t) g = Mul(e, o) h = Add(f, g) y = Neg(h)",
        # PyTorch's own has a slope of ±1e12 where the logarithm is bounded.
        lambda x, t: (
            -torch.where((x == 1) | (t == 1), 0, 1 - t) * (1 - x).clamp(min=1e-9).log()
            - torch.where(x == 0, 0, t) * x.clamp(min=1e-9).log()
        ),
        x=P,
        t=T,
    ),
}  # fmt: skip


@cases(SELECTED)
def test_gradients(case, dynamic):
    expected = torch_gradients(case, ["x"])["x"]
    assert np.isfinite(expected).all()
    got = onnx_gradients(case, ["x"], dynamic=dynamic)["x"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_zero_that_comes_from_an_infinite_operand_is_no_selection():
    """The slope of atan(1 / x) is -1 at 0; 0 would be wrong, and silent."""
    node = "q = Div(one, x) l = Atan(q) g = Greater(x, least) y = Where(g, l, zero)"
    got = onnx_gradients(case(node, torch.sinc), ["x"], dynamic=False)["x"]
    assert np.isnan(got[0])
    np.testing.assert_array_equal(np.isfinite(got[1:]), True)


@pytest.mark.parametrize(
    ("node", "compute"),
    [
        ("s = Sigmoid(x) y = Log(s)", functional.logsigmoid),
        ("s = Sigmoid(x) r = Sub(one, s) y = Log(r)", lambda x: functional.logsigmoid(-x)),
        (
            "s = Sigmoid(x) o = Reshape(one, rank) r = Sub(o, s) y = Log(r)",
            lambda x: functional.logsigmoid(-x),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_of_sigmoid_is_finite_throughout(node, compute, dtype):
    x = np.array([-1e4, -200, -104, -90, -1, 0, 1, 90, 200, 1e4], np.float32)
    shape = {"rank": np.array([1])} if "rank" in node else {}
    given = case(node, lambda x, *_: compute(x), x=x, **shape)
    expected = torch_gradients(given, ["x"])["x"]
    model = onnx_model(given, ["x"], dynamic=False)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.graph.output[0].type.tensor_type.elem_type = kind
    prepared, statistics = prepare(model, ["x"])
    built = differentiate(prepared, ["x"], prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    loss, got = session.run(None, {"x": x.astype(dtype)})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert np.isfinite(loss)


def backward_nodes(node, x=X, **inputs):
    built_of = case(node, torch.sinc, x=x, **inputs)
    names = ["x", *inputs]
    prepared, statistics = prepare(onnx_model(built_of, ["x"], dynamic=False), names)
    built = differentiate(prepared, names, prepared.graph.outputs[0], statistics)
    return {n.op_type for n in built.model.graph if n.name and n.name.startswith("backward/")}


DEVIATION = (
    "m = ReduceMean<axes=[0]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[0]>(q) "
    "e = Add(v, one) s = Sqrt(e)"
)


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    "node",
    [
        f"{DEVIATION} n = Div(d, s) y = Relu(n)",
        f"{DEVIATION} r = Reciprocal(s) n = Mul(d, r) y = Clip(n, zero, ten)",
        "e = Exp(x) o = Add(e, one) l = Log(o) y = Max(l, zero)",
        "n = Div(x, two) y = Max(n, zero)",
        "c = Max(x, half) l = Log(c) y = Min(l, ten)",
        "h = Abs(x) c = Add(h, one) i = Pow(c, half) y = Min(i, ten)",
        "s = Sigmoid(x) n = Mul(x, s) y = Max(n, zero)",
        "l = Tanh(x) y = Mul(l, x)",
        "l = Log(x) y = Mul(l, x)",
    ],
)
def test_nothing_is_added_where_every_slope_is_finite_or_nothing_is_selected(node):
    assert "Where" not in backward_nodes(node)
