"""Functions of one number."""

import math

import onnx_ir as ir

from graphopt.operators.backward import Backward
from graphopt.operators.record import operator


@operator("Abs")
def abs_(b: Backward) -> ir.Value:
    """0 at 0."""
    return b.op.Mul(b.dy, b.op.Sign(b.x))


@operator("Neg")
def neg(b: Backward) -> ir.Value:
    return b.op.Neg(b.dy)


@operator("Exp")
def exp(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.y)


@operator("Log")
def log(b: Backward) -> ir.Value:
    return b.op.Div(b.dy, b.x)


@operator("Sqrt")
def sqrt(b: Backward) -> ir.Value:
    """Infinite at 0."""
    return b.op.Div(b.op.Mul(b.dy, 0.5), b.y)


@operator("Reciprocal")
def reciprocal(b: Backward) -> ir.Value:
    return b.op.Neg(b.op.Mul(b.dy, b.op.Mul(b.y, b.y)))


@operator("Erf")
def erf(b: Backward) -> ir.Value:
    """dx = dy 2/√π exp(-x²), the factor being moved into the exponent."""
    exponent = b.op.Sub(math.log(2 / math.sqrt(math.pi)), b.op.Mul(b.x, b.x))
    return b.op.Mul(b.dy, b.op.Exp(exponent))


@operator("Sin")
def sin(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Cos(b.x))


@operator("Cos")
def cos(b: Backward) -> ir.Value:
    return b.op.Neg(b.op.Mul(b.dy, b.op.Sin(b.x)))


@operator("Tan")
def tan(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Add(b.op.Mul(b.y, b.y), 1.0))


@operator("Asin")
def asin(b: Backward) -> ir.Value:
    """Infinite at -1 and 1."""
    return b.op.Div(b.dy, b.op.Sqrt(_one_minus_square(b)))


@operator("Acos")
def acos(b: Backward) -> ir.Value:
    """Infinite at -1 and 1."""
    return b.op.Neg(asin(b))


@operator("Atan")
def atan(b: Backward) -> ir.Value:
    return b.op.Div(b.dy, b.op.Add(b.op.Mul(b.x, b.x), 1.0))


@operator("Sinh")
def sinh(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Cosh(b.x))


@operator("Cosh")
def cosh(b: Backward) -> ir.Value:
    return b.op.Mul(b.dy, b.op.Sinh(b.x))


@operator("Asinh")
def asinh(b: Backward) -> ir.Value:
    return b.op.Div(b.dy, b.op.Sqrt(b.op.Add(b.op.Mul(b.x, b.x), 1.0)))


@operator("Acosh")
def acosh(b: Backward) -> ir.Value:
    """Infinite at 1."""
    square_minus_one = b.op.Mul(b.op.Sub(b.x, 1.0), b.op.Add(b.x, 1.0))
    return b.op.Div(b.dy, b.op.Sqrt(square_minus_one))


@operator("Atanh")
def atanh(b: Backward) -> ir.Value:
    """Infinite at -1 and 1."""
    return b.op.Div(b.dy, _one_minus_square(b))


def _one_minus_square(b: Backward) -> ir.Value:
    """1 - x² as a product, which keeps its digits where x is near 1."""
    return b.op.Mul(b.op.Sub(1.0, b.x), b.op.Add(b.x, 1.0))
