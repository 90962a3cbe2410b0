"""Combining elements that indices send to the same place.

On the CPU, ONNX Runtime's ScatterND combines from several threads at once and loses elements where
indices repeat, and its ScatterElements knows no 16-bit floats. So tuples of indices become
indices of rows here, and 16-bit floats are combined as float32.
"""

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators.backward import Backward
from graphopt.operators.rewriting import concat, product

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def scatter_add(
    b: Backward, onto: ir.Value, indices: ir.Value, updates: ir.Value, axis: int
) -> ir.Value:
    """ScatterElements with addition."""
    return scatter_reduced(b.op, onto, indices, updates, axis, "add")


def scatter_reduced(
    op: GraphBuilder,
    onto: ir.Value,
    indices: ir.Value,
    updates: ir.Value,
    axis: int,
    reduction: str,
) -> ir.Value:
    """ScatterElements with a reduction, for every floating-point dtype."""
    if onto.dtype not in _NARROW:
        return op.ScatterElements(onto, indices, updates, axis=axis, reduction=reduction)
    wide = [op.Cast(value, to=int(ir.DataType.FLOAT)) for value in (onto, updates)]
    total = op.ScatterElements(wide[0], indices, wide[1], axis=axis, reduction=reduction)
    return op.Cast(total, to=int(onto.dtype))


def scatter_rows(
    op: GraphBuilder,
    data: ir.Value,
    indices: ir.Value,
    updates: ir.Value,
    depth: int,
    reduction: str,
) -> ir.Value:
    """What ScatterND computes, for tuples of so many indices, by ScatterElements."""
    named = _sizes(op, data, 0, depth)
    width = product(op, [_sizes(op, data, depth, None)])
    places = op.Where(op.Less(indices, np.array(0, np.int64)), op.Add(indices, named), indices)
    strides = [product(op, [_sizes(op, data, i + 1, depth)]) for i in range(depth)]
    places = op.Mul(places, concat(op, strides))
    rows = op.Reshape(op.ReduceSum(places, [-1], keepdims=0), [-1, 1])
    table = op.Reshape(data, concat(op, [product(op, [named]), width]), allowzero=1)
    shape = concat(op, [op.Shape(rows, end=1), width])
    flat = op.Reshape(updates, shape, allowzero=1)
    result = scatter_reduced(op, table, op.Expand(rows, shape), flat, 0, reduction)
    return op.Reshape(result, _sizes(op, data, 0, None), allowzero=1)


def _sizes(op: GraphBuilder, value: ir.Value, start: int, end: int | None) -> Operand:
    """Sizes of a value of known rank: constants where they are known."""
    shape = list(value.shape or ())[start:end]
    if all(isinstance(size, int) for size in shape):
        return np.array(shape, np.int64)
    return op.Shape(value, start=start, end=end)
