"""Functions of one number."""

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("Abs")
def abs_(b: Backward) -> ir.Value:
    """0 at 0."""
    return b.op.Mul(b.dy, b.op.Sign(b.x))


@rule("Exp")
def exp(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.y)


@rule("Log")
def log(b: Backward) -> ir.Value:
    return b.op.Div(b.dy, b.x)


@rule("Neg")
def neg(b: Backward) -> ir.Value:
    return b.op.Neg(b.dy)


@rule("Sqrt")
def sqrt(b: Backward) -> ir.Value:
    return b.op.Div(b.op.Mul(b.dy, 0.5), b.y)


@rule("Reciprocal")
def reciprocal(b: Backward) -> ir.Value:
    return b.op.Neg(b.op.Mul(b.dy, b.op.Mul(b.y, b.y)))
