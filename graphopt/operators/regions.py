"""Pooling over regions of images: boxes that another tensor says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators._sampling import last_of
from graphopt.operators._scatter import scatter_add
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import ZERO, NoGradient, operator
from graphopt.operators.rewriting import numbers_to, product
from graphopt.shapes import sampling
from graphopt.shapes.node import Node

_INT64 = int(ir.DataType.INT64)


def _flops(node: Node, outputs: Outputs) -> int | None:
    """Of a known number of points in each part of a region, four elements each."""
    points = node.attributes.integer("sampling_ratio") or None
    return times(8, outputs[0].elements, points, points)


@operator("RoiAlign", flops=_flops, shape=sampling.roi_align)
def roi_align(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """To each element that was read its share of dy; to the boxes nothing, as with PyTorch.

    With the mode "max", dy times its weight to one of the largest products of an element and its
    weight. That is what ONNX Runtime and ONNX's own reference compute, though ONNX's text has the
    largest of the interpolated values.
    """
    points = list(_points(b))
    if b.node.attributes.get_string("mode", "avg") == "avg":
        return [_of_mean(b, points), NoGradient.BY_CONVENTION, ZERO]
    around = (_around(b, each) for each in points)
    return [_of_largest(b, b.input(2), *around), NoGradient.BY_CONVENTION, ZERO]


@dataclass(frozen=True)
class _Points:
    """On an axis of R regions, which are cut in n parts each, S points of each part.

    Attributes:
        places: R x n x S.
        exist: R x 1 x S, whether the part has so many points.
        count: How many it has, at least 1: R x 1 x 1, or one for all.
        size: That of the axis, as a vector of one.
    """

    places: ir.Value
    exist: ir.Value
    count: ir.Value
    size: Operand


def _points(b: Backward) -> Iterator[_Points]:
    """Those of the rows, and of the columns."""
    op, attributes = b.op, b.node.attributes
    shifts = attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    boxes = op.Mul(b.input(1), attributes.get_float("spatial_scale", 1.0))
    boxes = op.Unsqueeze(op.Sub(boxes, 0.5) if shifts else boxes, [2])
    kind = (boxes.dtype or ir.DataType.FLOAT).numpy()
    ratio = attributes.get_int("sampling_ratio", 0)
    for axis, name, column in ((2, "output_height", 1), (3, "output_width", 0)):
        start, end = (op.Slice(boxes, [at], [at + 1], [1]) for at in (column, column + 2))
        extent = op.Sub(end, start) if shifts else op.Max(op.Sub(end, start), 1.0)
        parts = attributes.get_int(name, 1)
        width = op.Div(extent, float(parts))
        if ratio > 0:
            count = op.constant(np.full((1, 1, 1), ratio, kind))
            numbers = op.constant(np.arange(ratio, dtype=kind))
        else:  # as many as the part has elements
            count = op.Ceil(width)
            counts = op.Concat(op.Reshape(count, [-1]), np.ones(1, kind), axis=0)
            most = op.Cast(op.ReduceMax(counts, keepdims=1), to=_INT64)
            numbers = op.CastLike(numbers_to(op, most), boxes)
        some = op.Max(count, 1.0)
        corner = op.Add(start, op.Mul(width, np.arange(parts, dtype=kind)[:, None]))
        places = op.Add(corner, op.Mul(op.Add(numbers, 0.5), op.Div(width, some)))
        yield _Points(places, op.Less(numbers, count), some, b.size(b.x, axis))


def _held(b: Backward, points: _Points) -> tuple[ir.Value, ir.Value]:
    """Places from the first to the last element, and 1 for a point that is read, 0 for others.

    What lies more than one element outside the image is not read.
    """
    op, places = b.op, points.places
    last = last_of(op, points.size, places)
    near = (op.GreaterOrEqual(places, -1.0), op.LessOrEqual(places, op.Add(last, 1.0)))
    is_read = op.And(op.And(*near), points.exist)
    return op.Min(op.Max(places, 0.0), last), op.CastLike(is_read, places)


def _of_mean(b: Backward, points: Sequence[_Points]) -> ir.Value:
    """Rows and columns are read independently: dX = Aᵀ dY B for a region, added up by a product."""
    op = b.op
    images, channels, height, width = (b.size(b.x, axis) for axis in range(4))
    rows, columns = (_matrix(b, each) for each in points)
    parts = [b.size(b.y, axis) for axis in (2, 3)]
    rest = np.array([-1])
    dy = op.Transpose(b.dy, perm=[0, 2, 1, 3])
    dy = op.Reshape(dy, b.concat([rest, product(op, [parts[0], channels]), parts[1]]))
    wide = op.Reshape(op.MatMul(dy, columns), b.concat([rest, product(op, [channels, width])]))
    image = op.Equal(op.Reshape(b.input(2), [-1, 1, 1, 1]), _column(b, numbers_to(op, images)))
    placed = op.Mul(op.Unsqueeze(rows, [2]), op.CastLike(image, rows))
    placed = op.Reshape(placed, b.concat([rest, product(op, [images, height])]))
    d_x = op.MatMul(op.Transpose(placed, perm=[1, 0]), wide)
    d_x = op.Reshape(d_x, b.concat([images, height, channels, width]))
    return op.Transpose(d_x, perm=[0, 2, 1, 3])


def _column(b: Backward, numbers: Operand) -> Operand:
    if isinstance(numbers, np.ndarray):
        return numbers[:, None]
    return b.op.Unsqueeze(numbers, [1])


def _matrix(b: Backward, points: _Points) -> ir.Value:
    """How much each element of an axis counts in the mean of a part: R x n x the size."""
    op = b.op
    places, is_read = _held(b, points)
    elements = op.CastLike(numbers_to(op, points.size), places)
    distance = op.Abs(op.Sub(op.Unsqueeze(places, [3]), elements))
    weights = op.Relu(op.Sub(1.0, distance))
    total = b.sum(op.Mul(weights, op.Unsqueeze(is_read, [3])), [2])
    return op.Div(total, points.count)


@dataclass(frozen=True)
class _Read:
    """What is read of an axis, for n parts of each of R regions: T elements.

    Attributes:
        indices: int64, R x n x T.
        weights: R x n x T.
        exist: Whether there is such an element: R x n x T, or 1 in the place of n.
    """

    indices: ir.Value
    weights: ir.Value
    exist: ir.Value


def _around(b: Backward, points: _Points) -> _Read:
    """The elements before and behind each point."""
    op = b.op
    places, is_read = _held(b, points)
    before = op.Floor(places)
    behind = op.Min(op.Add(before, 1.0), last_of(op, points.size, places))
    distance = op.Sub(places, before)
    weights = [op.Mul(part, is_read) for part in (op.Sub(1.0, distance), distance)]
    return _Read(
        op.Cast(op.Concat(before, behind, axis=2), to=_INT64),
        op.Concat(*weights, axis=2),
        op.Concat(points.exist, points.exist, axis=2),
    )


def _of_largest(b: Backward, images: ir.Value, rows: _Read, columns: _Read) -> ir.Value:
    """To the first of the largest products of an element and its weight.

    Args:
        b: The node.
        images: In which image each region is: R.
        rows: What is read of each column.
        columns: What is read of each row.
    """
    op = b.op
    count, channels, height, width = (b.size(b.x, axis) for axis in range(4))

    def pair(name: str) -> list[ir.Value]:
        """R x n x 1 x T x 1, and the other's R x 1 x n x 1 x T."""
        return [
            op.Unsqueeze(getattr(read, name), axes)
            for read, axes in ((rows, [2, 4]), (columns, [1, 3]))
        ]

    row, column = pair("indices")
    first = op.Mul(op.Reshape(images, [-1, 1, 1, 1, 1]), height)
    indices = op.Add(op.Mul(op.Add(row, first), width), column)
    exist = op.Expand(op.And(*pair("exist")), op.Shape(indices))
    weights = op.Mul(op.Mul(*pair("weights")), op.CastLike(exist, b.x))
    taken = op.ReduceProd(op.Shape(indices, start=3))
    shape = b.concat([np.array([-1]), b.size(b.y, 2), b.size(b.y, 3), taken])
    indices, weights, exist = (op.Reshape(value, shape) for value in (indices, weights, exist))
    table = b.concat([product(op, [count, height, width]), channels])
    x = op.Reshape(op.Transpose(b.x, perm=[0, 2, 3, 1]), table)
    products = op.Mul(op.Gather(x, indices, axis=0), op.Unsqueeze(weights, [4]))
    smallest = np.array(-np.inf, (b.x.dtype or ir.DataType.FLOAT).numpy())
    products = op.Where(op.Unsqueeze(exist, [4]), products, smallest)
    largest = op.ArgMax(products, axis=3, keepdims=0)
    indices, weights = (op.GatherElements(v, largest, axis=3) for v in (indices, weights))
    updates = b.weighted(op.Transpose(b.dy, perm=[0, 2, 3, 1]), weights)
    one_row = b.concat([np.array([-1]), channels])
    rows_of_table, updates = (op.Reshape(value, one_row) for value in (indices, updates))
    d_x = scatter_add(b, b.zeros(table, b.x.dtype), rows_of_table, updates, 0)
    d_x = op.Reshape(d_x, b.concat([count, height, width, channels]))
    return op.Transpose(d_x, perm=[0, 3, 1, 2])


