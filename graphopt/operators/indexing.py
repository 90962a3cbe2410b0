"""Operators that pick elements, put them somewhere, or surround them."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.local_functions import call_body
from graphopt.operators._scatter import scatter_add
from graphopt.operators.backward import Backward
from graphopt.operators.record import Moves, operator
from graphopt.operators.rewriting import numbers_to, product
from graphopt.shapes import indexing, layout

_SMALL_TABLE = 128
_INT64 = int(ir.DataType.INT64)
_TO_THE_START = np.iinfo(np.int64).min

_picking = partial(operator, flops=0)


@_picking("Gather", moves=Moves.PART, weights=(0,), shape=indexing.gather)
def gather(b: Backward) -> Sequence[ir.Value | None]:
    """Rows are put back in their place; those that were taken twice are added up."""
    axis = b.axis(b.x, 0)
    indices = b.input(1)
    if 0 in b.shape(indices):  # a product over nothing is not always 0 in ONNX Runtime 1.19
        return [b.zeros_like(b.x), None]
    dy, shape = _one_axis_of_indices(b, axis)
    size = b.shape(b.x)[axis]
    known = b.constant(indices)
    is_unique = False
    if known is not None:
        flat = known.reshape(-1).astype(np.int64)
        if isinstance(size, int):
            flat = np.where(flat < 0, flat + size, flat)
        is_signed_alike = (flat >= 0).all() or (flat < 0).all()
        if flat.size and is_signed_alike and (np.diff(flat) == 1).all():
            taken = {axis: np.array([flat.size])}
            return [_unsliced(b, dy, shape, taken, {axis: int(flat[0])}, {axis: 1}), None]
        is_unique = bool(is_signed_alike) and np.unique(flat).size == flat.size
        if is_unique and flat.size == size:
            return [b.op.Gather(dy, np.argsort(flat), axis=axis), None]
    vector = b.op.Reshape(indices, [-1])
    if _is_small_table(b, size):
        vector = b.op.Cast(vector, to=_INT64)
        one_hot = b.op.OneHot(vector, np.array(size), np.array([0, 1], np.float32), axis=0)
        return [b.op.MatMul(one_hot, dy), None]
    if axis == 0 and not is_unique and b.has_kernels(b.dy, b.x):
        sizes = b.shape(b.x)
        if len(sizes) == 2 and all(isinstance(size, int) for size in sizes):
            return [_of_rows(b, dy, vector), None]
    return [_scatter(b, b.zeros_like(b.x), vector, dy, axis, add=not is_unique), None]


def _of_rows(b: Backward, dy: ir.Value, vector: ir.Value) -> ir.Value:
    """That of a table of known sizes, of which a row may be taken several times."""
    sizes = b.sizes(b.x)
    if b.input(1).dtype != ir.DataType.INT64:
        vector = b.op.Cast(vector, to=_INT64)

    def gradient(op: GraphBuilder, dy: ir.Value, vector: ir.Value) -> ir.Value:
        zeros = op.ConstantOfShape(np.array(sizes, np.int64))
        indices = op.Expand(op.Unsqueeze(vector, [1]), op.Shape(dy))
        return op.ScatterElements(zeros, indices, dy, axis=0, reduction="add")

    name, rows = "GatherGradient", sizes[:1]
    return call_body(b.op, name, [dy, vector], gradient, tuple(sizes), rows=rows)[0]


def _is_small_table(b: Backward, size: int | str | None) -> bool:
    """Whether a product with a matrix of zeros and ones is faster than adding up the rows."""
    return (
        b.rank(b.x) == 2
        and b.axis(b.x, 0) == 0
        and isinstance(size, int)
        and 0 < size <= _SMALL_TABLE
        and b.x.dtype == ir.DataType.FLOAT
        and b.provider == "CPUExecutionProvider"
        and not b.is_steep
    )


def _one_axis_of_indices(b: Backward, axis: int) -> tuple[ir.Value, Operand]:
    """The gradient of a Gather, with the axes of the indices as one; and its shape."""
    rank = b.rank(b.x)
    indices = b.input(1)
    dims = b.rank(indices)
    if dims == 1:
        return b.dy, b.shape_of(b.y)
    sizes = [b.size(b.x, i) for i in range(rank)]
    if dims == 0:
        sizes[axis] = np.ones(1, np.int64)
        return b.op.Unsqueeze(b.dy, [axis]), b.concat(sizes)
    count = b.shape_of(indices)
    if isinstance(count, np.ndarray):
        sizes[axis] = np.array([count.prod()])
    else:
        sizes[axis] = b.op.ReduceProd(count)
    shape = b.concat(sizes)
    return b.op.Reshape(b.dy, shape, allowzero=1), shape


def _scatter(
    b: Backward, onto: ir.Value, indices: ir.Value, updates: ir.Value, axis: int, *, add: bool
) -> ir.Value:
    """Put slices along an axis of zeros in the shape of the first input, one for each index."""
    op, rank = b.op, b.rank(b.x)
    if axis == 0 and not add:
        return op.ScatterND(onto, op.Unsqueeze(op.Cast(indices, to=_INT64), [1]), updates)
    if rank > 1:
        column = op.Reshape(indices, [-1 if i == axis else 1 for i in range(rank)])
        indices = op.Expand(column, op.Shape(updates))
    if not add:
        return op.ScatterElements(onto, indices, updates, axis=axis)
    return scatter_add(b, onto, indices, updates, axis)


@_picking("GatherElements", moves=Moves.PART, shape=indexing.gather_elements)
def gather_elements(b: Backward) -> ir.Value:
    """Elements that were taken twice are added up."""
    return scatter_add(b, b.zeros_like(b.x), b.input(1), b.dy, b.axis(b.x, 0))


@_picking("GatherND", moves=Moves.PART, shape=indexing.gather_nd)
def gather_nd(b: Backward) -> ir.Value:
    """Added up in a table of one row for each place that the indices can name."""
    op = b.op
    indices = b.input(1)
    batch = b.node.attributes.get_int("batch_dims", 0)
    depth = b.sizes(indices, [b.rank(indices) - 1])[0]
    sizes = [b.size(b.x, axis) for axis in range(b.rank(b.x))]
    named, row = sizes[batch : batch + depth], sizes[batch + depth :]
    dims = b.concat(named)
    places = op.Where(op.Less(indices, np.array(0, np.int64)), op.Add(indices, dims), indices)
    strides = b.concat([product(op, named[i + 1 :]) for i in range(depth)])
    places = op.ReduceSum(op.Mul(places, strides), [-1], keepdims=0)
    if batch:
        batches = product(op, sizes[:batch])
        starts = op.Unsqueeze(op.Mul(numbers_to(op, batches), product(op, named)), [1])
        places = op.Add(op.Reshape(places, b.concat([batches, np.array([-1])])), starts)
    places = op.Reshape(places, [-1])
    width = product(op, row)
    table = b.zeros(b.concat([product(op, sizes[: batch + depth]), width]), b.x.dtype)
    updates = op.Reshape(b.dy, op.Concat(op.Shape(places), width, axis=0), allowzero=1)
    columns = op.Expand(op.Unsqueeze(places, [1]), op.Shape(updates))
    return b.reshape_like(scatter_add(b, table, columns, updates, 0), b.x)


@_picking("Slice", moves=Moves.PART, shape=layout.part)
def slice_(b: Backward) -> ir.Value:
    """Zeros where nothing was taken."""
    starts = b.constant(b.input(1))
    steps = _constant_vector(b, 4, "steps")
    axes = _constant_vector(b, 3, "axes")
    length = b.sizes(b.input(1), [0])[0]
    rank = b.rank(b.x)
    named = range(length) if axes is None else [axis % rank for axis in axes]
    by_axis = dict(zip(named, steps or [1] * length, strict=True))
    if starts is None:
        vector = b.op.Cast(b.input(1), to=_INT64)
        begins: Mapping[int, int | ir.Value] = {
            axis: b.op.Slice(vector, [i], [i + 1], [0]) for i, axis in enumerate(by_axis)
        }
    else:
        begins = dict(zip(by_axis, starts.reshape(-1).tolist(), strict=True))
    sizes = zip(b.shape(b.x), b.shape(b.y), strict=True)
    whole = [axis for axis, (size, taken) in enumerate(sizes) if size is not None and size == taken]
    cut = {axis: step for axis, step in by_axis.items() if axis not in whole or step != 1}
    taken = {axis: b.size(b.y, axis) for axis in cut}
    return _unsliced(b, b.dy, b.shape_of(b.y), taken, begins, cut) if cut else b.dy


def _constant_vector(b: Backward, index: int, what: str) -> list[int] | None:
    value = b.optional(index)
    if value is None:
        return None
    known = b.constant(value)
    if known is None:
        raise b.error(f"its gradient needs the {what}, but '{value.name}' is not a constant")
    return [int(element) for element in known.reshape(-1)]


def _unsliced(
    b: Backward,
    dy: ir.Value,
    shape: Operand,
    sizes: Mapping[int, Operand],
    starts: Mapping[int, int | ir.Value],
    steps: Mapping[int, int],
) -> ir.Value:
    """A gradient where a slice of the input was taken, zeros elsewhere.

    Args:
        b: Its first input was sliced.
        dy: The gradient of the slice.
        shape: That of ``dy``.
        sizes: Those of ``dy`` along the axes that were sliced.
        starts: Where the slice starts, by axis; a value is a vector of one.
        steps: Its steps along these axes.
    """
    op = b.op
    if backwards := [axis for axis, step in steps.items() if step < 0]:
        count = len(backwards)
        dy = op.Slice(dy, [-1] * count, [_TO_THE_START] * count, backwards, [-1] * count)
    before: list[Operand] = [np.zeros(1, np.int64)] * b.rank(b.x)
    after = list(before)
    for axis, step in steps.items():
        size, taken = b.size(b.x, axis), sizes[axis]
        start = starts[axis]
        begin: Operand = np.array([start]) if isinstance(start, int) else start
        begin = _clamped(b, begin, size, step)
        if step < 0:  # from the last element that was taken, which now is the first
            begin = _minus(b, begin, _times(b, _minus(b, taken, np.array([1])), -step))
        before[axis] = begin
        after[axis] = _minus(b, _minus(b, size, begin), _times(b, taken, abs(step)))
    for axis, step in steps.items():
        if abs(step) > 1:
            dy, shape = _stretched(b, dy, shape, axis, abs(step))
    pads = b.concat([*before, *after])
    if isinstance(pads, np.ndarray) and not pads.any():
        return dy
    return op.Pad(dy, pads)


def _stretched(
    b: Backward, dy: ir.Value, shape: Operand, axis: int, step: int
) -> tuple[ir.Value, Operand]:
    """Zeros after each element; and the new shape."""
    op = b.op
    factors = np.ones(b.rank(b.x), np.int64)
    factors[axis] = step
    wide = _times(b, shape, factors)
    column = op.Unsqueeze(dy, [axis + 1])
    sizes = [_at(b, shape, i) for i in range(b.rank(b.x))]
    sizes.insert(axis + 1, np.array([step - 1]))
    stretched = op.Concat(column, b.zeros(b.concat(sizes), b.x.dtype), axis=axis + 1)
    return op.Reshape(stretched, wide, allowzero=1), wide


def _clamped(b: Backward, start: Operand, size: Operand, step: int) -> Operand:
    """Where a slice starts, from the front."""
    if isinstance(start, np.ndarray) and isinstance(size, np.ndarray):
        begin, _, _ = slice(int(start[0]), None, step).indices(int(size[0]))
        return np.array([max(begin, 0)])
    op = b.op
    if isinstance(start, np.ndarray):
        counted = op.Add(size, start) if start[0] < 0 else start
    else:
        counted = op.Where(op.Less(start, 0), op.Add(start, size), start)
    last = _minus(b, size, np.array([1])) if step < 0 else size
    return op.Max(op.Min(counted, last), np.zeros(1, np.int64))


def _at(b: Backward, shape: Operand, axis: int) -> Operand:
    if isinstance(shape, np.ndarray):
        return shape[axis : axis + 1]
    return b.op.Slice(shape, [axis], [axis + 1])


def _minus(b: Backward, left: Operand, right: Operand) -> Operand:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left - right
    return b.op.Sub(left, right)


def _times(b: Backward, size: Operand, factor: int | np.ndarray) -> Operand:
    if isinstance(size, np.ndarray):
        return np.asarray(size * factor)
    return size if isinstance(factor, int) and factor == 1 else b.op.Mul(size, factor)


@_picking("Pad", settings=(2,), shape=layout.pad)
def pad(b: Backward) -> Sequence[ir.Value | None]:
    """Without the pads; what these copied is added to where it came from.

    To the value that it fills in, the sum of what has it.
    """
    mode = b.node.attributes.get_string("mode", "constant")
    pads = b.constant(b.input(1))
    axes = _constant_vector(b, 3, "axes") if pads is not None or mode != "constant" else None
    rank = b.rank(b.x)
    named = range(rank) if axes is None else [axis % rank for axis in axes]
    if mode == "constant":
        d_x = _cropped_at_run_time(b) if pads is None else _cropped(b, b.dy, _widths(named, pads))
        return [d_x, None, _of_filling(b, d_x) if b.needs(2) else None]
    if pads is None or pads.min(initial=0) < 0:
        return [_copied_back(b, mode, named)]
    dy = b.dy
    for axis, (before, after) in _widths(named, pads).items():
        if before or after:
            dy = _folded(b, dy, mode, axis, before, after)
    return [dy]


def _widths(axes: Sequence[int], pads: np.ndarray) -> dict[int, tuple[int, int]]:
    """How many elements come before and after those of each axis."""
    return {axis: (int(pads[i]), int(pads[i + len(axes)])) for i, axis in enumerate(axes)}


def _of_filling(b: Backward, d_x: ir.Value) -> ir.Value:
    filled = b.op.Sub(b.dy, b.op.Pad(d_x, b.input(1), None, b.optional(3)))
    return b.reshape_like(b.op.ReduceSum(filled, keepdims=0), b.input(2))


def _copied_back(b: Backward, mode: str, axes: Sequence[int]) -> ir.Value:
    """Where the elements of an axis come from, the operator itself says of their numbers."""
    op, dy = b.op, b.dy
    sizes = [b.size(b.y, axis) for axis in range(b.rank(b.x))]
    for i, axis in enumerate(axes):
        sizes[axis] = b.size(b.x, axis)
        pads = op.Gather(b.input(1), np.array([i, i + len(axes)]))
        places = op.Pad(numbers_to(op, sizes[axis]), pads, mode=mode)
        dy = _scatter(b, b.zeros(b.concat(sizes), b.x.dtype), places, dy, axis, add=True)
    return dy


def _cropped(b: Backward, dy: ir.Value, widths: Mapping[int, tuple[int, int]]) -> ir.Value:
    """Without the pads; where these are negative, with zeros."""
    crops = {
        axis: (max(before, 0), -after if after > 0 else np.iinfo(np.int64).max)
        for axis, (before, after) in widths.items()
        if before > 0 or after > 0
    }
    if crops:
        starts, ends = zip(*crops.values(), strict=True)
        dy = b.op.Slice(dy, list(starts), list(ends), list(crops))
    zeros = np.zeros((2, b.rank(b.x)), np.int64)
    for axis, width in widths.items():
        zeros[:, axis] = np.maximum(np.negative(width), 0)
    return b.op.Pad(dy, zeros.reshape(-1)) if zeros.any() else dy


def _cropped_at_run_time(b: Backward) -> ir.Value:
    op, pads, axes = b.op, b.op.Cast(b.input(1), to=_INT64), b.optional(3)
    zero = np.array(0, np.int64)
    halves = op.Reshape(op.Max(pads, zero), [2, -1])
    before, after = (op.Gather(halves, np.array(half)) for half in (0, 1))
    sizes = op.Shape(b.dy)
    if axes is not None:
        sizes = op.Gather(sizes, axes)
    dy = op.Slice(b.dy, before, op.Sub(sizes, after), axes)
    return op.Pad(dy, op.Neg(op.Min(pads, zero)), None, axes)


def _folded(b: Backward, dy: ir.Value, mode: str, axis: int, before: int, after: int) -> ir.Value:
    """The gradient of the middle, and those of the pads where they were copied from."""
    op = b.op
    size = b.size(b.x, axis)
    dx = _cropped(b, dy, {axis: (before, after)})
    least = before + after if mode == "edge" else max(before, after)
    if mode == "reflect":
        least += 1
    if mode != "edge" and isinstance(size, np.ndarray) and size[0] < least:
        raise b.error(f"its gradient in mode '{mode}' needs pads within the size of the axis")
    for width, is_front in ((before, True), (after, False)):
        if not width:
            continue
        if is_front:
            part = op.Slice(dy, [0], [width], [axis])
        else:
            part = op.Slice(dy, [-width], [np.iinfo(np.int64).max], [axis])
        # How far from its end of the input the copied part lies.
        distance = np.zeros(1, np.int64)
        if mode == "edge":
            part = b.sum(part, [axis], keepdims=True)
            width = 1  # noqa: PLW2901
        elif mode == "reflect":
            part = op.Slice(part, [-1], [_TO_THE_START], [axis], [-1])
            distance = np.ones(1, np.int64)
        rest = _minus(b, size, distance + width)
        near_front = is_front != (mode == "wrap")
        zeros = [np.zeros(1, np.int64)] * b.rank(b.x)
        first: list[Operand] = list(zeros)
        last: list[Operand] = list(zeros)
        first[axis], last[axis] = (distance, rest) if near_front else (rest, distance)
        dx = op.Add(dx, op.Pad(part, b.concat([*first, *last])))
    return dx


@_picking("Compress")
def compress(b: Backward) -> ir.Value:
    """Zeros where nothing was taken."""
    op = b.op
    chosen = op.Squeeze(op.NonZero(b.input(1)), [0])
    if "axis" in b.node.attributes:
        axis = b.axis(b.x, 0)
        return _scatter(b, b.zeros_like(b.x), chosen, b.dy, axis, add=False)
    flat = op.Reshape(b.zeros_like(b.x), [-1])
    return b.reshape_like(op.ScatterND(flat, op.Unsqueeze(chosen, [1]), b.dy), b.x)


@_picking("TopK", shape=indexing.top_k)
def top_k(b: Backward) -> ir.Value:
    """Of the values; at ties, for those elements that the forward pass chose."""
    indices = b.outputs[1]
    if not indices.name:
        indices.name = b.op.fresh_name("TopK")
    return b.op.ScatterElements(b.zeros_like(b.x), indices, b.dy, axis=b.axis(b.x, -1))
