"""Sums, products, powers and choices of tensors, with broadcasting."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("Add")
def add(b: Backward) -> Sequence[ir.Value]:
    return [b.unbroadcast(b.dy, b.input(0)), b.unbroadcast(b.dy, b.input(1))]


@rule("Sub")
def sub(b: Backward) -> Sequence[ir.Value]:
    # Negated after the sum, which may be smaller.
    return [
        b.unbroadcast(b.dy, b.input(0)),
        b.op.Neg(b.unbroadcast(b.dy, b.input(1))),
    ]


@rule("Mul")
def mul(b: Backward) -> Sequence[ir.Value]:
    left, right = b.input(0), b.input(1)
    return [
        b.unbroadcast(b.op.Mul(b.dy, right), left),
        b.unbroadcast(b.op.Mul(b.dy, left), right),
    ]


@rule("Div")
def div(b: Backward) -> Sequence[ir.Value]:
    numerator, denominator = b.input(0), b.input(1)
    quotient = b.op.Div(b.dy, denominator)
    return [
        b.unbroadcast(quotient, numerator),
        b.op.Neg(b.unbroadcast(b.op.Mul(quotient, b.y), denominator)),
    ]


@rule("Sum")
def sum_(b: Backward) -> Sequence[ir.Value]:
    return [b.unbroadcast(b.dy, value) for value in b.inputs if value is not None]


@rule("Mean")
def mean(b: Backward) -> Sequence[ir.Value]:
    share = b.op.Div(b.dy, float(len(b.inputs)))
    return [b.unbroadcast(share, value) for value in b.inputs if value is not None]
