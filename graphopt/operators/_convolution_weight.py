"""The gradient of a convolution's weight.

With stride s, dilation d and padding b in front, along each spatial axis:
dW[m, c, k] = Σ dy[n, m, p] x[n, c, s p + d k - b] over the examples n and the windows p.
There are several ways to compute it; `choose` knows the fastest.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.local_functions import call_body, may_run_as_kernel
from graphopt.operators.backward import Backward, Dim
from graphopt.operators.window import Window

_LONG_ROW = 256  # from so many windows on, a product for each example is faster than one of all
_MANY_COLUMNS = 2**23  # elements of the copies for an example: 1 GiB for 32 examples
_FEW_TAPS = 32  # ONNX Runtime concatenates no more in a CUDA graph
_BLOCK = 24  # columns of a product of which only a band is wanted
_WIDEST = 2**14  # columns that are cut into blocks, each of which is some nodes


@dataclass(frozen=True)
class Layer:
    """A convolution of ``x`` whose result has the gradient ``dy``.

    Attributes:
        op: Appends nodes.
        x: What is convolved: [batch, group * channels, ...].
        dy: The gradient of the result: [batch, outputs, ...].
        window: The windows that slide over ``x``.
        group: The number of groups of channels.
        outputs: The channels of the result; None if not known, like the next three.
        channels: The channels of ``x`` in a group.
        sizes: The spatial sizes of ``x``.
        counts: The spatial sizes of ``dy``.
    """

    op: GraphBuilder
    x: ir.Value
    dy: ir.Value
    window: Window
    group: int
    outputs: Dim
    channels: Dim
    sizes: list[int] | None
    counts: list[int] | None

    @property
    def is_static(self) -> bool:
        """Whether the spatial sizes are known before the graph runs."""
        return self.sizes is not None and self.counts is not None


Formulation = Callable[[Layer], ir.Value]


def weight_gradient(b: Backward, layer: Layer) -> ir.Value:
    """The gradient of the weight, by the formulation that suits the layer."""
    return choose(layer, b.provider)(layer)


def choose(layer: Layer, provider: str) -> Formulation:
    """The formulation that was measured to be the fastest."""
    window = layer.window
    if not isinstance(layer.channels, int) or not isinstance(layer.outputs, int):
        return by_swapped_roles
    is_static = layer.is_static
    if is_static and min(_stops(layer), default=1) <= 0:
        return of_padding_alone
    if is_static and window.is_pointwise and layer.group == 1:
        many = math.prod(layer.counts or ()) >= _LONG_ROW
        if many:
            return by_product_of_each_example
        on_cpu = provider == "CPUExecutionProvider"
        return by_product if on_cpu or not window.is_dense else by_product_of_patches
    if provider != "CPUExecutionProvider":
        return _choose_for_device(layer)
    if is_static and layer.channels == 1 and layer.group > 1:
        if len(window.kernel) == 2 and max(layer.counts or ()) <= _WIDEST:
            is_depthwise = layer.outputs == layer.group
            has_kernel = is_depthwise and may_run_as_kernel(layer.op, layer.x, layer.dy)
            return by_kernel if has_kernel else by_band
        if layer.outputs == layer.group:
            return by_sum_of_each_tap
    if window.dilations[-1] == 1:
        return by_channels_last
    return by_product_of_each_tap if is_static and layer.group == 1 else by_swapped_roles


def _choose_for_device(layer: Layer) -> Formulation:
    """Products of matrices: a convolution with a kernel as large as an image can take a second."""
    window = layer.window
    if not layer.is_static:
        return by_swapped_roles
    if layer.channels == 1 and layer.outputs == layer.group > 1:
        return by_sum_of_each_tap
    if layer.group > 1 or 0 in (layer.counts or ()):
        return by_swapped_roles
    if window.kernel == window.strides and not any(window.pads) and not _has_gaps(layer):
        return by_product_of_patches
    size = _int(layer.channels) * math.prod(window.kernel) * math.prod(layer.counts or ())
    return by_product_of_columns if size <= _MANY_COLUMNS else by_product_of_each_tap


def _has_gaps(layer: Layer) -> bool:
    """Whether elements of ``x`` lie in no window."""
    window = layer.window
    return max(window.dilations) > 1 or any(window.rest(layer.sizes or [], layer.counts or []))


def of_padding_alone(layer: Layer) -> ir.Value:
    """No window meets an element of ``x``: the last ends before the first element."""
    assert layer.x.dtype is not None
    zero = np.zeros(1, layer.x.dtype.numpy())
    return layer.op.ConstantOfShape(_weight_shape(layer), value=ir.tensor(zero))


def by_swapped_roles(layer: Layer) -> ir.Value:
    """dWᵀ = Conv(xᵀ, dyᵀ), where ᵀ swaps batch and channels, with stride and dilation swapped."""
    op, window = layer.op, layer.window
    x, end = _trimmed(layer)
    if layer.group > 1:  # [n, group * c, ...] as [c, group * n, ...]
        spatial = op.Shape(x, start=2)
        x = op.Reshape(x, op.Concat([0, layer.group, -1], spatial, axis=0))
        x = op.Transpose(x, perm=[2, 1, 0, *(axis + 1 for axis in window.axes)])
        x = op.Reshape(x, op.Concat([0, -1], spatial, axis=0))
    else:
        x = _channels_first(layer, x)
    gradient = op.Conv(
        x,
        _channels_first(layer, layer.dy),
        group=layer.group,
        strides=window.dilations,
        dilations=window.strides,
        pads=[*window.begin, *end],
    )
    if not layer.is_static:
        gradient = op.Slice(gradient, [0] * len(window.kernel), window.kernel, window.axes)
    return _channels_first(layer, gradient)


def by_channels_last(layer: Layer) -> ir.Value:
    """As `by_swapped_roles`, but of one image for each group, with rows of width * channels.

    A window of the kernel's width is then one run of memory, in which all channels are.
    """
    op, window, channels = layer.op, layer.window, _int(layer.channels)
    assert window.dilations[-1] == 1
    x, end = _trimmed(layer)
    if layer.is_static:
        shape: Operand = [1, -1, *_widened(_stops(layer), channels)]
    else:
        width = op.Mul(op.Shape(x, start=-1), channels)
        shape = op.Concat([1, -1], op.Shape(x, start=2, end=-1), width, axis=0)
    if layer.group > 1:
        x = op.Reshape(x, op.Concat([0, layer.group, -1], op.Shape(x, start=2), axis=0))
        x = op.Transpose(x, perm=[1, 0, *(axis + 1 for axis in window.axes), 2])
    else:
        x = op.Transpose(x, perm=[0, *window.axes, 1])
    gradient = op.Conv(
        op.Reshape(x, shape),
        _channels_first(layer, layer.dy),
        group=layer.group,
        strides=window.dilations,
        dilations=_widened(window.strides, channels),
        pads=[*_widened(window.begin, channels), *_widened(end, channels)],
    )
    if not layer.is_static:
        kernel = _widened(window.kernel, channels)
        gradient = op.Slice(gradient, [0] * len(kernel), kernel, window.axes)
    return _channels_second(layer, gradient)


def by_product(layer: Layer) -> ir.Value:
    """A kernel of one element: dW = dy xᵀ, with examples and windows in one row."""
    op = layer.op
    # The runtime takes what stands last first: x is copied when dy, with all before it, is there.
    x = op.Reshape(_channels_first(layer, _each_stride(layer)), [_int(layer.channels), -1])
    dy = op.Reshape(_channels_first(layer, layer.dy), [_int(layer.outputs), -1])
    return op.Reshape(op.Gemm(dy, x, transB=1), _weight_shape(layer))


def by_product_of_each_example(layer: Layer) -> ir.Value:
    """A kernel of one element: dW = Σ dy xᵀ over the examples."""
    op = layer.op
    dy = op.Reshape(layer.dy, [0, _int(layer.outputs), -1])
    x = op.Reshape(_each_stride(layer), [0, _int(layer.channels), -1])
    products = op.MatMul(dy, op.Transpose(x, perm=[0, 2, 1]))
    return op.Reshape(op.ReduceSum(products, [0], keepdims=0), _weight_shape(layer))


def by_product_of_each_tap(layer: Layer) -> ir.Value:
    """dW[k] = dy xᵀ for each element k of the kernel, with those x that meet it."""
    op = layer.op
    dy = op.Reshape(_channels_first(layer, layer.dy), [_int(layer.outputs), -1])
    x = _padded(layer, _channels_first(layer, layer.x))
    products = [
        op.Gemm(dy, op.Reshape(tap, [_int(layer.channels), -1]), transB=1)
        for tap in _taps(layer, x)
    ]
    return _channels_second(layer, op.Concat(*products, axis=1))


def by_product_of_columns(layer: Layer) -> ir.Value:
    """dW = dy xᵀ for all elements of the kernel at once, with copies of those x that meet each."""
    op = layer.op
    dy = op.Reshape(_channels_first(layer, layer.dy), [_int(layer.outputs), -1])
    x = _padded(layer, _channels_first(layer, layer.x))
    if math.prod(layer.window.kernel) <= _FEW_TAPS:
        taps = _taps(layer, x)
        x = op.Concat(*taps, axis=0) if len(taps) > 1 else taps[0]
    else:
        x = _columns_axis_by_axis(layer, x)
    columns = op.Reshape(x, [_int(layer.channels) * math.prod(layer.window.kernel), -1])
    return _channels_second(layer, op.Gemm(dy, columns, transB=1))


def _columns_axis_by_axis(layer: Layer, x: ir.Value) -> ir.Value:
    """The columns of a large kernel, with fewer copies: what its rows have in common is one."""
    op, window = layer.op, layer.window
    axes = list(zip(window.axes, window.kernel, window.dilations, window.strides, strict=True))
    for (axis, width, dilation, stride), count in reversed(
        list(zip(axes, layer.counts or (), strict=True))
    ):
        reach = stride * (count - 1) + 1
        starts = [dilation * index for index in range(width)]
        x = op.Concat(*(op.Slice(x, [at], [at + reach], [axis], [stride]) for at in starts), axis=0)
    return x


def by_product_of_patches(layer: Layer) -> ir.Value:
    """Windows that lie side by side: dW = dy xᵀ with the patches of ``x`` as they are."""
    op, window, rank = layer.op, layer.window, len(layer.window.kernel)
    outputs, channels = _int(layer.outputs), _int(layer.channels)
    split = [n for pair in zip(layer.counts or (), window.kernel, strict=True) for n in pair]
    x = op.Reshape(layer.x, [-1, channels, *split])
    windows, elements = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    x = op.Transpose(x, perm=[0, *windows, 1, *elements])
    x = op.Reshape(x, [-1, channels * math.prod(window.kernel)])
    dy = op.Reshape(op.Transpose(layer.dy, perm=[0, *window.axes, 1]), [-1, outputs])
    return op.Reshape(op.Gemm(dy, x, transA=1), _weight_shape(layer))


def by_sum_of_each_tap(layer: Layer) -> ir.Value:
    """One channel in each group: dW[k] = Σ dy x for each element k of the kernel."""
    op, axes = layer.op, [0, *layer.window.axes]
    x = _padded(layer, layer.x)
    sums = [
        op.Unsqueeze(op.ReduceSum(op.Mul(layer.dy, tap), axes, keepdims=0), [1])
        for tap in _taps(layer, x)
    ]
    return op.Reshape(op.Concat(*sums, axis=1), _weight_shape(layer))


def by_band(layer: Layer) -> ir.Value:
    """One channel in each group, in 2-D: for each row of the kernel, the bands of dyᵀ x.

    dyᵀ x sums over examples and rows the products of any column of dy with any of x; those that
    an element of the kernel multiplies lie on a band. It is computed block by block, for blocks
    of columns of dy, and a product with a mask sums over the bands.
    """
    op, window, group, outputs = layer.op, layer.window, layer.group, _int(layer.outputs)
    assert layer.counts is not None
    height, width = layer.counts
    x, dy = _channels_first(layer, layer.x), _channels_first(layer, layer.dy)
    if window.begin[0] or window.end[0]:  # columns that are padding are left out of the bands
        x = op.Pad(x, [0, 0, window.begin[0], 0, 0, 0, window.end[0], 0])
    blocks = []
    for first in range(0, width, _BLOCK):
        last = min(first + _BLOCK, width)
        part = op.Slice(dy, [first], [last], [3]) if width > _BLOCK else dy
        if outputs == group:
            part = op.Transpose(op.Reshape(part, [group, -1, last - first]), perm=[0, 2, 1])
        else:
            part = op.Reshape(part, [group, outputs // group, -1, last - first])
            part = op.Reshape(
                op.Transpose(part, perm=[0, 1, 3, 2]),
                [group, outputs // group * (last - first), -1],
            )
        blocks.append((part, *_band(layer, first, last)))
    mask = np.concatenate([mask for *_, mask in blocks])
    rows = []
    for row in range(window.kernel[0]):
        start = row * window.dilations[0]
        stop = start + window.strides[0] * (height - 1) + 1
        products = []
        for part, low, high, _ in blocks:
            meets = op.Slice(x, [start, low], [stop, high], [2, 3], [window.strides[0], 1])
            product = op.MatMul(part, op.Reshape(meets, [group, -1, high - low]))
            products.append(op.Reshape(product, [outputs, -1]))
        bands = op.Concat(*products, axis=1) if len(products) > 1 else products[0]
        rows.append(op.MatMul(bands, mask))
    return op.Reshape(op.Concat(*rows, axis=1), _weight_shape(layer))


def by_kernel(layer: Layer) -> ir.Value:
    """A function for which there is a kernel; its body is `by_band`."""
    window = layer.window
    attributes: dict[str, Any] = {**window.attributes(), "group": layer.group}
    (gradient,) = call_body(
        layer.op,
        "DepthwiseConvWeightGradient",
        [layer.x, layer.dy],
        lambda body, x, dy: by_band(replace(layer, op=body, x=x, dy=dy)),
        repr((window, layer.group, layer.sizes, layer.counts)),
        **attributes,
    )
    gradient.shape = ir.Shape(_weight_shape(layer))
    return gradient


def _band(layer: Layer, first: int, last: int) -> tuple[int, int, np.ndarray]:
    """The columns of x that these columns of dy meet, and which pair of them meets where."""
    assert layer.sizes is not None
    window, size = layer.window, layer.sizes[1]
    start = window.strides[1] * np.arange(first, last)[:, None] - window.begin[1]
    column = start + window.dilations[1] * np.arange(window.kernel[1])
    inside = column[(column >= 0) & (column < size)]
    low, high = (int(inside.min()), int(inside.max()) + 1) if inside.size else (0, 1)
    mask = column[:, None, :] == np.arange(low, high)[:, None]
    dtype = layer.x.dtype or ir.DataType.FLOAT
    return low, high, mask.reshape(-1, window.kernel[1]).astype(dtype.numpy())


def _trimmed(layer: Layer) -> tuple[ir.Value, list[int]]:
    """``x`` and the padding behind it, without what lies behind the last window, where known."""
    window = layer.window
    if layer.sizes is None or layer.counts is None:
        return layer.x, window.end
    end = [
        end - rest
        for end, rest in zip(window.end, window.rest(layer.sizes, layer.counts), strict=True)
    ]
    x = layer.x
    if min(end, default=0) < 0:
        x = layer.op.Slice(x, [0] * len(end), _stops(layer), window.axes)
    return x, [max(size, 0) for size in end]


def _stops(layer: Layer) -> list[int]:
    """The spatial sizes of what `_trimmed` leaves."""
    sizes, counts = layer.sizes or [], layer.counts or []
    rests, ends = layer.window.rest(sizes, counts), layer.window.end
    return [size + min(end - rest, 0) for size, end, rest in zip(sizes, ends, rests, strict=True)]


def _each_stride(layer: Layer) -> ir.Value:
    """The elements of ``x`` that a kernel of one element meets."""
    window = layer.window
    if window.is_dense:
        return layer.x
    spatial = len(window.kernel)
    stops = [np.iinfo(np.int64).max] * spatial
    return layer.op.Slice(layer.x, [0] * spatial, stops, window.axes, window.strides)


def _padded(layer: Layer, x: ir.Value) -> ir.Value:
    window = layer.window
    if not any(window.pads):
        return x
    return layer.op.Pad(x, [0, 0, *window.begin, 0, 0, *window.end])


def _taps(layer: Layer, x: ir.Value) -> list[ir.Value]:
    """The elements of padded ``x`` that each element of the kernel meets, in the shape of dy."""
    window = layer.window
    taps = []
    for index in itertools.product(*(range(size) for size in window.kernel)):
        starts = [i * d for i, d in zip(index, window.dilations, strict=True)]
        stops = [
            start + stride * (count - 1) + 1
            for start, stride, count in zip(starts, window.strides, layer.counts or (), strict=True)
        ]
        taps.append(layer.op.Slice(x, starts, stops, window.axes, window.strides))
    return taps


def _channels_first(layer: Layer, x: ir.Value) -> ir.Value:
    """Swaps batch and channels."""
    return layer.op.Transpose(x, perm=[1, 0, *layer.window.axes])


def _channels_second(layer: Layer, gradient: ir.Value) -> ir.Value:
    """A gradient [outputs, kernel * channels] in the order of the weight."""
    op, rank = layer.op, len(layer.window.kernel)
    shape = [_int(layer.outputs), *layer.window.kernel, _int(layer.channels)]
    return op.Transpose(op.Reshape(gradient, shape), perm=[0, rank + 1, *range(1, rank + 1)])


def _weight_shape(layer: Layer) -> list[int]:
    return [_int(layer.outputs), _int(layer.channels), *layer.window.kernel]


def _widened(sizes: Sequence[int], channels: int) -> list[int]:
    return [*sizes[:-1], sizes[-1] * channels]


def _int(size: Dim) -> int:
    assert isinstance(size, int)
    return size
