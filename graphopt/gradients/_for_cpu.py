"""Formulations that the CPU runs faster, in place of nodes that mean the same.

A convolution of each channel by itself multiplies each window by one row, for which ONNX Runtime
copies the windows first. So it becomes a function, for which there is a kernel. Where there is
none, ONNX Runtime runs the function's body: the node as it was; or, where images are hardly wider
than the kernel, products of matrices, which take a fifth to two thirds of the time.
"""

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._products import call_products
from graphopt.local_functions import DOMAIN, add_body, become_call, take_bodies
from graphopt.operators.batch_normalization import call_statistics
from graphopt.operators.recurrent_functions import call_layer
from graphopt.operators.window import Window, along, known, padding
from graphopt.update.functions import parse, stage

_WITH_ONE_BODY = frozenset(("DepthwiseConv", "DepthwiseConvBias", "DepthwiseConvTranspose"))
_WIDEST = 3  # kernels; from about four on, the convolution was measured to be faster
_MOST_ELEMENTS = 2**24  # of the table of where windows and their elements meet


def suit_cpu(op: GraphBuilder, model: ir.Model, kept: Collection[ir.Value]) -> None:
    """Rewrite nodes of the graph; what it computes stays the same, within rounding.

    Args:
        op: Appends to the graph.
        model: The training graph; changed in place.
        kept: Its values that others know, beside its outputs.
    """
    call_products(op, model, kept)
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and not node.domain:
            with op.named(str(node.name or node.outputs[0].name)):
                call_statistics(op, node)
        if node.op_type == "Scan" and not node.domain:
            call_layer(op, node)
        if node.op_type in ("Conv", "ConvTranspose") and not node.domain:
            window = _window_of_each_channel(node)
            if window is not None:
                _call_function(op, node, window)
    _define(model)


def _define(model: ir.Model) -> None:
    """Let the model have the functions that it calls."""
    bodies = take_bodies(model.graph)
    names = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name in sorted(names):
        if name in bodies or name in _WITH_ONE_BODY:
            proto = bodies.get(name) or parse(stage(name), model.graph.opset_imports[""])
            function = ir.serde.deserialize_function(proto)
            model.functions[function.identifier()] = function


def _window_of_each_channel(node: ir.Node) -> Window | None:
    """None where a convolution is not of each channel by itself, in two dimensions of float32."""
    x, weight = node.inputs[:2]
    result, group = node.outputs[0], node.attributes.get_int("group", 1)
    if x is None or weight is None or {x.dtype, weight.dtype, result.dtype} != {ir.DataType.FLOAT}:
        return None
    # The weight of a gradient has been turned around, and its shape may not be known.
    kernel = known(node.attributes.get_ints("kernel_shape", (weight.shape or ())[2:]))
    if x.shape is None or result.shape is None or kernel is None or len(kernel) != 2:
        return None
    if group == 1 or 0 in kernel or [x.shape[1], result.shape[1]] != [group, group]:
        return None
    if node.op_type == "ConvTranspose" and (
        any(bias is not None for bias in node.inputs[2:])
        or "output_shape" in node.attributes
        or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return None
    around = padding(node, kernel, x.shape[2:])
    if around is None:
        return None
    strides, dilations = (along(node, name, kernel) for name in ("strides", "dilations"))
    return Window(kernel, strides, dilations, *around)


def _call_function(op: GraphBuilder, node: ir.Node, window: Window) -> None:
    """Let a node call a function."""
    operands = [value for value in node.inputs if value is not None]
    attributes = {name: ir.AttrInt64s(name, sizes) for name, sizes in window.attributes().items()}
    attributes["group"] = ir.AttrInt64("group", node.attributes.get_int("group", 1))
    if node.op_type == "ConvTranspose":
        extra = node.attributes.get_ints("output_padding", [0] * len(window.kernel))
        attributes["output_padding"] = ir.AttrInt64s("output_padding", extra)
    name = f"Depthwise{node.op_type}{'Bias' if len(operands) > 2 else ''}"
    if node.op_type == "Conv" and (sizes := _sizes_for_products(node, window)):
        emit = partial(_products, window=window, sizes=sizes)
        name = add_body(op, name, operands, emit, repr((window, sizes)), attributes)
    become_call(op, node, name, operands, attributes)


def _sizes_for_products(node: ir.Node, window: Window) -> list[int] | None:
    """Channels and sizes of the images that go in and come out, where products are faster."""
    x, result = node.inputs[0], node.outputs[0]
    assert x is not None
    sizes = known([*(x.shape or ())[1:], *(result.shape or ())[2:]])
    if sizes is None or len(sizes) != 5 or 0 in sizes:
        return None
    width, count, wide = sizes[2], sizes[4], window.kernel[1]
    is_small = width <= _WIDEST * wide and count * wide * width <= _MOST_ELEMENTS
    return sizes if is_small else None


def _products(
    op: GraphBuilder,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    *,
    window: Window,
    sizes: Sequence[int],
) -> ir.Value:
    """Multiply the rows of all windows of an image's row by the kernel, written as a band.

    With stride s, dilation d and padding b in front, y[n, c, h, p] is the sum over k and w of
    x[n, c, s h + d k - b, w] band[c, p, k, w], where band[c, p, k, s p + d q - b] is
    weight[c, k, q] and the band is 0 elsewhere. An element that is infinite or NaN makes NaN of all
    windows of its rows, not only of those that have it, because it is multiplied by these zeros.
    """
    channels, _, width, height, count = sizes
    tall, wide = window.kernel
    (top, left), (bottom, _) = window.begin, window.end
    (down, right), (tall_step, wide_step) = window.strides, window.dilations
    column = right * np.arange(count) + wide_step * np.arange(wide)[:, None] - left
    meets = column[:, :, None] == np.arange(width)
    taps = op.Reshape(weight, [channels * tall, wide])
    meeting = op.Cast(meets.reshape(wide, -1), to=ir.DataType.FLOAT)
    band = op.Reshape(op.MatMul(taps, meeting), [channels, tall, count, width])
    band = op.Reshape(op.Transpose(band, perm=[0, 2, 1, 3]), [channels, 1, count, tall * width])
    rows = op.Transpose(x, perm=[1, 2, 3, 0])
    if top or bottom:
        rows = op.Pad(rows, [0, top, 0, 0, 0, bottom, 0, 0])
    row = down * np.arange(height)[:, None] + tall_step * np.arange(tall)
    windows = op.Reshape(
        op.Gather(rows, row.reshape(-1), axis=1), [channels, height, tall * width, -1]
    )
    products = op.MatMul(band, windows)
    if bias is not None:
        products = op.Add(products, op.Reshape(bias, [channels, 1, 1, 1]))
    return op.Transpose(products, perm=[3, 0, 1, 2])
