"""Convolution, its transpose and sums of windows, in any number of dimensions."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body
from graphopt.operators._convolution_weight import Layer, weight_gradient
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, plus, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import product
from graphopt.operators.window import Window, from_windows, known, window_of
from graphopt.shapes import windows
from graphopt.shapes.node import Node


def _flops(node: Node, outputs: Outputs) -> int | None:
    result = outputs[0].elements
    products = times(2, result, *node.shape(1)[1:])
    return plus(products, result if node.has(2) else 0)


def _transposed_flops(node: Node, outputs: Outputs) -> int | None:
    products = times(2, node.input(0).elements, *node.shape(1)[1:])
    return plus(products, outputs[0].elements if node.has(2) else 0)


@operator("Conv", spreads=True, weights=(1,), bias=2, flops=_flops, shape=windows.conv)
def conv(b: Backward) -> Sequence[ir.Value | None]:
    """The gradients of input and weight are convolutions themselves."""
    x, weight = b.x, b.input(1)
    window = window_of(b, _kernel(b), b.shape(x)[2:])
    group = b.node.attributes.get_int("group", 1)
    d_x = _input_gradient(b, window, group) if b.needs(0) else None
    d_weight = None
    if b.needs(1):
        sizes, counts = known(b.shape(x)[2:]), known(b.shape(b.y)[2:])
        outputs, channels = b.shape(weight)[:2]
        layer = Layer(b.op, x, b.dy, window, group, outputs, channels, sizes, counts)
        d_weight = weight_gradient(b, layer)
    return [d_x, d_weight, _bias_gradient(b, window)]


@operator(
    "ConvTranspose",
    spreads=True,
    weights=(1,),
    bias=2,
    flops=_transposed_flops,
    shape=windows.conv_transpose,
)
def conv_transpose(b: Backward) -> Sequence[ir.Value | None]:
    """It is the gradient of a convolution's input: Conv leads back to its own input."""
    op, x, dy, weight = b.op, b.x, b.dy, b.input(1)
    window = _transposed_window(b)
    group = b.node.attributes.get_int("group", 1)
    d_x = d_weight = None
    if b.needs(0):
        d_x = op.Conv(dy, weight, group=group, **window.attributes())
        if _may_end_behind(b, window):
            d_x = op.Slice(d_x, [0] * len(window.kernel), op.Shape(x, start=2), window.axes)
    if b.needs(1):
        sizes, counts = known(b.shape(b.y)[2:]), known(b.shape(x)[2:])
        outputs, channels = b.shape(weight)[:2]
        layer = Layer(b.op, dy, x, window, group, outputs, channels, sizes, counts)
        d_weight = weight_gradient(b, layer)
    return [d_x, d_weight, _bias_gradient(b, window)]


@operator("Col2Im", flops=1, shape=windows.col2im)
def col2im(b: Backward) -> ir.Value:
    """The elements of each window: what a convolution gives with a weight for each of them."""
    op = b.op
    block = op.Cast(b.input(2), to=int(ir.DataType.INT64))
    elements = product(op, [block])
    unit = op.EyeLike(b.zeros(b.concat([elements, elements]), b.x.dtype))
    weight = op.Reshape(unit, b.concat([elements, np.ones(1, np.int64), block]))
    sizes = [b.size(b.y, axis) for axis in range(2, b.rank(b.y))]
    channels = op.Reshape(b.dy, b.concat([np.array([-1, 1]), *sizes]))
    names = ("strides", "pads", "dilations")
    given = {name: b.node.attributes.get_ints(name) for name in names if name in b.node.attributes}
    return b.reshape_like(op.Conv(channels, weight, **given), b.x)


def _kernel(b: Backward) -> list[int]:
    weight = b.input(1)
    given = list(b.node.attributes.get_ints("kernel_shape", ()))
    return given or b.sizes(weight, range(2, b.rank(weight)))


def _bias_gradient(b: Backward, window: Window) -> ir.Value | None:
    return b.sum(b.dy, [0, *window.axes]) if b.needs(2) else None


def _input_gradient(b: Backward, window: Window, group: int) -> ir.Value:
    """A convolution with the kernel turned around, or one transposed."""
    op, dy, weight = b.op, b.dy, b.input(1)
    if _is_faster_turned(b, window, group):
        begin = [reach - pad for reach, pad in zip(window.reach, window.begin, strict=True)]
        end = [reach - pad for reach, pad in zip(window.reach, window.end, strict=True)]
        return op.Conv(
            dy,
            _turned(b, weight, window, group),
            group=group,
            kernel_shape=window.kernel,
            dilations=window.dilations,
            pads=[*begin, *end],
        )
    return from_windows(b, dy, weight, window, group)


