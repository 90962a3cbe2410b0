"""Activation functions."""

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("Relu")
def relu(b: Backward) -> ir.Value:
    """0 at 0, as everywhere."""
    return b.op.Mul(b.dy, b.op.Sign(b.y))


@rule("Sigmoid")
def sigmoid(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Sub(b.y, b.op.Mul(b.y, b.y)))


@rule("Tanh")
def tanh(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Sub(1.0, b.op.Mul(b.y, b.y)))
