"""Pooling."""

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.local_functions import call_body
from graphopt.operators._scatter import scatter_add
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import add_outputs
from graphopt.operators.window import Window, along, from_windows, known, padding, window_of
from graphopt.shapes import windows
from graphopt.shapes.node import Node


def rewrite_ceiled(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Leave out windows that would begin behind the input, as ``ceil_mode`` is defined.

    ONNX Runtime 1.19 has them, of the lowest number, 0 or NaN. Where sizes are known, the padding
    becomes what the other windows need, and no window is counted up.
    """
    del op, trained
    x = node.inputs[0]
    sizes = None if x is None or x.shape is None else known(x.shape[2:])
    kernel = list(node.attributes.get_ints("kernel_shape"))
    if sizes is None or not node.attributes.get_int("ceil_mode", 0):
        return
    pads = padding(node, kernel, sizes)
    if pads is None or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return
    strides, dilations = (along(node, name, kernel) for name in ("strides", "dilations"))
    window = Window(kernel, strides, dilations, *pads)
    rests = window.rest(sizes, [1] * len(sizes))
    starts = [size + begin for size, begin in zip(sizes, window.begin, strict=True)]
    counts = [-(-rest // stride) + 1 for rest, stride in zip(rests, strides, strict=True)]
    inside = [
        count - ((count - 1) * stride >= start)
        for count, stride, start in zip(counts, strides, starts, strict=True)
    ]
    if inside == counts:
        return
    ends = [
        max(end - rest, 0) for end, rest in zip(window.end, window.rest(sizes, inside), strict=True)
    ]
    counts_padding = node.attributes.get_int("count_include_pad", 0)
    if any(end >= width for end, width in zip(ends, kernel, strict=True)) or (
        counts_padding and any(end > given for end, given in zip(ends, window.end, strict=True))
    ):
        return  # `_window` refuses it
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*window.begin, *ends])
    node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


_WITHOUT_INDICES = ("CPUExecutionProvider", "WebGpuExecutionProvider")
"""Where pooling is slow, or impossible, if it has to return indices."""

_MOST_NUMBERS = 2**24  # that are written into a graph, one for each element of an image


def _flops(node: Node, outputs: Outputs) -> int | None:
    return times(outputs[0].elements, *(node.attributes.integers("kernel_shape") or (None,)))


@operator("MaxPool", rewrite=rewrite_ceiled, flops=_flops, shape=windows.pool)
def max_pool(b: Backward) -> ir.Value:
    """To the first of the largest elements of a window."""
    if b.has_gradient(1):
        raise b.error("its second output has no gradient")
    window = _window(b)
    sizes = known(b.shape(b.x)[2:])
    if (
        b.provider in _WITHOUT_INDICES
        and not b.is_steep
        and sizes is not None
        and math.prod(window.kernel) <= 4
        and _tiles(b, window)
        and math.prod(sizes) <= _MOST_NUMBERS
        and not any(size % width for size, width in zip(sizes, window.kernel, strict=True))
    ):
        return _by_comparison(b, window, sizes)
    if len(window.kernel) == 2 and b.has_kernels(b.x, b.dy):
        return _by_kernel(b, window)
    return _by_indices(b, window)


def _by_comparison(b: Backward, window: Window, sizes: list[int]) -> ir.Value:
    """Elements that equal the largest of their window are numbered, and the first is found.

    On the CPU, pooling is five times slower where it has to return indices.
    """
    op, x = b.op, b.x
    assert x.dtype is not None
    elements = math.prod(window.kernel)
    numbers = np.arange(elements, 0, -1, dtype=x.dtype.numpy()).reshape(window.kernel)
    tiles = [size // width for size, width in zip(sizes, window.kernel, strict=True)]
    is_largest = op.CastLike(op.Equal(x, _enlarged(b, b.y, window)), x)
    number = op.Mul(is_largest, np.tile(numbers, tiles))
    first = op.MaxPool(number, kernel_shape=window.kernel, strides=window.strides)
    is_first = op.Equal(number, _enlarged(b, first, window))
    return b.masked(_enlarged(b, b.dy, window), is_first)


def _by_kernel(b: Backward, window: Window) -> ir.Value:
    """A function for which there is a kernel; its body pools once more, with indices."""
    kept = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")
    attributes = {n: a.value for n, a in b.node.attributes.items() if n in kept}
    given: dict[str, Any] = {**window.attributes()}

    def gradient(op: GraphBuilder, x: ir.Value, dy: ir.Value) -> ir.Value:
        _, indices = op.node("MaxPool", [x], outputs=2, **attributes)
        zeros = op.ConstantOfShape(
            op.Reshape(op.Size(x), [1]), value=ir.tensor(np.zeros(1, np.float32))
        )
        places, flat = op.Reshape(indices, [-1]), op.Reshape(dy, [-1])
        reduction = {"reduction": "add"} if window.overlaps else {}
        total = op.ScatterElements(zeros, places, flat, axis=0, **reduction)
        return op.Reshape(total, op.Shape(x), allowzero=1)

    of = (repr(window), repr(sorted(attributes.items())))
    return call_body(b.op, "MaxPoolGradient", [b.x, b.dy], gradient, of, **given)[0]


def _by_indices(b: Backward, window: Window) -> ir.Value:
    op, x = b.op, b.x
    sizes = known(b.shape(x))
    total: Operand = [math.prod(sizes)] if sizes is not None else b.elements(x)
    zeros = b.zeros(total, x.dtype)
    indices, dy = op.Reshape(_largest(b), [-1]), op.Reshape(b.dy, [-1])
    if window.overlaps:
        gradient = scatter_add(b, zeros, indices, dy, 0)
    else:
        gradient = op.ScatterElements(zeros, indices, dy, axis=0)
    return b.reshape_like(gradient, x)


def _largest(b: Backward) -> ir.Value:
    """Where the first of the largest elements of each window stands."""
    attributes = b.node.attributes
    if attributes.get_int("storage_order", 0):  # the node counts by columns
        kept = {name: given.value for name, given in attributes.items() if name != "storage_order"}
        return b.op.node("MaxPool", [b.x], outputs=2, **kept)[1]
    add_outputs(b.op, b.node, 2)
    return b.node.outputs[1]


@operator("MaxUnpool", flops=0, shape=windows.max_unpool)
def max_unpool(b: Backward) -> ir.Value:
    """What stands where each element was put; where several were, for each, as with PyTorch.

    The indices count the elements of the result, as in ONNX Runtime; ONNX's own reference counts
    those of the result without ``output_shape``.
    """
    return b.op.Gather(b.op.Reshape(b.dy, [-1]), b.input(1), axis=0)


@operator("AveragePool", rewrite=rewrite_ceiled, flops=_flops, shape=windows.pool)
def average_pool(b: Backward) -> ir.Value:
    """To each element of a window dy / the number of elements that were counted."""
    window = _window(b)
    return _sum_of_windows(b, b.op.Div(b.dy, _counted(b, window)), window)


@operator("LpPool", rewrite=rewrite_ceiled, flops=_flops, shape=windows.pool)
def lp_pool(b: Backward) -> ir.Value:
    """See `_norm_gradient`."""
    window = _window(b)
    return _norm_gradient(b, lambda factor: _sum_of_windows(b, factor, window))


@operator("GlobalAveragePool", flops=1, shape=windows.global_pool)
def global_average_pool(b: Backward) -> ir.Value:
    """To each element dy / the number of elements of a channel."""
    share = b.op.Div(b.dy, b.count(b.x, range(2, b.rank(b.x))))
    return b.op.Expand(share, b.shape_of(b.x))


@operator("GlobalMaxPool", flops=1, shape=windows.global_pool)
def global_max_pool(b: Backward) -> ir.Value:
    """To the first of the largest elements of a channel."""
    op, x = b.op, b.x
    flat = op.Reshape(x, [0, 0, -1])
    index = op.ArgMax(flat, axis=2)
    zeros = b.zeros(op.Shape(flat), x.dtype)
    dy = op.Reshape(b.dy, [0, 0, 1])
    return b.reshape_like(op.ScatterElements(zeros, index, dy, axis=2), x)


@operator("GlobalLpPool", flops=2, shape=windows.global_pool)
def global_lp_pool(b: Backward) -> ir.Value:
    """See `_norm_gradient`."""
    return _norm_gradient(b, lambda factor: factor)


def _norm_gradient(b: Backward, spread: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """To each element sign(x) |x|^(p - 1) times the dy / y^(p - 1) of its windows.

    0 where the norm y is 0.
    """
    op, x, y = b.op, b.x, b.y
    power = b.node.attributes.get_int("p", 2)
    if power == 1:
        return op.Mul(op.Sign(x), spread(b.dy))
    is_zero = op.Equal(y, 0.0)
    inverse = op.Where(is_zero, 0.0, op.Reciprocal(op.Where(is_zero, 1.0, y)))
    if power == 2:
        return op.Mul(x, spread(op.Mul(b.dy, inverse)))
    exponent = float(power - 1)
    factor = op.Mul(b.dy, op.Pow(inverse, exponent))
    return op.Mul(op.Mul(op.Sign(x), op.Pow(op.Abs(x), exponent)), spread(factor))


def _window(b: Backward) -> Window:
    sizes = b.shape(b.x)[2:]
    window = window_of(b, b.node.attributes.get_ints("kernel_shape"), sizes)
    known_sizes = known(sizes)
    if _is_ceiled(b) and known_sizes is not None:
        rests = window.rest(known_sizes, [1] * len(known_sizes))
        for size, begin, stride, rest in zip(
            known_sizes, window.begin, window.strides, rests, strict=True
        ):
            if math.ceil(rest / stride) * stride >= size + begin:
                raise b.error(
                    "with ceil_mode=1, its last window would lie behind the input, which not all "
                    "versions of ONNX Runtime leave out; export it with ceil_mode=0"
                )
    return window


def _is_ceiled(b: Backward) -> bool:
    return bool(b.node.attributes.get_int("ceil_mode", 0))


def _tiles(b: Backward, window: Window) -> bool:
    """Whether the windows lie side by side, and `_enlarged` can be used."""
    return (
        window.kernel == window.strides
        and all(dilation == 1 for dilation in window.dilations)
        and not any(window.pads)
        and b.x.dtype == ir.DataType.FLOAT
    )


def _enlarged(b: Backward, value: ir.Value, window: Window) -> ir.Value:
    """A value of the output's shape, repeated for each element of its window."""
    return b.op.Resize(
        value,
        None,
        np.array([1, 1, *window.kernel], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _sum_of_windows(b: Backward, dy: ir.Value, window: Window) -> ir.Value:
    """For each element of the input, the sum of ``dy`` over the windows that contain it."""
    op, rank = b.op, len(window.kernel)
    if _tiles(b, window) and not _is_ceiled(b):
        sum_ = _enlarged(b, dy, window)
        sizes, counts = known(b.shape(b.x)[2:]), known(b.shape(b.y)[2:])
        if sizes is None or counts is None:
            rest = op.Sub(op.Shape(b.x, start=2), op.Shape(sum_, start=2))
            return op.Pad(sum_, op.Concat([0] * (rank + 4), rest, axis=0))
        rests = window.rest(sizes, counts)
        return op.Pad(sum_, [0] * (rank + 4) + rests) if any(rests) else sum_
    pads = [reach - pad for reach, pad in zip(window.reach * 2, window.pads, strict=True)]
    is_box = window.is_dense and all(dilation == 1 for dilation in window.dilations)
    if is_box and min(pads) >= 0 and max(window.pads) < min(window.kernel):
        mean = op.AveragePool(dy, kernel_shape=window.kernel, pads=pads, count_include_pad=1)
        return op.Mul(mean, float(math.prod(window.kernel)))
    dtype = b.x.dtype or ir.DataType.FLOAT
    b.check_table(window.kernel)
    ones = np.ones([1, 1, *window.kernel], dtype.numpy())
    spatial = known(b.shape(b.y)[2:])
    shape: Operand = (
        [-1, 1, *spatial]
        if spatial is not None
        else op.Concat([-1, 1], op.Shape(dy, start=2), axis=0)
    )
    return b.reshape_like(from_windows(b, op.Reshape(dy, shape), ones, window), b.x)


def _counted(b: Backward, window: Window) -> Operand:
    """By how many elements each window was divided: a number, or one for each window."""
    includes_pads = bool(b.node.attributes.get_int("count_include_pad", 0))
    if not _is_ceiled(b) and (includes_pads or not any(window.pads)):
        return float(math.prod(window.kernel))
    sizes, counts = known(b.shape(b.x)[2:]), known(b.shape(b.y)[2:])
    if sizes is None or counts is None:
        return _counted_at_run_time(b, window, includes_pads=includes_pads)
    b.check_table(counts)
    product = np.ones([], (b.x.dtype or ir.DataType.FLOAT).numpy())
    for axis, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        low, behind = (-window.begin[axis], window.end[axis]) if includes_pads else (0, 0)
        b.check_table([count, window.kernel[axis]])
        start = window.strides[axis] * np.arange(count) - window.begin[axis]
        index = start[:, None] + window.dilations[axis] * np.arange(window.kernel[axis])
        inside = (low <= index) & (index < size + behind)
        product = product[..., None] * inside.sum(axis=1).astype(product.dtype)
    return product


def _counted_at_run_time(b: Backward, window: Window, *, includes_pads: bool) -> ir.Value:
    """As `_counted`, where sizes are unknown."""
    op, product = b.op, None
    for axis in range(len(window.kernel)):
        low, behind = (-window.begin[axis], window.end[axis]) if includes_pads else (0, 0)
        count = op.Squeeze(op.Shape(b.y, start=2 + axis, end=3 + axis), [0])
        size = op.Add(op.Shape(b.x, start=2 + axis, end=3 + axis), behind)
        b.check_table([window.kernel[axis]])
        first = np.arange(window.kernel[axis]) * window.dilations[axis] - window.begin[axis]
        start = op.Mul(op.Range(np.int64(0), count, np.int64(1)), window.strides[axis])
        index = op.Add(op.Unsqueeze(start, [1]), first)
        inside = op.And(op.GreaterOrEqual(index, low), op.Less(index, size))
        along = op.ReduceSum(op.CastLike(inside, b.dy), [1], keepdims=0)
        product = along if product is None else op.Mul(op.Unsqueeze(product, [-1]), along)
    assert product is not None
    return product
