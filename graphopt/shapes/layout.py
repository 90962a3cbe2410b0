"""The same elements in another shape; parts and joins."""

import numpy as np

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, axis_of, known, needed, plus, product, whole
from graphopt.shapes.values import INT64, MOST_ELEMENTS, TensorInfo, tensor


def reshape(node: Node) -> list[TensorInfo]:
    """The shape that the second input is, or the attribute ``shape``."""
    first, wanted = node.input(0), node.dims(1)
    if wanted is None:
        wanted = needed(node.attributes.integers("shape"))
    kept = first.shape
    copies = not node.attributes.integer("allowzero")
    sizes: list[Dim] = list(wanted)
    copied = set()
    for at, size in enumerate(wanted):
        if size == 0 and copies:
            sizes[at] = kept[at] if kept is not None else None
            copied.add(at)
    if -1 in sizes:
        at = sizes.index(-1)
        # What is copied, known or not, is on both sides.
        same = {axis for axis in copied if known(sizes[axis]) != 0}
        others = known(product(*(s for axis, s in enumerate(sizes) if axis not in same | {at})))
        elements = None
        if kept is not None:
            elements = known(product(*(s for axis, s in enumerate(kept) if axis not in same)))
        sizes[at] = elements // others if elements is not None and others else None
    return [tensor(first.dtype, sizes, first.numbers)]


def squeeze(node: Node) -> list[TensorInfo]:
    """Without axes of size 1."""
    first, axes, shape = node.input(0), node.axes(), node.shape()
    if axes is None or (not axes and node.has(1)):
        return [tensor(first.dtype, None)]  # runtimes differ over an empty list
    if axes:
        dropped = {axis_of(axis, len(shape)) for axis in axes}
    elif whole(shape) is None:
        return [tensor(first.dtype, None)]
    else:
        dropped = {at for at, size in enumerate(shape) if size == 1}
    kept = [size for at, size in enumerate(shape) if at not in dropped]
    return [tensor(first.dtype, kept, first.numbers)]


def unsqueeze(node: Node) -> list[TensorInfo]:
    """With axes of size 1."""
    first, sizes, axes = node.input(0), list(node.shape()), needed(node.axes())
    rank = len(sizes) + len(axes)
    for at in sorted({axis_of(axis, rank) for axis in axes}):
        sizes.insert(at, 1)
    return [tensor(first.dtype, sizes, first.numbers)]


def flatten(node: Node) -> list[TensorInfo]:
    """As a matrix."""
    first, shape, axis = node.input(0), node.shape(), node.attributes.integer("axis", 1)
    at = axis + len(shape) if axis < 0 else axis
    return [tensor(first.dtype, (product(*shape[:at]), product(*shape[at:])), first.numbers)]


def transpose(node: Node) -> list[TensorInfo]:
    """With the axes in another order."""
    shape = node.shape()
    order = node.attributes.integers("perm") or range(len(shape))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise IndexError("perm is no permutation of the axes")
    array = _array(node.input(0))
    numbers = None if array is None else array.transpose(tuple(order)).ravel().tolist()
    return [tensor(node.input(0).dtype, [shape[axis] for axis in order], numbers)]


def _array(info: TensorInfo) -> np.ndarray | None:
    """The elements in their shape, where some are known."""
    shape = None if info.shape is None else whole(info.shape)
    if info.numbers is None or shape is None:
        return None
    array = np.empty(len(info.numbers), object)
    array[:] = info.numbers
    return array.reshape(shape)


def block(node: Node) -> list[TensorInfo]:
    """Channels as blocks of pixels (DepthToSpace), or the other way (SpaceToDepth)."""
    block = node.attributes.integer("blocksize", 1)
    batch, channels, height, width = node.shape()
    if node.op_type == "DepthToSpace":
        sizes = [_over(channels, block * block), product(height, block), product(width, block)]
    else:
        sizes = [product(channels, block * block), _over(height, block), _over(width, block)]
    return [tensor(node.input(0).dtype, [batch, *sizes])]


def _over(size: Dim, divisor: int) -> Dim:
    return size // divisor if isinstance(size, int) else None


def tile(node: Node) -> list[TensorInfo]:
    """Repeated as often as the second input says."""
    pairs = zip(node.shape(), node.dims(1) or (None,) * len(node.shape()), strict=True)
    return [tensor(node.input(0).dtype, [product(*pair) for pair in pairs])]


