"""Quantization: rounding to integers, whose derivative is 0 wherever it exists, and back."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.backward import Backward
from graphopt.operators.record import ZERO, operator
from graphopt.operators.rewriting import known_rank
from graphopt.shapes import elements

operator("QuantizeLinear", gradient=ZERO, settings=(1,), flops=2, shape=elements.quantized)
operator("DynamicQuantizeLinear", gradient=ZERO, flops=4, shape=elements.dynamically_quantized)


@operator("DequantizeLinear", settings=(1,), flops=2, shape=elements.dequantized)
def dequantize_linear(b: Backward) -> Iterator[ir.Value | None]:
    """Of the scale: with y = (q - zero) scale, dy (q - zero), summed over what has it."""
    op, q, scale, zero = b.op, b.x, b.input(1), b.optional(2)
    yield None
    level = op.CastLike(q, b.dy)
    if zero is not None:
        level = op.Sub(level, along_axis(op, b.node, op.CastLike(zero, b.dy), zero))
    yield _of_scale(b, op.Mul(b.dy, level), scale)


def along_axis(
    op: GraphBuilder, node: ir.Node, value: ir.Value, declared: ir.Value | None = None
) -> ir.Value:
    """What each slice or each block of an axis has, to be broadcast with the first input.

    Args:
        op: Appends the nodes.
        node: A QuantizeLinear or a DequantizeLinear.
        value: Its scale or its zero, whether cast or not.
        declared: The value whose shape is known, if that is not ``value``.
    """
    x, declared = node.inputs[0], declared or value
    rank, whole = known_rank(node, declared), known_rank(node, x)
    assert x is not None
    if rank == 0 or list(declared.shape or ()) == [1]:
        return op.Reshape(value, np.zeros(0, np.int64)) if rank else value
    axis = node.attributes.get_int("axis", 1) % whole
    if rank == 1:
        return op.Reshape(value, [-1 if at == axis else 1 for at in range(whole)])
    size = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
    block = max(node.attributes.get_int("block_size", 0), 1)
    places = op.Range(np.array(0), size, np.array(1))
    return op.Gather(value, op.Div(places, np.array(block)), axis=axis)


def _of_scale(b: Backward, gradient: ir.Value, scale: ir.Value) -> ir.Value:
    op, rank = b.op, b.rank(b.x)
    if b.rank(scale) == 0 or b.shape(scale) == [1]:
        return b.reshape_like(op.ReduceSum(gradient, keepdims=0), scale)
    axis = b.axis(b.x, 1)
    if b.rank(scale) == 1:
        return b.sum(gradient, [at for at in range(rank) if at != axis])
    block = b.node.attributes.get_int("block_size", 0)
    size, count = b.sizes(b.x, [axis])[0], b.sizes(scale, [axis])[0]
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + axis] = block * count - size
    full = op.Pad(gradient, pads) if pads.any() else gradient
    sizes = [b.size(scale, at) for at in range(rank)]
    shape = b.concat([*sizes[: axis + 1], np.array([block]), *sizes[axis + 1 :]])
    return op.ReduceSum(op.Reshape(full, shape, allowzero=1), [axis + 1], keepdims=0)
