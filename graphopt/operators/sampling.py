"""Images read at places that another tensor says, and such places."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators._sampling import (
    INTERPOLATIONS,
    Sampling,
    Taps,
    elements_around,
    last_of,
    taps_at,
)
from graphopt.operators._scatter import scatter_add
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import ZERO, NoGradient, operator
from graphopt.operators.rewriting import product
from graphopt.shapes import sampling
from graphopt.shapes.node import Node

_OLDER_NAMES = {"bilinear": "linear", "bicubic": "cubic"}  # up to opset 19


def _mode(given: str) -> str:
    return _OLDER_NAMES.get(given, given)


def _flops(node: Node, outputs: Outputs) -> int | None:
    taps = len(INTERPOLATIONS[_mode(node.attributes.text("mode", "linear"))].steps)
    return times(2, outputs[0].elements, taps ** (len(node.shape()) - 2))


@operator("GridSample", flops=_flops, shape=sampling.grid_sample)
def grid_sample(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """To each element that was read dy times its weight; to the grid by the slopes of the weights.

    Where there is no slope, as PyTorch has it. "linear" has at the center of an element the slope
    towards the next one. Where "border" or "reflection" holds a place at an end of an axis, or
    turns it around there, it is 0. "nearest" has none: 0 for the grid. Halfway between two elements
    it takes the even one, and reflects that, as ONNX Runtime does; PyTorch reflects first.
    """
    op, axes = b.op, range(2, b.rank(b.x))
    sizes, images = [b.size(b.x, axis) for axis in axes], b.size(b.x, 0)
    mode = _mode(b.node.attributes.get_string("mode", "linear"))
    grid = op.Reshape(b.input(1), [-1, len(axes)])
    found = [_taps(b, grid, axis, size, mode) for axis, size in enumerate(sizes)]
    read = Sampling(op, [taps for taps, _ in found], sizes, images)
    channels = b.size(b.x, 1)
    dy = op.Reshape(_channels_last(b, b.dy), b.concat([np.array([-1]), channels]))
    table = b.concat([product(op, [images, *sizes]), channels])
    d_x = op.Reshape(_scattered(b, read, dy, table), b.concat([images, *sizes, channels]))
    d_x = op.Transpose(d_x, perm=[0, len(axes) + 1, *range(1, len(axes) + 1)])
    if mode == "nearest":
        return [d_x, ZERO]
    x = op.Gather(op.Reshape(_channels_last(b, b.x), table), read.rows, axis=0)
    x = op.Reshape(x, b.concat([np.array([-1, read.count]), channels]))
    d_weights = op.Squeeze(op.MatMul(x, op.Unsqueeze(dy, [2])), [2])
    d_places = [
        op.Mul(b.sum(b.weighted(d_weights, read.slopes(axis)), [1], keepdims=True), slope)
        for axis, (_, slope) in enumerate(found)
    ]
    return [d_x, b.reshape_like(op.Concat(*reversed(d_places), axis=1), b.input(1))]


def _channels_last(b: Backward, value: ir.Value) -> ir.Value:
    return b.op.Transpose(value, perm=[0, *range(2, b.rank(value)), 1])


def _scattered(b: Backward, read: Sampling, dy: ir.Value, table: Operand) -> ir.Value:
    """The gradient of the table."""
    op = b.op
    updates = b.weighted(op.Unsqueeze(dy, [1]), op.Unsqueeze(read.weights(), [2]))
    updates = op.Reshape(updates, b.concat([np.array([-1]), b.size(b.x, 1)]))
    rows = op.Expand(op.Unsqueeze(read.rows, [1]), op.Shape(updates))
    return scatter_add(b, b.zeros(table, b.x.dtype), rows, updates, 0)


def _taps(
    b: Backward, grid: ir.Value, axis: int, size: Operand, mode: str
) -> tuple[Taps, ir.Value]:
    """What is read of an axis; and the slope of the places there by the numbers in the grid."""
    op, how = b.op, INTERPOLATIONS[mode]
    corners = bool(b.node.attributes.get_int("align_corners", 0))
    last = last_of(op, size, grid)
    column = b.rank(b.x) - 3 - axis  # the last axis comes first
    place = op.Slice(grid, [column], [column + 1], [1])
    half = op.Div(last if corners else op.Add(last, 1.0), 2.0)
    place = op.Mul(op.Add(place, 1.0), half)
    place = place if corners else op.Sub(place, 0.5)
    if mode == "linear":
        place, slope = _held(b, place, last, corners)
        return taps_at(op, place, size, how), half if slope is None else op.Mul(slope, half)
    before = op.Round(place) if mode == "nearest" else op.Floor(place)
    elements, _ = _held(b, elements_around(op, before, how), last, corners)
    return Taps(op, elements, op.Sub(place, before), size, how), half


def _held(
    b: Backward, place: ir.Value, last: ir.Value, corners: bool
) -> tuple[ir.Value, ir.Value | None]:
    """Places that the padding brings onto an axis, and the slope of that; None where it is 1."""
    op = b.op
    padding = b.node.attributes.get_string("padding_mode", "zeros")
    if padding == "zeros":
        return place, None
    turned: ir.Value | None = None
    if padding == "reflection":
        place, turned = _reflected(b, place, last, corners)
    is_free = op.CastLike(op.And(op.Greater(place, 0.0), op.Less(place, last)), place)
    held = op.Min(op.Max(place, 0.0), last)
    return held, is_free if turned is None else op.Mul(turned, is_free)


def _reflected(
    b: Backward, place: ir.Value, last: ir.Value, corners: bool
) -> tuple[ir.Value, ir.Value]:
    """At the ends: the centers of the first and last element, or half an element further out."""
    op = b.op
    start = 0.0 if corners else -0.5
    # An axis of one element may have no extent: what is left is held at its end.
    span = op.Max(last, 1.0) if corners else op.Add(last, 1.0)
    offset = op.Sub(place, start)
    distance = op.Abs(offset)
    flips = op.Floor(op.Div(distance, span))
    rest = op.Sub(distance, op.Mul(flips, span))
    is_odd = op.Sub(flips, op.Mul(op.Floor(op.Mul(flips, 0.5)), 2.0))  # 0 or 1
    is_before = op.CastLike(op.Less(offset, 0.0), place)
    turned = op.Mul(is_odd, op.Sub(span, op.Mul(rest, 2.0)))
    slope = op.Mul(*(op.Add(op.Mul(is_turned, -2.0), 1.0) for is_turned in (is_before, is_odd)))
    return op.Add(op.Add(rest, turned), start), slope


def _affine_flops(node: Node, outputs: Outputs) -> int | None:
    return times(2, outputs[0].elements, node.shape()[2])


@operator("AffineGrid", flops=_affine_flops, shape=sampling.affine_grid)
def affine_grid(b: Backward) -> ir.Value:
    """The product with the places that the unit matrix gives, and a one for each."""
    op = b.op
    rank = b.rank(b.y) - 2
    unit = np.eye(rank, rank + 1, dtype=(b.x.dtype or ir.DataType.FLOAT).numpy())[None]
    size = op.Concat([1], op.Slice(b.input(1), [1], [rank + 2], [0]), axis=0)
    corners = b.node.attributes.get_int("align_corners", 0)
    places = op.Reshape(op.AffineGrid(unit, size, align_corners=corners), [-1, rank])
    places = op.Pad(places, [0, 0, 0, 1], np.ones((), unit.dtype))
    dy = op.Reshape(b.dy, b.concat([b.size(b.x, 0), np.array([-1, rank])]))
    return op.MatMul(op.Transpose(dy, perm=[0, 2, 1]), places)