def _pool_flops(node: Node, outputs: Outputs) -> None:
    """The regions say how many elements are compared."""
    del node, outputs


@operator("MaxRoiPool", flops=_pool_flops, shape=sampling.max_roi_pool)
def max_roi_pool(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """To the first of the largest elements of each part of a region.

    The boxes are rounded to whole elements: 0.
    """
    op = b.op
    boxes = op.Mul(b.input(1), b.node.attributes.get_float("spatial_scale", 1.0))
    # Halves away from 0.
    boxes = op.Mul(op.Sign(boxes), op.Floor(op.Add(op.Abs(boxes), 0.5)))
    images = op.Cast(op.Slice(b.input(1), [0], [1], [1]), to=_INT64)
    height, width = b.node.attributes.get_ints("pooled_shape")
    spans = (_span(b, boxes, 2, height), _span(b, boxes, 1, width))
    return [_of_largest(b, images, *spans), ZERO]


def _span(b: Backward, boxes: ir.Value, column: int, parts: int) -> _Read:
    """The elements of an axis that lie in each part; parts have those at their edges in common."""
    op = b.op
    boxes = op.Unsqueeze(boxes, [2])
    start, end = (op.Slice(boxes, [at], [at + 1], [1]) for at in (column, column + 2))
    kind = (boxes.dtype or ir.DataType.FLOAT).numpy()
    width = op.Div(op.Max(op.Add(op.Sub(end, start), 1.0), 1.0), float(parts))
    numbers = np.arange(parts + 1, dtype=kind)[:, None]
    size = op.CastLike(b.size(b.x, 4 - column), boxes)
    begin, behind = (
        op.Min(op.Max(op.Add(start, edge), 0.0), size)
        for edge in (
            op.Floor(op.Mul(width, numbers[:-1])),
            op.Ceil(op.Mul(width, numbers[1:])),
        )
    )
    counts = op.Concat(op.Reshape(op.Sub(behind, begin), [-1]), np.ones(1, kind), axis=0)
    most = op.Cast(op.ReduceMax(counts, keepdims=1), to=_INT64)
    elements = op.Add(begin, op.CastLike(numbers_to(op, most), boxes))
    exist = op.Less(elements, behind)
    indices = op.Cast(op.Where(exist, elements, 0.0), to=_INT64)
    return _Read(indices, op.CastLike(exist, boxes), exist)
