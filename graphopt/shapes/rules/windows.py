"""Convolutions, pools and what else moves a window; images."""

import math
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.shapes.values import (
    INT64,
    Dim,
    Dims,
    Node,
    Rule,
    TensorInfo,
    axis_of,
    needed,
    product,
    tensor,
)


def _places(size: int, kernel: int, stride: int, dilation: int, pads: int, up: int) -> int:
    """The number of places of a window."""
    places = size + pads - (dilation * (kernel - 1) + 1)
    if stride < 1 or places < 0:
        raise ValueError("the window does not fit")
    return (places + up * (stride - 1)) // stride + 1


def _spatial(node: Node, sizes: Dims, kernel: Sequence[Dim], *, up: int = 0) -> list[Dim]:
    attributes, rank = node.attributes, len(sizes)
    strides = attributes.integers("strides") or (1,) * rank
    dilations = attributes.integers("dilations") or (1,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    padding = attributes.text("auto_pad", "NOTSET")
    found: list[Dim] = []
    for at, size in enumerate(sizes):
        window = kernel[at]
        if not isinstance(size, int):
            found.append(None)
        elif padding in ("SAME_UPPER", "SAME_LOWER"):
            found.append(-(-size // strides[at]))
        elif not isinstance(window, int):
            found.append(None)
        else:
            begin, end = (0, 0) if padding == "VALID" else (pads[at], pads[at + rank])
            places = _places(size, window, strides[at], dilations[at], begin + end, up)
            # A window must begin inside the input or the padding before it.
            places -= up and (places - 1) * strides[at] >= size + begin
            found.append(places)
    return found


def _conv(weight: int = 1, dtype: ir.DataType | None = None) -> Rule:
    """A convolution with this input, of the dtype of the first or this one."""

    def rule(node: Node) -> list[TensorInfo]:
        shape, sizes = node.shape(), node.shape(weight)
        kernel = node.attributes.integers("kernel_shape") or sizes[2:]
        places = _spatial(node, shape[2:], kernel)
        return [tensor(dtype or node.input(0).dtype, [shape[0], sizes[0], *places])]

    return rule


def _conv_transpose(node: Node) -> list[TensorInfo]:
    shape, weight = node.shape(), node.shape(1)
    attributes, rank = node.attributes, len(shape) - 2
    kernel = attributes.integers("kernel_shape") or weight[2:]
    strides = attributes.integers("strides") or (1,) * rank
    dilations = attributes.integers("dilations") or (1,) * rank
    more = attributes.integers("output_padding") or (0,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    padding = attributes.text("auto_pad", "NOTSET")
    sizes: list[Dim] = [*(attributes.integers("output_shape") or ())[-rank:]]
    for at, size in enumerate(() if sizes else shape[2:]):
        window = kernel[at]
        if not isinstance(size, int) or not isinstance(window, int):
            sizes.append(None)
        elif padding in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(size * strides[at])
        else:
            around = 0 if padding == "VALID" else pads[at] + pads[at + rank]
            spread = dilations[at] * (window - 1) + 1
            sizes.append(strides[at] * (size - 1) + more[at] + spread - around)
    channels = product(weight[1], attributes.integer("group", 1))
    return [tensor(node.input(0).dtype, [shape[0], channels, *sizes])]


def _pool(node: Node) -> list[TensorInfo]:
    first, shape = node.input(0), node.shape()
    kernel = needed(node.attributes.integers("kernel_shape"))
    sizes = _spatial(node, shape[2:], kernel, up=int(node.attributes.integer("ceil_mode") != 0))
    found = [*shape[:2], *sizes]
    return [tensor(first.dtype, found), tensor(INT64, found)]


def _unpool(node: Node) -> list[TensorInfo]:
    first, shape = node.input(0), node.shape()
    if node.has(2):
        return [tensor(first.dtype, node.dims(2))]
    attributes, rank = node.attributes, len(shape) - 2
    kernel = needed(attributes.integers("kernel_shape"))
    strides = attributes.integers("strides") or (1,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    sizes = [
        (size - 1) * strides[at] - pads[at] - pads[at + rank] + kernel[at]
        if isinstance(size, int) else None
        for at, size in enumerate(shape[2:])
    ]  # fmt: skip
    return [tensor(first.dtype, [*shape[:2], *sizes])]


def _global_pool(node: Node) -> list[TensorInfo]:
    shape = node.shape()
    return [tensor(node.input(0).dtype, [*shape[:2], *(1 for _ in shape[2:])])]


def _pool_regions(node: Node) -> list[TensorInfo]:
    """MaxRoiPool and RoiAlign."""
    attributes, channels = node.attributes, node.shape()[1]
    sizes = attributes.integers("pooled_shape") or (
        attributes.integer("output_height", 1),
        attributes.integer("output_width", 1),
    )
    return [tensor(node.input(0).dtype, [node.shape(1)[0], channels, *sizes])]


def _from_columns(node: Node) -> list[TensorInfo]:
    """Col2Im."""
    batch, rows = node.shape()[:2]
    image, block = node.dims(1), node.integers(2)
    channels = None
    if block is not None and isinstance(rows, int):
        channels = rows // math.prod(block)
    return [tensor(node.input(0).dtype, None if image is None else [batch, channels, *image])]


def _resize(node: Node) -> list[TensorInfo]:
    dtype, sizes, last = node.input(0).dtype, list(node.shape()), len(node.inputs) - 1
    axes = node.attributes.integers("axes") or tuple(range(len(sizes)))
    if last == 3 and node.has(3):
        if node.attributes.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ValueError("the aspect ratio is kept")
        for axis, wanted in zip(axes, node.dims(3) or (None,) * len(axes), strict=True):
            sizes[axis_of(axis, len(sizes))] = wanted
        return [tensor(dtype, sizes)]
    scales = node.input(min(last, 2)).numbers
    for axis, scale in zip(axes, scales or (None,) * len(axes), strict=True):
        at = axis_of(axis, len(sizes))
        size = sizes[at]
        if isinstance(size, int) and isinstance(scale, int | float):
            sizes[at] = math.floor(size * scale)
        elif scale != 1:
            sizes[at] = None
    return [tensor(dtype, sizes)]


def _center(node: Node) -> list[TensorInfo]:
    """CenterCropPad."""
    sizes, wanted = list(node.shape()), node.dims(1)
    axes = node.attributes.integers("axes") or tuple(range(len(sizes)))
    for axis, size in zip(axes, wanted or (None,) * len(axes), strict=True):
        sizes[axis_of(axis, len(sizes))] = size
    return [tensor(node.input(0).dtype, sizes)]


def _affine_grid(node: Node) -> list[TensorInfo]:
    batch, _, *image = node.dims(1) or ()
    return [tensor(node.input(0).dtype, [batch, *image, len(image)])]


def _sampled(node: Node) -> list[TensorInfo]:
    """GridSample."""
    return [tensor(node.input(0).dtype, [*node.shape()[:2], *node.shape(1)[1:-1]])]


def _conv_grad(node: Node) -> list[TensorInfo]:
    weight = node.input(2)
    bias = tensor(weight.dtype, weight.shape[:1] if weight.shape else None)
    return [node.input(1), tensor(weight.dtype, weight.shape), bias]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("Conv", "DeformConv"), _conv()),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("MaxRoiPool", "RoiAlign"), _pool_regions),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "AffineGrid": _affine_grid,
    "CenterCropPad": _center,
    "Col2Im": _from_columns,
    "ConvInteger": _conv(dtype=ir.DataType.INT32),
    "ConvTranspose": _conv_transpose,
    "GridSample": _sampled,
    "MaxUnpool": _unpool,
    "QLinearConv": _conv(weight=3),
    "com.microsoft::ConvGrad": _conv_grad,
}
