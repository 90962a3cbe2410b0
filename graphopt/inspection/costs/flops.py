"""Floating-point operations of an operator, from the shapes of what it reads and gives.

A multiplication with an addition counts two; an elementwise function counts one for each element,
however hard it is. Moving data and arithmetic with integers count nothing.
"""

from collections.abc import Callable, Sequence

from graphopt.shapes.rules.elementwise import BINARY, COMPARISONS, UNARY
from graphopt.shapes.rules.networks import RECURRENT
from graphopt.shapes.rules.products import REDUCTIONS, einsum_sizes
from graphopt.shapes.values import NO_DTYPE, Dim, Dims, Node, TensorInfo, known, product, words

Outputs = Sequence[TensorInfo]
Count = Callable[[Node, Outputs], int | None]
"""The number; None where a shape is not known that it depends on."""

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose result is their first input in another shape, so that nothing is moved."""

_MOVES = words(
    """And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Compress
    Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Gather GatherElements GatherND
    IsInf IsNaN NonZero Not OneHot Or Pad RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice
    SpaceToDepth Split Tile TopK Transpose Trilu Unique Where Xor
    com.microsoft::BroadcastGradientArgs com.microsoft::ConcatTraining com.microsoft::PassThrough
    com.microsoft::SliceGrad com.microsoft::SplitTraining com.microsoft::View
    com.microsoft::YieldOp com.microsoft::ZeroGradient"""
)

# Operations for each element of the first input.
_PER_ELEMENT = {
    "BatchNormalization": 4,  # subtract, divide, multiply, add; with statistics: see below
    "CumSum": 1,
    "Dropout": 1,
    "GlobalAveragePool": 1,
    "GlobalLpPool": 2,
    "GlobalMaxPool": 1,
    "GroupNormalization": 7,
    "Hardmax": 1,
    "InstanceNormalization": 7,
    "LayerNormalization": 7,  # mean, subtract, square, sum, divide, multiply, add
    "LogSoftmax": 5,  # maximum, subtract, exponential, sum, subtract
    "LpNormalization": 3,
    "MeanVarianceNormalization": 5,
    "RMSNormalization": 4,
    "SimplifiedLayerNormalization": 4,
    "Softmax": 5,  # maximum, subtract, exponential, sum, divide
    "SoftmaxCrossEntropyLoss": 5,
    "com.microsoft::AveragePoolGrad": 1,
    "com.microsoft::BatchNormInternal": 7,
    "com.microsoft::BatchNormalizationGrad": 10,
    "com.microsoft::BiasGeluGrad_dX": 8,
    "com.microsoft::DivGrad": 4,
    "com.microsoft::DropoutGrad": 1,
    "com.microsoft::FastGeluGrad": 8,
    "com.microsoft::GatherElementsGrad": 1,
    "com.microsoft::GeluGrad": 8,
    "com.microsoft::InPlaceAccumulatorV2": 1,
    "com.microsoft::LayerNormalizationGrad": 12,
    "com.microsoft::LeakyReluGrad": 1,
    "com.microsoft::LogSoftmaxGrad": 4,
    "com.microsoft::LogSoftmaxGrad_13": 4,
    "com.microsoft::MaxPoolGrad": 1,
    "com.microsoft::QuickGeluGrad": 6,
    "com.microsoft::ReluGrad": 1,
    "com.microsoft::Scale": 1,
    "com.microsoft::SigmoidGrad": 3,
    "com.microsoft::SoftmaxCrossEntropyLossInternal": 5,
    "com.microsoft::SoftmaxGrad": 4,
    "com.microsoft::SoftmaxGrad_13": 4,
    "com.microsoft::TanhGrad": 3,
    "AveragePoolGrad": 1,
    "MaxPoolGrad": 1,
}
# Operations for each element that is reduced, and for each of the result.
_REDUCTIONS = {
    "ReduceL1": (2, 0),
    "ReduceL2": (2, 1),
    "ReduceLogSum": (1, 1),
    "ReduceLogSumExp": (2, 1),
    "ReduceMean": (1, 1),
    "ReduceSumSquare": (2, 0),
}
_NORMALIZED_BY_THE_BATCH = 7


def flops(node: Node, outputs: Outputs) -> int | None:
    """The floating-point operations of a node; None where they are not known.

    Args:
        node: The node.
        outputs: What is known of its outputs.
    """
    count = _COUNTS.get(node.op_type)
    try:
        return None if count is None else count(node, outputs)
    except (ArithmeticError, IndexError, TypeError, ValueError):  # the node makes no sense
        return None


def _scaled(*factors: Dim) -> int | None:
    return known(product(*factors))


def _plus(*terms: int | None) -> int | None:
    return None if None in terms else sum(term for term in terms if term is not None)


def _nothing(node: Node, outputs: Outputs) -> int | None:
    del node, outputs
    return 0


def _elementwise(node: Node, outputs: Outputs) -> int | None:
    if node.input(0).is_integer:
        return 0
    operations = 1 if node.op_type in UNARY else len(node.inputs) - 1
    return _scaled(outputs[0].elements, operations + (node.op_type == "Mean"))


def _per_element(node: Node, outputs: Outputs) -> int | None:
    del outputs
    return _scaled(node.input(0).elements, _PER_ELEMENT[node.op_type])


def _batch_normalization(node: Node, outputs: Outputs) -> int | None:
    trains = node.attributes.integer("training_mode")
    each = _NORMALIZED_BY_THE_BATCH if trains else _PER_ELEMENT["BatchNormalization"]
    return _scaled(outputs[0].elements, each)


def _reduce(node: Node, outputs: Outputs) -> int | None:
    first = node.input(0)
    if first.is_integer:
        return 0
    inside, outside = _REDUCTIONS.get(node.op_type, (1, 0))
    return _plus(_scaled(first.elements, inside), _scaled(outputs[0].elements, outside))


def _sizes(shape: Dims | None) -> Dims:
    if shape is None:
        raise IndexError("the rank is not known")
    return shape


def _matmul(node: Node, outputs: Outputs) -> int | None:
    shape = _sizes(node.input(0).shape)
    transposed = node.attributes.integer("transA") and len(shape) > 1
    return _scaled(2, outputs[0].elements, shape[-2] if transposed else shape[-1])


def _gemm(node: Node, outputs: Outputs) -> int | None:
    result = outputs[0].elements
    return _plus(_matmul(node, outputs), result if node.has(2) else 0)


def _einsum(node: Node, outputs: Outputs) -> int | None:
    del outputs
    sizes, terms, result = einsum_sizes(node)
    sums = set(sizes) != set(result)
    return _scaled(_scaled(*sizes.values()), len(terms) - 1 + sums)


def _conv(node: Node, outputs: Outputs) -> int | None:
    result = outputs[0].elements
    each = _scaled(*_sizes(node.input(1).shape)[1:])
    return _plus(_scaled(2, result, each), result if node.has(2) else 0)


def _conv_transpose(node: Node, outputs: Outputs) -> int | None:
    each = _scaled(*_sizes(node.input(1).shape)[1:])
    bias = outputs[0].elements if node.has(2) else 0
    return _plus(_scaled(2, node.input(0).elements, each), bias)


def _conv_grad(node: Node, outputs: Outputs) -> int | None:
    """Each of the two products costs what the convolution does."""
    result = node.input(0).elements
    each = _scaled(*_sizes(node.input(2).shape)[1:])
    wanted = [info.dtype != NO_DTYPE for info in outputs]
    products = sum(wanted[:2])
    return _plus(_scaled(2 * products, result, each), result if len(wanted) > 2 else 0)


def _pool(node: Node, outputs: Outputs) -> int | None:
    return _scaled(outputs[0].elements, *(node.attributes.integers("kernel_shape") or (None,)))


def _lrn(node: Node, outputs: Outputs) -> int | None:
    return _scaled(outputs[0].elements, 2 * node.attributes.integer("size", 1) + 3)


def _recurrent(node: Node, outputs: Outputs) -> int | None:
    """Its matrix products alone, which is nearly all."""
    del outputs
    elements = _scaled(*_sizes(node.input(0).shape)[:2])
    given, kept = (_scaled(*_sizes(node.input(at).shape)) for at in (1, 2))
    return _scaled(2, elements, _plus(given, kept))


def _resize(node: Node, outputs: Outputs) -> int | None:
    points = {"nearest": 0, "linear": 2, "cubic": 4}[node.attributes.text("mode", "nearest")]
    if not points:
        return 0
    pairs = zip(_sizes(node.input(0).shape), _sizes(outputs[0].shape), strict=True)
    axes = sum(before != after for before, after in pairs)
    return _scaled(2, outputs[0].elements, points**axes)


def _of_input(index: int, each: int) -> Count:
    def count(node: Node, outputs: Outputs) -> int | None:
        del outputs
        return _scaled(node.input(index).elements, each)

    return count


_COUNTS: dict[str, Count] = {
    **dict.fromkeys(_MOVES | VIEWS, _nothing),
    **dict.fromkeys((UNARY | BINARY | COMPARISONS) - _MOVES, _elementwise),
    **dict.fromkeys(_PER_ELEMENT, _per_element),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("MatMul", "com.microsoft::FusedMatMul"), _matmul),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _batch_normalization,
    "Bernoulli": _nothing,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "LRN": _lrn,
    "NegativeLogLikelihoodLoss": _of_input(1, 1),
    "com.microsoft::ConvGrad": _conv_grad,
    "com.microsoft::GatherGrad": _of_input(2, 1),
    **dict.fromkeys(
        (
            "com.microsoft::SoftmaxCrossEntropyLossGrad",
            "com.microsoft::SoftmaxCrossEntropyLossInternalGrad",
        ),
        _of_input(1, 3),
    ),
}