def pad(node: Node) -> list[TensorInfo]:
    """With something before and after."""
    sizes = list(node.shape())
    pads = node.attributes.integers("pads") or node.integers(1)
    if pads is None:
        return [tensor(node.input(0).dtype, (None,) * len(sizes))]
    axes = needed(node.integers(3)) if node.has(3) else tuple(range(len(sizes)))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        at = axis_of(axis, len(sizes))
        sizes[at] = plus(sizes[at], before + after)
    return [tensor(node.input(0).dtype, sizes)]


def concat(node: Node) -> list[TensorInfo]:
    """All inputs, one after another; of ConcatTraining, their lengths too."""
    shapes = [node.shape(index) for index in range(len(node.inputs))]
    axis = node.axis(0, len(shapes[0]))
    joined = [shape[axis] for shape in shapes]
    lengths = whole(joined)
    sizes = [_agreed(column) for column in zip(*shapes, strict=True)]
    sizes[axis] = joined[0] if len(joined) == 1 else None if lengths is None else sum(lengths)
    dtype, numbers = node.input(0).dtype, None
    if len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] <= MOST_ELEMENTS:
        numbers = [element for index, length in enumerate(lengths or ())
                   for element in node.input(index).numbers or (None,) * length]  # fmt: skip
    outputs = [tensor(dtype, sizes, numbers)]
    if node.outputs > 1:  # ConcatTraining
        outputs.append(tensor(INT64, (len(joined),), lengths))
    return outputs


def _agreed(sizes: tuple[Dim, ...]) -> Dim:
    """The size that all these are: a number if one of them is."""
    given = [size for size in sizes if size is not None]
    return min(given, key=lambda size: isinstance(size, str), default=None)


def split(node: Node) -> list[TensorInfo]:
    """Parts of an axis."""
    first, shape = node.input(0), node.shape()
    axis = node.axis(0, len(shape))
    lengths = node.attributes.integers("split") or node.sizes(1)
    size, count = shape[axis], node.outputs
    parts: list[Dim]
    if lengths is not None:
        parts = list(lengths)
    elif node.has(1) or not isinstance(size, int):
        parts = [None] * count
    else:
        length = -(-size // count)
        parts = [min(length, max(size - at * length, 0)) for at in range(count)]
    return [tensor(first.dtype, [*shape[:axis], part, *shape[axis + 1 :]]) for part in parts][
        :count
    ]


_BEYOND = np.iinfo(np.int32).max
"""Where a Slice ends that takes all, whatever the size."""


def part(node: Node) -> list[TensorInfo]:
    """From somewhere to somewhere in steps (Slice)."""
    first, sizes = node.input(0), list(node.shape())
    attributes, rank = node.attributes, len(node.shape())
    starts = attributes.integers("starts") or node.sizes(1)
    ends = attributes.integers("ends") or node.sizes(2)
    axes = attributes.integers("axes") or (node.integers(3) if node.has(3) else ())
    steps = node.sizes(4) if node.has(4) else ()
    if starts is None or ends is None or steps is None or axes is None:
        if axes == () and isinstance(count := node.shape(1)[0], int):
            axes = tuple(range(count))
        unknown = {axis_of(axis, rank) for axis in axes or range(rank)}
        return [tensor(first.dtype, [None if at in unknown else s for at, s in enumerate(sizes)])]
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    array = _array(first)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis_of(axis, rank)
        size = sizes[at]
        if (start, step) == (0, 1) and isinstance(end, int) and end >= _BEYOND:
            continue
        part = None
        if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
            part = _part(size, start, end, step)
        sizes[at] = None if part is None else len(part)
        if array is not None:
            array = None if part is None else array.take(list(part), at)
    numbers = None if array is None else array.ravel().tolist()
    return [tensor(first.dtype, sizes, numbers)]


def _part(size: int, start: int, end: int, step: Dim) -> range | None:
    """The places that a Slice takes of an axis."""
    if not isinstance(step, int) or (step < 0 and end >= 2**31 - 1):
        return None  # "to the end", backwards: ONNX takes nothing, ONNX Runtime goes to the front
    if step < 0:  # from before the front is from the front
        return range(size)[max(start, -size) : None if end < -size else end : step]
    return range(size)[start:end:step]