def _is_faster_turned(b: Backward, window: Window, group: int) -> bool:
    """Whether the input's gradient is a convolution, and a faster one than the transposed."""
    if not window.is_dense or any(
        pad > reach for pad, reach in zip(window.pads, window.reach * 2, strict=True)
    ):
        return False
    outputs, channels = b.shape(b.input(1))[:2]
    if not isinstance(outputs, int) or not isinstance(channels, int):
        return group == 1
    if b.provider != "CPUExecutionProvider" or window.is_pointwise or len(window.kernel) != 2:
        return True
    # The convolution gathers windows of the outputs, the transposed one adds up those of inputs.
    return channels * group >= outputs


def _turned(b: Backward, weight: ir.Value, window: Window, group: int) -> ir.Value:
    """The weight with its kernel turned around, and inputs and outputs of each group swapped."""
    op, axes, rank = b.op, window.axes, len(window.kernel)
    on_cpu = b.provider == "CPUExecutionProvider"  # elsewhere, what was measured there
    outputs, channels = b.shape(weight)[:2]
    if group == 1 and isinstance(outputs, int) and isinstance(channels, int) and on_cpu:
        return _turned_by_rows(b, weight, window, outputs, channels)
    if any(size > 1 for size in window.kernel):
        least = [np.iinfo(np.int64).min] * rank
        weight = op.Slice(weight, [-1] * rank, least, axes, [-1] * rank)
    if group == 1:
        return op.Transpose(weight, perm=[1, 0, *axes])
    outputs, channels = b.sizes(b.input(1), [0, 1])
    if channels == 1 and outputs == group:
        return weight
    split = op.Reshape(weight, [group, outputs // group, channels, *window.kernel])
    split = op.Transpose(split, perm=[0, 2, 1, *(axis + 1 for axis in axes)])
    return op.Reshape(split, [group * channels, outputs // group, *window.kernel])


def _turned_by_rows(
    b: Backward, weight: ir.Value, window: Window, outputs: int, channels: int
) -> ir.Value:
    """As `_turned`, by a function for which there is a kernel.

    In its body, the outputs are last meanwhile: rows move, where Slice moves each element.
    """
    taps, shape = math.prod(window.kernel), [channels, outputs, *window.kernel]
    if taps == 1:
        return b.op.Transpose(weight, perm=[1, 0, *window.axes])

    def turned(op: GraphBuilder, weight: ir.Value) -> ir.Value:
        rows = op.Transpose(op.Reshape(weight, [outputs, channels * taps]), perm=[1, 0])
        rows = op.Reshape(rows, [channels, taps, outputs])
        rows = op.Gather(rows, list(range(taps))[::-1], axis=1)
        return op.Reshape(op.Transpose(rows, perm=[0, 2, 1]), shape)

    if not b.has_kernels(weight):
        return turned(b.op, weight)
    (result,) = call_body(b.op, "TurnedWeight", [weight], turned, tuple(shape))
    result.shape = ir.Shape(shape)
    return result


def _transposed_window(b: Backward) -> Window:
    """The windows over the output, of which the input has one element each."""
    kernel = _kernel(b)
    mode = b.node.attributes.get_string("auto_pad", "NOTSET")
    output_shape = list(b.node.attributes.get_ints("output_shape", ()))
    if not output_shape and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return window_of(b, kernel, b.shape(b.y)[2:])
    plain = window_of(b, kernel, [1] * len(kernel))
    sizes = b.sizes(b.x, plain.axes)
    wanted = output_shape[-len(kernel) :] or [
        size * stride for size, stride in zip(sizes, plain.strides, strict=True)
    ]
    extra = list(b.node.attributes.get_ints("output_padding", [0] * len(kernel)))
    totals = [
        stride * (size - 1) + reach + 1 + more - target
        for stride, size, reach, more, target in zip(
            plain.strides, sizes, plain.reach, extra, wanted, strict=True
        )
    ]
    if output_shape and min(totals) < 0:
        raise b.error(f"output_shape={wanted} is more than its windows cover; export it with pads")
    totals = [max(total, 0) for total in totals]
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    begin, end = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    return replace(plain, begin=begin, end=end)


def _may_end_behind(b: Backward, window: Window) -> bool:
    """Whether the output is so long that more windows fit than the input has elements."""
    sizes, counts = known(b.shape(b.y)[2:]), known(b.shape(b.x)[2:])
    if sizes is None or counts is None:
        extra = b.node.attributes.get_ints("output_padding", ())
        return any(more >= stride for more, stride in zip(extra, window.strides, strict=False))
    rests = window.rest(sizes, counts)
    return any(rest >= stride for rest, stride in zip(rests, window.strides, strict=True))
