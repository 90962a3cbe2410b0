"""Gradients of activation functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.helpers.gradient_oracle import (
    Case,
    cases,
    check,
    check_types,
    distinct,
    normal,
    onnx_gradients,
)

BROAD = distinct(3, 4, 5) * 3  # from -6 to 6
FAR = np.array([-3e38, -1e20, -200, -90, -20, 20, 90, 200, 1e20, 3e38, 0.75], np.float32)


def hard_sigmoid(alpha, beta):
    # The open interval of torch.nn.functional.hardsigmoid, for any line.
    def compute(x):
        line = alpha * x + beta
        return torch.where((line > 0) & (line < 1), line, (line >= 1).double())

    return compute


def elu(slope, floor):
    def compute(x):
        return torch.where(x > 0, slope * x, floor * torch.expm1(x.clamp(max=0)))

    return compute


def shrink(lambd, bias):
    def compute(x):
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0 * x))

    return compute


def p_relu(x, slope):
    return torch.where(x > 0, x, slope * x)


FUNCTIONS = {
    "Relu": ("Relu", F.relu, 17),
    "LeakyRelu": ("LeakyRelu", F.leaky_relu, 17),
    "LeakyRelu alpha=0.3": (
        "LeakyRelu<alpha=0.3>",
        lambda x: F.leaky_relu(x, float(np.float32(0.3))),
        17,
    ),
    "LeakyRelu alpha=-0.5": ("LeakyRelu<alpha=-0.5>", lambda x: F.leaky_relu(x, -0.5), 17),
    "LeakyRelu alpha=0": ("LeakyRelu<alpha=0.0>", lambda x: F.leaky_relu(x, 0.0), 17),
    "Elu": ("Elu", F.elu, 17),
    "Elu alpha=0.5": ("Elu<alpha=0.5>", lambda x: F.elu(x, 0.5), 17),
    "Elu alpha=2": ("Elu<alpha=2.0>", lambda x: F.elu(x, 2.0), 17),
    "Elu alpha=0": ("Elu<alpha=0.0>", lambda x: F.elu(x, 0.0), 17),
    "Elu alpha=-0.5": ("Elu<alpha=-0.5>", elu(1.0, -0.5), 17),
    "Selu": ("Selu", F.selu, 17),
    "Selu alpha=0.5 gamma=2": ("Selu<alpha=0.5, gamma=2.0>", elu(2.0, 1.0), 17),
    "Selu gamma=-1": ("Selu<alpha=0.5, gamma=-1.0>", elu(-1.0, -0.5), 17),
    "Celu": ("Celu", F.celu, 17),
    "Celu alpha=0.5": ("Celu<alpha=0.5>", lambda x: F.celu(x, 0.5), 17),
    "Celu alpha=3": ("Celu<alpha=3.0>", lambda x: F.celu(x, 3.0), 17),
    "Softplus": ("Softplus", F.softplus, 17),
    "Softsign": ("Softsign", F.softsign, 17),
    "Sigmoid": ("Sigmoid", torch.sigmoid, 17),
    "Tanh": ("Tanh", torch.tanh, 17),
    "HardSigmoid": ("HardSigmoid", hard_sigmoid(float(np.float32(0.2)), 0.5), 17),
    "HardSigmoid of PyTorch": ("HardSigmoid<alpha=0.16666667>", F.hardsigmoid, 17),
    "HardSigmoid beta=0.25": ("HardSigmoid<alpha=0.5, beta=0.25>", hard_sigmoid(0.5, 0.25), 17),
    "HardSigmoid alpha=-0.25": ("HardSigmoid<alpha=-0.25>", hard_sigmoid(-0.25, 0.5), 17),
    "HardSigmoid alpha=0": ("HardSigmoid<alpha=0.0>", hard_sigmoid(0.0, 0.5), 17),
    "HardSwish": ("HardSwish", F.hardswish, 17),
    "ThresholdedRelu": ("ThresholdedRelu", lambda x: F.threshold(x, 1.0, 0.0), 17),
    "ThresholdedRelu alpha=-2": (
        "ThresholdedRelu<alpha=-2.0>",
        lambda x: F.threshold(x, -2.0, 0.0),
        17,
    ),
    "Shrink": ("Shrink", shrink(0.5, 0.0), 17),
    "Shrink lambd=1.5 bias=1.5": (
        "Shrink<lambd=1.5, bias=1.5>",
        lambda x: F.softshrink(x, 1.5),
        17,
    ),
    "Mish": ("Mish", F.mish, 18),
    "Gelu": ("Gelu", F.gelu, 20),
    "Gelu tanh": ('Gelu<approximate="tanh">', lambda x: F.gelu(x, approximate="tanh"), 20),
}


def unary(name, x, opset=None, tolerance=2e-6):
    text, function, least = FUNCTIONS[name]
    op_type, _, attributes = text.partition("<")
    node = f"y = {op_type}{'<' if attributes else ''}{attributes}(x)"
    return Case(node, {"x": x}, function, opset=opset or least, tolerance=tolerance)


CASES = {
    **{name: unary(name, BROAD) for name in FUNCTIONS},
    **{f"{name} opset 21": unary(name, BROAD, 21) for name in FUNCTIONS},
    **{
        f"{name} {shape}": unary(name, np.asarray(distinct(*shape) * 2))
        for name in ("Relu", "LeakyRelu", "Selu", "HardSigmoid", "HardSwish", "Mish", "Gelu")
        for shape in ((), (1,), (2, 1, 3, 1))
    },
    # A gradient that is finite far from 0, although squares and exponentials are not.
    **{
        f"{name} far": unary(name, FAR) for name in FUNCTIONS if name != "Shrink lambd=1.5 bias=1.5"
    },
    **{
        f"{name} at the kinks": unary(name, np.array(kinks, np.float32))
        for name, kinks in (
            ("Relu", [-1, 0, -0.0, 1]),
            ("LeakyRelu", [-1, 0, -0.0, 1]),
            ("Elu alpha=0.5", [-1, 0, -0.0, 1]),
            ("Elu alpha=2", [-1, 0, -0.0, 1]),
            ("Selu", [-1, 0, -0.0, 1]),
            ("Celu", [-1, 0, -0.0, 1]),
            ("Softsign", [-1, 0, -0.0, 1]),
            ("HardSigmoid of PyTorch", [-3, 0, 3, 4]),
            ("HardSigmoid beta=0.25", [-0.5, 0, 1.5, 4]),
            ("HardSwish", [-3, -2.999, 0, 2.999, 3, 3.001, -3.001]),
            ("ThresholdedRelu", [0.999, 1, 1.001]),
            ("Shrink lambd=1.5 bias=1.5", [-2, -1.5, 0, 1.5, 2]),
        )
    },
    **{
        f"PRelu {x} {slope}": Case(
            "y = PRelu(x, slope)", {"x": normal(*x), "slope": normal(*slope, seed=1)}, p_relu
        )
        for x, slope in (
            ((2, 3, 4, 5), (3, 1, 1)),
            ((2, 3, 4, 5), (1,)),
            ((2, 3, 4, 5), ()),
            ((2, 3, 4), (2, 3, 4)),
            ((2, 3, 4), (2, 1, 4)),
            ((5,), (5,)),
            ((), ()),
            ((2, 1), (1, 1)),
        )
    },
    "PRelu at 0": Case(
        "y = PRelu(x, slope)",
        {"x": np.array([-1, 0, -0.0, 1], np.float32), "slope": np.array([0.25], np.float32)},
        F.prelu,
    ),
    "PRelu of PyTorch": Case(
        "y = PRelu(x, slope)",
        {"x": normal(2, 3, 4), "slope": normal(3, 1, seed=1)},
        lambda x, slope: F.prelu(x, slope[:, 0]),
    ),
    "PRelu opset 21": Case(
        "y = PRelu(x, slope)", {"x": normal(2, 3), "slope": normal(3, seed=1)}, p_relu, opset=21
    ),
    # A root at 0 has an infinite gradient.
    "Sqrt of Relu": Case(
        "r = Relu(x) y = Sqrt(r)",
        {"x": np.array([-2, -1, 0.5, 1, 4], np.float32)},
        lambda x: F.relu(x).sqrt(),
    ),
    "Pow of Relu": Case(
        "r = Relu(x) y = Pow(r, half)",
        {"x": np.array([-2, -1, 0.5, 1, 4], np.float32), "half": np.float32([0.5])},
        lambda x, half: F.relu(x) ** half,
        constants=["half"],
    ),
}


# Celu has no other dtype, and float16 none of the far numbers.
DTYPE_CASES = [name for name in CASES if not any(s in name for s in ("opset", "Celu", "far"))]


@pytest.mark.quick
@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_batch(name):
    check(unary(name, normal(0, 3)), dynamic=True)


def test_empty_batch_of_p_relu():
    inputs = {"x": normal(0, 3), "slope": normal(3)}
    check(Case("y = PRelu(x, slope)", inputs, p_relu), dynamic=True)


@pytest.mark.parametrize("element", [-5, -4, -2.5, 2.5, 4, 5])
@pytest.mark.parametrize("name", ["Sigmoid", "Mish", "HardSwish", "Softsign", "Softplus"])
def test_relative_precision(name, element):
    """Where the gradient is small, it has digits too."""
    check(unary(name, np.array([element], np.float32), tolerance=1e-5), dynamic=False)


@pytest.mark.any_runtime
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("name", DTYPE_CASES)
def test_other_dtypes(name, dtype):
    check_types(CASES[name], dtype)


@pytest.mark.parametrize("name", ["Relu", "HardSigmoid", "ThresholdedRelu"])
def test_other_providers(name):
    """They get a Where, and the same gradient."""
    case = unary(name, BROAD)
    options = {"provider": "CUDAExecutionProvider"}
    expected = onnx_gradients(case, ["x"], dynamic=False)["x"]
    other = replace(case, options=options)
    np.testing.assert_array_equal(onnx_gradients(other, ["x"], dynamic=False)["x"], expected)
