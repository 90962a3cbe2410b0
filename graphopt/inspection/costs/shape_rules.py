"""The shapes that operators give, and the few numbers from which other shapes are computed."""

import math
import operator as arithmetic
from collections.abc import Callable, Sequence

from onnx import TensorProto

from graphopt.inspection.costs.shape_values import (
    MOST_ELEMENTS,
    UNKNOWN,
    Dims,
    Node,
    Number,
    TensorInfo,
    of_initializer,
    tensor,
    words,
)

Rule = Callable[[Node], Sequence[TensorInfo]]

_LONGEST_EQUATION = 256

_BOOL, _FLOAT, _INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64

UNARY = words(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu
    """
)
BINARY = words(
    """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Xor"""
)
COMPARISONS = words("And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor")
_PREDICATES = words("IsInf IsNaN Not")
REDUCTIONS = words(
    """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare com.microsoft::ReduceSumTraining"""
)
# Gradients of elementwise functions, and what else gives the shape of its first input.
_LIKE_FIRST = words(
    """Bernoulli CumSum Dropout GroupNormalization Hardmax Identity InstanceNormalization LRN
    LogSoftmax LpNormalization MeanVarianceNormalization RMSNormalization RandomNormalLike
    RandomUniformLike ReverseSequence RotaryEmbedding Scatter ScatterElements ScatterND Softmax
    Trilu com.microsoft::BiasGeluGrad_dX com.microsoft::DropoutGrad com.microsoft::FastGeluGrad
    com.microsoft::GeluGrad com.microsoft::LeakyReluGrad com.microsoft::LogSoftmaxGrad
    com.microsoft::LogSoftmaxGrad_13 com.microsoft::QuickGeluGrad com.microsoft::ReluGrad
    com.microsoft::SigmoidGrad com.microsoft::SoftmaxGrad com.microsoft::SoftmaxGrad_13
    com.microsoft::TanhGrad com.microsoft::ZeroGradient"""
)
RECURRENT = {"RNN": 1, "GRU": 3, "LSTM": 4}
"""How many gates there are."""


def same(node: Node) -> list[TensorInfo]:
    """Every output has the shape of the first input."""
    first = node.input(0)
    return [tensor(first.dtype, first.shape)] * node.outputs


def broadcast(*shapes: Dims | None) -> Dims | None:
    """The shape of an elementwise operation.

    Raises:
        ValueError: They do not fit.
    """
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in known]
    return tuple(_broadcast_size(sizes) for sizes in zip(*padded, strict=True))


def _broadcast_size(sizes: Sequence[int | None]) -> int | None:
    larger = {size for size in sizes if size is not None and size != 1}
    if len(larger) > 1:
        raise ValueError(f"sizes {sorted(larger)} do not fit each other")
    return larger.pop() if larger else None if None in sizes else 1


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise IndexError(f"axis: got {axis}, expected one of {rank}")
    return axis % rank


def _shape(info: TensorInfo) -> Dims:
    """A shape of known rank; IndexError otherwise, which makes the result unknown."""
    if info.shape is None:
        raise IndexError("the rank is not known")
    return info.shape


def _integers(node: Node, index: int) -> tuple[int, ...] | None:
    """The elements of an input that is a list of integers."""
    numbers = node.input(index).numbers
    return None if numbers is None else tuple(int(number) for number in numbers)


def _needed(numbers: tuple[int, ...] | None) -> tuple[int, ...]:
    if numbers is None:
        raise IndexError("the elements are not known")
    return numbers


def axes_of(node: Node) -> tuple[int, ...] | None:
    """The attribute or second input ``axes``; empty where it is given in neither way."""
    found = node.attributes.integers("axes")
    if found is not None:
        return found
    return _integers(node, 1) if node.has(1) else ()


def _are_few(count: int | None) -> bool:
    """Whether so many elements are followed."""
    return count is not None and count <= MOST_ELEMENTS


# Elementwise


def _elementwise(node: Node) -> list[TensorInfo]:
    given = [info or UNKNOWN for info in node.inputs]
    if not given:
        return [UNKNOWN]
    shape = broadcast(*(info.shape for info in given))
    dtype = _BOOL if node.op_type in COMPARISONS else given[0].dtype
    return [tensor(dtype, shape, _calculated(node.op_type, given, shape))]


_CALCULATED: dict[str, Callable[[Number, Number], Number]] = {
    "Add": arithmetic.add,
    "Sub": arithmetic.sub,
    "Mul": arithmetic.mul,
    "Max": max,
    "Min": min,
    "Equal": arithmetic.eq,
    "Greater": arithmetic.gt,
    "Less": arithmetic.lt,
    "And": lambda a, b: int(a and b),
    "Or": lambda a, b: int(a or b),
}


def _quotient(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _calculated(
    op_type: str, given: Sequence[TensorInfo], shape: Dims | None
) -> tuple[Number, ...] | None:
    """The elements of the result, of lists and single numbers."""
    function = _quotient if op_type == "Div" else _CALCULATED.get(op_type)
    count = tensor(0, shape).elements
    if function is None or len(given) != 2 or count is None or not _are_few(count):
        return None
    columns = []
    for info in given:
        if info.numbers is None or len(info.numbers) not in (1, count):
            return None
        columns.append(info.numbers * (count if len(info.numbers) == 1 else 1))
    return tuple(function(a, b) for a, b in zip(*columns, strict=True))


_CALCULATED_OF_ONE: dict[str, Callable[[Number], Number]] = {
    "Abs": abs,
    "Ceil": math.ceil,
    "Floor": math.floor,
    "Neg": arithmetic.neg,
}


def _unary(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    numbers = None
    function = _CALCULATED_OF_ONE.get(node.op_type)
    if first.numbers is not None and function is not None:
        numbers = [function(number) for number in first.numbers]
    dtype = _BOOL if node.op_type in _PREDICATES else first.dtype
    return [tensor(dtype, first.shape, numbers)]


def _identity(node: Node) -> list[TensorInfo]:
    return [node.input(0)] * node.outputs


def _cast(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    dtype = node.attributes.integer("to") if node.op_type == "Cast" else node.input(1).dtype
    return [tensor(dtype, first.shape, first.numbers)]


def _where(node: Node) -> list[TensorInfo]:
    condition, yes, no = (node.input(index) for index in range(3))
    shape = broadcast(condition.shape, yes.shape, no.shape)
    numbers = None
    if condition.numbers is not None and yes.numbers is not None and no.numbers is not None:
        count = max(len(yes.numbers), len(no.numbers), len(condition.numbers))
        columns = [part * count if len(part) == 1 else part
                   for part in (condition.numbers, yes.numbers, no.numbers)]  # fmt: skip
        numbers = [a if c else b for c, a, b in zip(*columns, strict=True)]
    return [tensor(yes.dtype or no.dtype, shape, numbers)]


def _dropout(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    return [tensor(first.dtype, first.shape), tensor(_BOOL, first.shape)]


# Shapes and constants


def _constant(node: Node) -> list[TensorInfo]:
    if (proto := node.attributes.tensor("value")) is not None:
        return [of_initializer(proto)]
    if "value_int" in node.attributes:
        return [tensor(_INT64, (), [node.attributes.integer("value_int")])]
    if (integers := node.attributes.integers("value_ints")) is not None:
        return [tensor(_INT64, (len(integers),), integers)]
    if "value_float" in node.attributes:
        return [tensor(_FLOAT, ())]
    if "value_floats" in node.attributes:
        return [tensor(_FLOAT, (len(node.attributes.all["value_floats"].floats),))]
    return [UNKNOWN]


def _shape_operator(node: Node) -> list[TensorInfo]:
    shape = _shape(node.input(0))
    start, end = node.attributes.integer("start"), node.attributes.integer("end", len(shape))
    part = shape[start:end]
    known = [size for size in part if size is not None]
    return [tensor(_INT64, (len(part),), known if len(known) == len(part) else None)]


def _size(node: Node) -> list[TensorInfo]:
    elements = node.input(0).elements
    return [tensor(_INT64, (), None if elements is None else [elements])]


def _constant_of_shape(node: Node) -> list[TensorInfo]:
    value = node.attributes.tensor("value")
    filling = tensor(_FLOAT, ()) if value is None else of_initializer(value)
    dtype, number = filling.dtype, filling.numbers[0] if filling.numbers else None
    shape = _integers(node, 0)
    if shape is None:
        (rank,) = _shape(node.input(0))
        return [tensor(dtype, None if rank is None else (None,) * min(rank, MOST_ELEMENTS))]
    found = tensor(dtype, shape)
    if number is None or not _are_few(found.elements):
        return [found]
    return [tensor(dtype, shape, [number] * (found.elements or 0))]


def _range(node: Node) -> list[TensorInfo]:
    dtype = node.input(0).dtype
    ends = [node.input(index).numbers for index in range(3)]
    if any(numbers is None for numbers in ends):
        return [tensor(dtype, (None,))]
    ((start,), (limit,), (delta,)) = (numbers or () for numbers in ends)
    count = max(math.ceil((limit - start) / delta), 0)
    numbers = [start + delta * at for at in range(count)] if _are_few(count) else None
    return [tensor(dtype, (count,), numbers)]


def _expand(node: Node) -> list[TensorInfo]:
    first, wanted = node.input(0), _integers(node, 1)
    expanded = tensor(first.dtype, broadcast(first.shape, wanted))
    count = expanded.elements
    if first.numbers is None or len(first.numbers) != 1 or not _are_few(count):
        return [expanded]
    return [tensor(first.dtype, expanded.shape, first.numbers * (count or 0))]


def _eye_like(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    return [tensor(node.attributes.integer("dtype", first.dtype), first.shape)]


def _random(node: Node) -> list[TensorInfo]:
    return [tensor(node.attributes.integer("dtype", _FLOAT), node.attributes.integers("shape"))]


# The same elements in another shape


def _reshape(node: Node) -> list[TensorInfo]:
    first, wanted = node.input(0), _integers(node, 1)
    if wanted is None:
        wanted = node.attributes.integers("shape")
    if wanted is None:
        (rank,) = _shape(node.input(1))
        return [tensor(first.dtype, None if rank is None else (None,) * min(rank, MOST_ELEMENTS))]
    sizes: list[int | None] = list(wanted)
    if not node.attributes.integer("allowzero"):
        kept = first.shape
        sizes = [
            size if size != 0 else kept[at] if kept is not None else None
            for at, size in enumerate(wanted)
        ]
    if -1 in sizes:
        at = sizes.index(-1)
        others = tensor(0, [*sizes[:at], *sizes[at + 1 :]]).elements
        elements = first.elements
        sizes[at] = elements // others if elements is not None and others else None
    return [tensor(first.dtype, sizes, first.numbers)]


def _squeeze(node: Node) -> list[TensorInfo]:
    first, axes = node.input(0), axes_of(node)
    shape = _shape(first)
    if axes is None:
        return [tensor(first.dtype, None)]
    if not axes and not node.has(1):
        if None in shape:
            return [tensor(first.dtype, None)]
        dropped = {at for at, size in enumerate(shape) if size == 1}
    else:
        dropped = {axis_of(axis, len(shape)) for axis in axes}
    kept = [size for at, size in enumerate(shape) if at not in dropped]
    return [tensor(first.dtype, kept, first.numbers)]


def _unsqueeze(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape, axes = _shape(first), _needed(axes_of(node))
    rank = len(shape) + len(axes)
    added = {axis_of(axis, rank) for axis in axes}
    sizes: list[int | None] = list(shape)
    for at in sorted(added):
        sizes.insert(at, 1)
    return [tensor(first.dtype, sizes, first.numbers)]


def _flatten(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape, axis = _shape(first), node.attributes.integer("axis", 1)
    at = axis + len(shape) if axis < 0 else axis
    rows, columns = tensor(0, shape[:at]).elements, tensor(0, shape[at:]).elements
    return [tensor(first.dtype, (rows, columns), first.numbers)]


def _transpose(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    order = node.attributes.integers("perm") or range(len(shape))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise IndexError("perm is no permutation of the axes")
    return [tensor(first.dtype, [shape[axis] for axis in order])]


def _block(node: Node) -> list[TensorInfo]:
    """DepthToSpace and SpaceToDepth."""
    first, block = node.input(0), node.attributes.integer("blocksize", 1)
    batch, channels, height, width = _shape(first)
    if node.op_type == "DepthToSpace":
        sizes = [_floor(channels, block * block), _times(height, block), _times(width, block)]
    else:
        sizes = [_times(channels, block * block), _floor(height, block), _floor(width, block)]
    return [tensor(first.dtype, [batch, *sizes])]


def _times(size: int | None, factor: int) -> int | None:
    return None if size is None else size * factor


def _floor(size: int | None, divisor: int) -> int | None:
    return None if size is None else size // divisor


# Parts and joins


def _concat(node: Node) -> list[TensorInfo]:
    given = [node.input(index) for index in range(len(node.inputs))]
    shapes = [_shape(info) for info in given]
    axis = axis_of(node.attributes.integer("axis"), len(shapes[0]))
    joined = [shape[axis] for shape in shapes]
    known = [size for size in joined if size is not None]
    sizes = [
        next((size for size in column if size is not None), None)
        for column in zip(*shapes, strict=True)
    ]
    sizes[axis] = sum(known) if len(known) == len(joined) else None
    numbers: list[Number] | None = []
    for info in given:
        if info.numbers is None or len(sizes) != 1 or numbers is None:
            numbers = None
            break
        numbers += info.numbers
        if len(numbers) > MOST_ELEMENTS:
            numbers = None
    outputs = [tensor(given[0].dtype, sizes, numbers)]
    if node.outputs > 1:  # ConcatTraining
        lengths = known if len(known) == len(joined) else None
        outputs.append(tensor(_INT64, (len(joined),), lengths))
    return outputs


def _split(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    axis = axis_of(node.attributes.integer("axis"), len(shape))
    lengths = node.attributes.integers("split") or _integers(node, 1)
    parts: list[int | None]
    if lengths is not None:
        parts = list(lengths)
    elif node.has(1) or shape[axis] is None:
        parts = [None] * node.outputs
    else:
        whole = shape[axis] or 0
        length = -(-whole // node.outputs)
        parts = [min(length, max(whole - at * length, 0)) for at in range(node.outputs)]
    return [tensor(first.dtype, [*shape[:axis], part, *shape[axis + 1 :]]) for part in parts][
        : node.outputs
    ]


def _slice(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    starts = node.attributes.integers("starts") or _integers(node, 1)
    ends = node.attributes.integers("ends") or _integers(node, 2)
    axes = node.attributes.integers("axes") or (_integers(node, 3) if node.has(3) else ())
    steps = _integers(node, 4) if node.has(4) else ()
    if starts is None or ends is None or steps is None or axes is None:
        if axes is None or not axes:
            return [tensor(first.dtype, (None,) * len(shape))]
        unknown = {axis_of(axis, len(shape)) for axis in axes}
        return [tensor(first.dtype, [None if at in unknown else s for at, s in enumerate(shape)])]
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    sizes, numbers = list(shape), first.numbers
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis_of(axis, len(shape))
        size = sizes[at]
        part = slice(start, None if step < 0 and end < -(size or 0) else end, step)
        sizes[at] = None if size is None else len(range(size)[part])
        numbers = numbers[part] if numbers is not None and len(shape) == 1 else None
    return [tensor(first.dtype, sizes, numbers)]


def _gather(node: Node) -> list[TensorInfo]:
    data, indices = node.input(0), node.input(1)
    shape, picked = _shape(data), _shape(indices)
    axis = axis_of(node.attributes.integer("axis"), len(shape))
    numbers = None
    if data.numbers is not None and indices.numbers is not None and len(shape) == 1:
        numbers = [data.numbers[int(index)] for index in indices.numbers]
    return [tensor(data.dtype, [*shape[:axis], *picked, *shape[axis + 1 :]], numbers)]


def _gather_elements(node: Node) -> list[TensorInfo]:
    return [tensor(node.input(0).dtype, node.input(1).shape)]


def _gather_nd(node: Node) -> list[TensorInfo]:
    shape, picked = _shape(node.input(0)), _shape(node.input(1))
    batch = node.attributes.integer("batch_dims")
    depth = picked[-1]
    left = None if depth is None else [*picked[:-1], *shape[batch + depth :]]
    return [tensor(node.input(0).dtype, left)]


def _tile(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape, repeats = _shape(first), _needed(_integers(node, 1))
    return [tensor(first.dtype, [_times(s, r) for s, r in zip(shape, repeats, strict=True)])]


def _pad(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    pads = node.attributes.integers("pads") or _needed(_integers(node, 1))
    axes = _needed(_integers(node, 3)) if node.has(3) else tuple(range(len(shape)))
    sizes = list(shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        at = axis_of(axis, len(shape))
        size = sizes[at]
        sizes[at] = None if size is None else size + before + after
    return [tensor(first.dtype, sizes)]


def _one_hot(node: Node) -> list[TensorInfo]:
    indices = _shape(node.input(0))
    depth = node.input(1).numbers
    axis = axis_of(node.attributes.integer("axis", -1), len(indices) + 1)
    size = int(depth[0]) if depth else None
    return [tensor(node.input(2).dtype, [*indices[:axis], size, *indices[axis:]])]


def _top_k(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    sizes = list(_shape(first))
    axis = axis_of(node.attributes.integer("axis", -1), len(sizes))
    count = _integers(node, 1)
    sizes[axis] = count[0] if count else None
    return [tensor(first.dtype, sizes), tensor(_INT64, sizes)]


# Reductions


def _reduce(node: Node) -> list[TensorInfo]:
    first, axes = node.input(0), axes_of(node)
    shape, keeps = _shape(first), node.attributes.integer("keepdims", 1)
    if axes is None:
        return [tensor(first.dtype, (None,) * len(shape) if keeps else None)]
    if not axes and node.attributes.integer("noop_with_empty_axes"):
        return [tensor(first.dtype, shape)]
    over = {axis_of(axis, len(shape)) for axis in axes} or set(range(len(shape)))
    return [tensor(first.dtype, _without(shape, over, keeps), _folded(node, over))]


def _folded(node: Node, over: set[int]) -> list[Number] | None:
    """The result of a reduction of a list, from which sizes are computed."""
    numbers = node.input(0).numbers
    function = {"ReduceProd": math.prod, "ReduceSum": sum, "ReduceMax": max, "ReduceMin": min}
    if numbers is None or node.op_type not in function or over != {0}:
        return None
    if len(_shape(node.input(0))) != 1:
        return None
    return [function[node.op_type](numbers)]  # type: ignore[operator]


def _without(shape: Dims, axes: set[int], keeps: int) -> list[int | None]:
    if keeps:
        return [1 if at in axes else size for at, size in enumerate(shape)]
    return [size for at, size in enumerate(shape) if at not in axes]


def _arg(node: Node) -> list[TensorInfo]:
    shape = _shape(node.input(0))
    axis = axis_of(node.attributes.integer("axis"), len(shape))
    return [tensor(_INT64, _without(shape, {axis}, node.attributes.integer("keepdims", 1)))]


# Products


def _matmul(node: Node) -> list[TensorInfo]:
    first, second = (list(_shape(node.input(index))) for index in range(2))
    if node.attributes.integer("transA") and len(first) > 1:
        first[-2:] = first[:-3:-1]
    if node.attributes.integer("transB") and len(second) > 1:
        second[-2:] = second[:-3:-1]
    left, right = first[-2:-1], second[-1:] if len(second) > 1 else []
    batch = broadcast(tuple(first[:-2]), tuple(second[:-2])) or ()
    return [tensor(node.input(0).dtype, [*batch, *left, *right])]


def _gemm(node: Node) -> list[TensorInfo]:
    (rows, depth), (other, columns) = _shape(node.input(0)), _shape(node.input(1))
    return [
        tensor(
            node.input(0).dtype,
            (
                depth if node.attributes.integer("transA") else rows,
                other if node.attributes.integer("transB") else columns,
            ),
        )
    ]


def einsum_sizes(node: Node) -> tuple[dict[str, int | None], list[str], str]:
    """The size of each index, the indices of each operand and those of the result.

    Raises:
        ValueError: The equation does not fit the operands.
    """
    equation = node.attributes.text("equation").replace(" ", "")
    if len(equation) > _LONGEST_EQUATION:
        raise ValueError(f"equation: got {len(equation)} characters")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "..." in equation or len(terms) != len(node.inputs):
        raise ValueError(f"equation '{equation[:60]}' is not followed")
    if not arrow:
        result = "".join(sorted(index for index in set(left) - {","} if left.count(index) == 1))
    sizes: dict[str, int | None] = {}
    for at, term in enumerate(terms):
        for index, size in zip(term, _shape(node.input(at)), strict=True):
            sizes[index] = sizes.get(index) if sizes.get(index) not in (None, 1) else size
    if not set(result) <= set(sizes):
        raise ValueError(f"equation '{equation[:60]}' has results that it does not read")
    return sizes, terms, result


def _einsum(node: Node) -> list[TensorInfo]:
    sizes, _, result = einsum_sizes(node)
    return [tensor(node.input(0).dtype, [sizes[index] for index in result])]


# Windows


def _window(
    size: int | None, kernel: int, stride: int, dilation: int, pads: int, up: int
) -> int | None:
    """The number of places of a window."""
    if size is None:
        return None
    places = size + pads - (dilation * (kernel - 1) + 1)
    if stride < 1 or places < 0:
        raise ValueError("the window does not fit")
    return (places + up * (stride - 1)) // stride + 1


def _spatial(
    node: Node, sizes: Dims, kernel: Sequence[int | None], *, up: int = 0
) -> list[int | None]:
    attributes, rank = node.attributes, len(sizes)
    strides = attributes.integers("strides") or (1,) * rank
    dilations = attributes.integers("dilations") or (1,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    padding = attributes.text("auto_pad", "NOTSET")
    found: list[int | None] = []
    for at, size in enumerate(sizes):
        window = kernel[at]
        if padding in ("SAME_UPPER", "SAME_LOWER"):
            found.append(None if size is None else -(-size // strides[at]))
        elif window is None:
            found.append(None)
        else:
            around = 0 if padding == "VALID" else pads[at] + pads[at + rank]
            places = _window(size, window, strides[at], dilations[at], around, up)
            if places is not None and up and size is not None:
                # A window must begin inside the input or the padding before it.
                begin = 0 if padding == "VALID" else pads[at]
                places -= (places - 1) * strides[at] >= size + begin
            found.append(places)
    return found


def _conv(node: Node) -> list[TensorInfo]:
    shape, weight = _shape(node.input(0)), _shape(node.input(1))
    kernel = node.attributes.integers("kernel_shape") or weight[2:]
    sizes = _spatial(node, shape[2:], kernel)
    return [tensor(node.input(0).dtype, [shape[0], weight[0], *sizes])]


def _conv_transpose(node: Node) -> list[TensorInfo]:
    shape, weight = _shape(node.input(0)), _shape(node.input(1))
    attributes, rank = node.attributes, len(shape) - 2
    channels = _times(weight[1], attributes.integer("group", 1))
    kernel = attributes.integers("kernel_shape") or weight[2:]
    strides = attributes.integers("strides") or (1,) * rank
    dilations = attributes.integers("dilations") or (1,) * rank
    more = attributes.integers("output_padding") or (0,) * rank
    pads = attributes.integers("pads") or (0,) * (2 * rank)
    sizes: list[int | None] = []
    sizes += (attributes.integers("output_shape") or ())[-rank:]
    padding = attributes.text("auto_pad", "NOTSET")
    for at, size in enumerate(() if sizes else shape[2:]):
        window = kernel[at]
        if size is None or window is None:
            sizes.append(None)
        elif padding in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(size * strides[at])
        else:
            around = 0 if padding == "VALID" else pads[at] + pads[at + rank]
            spread = dilations[at] * (window - 1) + 1
            sizes.append(strides[at] * (size - 1) + more[at] + spread - around)
    return [tensor(node.input(0).dtype, [shape[0], channels, *sizes])]


def _pool(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    kernel = _needed(node.attributes.integers("kernel_shape"))
    sizes = _spatial(node, shape[2:], kernel, up=int(node.attributes.integer("ceil_mode") != 0))
    found = [*shape[:2], *sizes]
    return [tensor(first.dtype, found), tensor(_INT64, found)]


def _global_pool(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    return [tensor(first.dtype, [*shape[:2], *(1 for _ in shape[2:])])]


def _resize(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape, last = _shape(first), len(node.inputs) - 1
    axes = node.attributes.integers("axes") or tuple(range(len(shape)))
    sizes = list(shape)
    if last == 3 and node.has(3):
        if node.attributes.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ValueError("the aspect ratio is kept")
        for axis, wanted in zip(axes, _needed(_integers(node, 3)), strict=True):
            sizes[axis_of(axis, len(shape))] = wanted
        return [tensor(first.dtype, sizes)]
    scales = node.input(min(last, 2)).numbers
    if scales is None:
        return [tensor(first.dtype, (None,) * len(shape))]
    for axis, scale in zip(axes, scales, strict=True):
        at = axis_of(axis, len(shape))
        size = sizes[at]
        sizes[at] = None if size is None else math.floor(size * scale)
    return [tensor(first.dtype, sizes)]


# Normalization, recurrent cells, losses


def _batch_normalization(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    channels = first.shape[1] if first.shape is not None else None
    return [tensor(first.dtype, first.shape)] + [
        tensor(node.input(3).dtype or first.dtype, (channels,))
    ] * (node.outputs - 1)


def _layer_normalization(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    shape = _shape(first)
    axis = axis_of(node.attributes.integer("axis", -1), len(shape))
    kept = [*shape[:axis], *(1 for _ in shape[axis:])]
    return [tensor(first.dtype, shape)] + [
        tensor(node.attributes.integer("stash_type", _FLOAT), kept)
    ] * (node.outputs - 1)


def _recurrent(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    steps, batch, _ = _shape(first)
    hidden = node.attributes.integer("hidden_size") or _shape(node.input(2))[2]
    directions = 2 if node.attributes.text("direction") == "bidirectional" else 1
    if node.attributes.integer("layout"):
        steps, batch = batch, steps
        every, last = [batch, steps, directions, hidden], [batch, directions, hidden]
    else:
        every, last = [steps, directions, batch, hidden], [directions, batch, hidden]
    return [tensor(first.dtype, every)] + [tensor(first.dtype, last)] * (node.outputs - 1)


def _cross_entropy(node: Node) -> list[TensorInfo]:
    scores, labels = node.input(0), node.input(1)
    mean = node.attributes.text("reduction", "mean") != "none"
    return [tensor(scores.dtype, () if mean else labels.shape), tensor(scores.dtype, scores.shape)]


# Operators of ONNX Runtime's training


def _accumulate(node: Node) -> list[TensorInfo]:
    buffer = node.input(0)
    return [tensor(_BOOL, (1,)), tensor(buffer.dtype, buffer.shape)]


def _like(*indices: int) -> Rule:
    """Each output has the shape of one input."""

    def rule(node: Node) -> list[TensorInfo]:
        given = [node.input(index) for index in indices[: node.outputs]]
        return [tensor(info.dtype, info.shape) for info in given]

    return rule


def _conv_grad(node: Node) -> list[TensorInfo]:
    weight = node.input(2)
    bias = tensor(weight.dtype, weight.shape[:1] if weight.shape else None)
    return [node.input(1), tensor(weight.dtype, weight.shape), bias]


def _of_shape_input(index: int, data: int) -> Rule:
    """The shape is an input."""

    def rule(node: Node) -> list[TensorInfo]:
        return [tensor(node.input(data).dtype, _needed(_integers(node, index)))]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY | {"IsInf", "IsNaN"}, _unary),
    **dict.fromkeys(BINARY, _elementwise),
    **dict.fromkeys(_LIKE_FIRST, same),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("Concat", "com.microsoft::ConcatTraining"), _concat),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _block),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _layer_normalization),
    **dict.fromkeys(("MatMul", "com.microsoft::FusedMatMul"), _matmul),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _random),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Split", "com.microsoft::SplitTraining"), _split),
    **dict.fromkeys(
        (
            "SoftmaxCrossEntropyLoss",
            "NegativeLogLikelihoodLoss",
            "com.microsoft::SoftmaxCrossEntropyLossInternal",
        ),
        _cross_entropy,
    ),
    **dict.fromkeys(
        ("BatchNormalization", "com.microsoft::BatchNormInternal"), _batch_normalization
    ),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "Identity": _identity,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape_operator,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "com.microsoft::BatchNormalizationGrad": _like(1, 2, 2),
    "com.microsoft::ConvGrad": _conv_grad,
    "com.microsoft::DivGrad": _like(1, 2),
    "com.microsoft::GatherElementsGrad": _of_shape_input(1, 0),
    "com.microsoft::GatherGrad": _of_shape_input(0, 2),
    "com.microsoft::InPlaceAccumulatorV2": _accumulate,
    "com.microsoft::LayerNormalizationGrad": _like(1, 2, 2),
    "com.microsoft::SliceGrad": _of_shape_input(1, 0),
    "com.microsoft::Scale": same,
    "com.microsoft::SoftmaxCrossEntropyLossGrad": _like(1),
    "com.microsoft::SoftmaxCrossEntropyLossInternalGrad": _like(1),
}
"""For each operator, what is known of its outputs.

A rule may raise IndexError, TypeError, ValueError or ArithmeticError where nothing is known.
"""
