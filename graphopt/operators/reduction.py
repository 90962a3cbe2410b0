"""Reductions over axes."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators.backward import Backward
from graphopt.operators.flops import reducing
from graphopt.operators.record import operator
from graphopt.operators.rewriting import reduced
from graphopt.shapes import products

_reduction = partial(operator, shape=products.reduce)


@_reduction("ReduceSum", flat_at_infinity=False, flops=reducing())
def reduce_sum(b: Backward) -> ir.Value:
    """Each element has the gradient of the sum."""
    return _spread(b, b.dy)


@_reduction("ReduceMean", flat_at_infinity=False, flops=reducing(1, 1))
def reduce_mean(b: Backward) -> ir.Value:
    """Each element has its share."""
    axes = _known_axes(b)
    if axes is None:
        op = b.op
        count: Operand = op.CastLike(op.Div(op.Size(b.x), op.Size(b.y)), b.dy)
    else:
        count = b.count(b.x, axes)
    return b.dy if axes == [] else _spread(b, b.op.Div(b.dy, count))


@_reduction("ReduceMax", "ReduceMin", flops=reducing())
def reduce_max(b: Backward) -> ir.Value:
    """Elements that tie share evenly, as with torch.amax."""
    equal = b.op.Equal(b.x, _kept(b, b.y))
    chosen = b.op.CastLike(equal, b.x)
    share = b.op.Div(_kept(b, b.dy), _reduced(b, "ReduceSum", chosen))
    return b.op.Where(equal, share, 0.0) if b.is_steep else b.op.Mul(chosen, share)


@_reduction("ReduceProd", flops=reducing())
def reduce_prod(b: Backward) -> ir.Value:
    """The product of the others: y / x, save where there are zeros.

    A single zero gets the product of the rest, and the rest gets 0, as it does beside two zeros.
    """
    op, x = b.op, b.x
    is_zero = op.CastLike(op.Equal(x, 0.0), x)
    rest = op.Add(x, is_zero)
    others = op.Sub(_reduced(b, "ReduceSum", is_zero), is_zero)
    product = op.Mul(_kept(b, b.dy), _reduced(b, "ReduceProd", rest))
    # A choice, not a product: the product of the rest may overflow.
    return op.Where(op.Equal(others, 0.0), op.Div(product, rest), 0.0)


@_reduction("ReduceL1", flops=reducing(2))
def reduce_l1(b: Backward) -> ir.Value:
    """0 at 0, as with torch.norm."""
    _refuse_none(b)
    return b.op.Mul(_kept(b, b.dy), b.op.Sign(b.x))


@_reduction("ReduceL2", flops=reducing(2, 1))
def reduce_l2(b: Backward) -> ir.Value:
    """With the norm y, dx = dy x / y; 0 at the zero vector, as with torch.norm."""
    _refuse_none(b)
    norm = b.op.Where(b.op.Equal(b.y, 0.0), 1.0, b.y)
    return b.op.Mul(b.x, _kept(b, b.op.Div(b.dy, norm)))


@_reduction("ReduceSumSquare", flops=reducing(2))
def reduce_sum_square(b: Backward) -> ir.Value:
    """As with x², dx = 2 x dy."""
    _refuse_none(b)
    return b.op.Mul(b.x, _kept(b, b.op.Mul(b.dy, 2.0)))


@_reduction("ReduceLogSum", steep=(0,), pole=0, flops=reducing(1, 1))
def reduce_log_sum(b: Backward) -> ir.Value:
    """As dy over the sum, which is exp(y)."""
    _refuse_none(b)
    return _spread(b, b.where_it_counts(b.op.Div(b.dy, b.op.Exp(b.y))))


@_reduction("ReduceLogSumExp", flops=reducing(2, 1))
def reduce_log_sum_exp(b: Backward) -> ir.Value:
    """By shares, dx = dy exp(x - y); 0 where all of x is -inf."""
    op = b.op
    y = op.Where(op.Equal(b.y, -math.inf), 0.0, b.y)
    return op.Mul(op.Exp(op.Sub(b.x, _kept(b, y))), _kept(b, b.dy))


def _known_axes(b: Backward) -> list[int] | None:
    """The axes that a reduction reduces; None if only the running graph knows.

    They are counted from the front where the rank is known.
    """
    axes = b.optional(1)
    if axes is not None:
        known = b.constant(axes)
        if known is None:
            return None
        given = [int(axis) for axis in known.reshape(-1)]
    else:
        given = list(b.node.attributes.get_ints("axes", ()))
    noop = b.node.attributes.get_int("noop_with_empty_axes", 0)
    if not given and noop:
        return []
    if b.x.shape is None:
        return given or None
    rank = b.rank(b.x)
    if not given:
        return list(range(rank))
    return sorted({axis % rank for axis in given}) if rank else []


def _kept(b: Backward, value: ir.Value) -> ir.Value:
    """A value of the output's shape, with the reduced axes kept as 1."""
    if b.node.attributes.get_int("keepdims", 1):
        return value
    axes = _known_axes(b)
    if axes is not None:
        return b.op.Unsqueeze(value, axes) if axes else value
    if b.optional(1) is None:  # a scalar, for an input of unknown rank
        return value
    return b.op.Reshape(value, _kept_shape(b), allowzero=1)


def _kept_shape(b: Backward) -> ir.Value:
    op, axes, ones = b.op, b.input(1), np.ones(b.rank(b.x), np.int64)
    shape = op.ScatterElements(op.Shape(b.x), axes, op.Expand(ones[:1], op.Shape(axes)))
    if b.node.attributes.get_int("noop_with_empty_axes", 0):
        return shape
    return op.Where(op.Equal(op.Size(axes), 0), ones, shape)


def _spread(b: Backward, value: ir.Value) -> ir.Value:
    """A value of the output's shape in the shape of the input."""
    return value if _known_axes(b) == [] else b.op.Expand(_kept(b, value), b.shape_of(b.x))


def _reduced(b: Backward, op_type: str, value: ir.Value) -> ir.Value:
    """Another reduction over the axes of the node, which are kept as 1."""
    axes = _known_axes(b)
    if axes == []:
        return value
    reduce: Callable[..., ir.Value] = getattr(b.op, op_type)
    if axes is None and b.optional(1) is None:
        return reduce(value)
    if axes is None:
        noop = b.node.attributes.get_int("noop_with_empty_axes", 0)
        return reduce(value, b.input(1), noop_with_empty_axes=noop)
    return reduced(b.op, op_type, value, axes)


def _refuse_none(b: Backward) -> None:
    """Over no axes, some runtimes leave the elements as they are, others take |x|, x², log x."""
    if _known_axes(b) == [] and b.rank(b.x):
        raise b.error(
            "it reduces over no axes (noop_with_empty_axes), which runtimes compute differently; "
            "replace it by Identity, or by the operator on single elements that is meant"
        )
