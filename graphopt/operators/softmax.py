"""Softmax and its logarithm."""

import onnx_ir as ir

from graphopt.operators.backward import Backward
from graphopt.operators.record import operator
from graphopt.shapes import elements


# Its operations are maximum, subtract, exponential, sum, divide.
@operator("Softmax", flops=5, shape=elements.same)
def softmax(b: Backward) -> ir.Value:
    """dx = y (dy - Σ dy y)."""
    weighted = b.op.Mul(b.dy, b.y)
    total = b.sum(weighted, [b.axis(b.x, -1)], keepdims=True)
    return b.op.Sub(weighted, b.op.Mul(b.y, total))


# Its operations are maximum, subtract, exponential, sum, subtract.
@operator("LogSoftmax", flops=5, shape=elements.same)
def log_softmax(b: Backward) -> ir.Value:
    """dx = dy - softmax(x) Σ dy."""
    total = b.sum(b.dy, [b.axis(b.x, -1)], keepdims=True)
    return b.op.Sub(b.dy, b.op.Mul(b.op.Exp(b.y), total))
