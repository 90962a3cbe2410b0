"""Operators that move elements, or let them be."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators.backward import Backward
from graphopt.operators.record import Moves, NoGradient, operator
from graphopt.shapes import elements, filling, layout

_moving = partial(operator, flops=0)


@_moving("Identity", moves=Moves.SHAPE, shape=elements.identity)
def identity(b: Backward) -> ir.Value:
    """The same."""
    return b.dy


@_moving("Cast", moves=Moves.PRECISION, shape=elements.cast)
@_moving("CastLike", moves=Moves.PRECISION, elements=1, shape=elements.cast)
def cast(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """In the dtype of the operand."""
    if b.x.dtype is None:
        d_x = b.op.CastLike(b.dy, b.x)
    else:
        d_x = b.dy if b.x.dtype == b.y.dtype else b.op.Cast(b.dy, to=int(b.x.dtype))
    return [d_x, NoGradient.ZERO]


@_moving("Reshape", moves=Moves.SHAPE, elements=1, shape=layout.reshape)
@_moving("Flatten", moves=Moves.SHAPE, shape=layout.flatten)
@_moving("Squeeze", moves=Moves.SHAPE, shape=layout.squeeze)
@_moving("Unsqueeze", moves=Moves.SHAPE, shape=layout.unsqueeze)
def reshape(b: Backward) -> ir.Value:
    """In the shape of the operand."""
    if b.x.shape is None:
        return b.op.Reshape(b.dy, b.op.Shape(b.x), allowzero=1)
    return b.reshape_like(b.dy, b.x)


@_moving("Transpose", moves=Moves.ORDER, shape=layout.transpose)
def transpose(b: Backward) -> ir.Value:
    """By the inverse permutation."""
    rank = b.rank(b.x)
    perm = list(b.node.attributes.get_ints("perm", range(rank - 1, -1, -1)))
    if perm == list(range(rank)):  # beside a Gemm, ONNX Runtime 1.19 takes it for the transpose
        return b.dy
    return b.op.Transpose(b.dy, perm=[perm.index(axis) for axis in range(rank)])


@_moving("Concat", shape=layout.concat)
def concat(b: Backward) -> Sequence[ir.Value | None]:
    """Each its part."""
    axis = b.axis(b.y, 0)
    inputs = [b.input(index) for index in range(len(b.inputs))]
    if len(inputs) == 1:
        return [b.dy]
    sizes = [b.shape(value)[axis] for value in inputs]
    static = [size for size in sizes if isinstance(size, int)]
    needed = [index for index in range(len(inputs)) if b.needs(index)]
    if len(static) == len(sizes) and len(needed) == 1:
        start = sum(static[: needed[0]])
        part = b.op.Slice(b.dy, [start], [start + static[needed[0]]], [axis])
        return [part if index == needed[0] else None for index in range(len(inputs))]
    split: Operand = np.array(static, np.int64)
    if len(static) < len(sizes):
        split = b.op.Concat(*(b.size(value, axis) for value in inputs), axis=0)
    return b.op.node("Split", [b.dy, split], outputs=len(inputs), axis=axis)


@_moving("Split", moves=Moves.PART, shape=layout.split)
def split(b: Backward) -> ir.Value:
    """The parts together."""
    gradients = [b.gradient(index) for index in range(len(b.outputs))]
    return b.op.Concat(*gradients, axis=b.axis(b.x, 0))


@_moving("Expand", broadcasts=(0,), moves=Moves.COPIES, elements=1, shape=filling.expand)
def expand(b: Backward) -> ir.Value:
    """The sum over the copies."""
    return b.dy


@_moving("Tile", shape=layout.tile)
def tile(b: Backward) -> ir.Value:
    """The sum over the copies, each repeated axis seen as two."""
    op, rank = b.op, b.rank(b.x)
    repeats = b.constant(b.input(1))
    if repeats is None:
        pairs = op.Concat(
            op.Unsqueeze(b.input(1), [1]),
            op.Unsqueeze(op.Shape(b.x), [1]),
            axis=1,
        )
        copies = op.Reshape(b.dy, op.Reshape(pairs, [-1]), allowzero=1)
        return b.sum(copies, range(0, 2 * rank, 2))
    parts: list[Operand] = []
    axes = []
    for axis, count in enumerate(repeats.reshape(-1).tolist()):
        if count != 1:
            axes.append(len(parts))
            parts.append(np.array([count], np.int64))
        parts.append(b.size(b.x, axis))
    if not axes:
        return b.dy
    return b.sum(op.Reshape(b.dy, b.concat(parts), allowzero=1), axes)


@_moving("DepthToSpace", shape=layout.block)
def depth_to_space(b: Backward) -> ir.Value:
    """The inverse."""
    block = b.node.attributes.get_int("blocksize", 1)
    if b.node.attributes.get_string("mode", "DCR") == "DCR":
        return b.op.SpaceToDepth(b.dy, blocksize=block)
    # SpaceToDepth puts the block before the channels.
    channels = b.sizes(b.y, [1])[0]
    b.check_table([block, block, channels])
    order = np.arange(block * block * channels).reshape(block * block, channels)
    return b.op.Gather(b.op.SpaceToDepth(b.dy, blocksize=block), order.T.reshape(-1), axis=1)


@_moving("SpaceToDepth", shape=layout.block)
def space_to_depth(b: Backward) -> ir.Value:
    """The inverse."""
    return b.op.DepthToSpace(b.dy, blocksize=b.node.attributes.get_int("blocksize", 1))


@_moving("Trilu", shape=elements.same)
def trilu(b: Backward) -> ir.Value:
    """The same triangle."""
    upper = b.node.attributes.get_int("upper", 1)
    return b.op.Trilu(b.dy, b.optional(1), upper=upper)


@_moving("ReverseSequence", shape=elements.same)
def reverse_sequence(b: Backward) -> ir.Value:
    """To reverse is its own inverse."""
    return b.op.ReverseSequence(
        b.dy,
        b.input(1),
        batch_axis=b.node.attributes.get_int("batch_axis", 1),
        time_axis=b.node.attributes.get_int("time_axis", 0),
    )
