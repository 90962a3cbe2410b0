"""Nodes in float64: against PyTorch; and derivatives along a line, at kinks too."""

import math
import time

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch.nn import functional

from graphopt.inspection.verification.interpreter import Interpreter, in_double
from graphopt.inspection.verification.runnable import NotRunError
from graphopt.inspection.verification.slopes import DOUBLE, slope

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 4, 7, 6))
W = RNG.standard_normal((6, 2, 3, 2))
B = RNG.standard_normal(6)
HEADER = """<ir_version: 10, opset_import: ["": 20]>
net (float[2,4,7,6] x, float[6,2,3,2] w, float[6] b) => (y) {"""

CASES = {
    "y = Conv <strides = [2, 1], pads = [1, 2, 1, 2], dilations = [1, 2], group = 2> (x, w, b)": (
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 2)
    ),
    "v = Slice (w, zero, four, zero) "
    "y = ConvTranspose <strides = [2, 1], pads = [1, 0, 1, 0], dilations = [1, 2], group = 2, "
    "output_padding = [1, 0]> (x, v)": (
        lambda x, w, _b: functional.conv_transpose2d(
            x, w[:4], None, (2, 1), (1, 0), (1, 0), 2, (1, 2)
        )
    ),
    "y = AveragePool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 0]> (x)": (
        lambda x, *_: functional.avg_pool2d(x, (3, 2), (2, 1), (1, 0), False, False)
    ),
    "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)": (
        lambda x, *_: functional.avg_pool2d(x, 3, 1, 1)
    ),
    "y = AveragePool <kernel_shape = [3, 2], strides = [3, 3], pads = [1, 0, 1, 0], ceil_mode = 1>"
    " (x)": lambda x, *_: functional.avg_pool2d(x, (3, 2), 3, (1, 0), True, False),
    "y = AveragePool <kernel_shape = [2, 2], strides = [3, 4], pads = [1, 1, 1, 1], ceil_mode = 1, "
    "count_include_pad = 1> (x)": lambda x, *_: functional.avg_pool2d(x, 2, (3, 4), 1, True),
    "y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)": (
        lambda x, *_: functional.max_pool2d(x, 3, 1, 1)
    ),
    "y = GlobalAveragePool (x)": lambda x, *_: x.mean((2, 3), keepdim=True),
    "s = Shape <end = 2> (x) one = Constant <value_ints = [-1]> () "
    "t = Concat <axis = 0> (s, one) v3 = Reshape (x, t) y = GlobalMaxPool (v3)": (
        lambda x, *_: x.flatten(2).amax(2, keepdim=True)
    ),
    "y = Gelu (x)": lambda x, *_: functional.gelu(x),
    'y = Gelu <approximate = "tanh"> (x)': lambda x, *_: functional.gelu(x, approximate="tanh"),
    "y = Erf (x)": lambda x, *_: torch.erf(x),
    "y = Shrink (x)": lambda x, *_: functional.hardshrink(x),
    "y = Softmax <axis = 1> (x)": lambda x, *_: torch.softmax(x, 1),
    "y = Softplus (x)": lambda x, *_: functional.softplus(x),
    "c = Cast <to = 1> (x) y = Cast <to = 10> (c)": lambda x, *_: x,
    "k = Constant <value_float = 0.1> () y = Add (x, k)": (
        lambda x, *_: x + float(np.float32(0.1))
    ),
    "y = MeanVarianceNormalization (x)": (
        lambda x, *_: (
            (x - x.mean((0, 2, 3), keepdim=True))
            / (x.std((0, 2, 3), keepdim=True, correction=0) + 1e-9)
        )
    ),
}


def interpreter(text, rounds=False):
    model = ir.from_proto(parser.parse_model(text))
    in_double(model)
    return Interpreter(model, time.monotonic() + 60, rounds=rounds)


@pytest.mark.parametrize("nodes", CASES)
def test_as_pytorch(nodes):
    constants = "zero = Constant <value_ints = [0]> () four = Constant <value_ints = [4]> () "
    found = interpreter(HEADER + (constants if "zero" in nodes else "") + nodes + "}")
    y = found.run(found.nodes, {"x": X, "w": W, "b": B})["y"]
    wanted = CASES[nodes](*map(torch.tensor, (X, W, B))).numpy()
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-13)


def test_batch_normalization_by_the_batch():
    node = "y = BatchNormalization <training_mode = 1> (x, s, s, s, s) }"
    found = interpreter(HEADER.replace("float[6] b", "float[4] s") + node)
    s = RNG.uniform(0.5, 2, 4)
    y = found.run(found.nodes, {"x": X, "w": W, "s": s})["y"]
    x, t = torch.tensor(X), torch.tensor(s)
    wanted = functional.batch_norm(x, t.clone(), t.clone(), t, t, training=True, eps=1e-5)
    np.testing.assert_allclose(y, wanted.numpy(), rtol=1e-8)


def test_only_what_depends_on_something_is_needed():
    found = interpreter(
        HEADER + "p = Neg (x) q = Neg (w) r = Size (q) f = CastLike (r, p) y = Mul (p, f) }"
    )
    assert [node.op_type for node in found.needed(["y"], ["x"])] == ["Neg", "CastLike", "Mul"]
    assert [node.op_type for node in found.needed(["f"], ["w"])] == ["Neg", "Size", "CastLike"]


def test_operators_without_a_kernel():
    text = HEADER.replace('["": 20]', '["": 20, "com.example": 1]') + "y = com.example.Foo (x) }"
    found = interpreter(text)
    with pytest.raises(NotRunError, match="no kernel of Foo in float64"):
        found.run(found.nodes, {"x": X})


def test_what_runs_in_float32_is_said():
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[5,2,3] x, float[1,16,3] w, float[1,16,4] r) => (y) {
        y, h = LSTM <hidden_size = 4> (x, w, r)
    }"""
    feeds = {n: RNG.standard_normal(s) for n, s in (("x", (5, 2, 3)), ("w", (1, 16, 3)))}
    found = interpreter(text, rounds=True)
    y = found.run(found.nodes, feeds | {"r": np.zeros((1, 16, 4))})["y"]
    assert found.rounded == {"LSTM"}
    assert y.dtype == np.float64


class TestSlope:
    def test_smooth(self):
        found = slope(lambda t: math.exp(3 * t) + 5, DOUBLE.step)
        assert found.compared(3.0, 3.0, DOUBLE)[0] == "same"
        assert found.compared(3.0001, 3.0, DOUBLE)[0] == "different"
        assert found.compared(math.nan, 3.0, DOUBLE)[0] == "unclear"

    @pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.7, -0.05, -0.5])
    @pytest.mark.parametrize("claimed", [0.0, 1.0, 0.5, 2.0])
    def test_a_kink_is_never_a_difference(self, at, claimed):
        found = slope(lambda t: max(t - at * DOUBLE.step, 0.0) + 2 * t + 1, DOUBLE.step)
        assert found.compared(claimed + 2, 3.0, DOUBLE)[0] != "different"

    def test_a_kink_beside_is_none(self):
        found = slope(lambda t: max(t - 1.5 * DOUBLE.step, 0.0) + 2 * t + 1, DOUBLE.step)
        assert found.compared(2.0, 2.0, DOUBLE)[0] == "same"
        assert found.compared(3.0, 3.0, DOUBLE)[0] == "different"
