"""Convolutions, pools and what else moves a window; images."""

import math
from collections.abc import Sequence

import numpy as np

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, Dims, axis_of, needed, product
from graphopt.shapes.values import INT64, TensorInfo, tensor


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
            # Of dilations, ONNX Runtime's pools take no notice when they pad.
            found.append(-(-size // strides[at]) if dilations[at] == 1 else None)
        elif not isinstance(window, int):
            found.append(None)
        else:
            begin, end = (0, 0) if padding == "VALID" else (pads[at], pads[at + rank])
            places = _places(size, window, strides[at], dilations[at], begin + end, up)
            # A window must begin inside the input or the padding before it.
            places -= up and (places - 1) * strides[at] >= size + begin
            found.append(places)
    return found


def conv(node: Node) -> list[TensorInfo]:
    """A convolution with the second input."""
    shape, weight = node.shape(), node.shape(1)
    kernel = node.attributes.integers("kernel_shape") or weight[2:]
    places = _spatial(node, shape[2:], kernel)
    return [tensor(node.input(0).dtype, [shape[0], weight[0], *places])]


def conv_transpose(node: Node) -> list[TensorInfo]:
    """A transposed convolution with the second input."""
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
            continue
        spread = dilations[at] * (window - 1) + 1
        if padding in ("SAME_UPPER", "SAME_LOWER"):
            # ONNX Runtime does not pad to more than the windows cover.
            sizes.append(size * strides[at] if spread + more[at] >= strides[at] else None)
        else:
            around = 0 if padding == "VALID" else pads[at] + pads[at + rank]
            sizes.append(strides[at] * (size - 1) + more[at] + spread - around)
    channels = product(weight[1], attributes.integer("group", 1))
    return [tensor(node.input(0).dtype, [shape[0], channels, *sizes])]


def pool(node: Node) -> list[TensorInfo]:
    """What windows give, and where it stood."""
    first, shape = node.input(0), node.shape()
    kernel = needed(node.attributes.integers("kernel_shape"))
    sizes = _spatial(node, shape[2:], kernel, up=int(node.attributes.integer("ceil_mode") != 0))
    found = [*shape[:2], *sizes]
    return [tensor(first.dtype, found), tensor(INT64, found)]


def max_unpool(node: Node) -> list[TensorInfo]:
    """The shape that the third input is, or over which the windows slid."""
    shape, attributes = node.shape(), node.attributes
    if node.has(2):
        return [tensor(node.input(0).dtype, node.dims(2))]
    kernel = needed(attributes.integers("kernel_shape"))
    rank = len(kernel)
    strides = attributes.integers("strides") or (1,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    sizes = [
        (size - 1) * stride + width - begin - end if isinstance(size, int) else None
        for size, stride, width, begin, end in zip(
            shape[2:], strides, kernel, pads[:rank], pads[rank:], strict=True
        )
    ]
    return [tensor(node.input(0).dtype, [*shape[:2], *sizes])]


def col2im(node: Node) -> list[TensorInfo]:
    """Images whose size the second input is, of blocks whose size the third is."""
    images, rows, _ = node.shape()
    block = node.integers(2)
    channels = rows // math.prod(block) if isinstance(rows, int) and block else None
    sizes = node.dims(1)
    if sizes is None:
        raise IndexError("the rank is not known")
    return [tensor(node.input(0).dtype, [images, channels, *sizes])]


def global_pool(node: Node) -> list[TensorInfo]:
    """What one window gives."""
    shape = node.shape()
    return [tensor(node.input(0).dtype, [*shape[:2], *(1 for _ in shape[2:])])]


def resize(node: Node) -> list[TensorInfo]:
    """Images of other sizes, or so many times as large."""
    dtype, sizes, last = node.input(0).dtype, list(node.shape()), len(node.inputs) - 1
    axes = node.attributes.integers("axes") or tuple(range(len(sizes)))
    if last == 3 and node.has(3):
        policy = node.attributes.text("keep_aspect_ratio_policy", "stretch")
        places = [axis_of(axis, len(sizes)) for axis in axes]
        wanted = list(node.dims(3) or (None,) * len(axes))
        if policy != "stretch":
            if min(axes) < 0:
                raise ValueError("ONNX Runtime does not resize along axes from the end in a ratio")
            wanted = _in_ratio([sizes[at] for at in places], wanted, policy)
        for at, size in zip(places, wanted, strict=True):
            sizes[at] = size
        return [tensor(dtype, sizes)]
    scales = node.input(min(last, 2)).numbers
    for axis, scale in zip(axes, scales or (None,) * len(axes), strict=True):
        at = axis_of(axis, len(sizes))
        size = sizes[at]
        if isinstance(size, int) and isinstance(scale, int | float):
            sizes[at] = math.floor(np.float32(size) * np.float32(scale))  # rounded, as kernels do
        elif scale != 1:
            sizes[at] = None
    return [tensor(dtype, sizes)]


def _in_ratio(before: Sequence[Dim], wanted: Sequence[Dim], policy: str) -> list[Dim]:
    """Sizes in one ratio to those before, the largest ratio that fits, or the smallest that fills.

    Rounded as kernels do.
    """
    pairs = [(a, b) for a, b in zip(before, wanted, strict=True)]
    known = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int) and a]
    if len(known) < len(pairs) or policy not in ("not_larger", "not_smaller"):
        return [None] * len(pairs)
    choose = min if policy == "not_larger" else max
    scale = choose(np.float32(size) / np.float32(old) for old, size in known)
    return [math.floor(scale * np.float32(old) + np.float32(0.5)) for old, _ in known]


def conv_grad(node: Node) -> list[TensorInfo]:
    """The gradients of a convolution."""
    weight = node.input(2)
    bias = tensor(weight.dtype, weight.shape[:1] if weight.shape else None)
    return [node.input(1), tensor(weight.dtype, weight.shape), bias]
