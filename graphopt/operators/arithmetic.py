"""Sums, products, powers and choices of tensors, with broadcasting."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._own_factor import gradient_of_both
from graphopt.operators._roots import nonzero_root
from graphopt.operators.backward import Backward
from graphopt.operators.flops import elementwise, joining
from graphopt.operators.record import ALL, NoGradient, operator
from graphopt.operators.rewriting import replace
from graphopt.shapes import elements, indexing

arithmetic = partial(operator, broadcasts=ALL, flops=joining, shape=elements.joined)
_NAMESPACE = "namespace"  # where PyTorch's exporter notes what a node is made of
_BOUNDS = re.compile(r"aten\.clamp(_min|_max)?\.(default|Tensor)$")
_OPEN = re.compile(r"aten\.(hardtanh|relu6)\.default$")
linear = partial(arithmetic, flat_at_infinity=False)


@linear("Add", spreads=True, is_commutative=True, writes_in_step=True, is_quick=True)
@linear("Sum", spreads=True, is_commutative=True)
def add(b: Backward) -> Sequence[ir.Value]:
    return [b.dy] * len(b.inputs)


@linear("Sub", spreads=True, writes_in_step=True, is_quick=True)
def sub(b: Backward) -> Iterator[ir.Value]:
    yield b.dy
    yield b.op.Neg(b.summed(b.dy, 1))


@linear("Mul", spreads=True, is_commutative=True, writes_in_step=True, is_quick=True)
def mul(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """Where a factor is computed from the other one, that one may get all of it."""
    for index in (0, 1):
        x, factor = b.input(index), b.input(1 - index)
        d_x = gradient_of_both(b, x, factor) if b.needs(index) else None
        if d_x is not None:
            yield NoGradient.ZERO if index else d_x
            yield d_x if index else NoGradient.ZERO
            return
    yield b.op.Mul(b.dy, b.input(1))
    yield b.op.Mul(b.dy, b.input(0))


@arithmetic("Div", spreads=True, steep=(1,), pole=1, writes_in_step=True, is_quick=True)
def div(b: Backward) -> Iterator[ir.Value]:
    quotient = b.op.Div(b.dy, b.input(1))
    yield quotient
    yield b.op.Neg(b.summed(b.op.Mul(quotient, b.y), 1))


def rewrite_mod(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Write out that of floating-point numbers with the sign of the divisor, which opset 28 has."""
    del trained
    x, divisor = node.inputs[:2]
    is_float = x is not None and x.dtype is not None and x.dtype.is_floating_point()
    if is_float and not node.attributes.get_int("fmod", 0):
        replace(op, node, op.Sub(x, op.Mul(divisor, op.Floor(op.Div(x, divisor)))))


@arithmetic("Mod", rewrite=rewrite_mod)
def mod(b: Backward) -> Iterator[ir.Value]:
    """y = x - d n, where n is a whole number."""
    minus_n = b.op.Div(b.op.Sub(b.y, b.x), b.input(1))
    yield b.dy
    yield b.op.Mul(b.dy, minus_n)


def _steep_power(node: ir.Node, values: Collection[ir.Value]) -> Collection[int]:
    """None where the exponent is constant, and the slope is finite."""
    exponent = node.inputs[1]
    if exponent is not None and exponent not in values:
        tensor = ir.convenience.get_const_tensor(exponent)
        if tensor is not None and all(e == 0 or e >= 1 for e in tensor.numpy().flat):
            return ()
    return (0, 1)


