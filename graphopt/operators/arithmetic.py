"""Sums, products, powers and choices of tensors, with broadcasting."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient, operator


@operator("Add")
def add(b: Backward) -> Sequence[ir.Value]:
    return [b.unbroadcast(b.dy, b.input(0)), b.unbroadcast(b.dy, b.input(1))]


@operator("Sub")
def sub(b: Backward) -> Sequence[ir.Value]:
    # Negated after the sum, which may be smaller.
    return [
        b.unbroadcast(b.dy, b.input(0)),
        b.op.Neg(b.unbroadcast(b.dy, b.input(1))),
    ]


@operator("Mul")
def mul(b: Backward) -> Sequence[ir.Value]:
    left, right = b.input(0), b.input(1)
    return [
        b.unbroadcast(b.op.Mul(b.dy, right), left),
        b.unbroadcast(b.op.Mul(b.dy, left), right),
    ]


@operator("Div")
def div(b: Backward) -> Sequence[ir.Value]:
    numerator, denominator = b.input(0), b.input(1)
    quotient = b.op.Div(b.dy, denominator)
    return [
        b.unbroadcast(quotient, numerator),
        b.op.Neg(b.unbroadcast(b.op.Mul(quotient, b.y), denominator)),
    ]


@operator("Mod")
def mod(b: Backward) -> Sequence[ir.Value]:
    """Y = x - d n, where n is a whole number."""
    x, divisor = b.input(0), b.input(1)
    minus_n = b.op.Div(b.op.Sub(b.y, x), divisor)
    return [b.unbroadcast(b.dy, x), b.unbroadcast(b.op.Mul(b.dy, minus_n), divisor)]


@operator("Pow")
def pow_(b: Backward) -> Sequence[ir.Value | None]:
    """Dx = dy e x^(e - 1), 0 where e is 0; de = dy y log(x), 0 where x is 0 and e is not below."""
    op, dy, x, exponent = b.op, b.dy, b.input(0), b.input(1)
    known = None if b.needs(1) else b.constant(exponent)
    if known is not None and known.size == 1:
        return [b.unbroadcast(_constant_power(b, float(known.item())), x)]
    e = exponent if exponent.dtype == x.dtype else op.CastLike(exponent, x)
    # The power 0⁻¹ would be infinite, and 0 times infinity is not 0.
    less_one = op.Where(op.Equal(e, 0.0), 1.0, op.Sub(e, 1.0))
    d_x = b.unbroadcast(op.Mul(dy, op.Mul(e, op.Pow(x, less_one))), x)
    if not b.needs(1):
        return [d_x]
    at_zero = op.And(op.Equal(x, 0.0), op.GreaterOrEqual(e, 0.0))
    slope = op.Where(at_zero, 0.0, op.Mul(b.y, op.Log(x)))
    d_exponent = b.unbroadcast(op.Mul(dy, slope), exponent)
    return [d_x, d_exponent if e is exponent else op.CastLike(d_exponent, exponent)]


def _constant_power(b: Backward, e: float) -> ir.Value:
    """The gradient of x^e; a power other than a square is an operator's slowest."""
    op, dy, x, y = b.op, b.dy, b.x, b.y
    if e == 0:
        return b.zeros_like(y)
    if e == 1:
        return dy
    if e == 2:
        return op.Mul(op.Mul(dy, x), 2.0)
    if e == 3:
        return op.Mul(op.Mul(dy, 3.0), op.Mul(x, x))
    if e == 0.5:
        return op.Div(op.Mul(dy, 0.5), y)
    # At 0 a power below 0 is infinite, and so is this quotient.
    power = op.Div(y, x) if e < 0 else op.Pow(x, e - 1)
    return op.Mul(op.Mul(dy, e), power)


@operator("Sum")
def sum_(b: Backward) -> Sequence[ir.Value]:
    return [b.unbroadcast(b.dy, value) for value in b.inputs if value is not None]


@operator("Mean")
def mean(b: Backward) -> Sequence[ir.Value]:
    share = b.op.Div(b.dy, float(len(b.inputs)))
    return [b.unbroadcast(share, value) for value in b.inputs if value is not None]


@operator("Max", "Min")
def extremum(b: Backward) -> Sequence[ir.Value]:
    """The operands that are equal to the result share its gradient."""
    values = [value for value in b.inputs if value is not None]
    if len(values) == 1:
        return [b.dy]
    chosen = [b.op.Equal(value, b.y) for value in values]
    count = b.op.Sum(*(b.op.CastLike(equal, b.dy) for equal in chosen))
    share = b.op.Div(b.dy, count)
    return [
        b.unbroadcast(b.masked(share, equal), value)
        for value, equal in zip(values, chosen, strict=True)
    ]


@operator("Clip")
def clip(b: Backward) -> Sequence[ir.Value | None]:
    """Passes where min <= x <= max. Where the bounds are in disorder, y is max."""
    op, dy, x = b.op, b.dy, b.x
    low, high = b.optional(1), b.optional(2)
    inside = [
        *([] if low is None else [op.GreaterOrEqual(x, low)]),
        *([] if high is None else [op.LessOrEqual(x, high)]),
    ]
    if not inside:
        return [dy]
    d_low = d_high = None
    if low is not None and b.needs(1):
        below = op.Less(x, low)
        if high is not None:
            below = op.And(below, op.Less(low, high))
        d_low = b.unbroadcast(b.masked(dy, below), low)
    if high is not None and b.needs(2):
        above = op.Greater(x, high)
        if low is not None:
            above = op.Or(above, op.Less(high, low))
        d_high = b.unbroadcast(b.masked(dy, above), high)
    condition = inside[0] if len(inside) == 1 else op.And(*inside)
    return [b.masked(dy, condition), d_low, d_high]


@operator("Where")
def where(b: Backward) -> Sequence[ir.Value | None]:
    """Exactly 0 where the other one was chosen, whatever comes from there."""
    condition, yes, no = b.input(0), b.input(1), b.input(2)
    return [
        None,
        b.unbroadcast(b.op.Where(condition, b.dy, 0.0), yes) if b.needs(1) else None,
        b.unbroadcast(b.op.Where(condition, 0.0, b.dy), no) if b.needs(2) else None,
    ]


@operator("OneHot")
def one_hot(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """Of the two values, off and on."""
    op = b.op
    axis = b.node.attributes.get_int("axis", -1)
    values = np.array([0, 1], (b.dy.dtype or ir.DataType.FLOAT).numpy())
    is_on = op.OneHot(b.input(0), b.input(1), values, axis=axis)
    on, off = (
        op.Reshape(op.ReduceSum(b.masked(b.dy, op.Equal(is_on, value)), keepdims=0), [1])
        for value in (1.0, 0.0)
    )
    return [NoGradient.ZERO, NoGradient.ZERO, op.Concat(off, on, axis=0)]
