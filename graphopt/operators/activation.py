"""Activation functions.

On a CPU each node is a pass over memory, and a Where between two tensors costs as much as ten; so
most of these are products of few factors, from the result where that is shorter.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body
from graphopt.operators.backward import Backward
from graphopt.operators.mathematical import function, quick
from graphopt.operators.rewriting import rewrite_in_float32

function("Swish")  # which is written out
quick("Sigmoid", gradient=lambda b: b.op.Mul(b.dy, b.op.Mul(b.op.Sub(1.0, b.y), b.y)))
function("Softplus", gradient=lambda b: b.op.Mul(b.dy, b.op.Sigmoid(b.x)))
quick("Tanh", gradient=lambda b: b.op.Mul(b.dy, b.op.Sub(1.0, b.op.Mul(b.y, b.y))))


@quick("Relu", selects=True)
def relu(b: Backward) -> ir.Value:
    """0 at 0."""

    def gradient(op: GraphBuilder, dy: ir.Value, y: ir.Value) -> ir.Value:
        return op.Mul(dy, op.CastLike(op.Greater(y, 0.0), dy))

    if not b.is_steep and b.has_kernels(b.dy, b.y):
        return call_body(b.op, "ReluGradient", [b.dy, b.y], gradient, None)[0]
    return b.masked(b.dy, b.op.Greater(b.y, 0.0))


@function("ThresholdedRelu", selects=True)
def thresholded_relu(b: Backward) -> ir.Value:
    """0 at the threshold."""
    alpha = b.node.attributes.get_float("alpha", 1.0)
    return b.masked(b.dy, b.op.Greater(b.x, alpha))


@function("Shrink")
def shrink(b: Backward) -> ir.Value:
    """0 from -lambd to lambd, both included."""
    lambd = b.node.attributes.get_float("lambd", 0.5)
    return b.masked(b.dy, b.op.Greater(b.op.Abs(b.x), lambd))


@quick("LeakyRelu")
def leaky_relu(b: Backward) -> ir.Value:
    """At 0, the slope below."""
    alpha = b.node.attributes.get_float("alpha", 0.01)
    return b.op.Mul(b.dy, _by_sign(b, 1.0, alpha))


@function("PRelu", broadcasts=(1,), weights=(1,))
def p_relu(b: Backward) -> Sequence[ir.Value]:
    """At 0, the slope below."""
    op, slope = b.op, b.input(1)
    positive = op.CastLike(op.Greater(b.x, 0.0), b.x)
    factor = op.Add(op.Mul(positive, op.Sub(1.0, slope)), slope)
    if b.is_steep:
        below = op.Where(op.Less(b.x, 0.0), op.Mul(b.dy, b.x), 0.0)
    else:
        below = op.Mul(b.dy, op.Min(b.x, 0.0))
    return [op.Mul(b.dy, factor), below]


@function("Elu")
def elu(b: Backward) -> ir.Value:
    """At 0, the slope below."""
    return _exponential(b, 1.0, b.node.attributes.get_float("alpha", 1.0))


@function("Selu")
def selu(b: Backward) -> ir.Value:
    """At 0, the slope below."""
    alpha = b.node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = b.node.attributes.get_float("gamma", 1.05070102214813232421875)
    return _exponential(b, gamma, gamma * alpha)


@function("Celu", rewrite=rewrite_in_float32)
def celu(b: Backward) -> ir.Value:
    """dx = dy min(1, exp(x / alpha)), the second being y / alpha + 1."""
    below = b.op.Min(b.y, 0.0)
    alpha = b.node.attributes.get_float("alpha", 1.0)
    if alpha != 1:
        below = b.op.Div(below, alpha)
    return b.op.Mul(b.dy, b.op.Add(below, 1.0))


@quick("Softsign")
def softsign(b: Backward) -> ir.Value:
    """dx = dy / (1 + |x|)²."""
    root = b.op.Add(b.op.Abs(b.x), 1.0)
    return b.op.Div(b.dy, b.op.Mul(root, root))


@quick("HardSigmoid")
def hard_sigmoid(b: Backward) -> ir.Value:
    """0 at both kinks."""
    op = b.op
    alpha = b.node.attributes.get_float("alpha", 0.2)
    beta = b.node.attributes.get_float("beta", 0.5)
    if beta == 0.5 and alpha > 0:
        inside = op.Less(op.Abs(b.x), 0.5 / alpha)
    else:
        inside = op.And(op.Greater(b.y, 0.0), op.Less(b.y, 1.0))
    return op.Mul(b.masked(b.dy, inside), alpha)


@function("HardSwish")
def hard_swish(b: Backward) -> ir.Value:
    """dx = dy (x/3 + 1/2) for -3 < x < 3; 0 up to -3, dy from 3 on.

    The slope is -1/2 in the limit of x = -3, and 1 minus it is that in the limit of x = 3. So a
    ThresholdedRelu, which sets to 0 what is not above its threshold, ends it on either side.
    """
    op = b.op
    one_minus = op.Sub(0.5, op.Div(b.x, 3.0))
    slope = op.Sub(1.0, op.ThresholdedRelu(one_minus, alpha=-0.5))
    d_x = op.Mul(b.dy, op.ThresholdedRelu(slope, alpha=-0.5))
    return op.Where(op.Greater(b.x, -3.0), d_x, 0.0) if b.is_steep else d_x


@function("Mish")
def mish(b: Backward) -> ir.Value:
    """From s = sigmoid(x), as Softplus is slow.

    With r = 1 - s and q = 1 + r², tanh(softplus(x)) = s (1 + r) / q, and its derivative is
    4 s r² / q².
    """
    op = b.op
    s = op.Sigmoid(b.x)
    r = op.Sub(1.0, s)
    r2 = op.Mul(r, r)
    q = op.Add(r2, 1.0)
    first = op.Mul(op.Add(r, 1.0), s)
    second = op.Div(op.Mul(op.Mul(op.Mul(b.x, s), r2), 4.0), q)
    return op.Mul(b.dy, op.Div(op.Add(first, second), q))


@function("Gelu")
def gelu(b: Backward) -> ir.Value:
    if b.node.attributes.get_string("approximate", "none") == "tanh":
        return _gelu_tanh(b)
    return _gelu_erf(b)


def _gelu_erf(b: Backward) -> ir.Value:
    """dx = dy (1 + erf(s) + s 2/√π exp(-s²)) / 2 with s = x/√2."""

    def gradient(op: GraphBuilder, dy: ir.Value, x: ir.Value) -> ir.Value:
        s = op.Mul(x, math.sqrt(0.5))
        exponent = op.Sub(math.log(2 / math.sqrt(math.pi)), op.Mul(s, s))
        twice = op.Add(op.Add(op.Mul(s, op.Exp(exponent)), op.Erf(s)), 1.0)
        return op.Mul(dy, op.Mul(twice, 0.5))

    if b.has_kernels(b.dy, b.x):
        return call_body(b.op, "GeluGradient", [b.dy, b.x], gradient, None)[0]
    return gradient(b.op, b.dy, b.x)


def _gelu_tanh(b: Backward) -> ir.Value:
    """dx = dy (s + y (1 - s) u') with y = x s, s = sigmoid(u) and u = √(8/π) (x + 0.044715 x³)."""
    op, k = b.op, math.sqrt(8 / math.pi)
    # Bounded, as 1 - s is 0 from there on, and 0 times infinity is not 0.
    square = op.Min(op.Mul(b.x, b.x), 100.0)
    u = op.Mul(b.x, op.Add(op.Mul(square, 0.044715 * k), k))
    slope = op.Add(op.Mul(square, 3 * 0.044715 * k), k)
    s = op.Sigmoid(u)
    rest = op.Mul(op.Mul(op.Sub(1.0, s), b.y), slope)
    return op.Mul(b.dy, op.Add(s, rest))


def _exponential(b: Backward, slope: float, floor: float) -> ir.Value:
    """The gradient of ``slope x`` for x > 0, and of ``floor (exp(x) - 1)``, also y, elsewhere."""
    op = b.op
    if slope > 0 and floor >= 0:
        below = op.Min(b.y, 0.0)
    else:
        below = op.Mul(op.Sub(op.Exp(op.Min(b.x, 0.0)), 1.0), floor)
    offset = slope if slope == floor else _by_sign(b, slope, floor)
    return op.Mul(b.dy, op.Add(below, offset))


def _by_sign(b: Backward, above: float, below: float) -> ir.Value:
    """One number where x > 0, another elsewhere."""
    dtype = (b.x.dtype or ir.DataType.FLOAT).numpy()
    return b.op.Where(b.op.Greater(b.x, 0.0), np.array(above, dtype), np.array(below, dtype))