@arithmetic("Pow", steep=_steep_power, pole=0, flat_at_infinity=False)
def pow_(b: Backward) -> Iterator[ir.Value]:
    """dx = dy e x^(e - 1), 0 where e is 0; de = dy y log(x), 0 where x is 0 and e is not below."""
    op, dy, x, exponent = b.op, b.dy, b.input(0), b.input(1)
    known = None if b.needs(1) else b.constant(exponent)
    if known is not None and known.size == 1:
        yield _constant_power(b, float(known.item()))
        return
    e = exponent if exponent.dtype == x.dtype else op.CastLike(exponent, x)
    # The power 0⁻¹ would be infinite, and 0 times infinity is not 0.
    less_one = op.Where(op.Equal(e, 0.0), 1.0, op.Sub(e, 1.0))
    yield op.Mul(dy, op.Mul(e, op.Pow(x, less_one)))
    if not b.needs(1):
        return
    at_zero = op.And(op.Equal(x, 0.0), op.GreaterOrEqual(e, 0.0))
    slope = op.Where(at_zero, 0.0, op.Mul(b.y, op.Log(x)))
    d_exponent = b.summed(op.Mul(dy, slope), 1)
    yield d_exponent if e is exponent else op.CastLike(d_exponent, exponent)


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
        return op.Div(op.Mul(dy, 0.5), nonzero_root(b))
    if 0 < e < 1:
        x = nonzero_root(b, x)
    # At 0 a power below 0 is infinite, and so is this quotient.
    power = op.Div(y, x) if e < 0 else op.Pow(x, e - 1)
    return op.Mul(op.Mul(dy, e), power)


@linear("Mean", flops=partial(joining, more=1))
def mean(b: Backward) -> Sequence[ir.Value]:
    return [b.op.Div(b.dy, float(len(b.inputs)))] * len(b.inputs)


@arithmetic("Max", "Min", selects=True, is_commutative=True, writes_in_step=True, is_quick=True)
def extremum(b: Backward) -> Iterable[ir.Value]:
    """The operands that are equal to the result share its gradient.

    Where PyTorch's exporter notes that the others are bounds of a range, the first gets all of it.
    """
    if len(b.inputs) == 1:
        return [b.dy]
    if _BOUNDS.search(b.node.metadata_props.get(_NAMESPACE, "")) and len(b.inputs) == 2:
        is_within = b.op.Equal(b.x, b.y)
        return [b.masked(b.dy, is_within), b.masked(b.dy, b.op.Not(is_within))]
    chosen = [b.op.Equal(value, b.y) for value in b.inputs]
    count = b.op.Sum(*(b.op.CastLike(equal, b.dy) for equal in chosen))
    share = b.op.Div(b.dy, count)
    return (b.masked(share, equal) for equal in chosen)


@operator(
    "Clip",
    selects=True,
    broadcasts=(1, 2),
    settings=(1, 2),
    is_quick=True,
    flops=elementwise,
    shape=elements.same,
)
def clip(b: Backward) -> Sequence[ir.Value | None]:
    """Passes where min <= x <= max. Where the bounds are in disorder, y is max.

    Between the bounds only, where PyTorch's exporter notes that it was ReLU6 or Hardtanh.
    """
    op, dy, x = b.op, b.dy, b.x
    low, high = b.optional(1), b.optional(2)
    is_open = _OPEN.search(b.node.metadata_props.get(_NAMESPACE, ""))
    above_low = op.Greater if is_open else op.GreaterOrEqual
    below_high = op.Less if is_open else op.LessOrEqual
    inside = [
        *([] if low is None else [above_low(x, low)]),
        *([] if high is None else [below_high(x, high)]),
    ]
    if not inside:
        return [dy]
    d_low = d_high = None
    if low is not None and b.needs(1):
        below = op.Less(x, low)
        if high is not None:
            below = op.And(below, op.Less(low, high))
        d_low = b.masked(dy, below)
    if high is not None and b.needs(2):
        above = op.Greater(x, high)
        if low is not None:
            above = op.Or(above, op.Less(high, low))
        d_high = b.masked(dy, above)
    condition = inside[0] if len(inside) == 1 else op.And(*inside)
    return [b.masked(dy, condition), d_low, d_high]


@arithmetic("Where", selects=True, flops=0, shape=elements.where, writes_in_step=True)
def where(b: Backward) -> Iterator[ir.Value | None]:
    """Exactly 0 where the other one was chosen, whatever comes from there."""
    yield None
    yield b.op.Where(b.x, b.dy, 0.0) if b.needs(1) else None
    yield b.op.Where(b.x, 0.0, b.dy) if b.needs(2) else None


@operator("OneHot", settings=(2,), flops=0, shape=indexing.one_hot)
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
