"""Gradients of functions of one number."""

import numpy as np
import pytest
import torch

from tests.helpers.gradient_oracle import (
    Case,
    cases,
    check,
    check_types,
    distinct,
    onnx_gradients,
    torch_gradients,
)

EVERYWHERE = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
}
POSITIVE = {"Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal}
BELOW_ONE = {"Asin": torch.asin, "Acos": torch.acos, "Atanh": torch.atanh}

x = distinct(3, 4, 5)
SHAPES = {
    f"{op_type} {x.shape}": Case(f"y = {op_type}(x)", {"x": x}, function)
    for op_type, function in (("Exp", torch.exp), ("Sqrt", torch.sqrt), ("Cos", torch.cos))
    for x in (
        np.asarray(np.abs(distinct(*shape)) + np.float32(0.1))
        for shape in ((), (1,), (8,), (2, 1, 3))
    )
}
CASES = {
    **{
        name: Case(f"y = {name}(x)", {"x": x * 2}, function)
        for name, function in EVERYWHERE.items()
    },
    **{
        name: Case(f"y = {name}(x)", {"x": np.abs(x) + 0.1}, function)
        for name, function in POSITIVE.items()
    },
    **{
        name: Case(f"y = {name}(x)", {"x": x * 0.49}, function)
        for name, function in BELOW_ONE.items()
    },
    "Reciprocal below 0": Case("y = Reciprocal(x)", {"x": x}, torch.reciprocal),
    "Tan": Case("y = Tan(x)", {"x": x * 0.7}, torch.tan),
    "Acosh": Case("y = Acosh(x)", {"x": np.abs(x) + 1.01}, torch.acosh),
    **SHAPES,
    **{
        f"{name} near 1": Case(
            f"y = {name}(x)",
            {"x": np.array([0.9999, -0.9999, 0.99999], np.float32)},
            function,
            tolerance=1e-6,
        )
        for name, function in BELOW_ONE.items()
    },
    "Acosh near 1": Case(
        "y = Acosh(x)", {"x": np.array([1.0001, 1.00001], np.float32)}, torch.acosh, tolerance=1e-6
    ),
    **{
        f"{name} far from 0": Case(
            f"y = {name}(x)", {"x": np.array([-1e3, -50, 50, 1e3], np.float32)}, function
        )
        for name, function in (
            ("Erf", torch.erf),
            ("Atan", torch.atan),
            ("Asinh", torch.asinh),
        )
    },
    "Abs at 0": Case("y = Abs(x)", {"x": np.array([-1, 0, -0.0, 2], np.float32)}, torch.abs),
    **{
        f"{name} opset {opset}": Case(
            f"y = {name}(x)", {"x": np.abs(x) * 0.4 + 0.01}, function, opset=opset
        )
        for name, function in (EVERYWHERE | POSITIVE | BELOW_ONE).items()
        for opset in (21,)
    },
}
ZERO = {
    f"{name} beside x": Case(f"z = {name}(x) y = Mul(z, x)", {"x": x}, function)
    for name, function in (
        ("Sign", lambda x: x.sign() * x),
        ("Floor", lambda x: x.floor() * x),
        ("Ceil", lambda x: x.ceil() * x),
        ("Round", lambda x: x.round() * x),
        ("Hardmax", lambda x: torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]) * x),
    )
}
INFINITE = {
    "Sqrt": Case("y = Sqrt(x)", {"x": np.array([0, 1], np.float32)}, torch.sqrt),
    "Asin": Case("y = Asin(x)", {"x": np.array([-1, 1, 0], np.float32)}, torch.asin),
    "Acos": Case("y = Acos(x)", {"x": np.array([-1, 1, 0], np.float32)}, torch.acos),
    "Acosh": Case("y = Acosh(x)", {"x": np.array([1, 2], np.float32)}, torch.acosh),
}


@pytest.mark.quick
@cases(CASES | ZERO)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("name", ["Abs", "Exp", "Sqrt", "Tan", "Acos"])
def test_empty_batch(name):
    case = CASES[name]
    check(Case(case.node, {"x": case.inputs["x"][:0]}, case.torch), dynamic=True)


@cases(INFINITE)
def test_infinite_gradients(case, dynamic):
    got = onnx_gradients(case, ["x"], dynamic=dynamic)["x"]
    expected = torch_gradients(case, ["x"])["x"]
    assert np.isinf(expected).any()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.any_runtime
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("name", [name for name in CASES if "opset" not in name])
def test_other_dtypes(name, dtype):
    check_types(CASES[name], dtype)


def test_unique_has_no_gradient():
    case = Case("y, i = Unique(x)", {"x": x.reshape(-1)}, torch.clone)
    with pytest.raises(ValueError, match=r"these operators have no gradient: Unique \("):
        onnx_gradients(case, ["x"], dynamic=False)
