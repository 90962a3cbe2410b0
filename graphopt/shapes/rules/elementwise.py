"""Operators that work on each element."""

import math
import operator as arithmetic
from collections.abc import Callable, Sequence

from graphopt.shapes.values import (
    BOOL,
    MOST_ELEMENTS,
    UNKNOWN,
    Dims,
    Element,
    Node,
    Number,
    Rule,
    TensorInfo,
    broadcast,
    tensor,
    words,
)

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
# Gradients of elementwise functions, and what else gives the shape of its first input.
_LIKE_FIRST = words(
    """Bernoulli CumProd CumSum GroupNormalization Hardmax InstanceNormalization LRN LogSoftmax
    LpNormalization MeanVarianceNormalization RMSNormalization RandomNormalLike RandomUniformLike
    ReverseSequence RotaryEmbedding Scatter ScatterElements ScatterND Softmax TensorScatter Trilu
    com.microsoft::BiasGeluGrad_dX com.microsoft::DropoutGrad com.microsoft::FastGeluGrad
    com.microsoft::GeluGrad com.microsoft::LeakyReluGrad com.microsoft::LogSoftmaxGrad
    com.microsoft::LogSoftmaxGrad_13 com.microsoft::QuickGeluGrad com.microsoft::ReluGrad
    com.microsoft::Scale com.microsoft::SigmoidGrad com.microsoft::SoftmaxGrad
    com.microsoft::SoftmaxGrad_13 com.microsoft::TanhGrad com.microsoft::ZeroGradient"""
)


def same(node: Node) -> list[TensorInfo]:
    """Every output has the shape of the first input."""
    first = node.input(0)
    return [tensor(first.dtype, first.shape)] * node.outputs


def _elementwise(node: Node) -> list[TensorInfo]:
    given = [info or UNKNOWN for info in node.inputs]
    shape = broadcast(*(info.shape for info in given))
    dtype = BOOL if node.op_type in COMPARISONS else given[0].dtype
    return [tensor(dtype, shape, _calculated(node.op_type, given, shape))]


def _quotient(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_CALCULATED: dict[str, Callable[[Number, Number], Number]] = {
    "Add": arithmetic.add,
    "Sub": arithmetic.sub,
    "Mul": arithmetic.mul,
    "Div": _quotient,
    "Max": max,
    "Min": min,
    "Equal": arithmetic.eq,
    "Greater": arithmetic.gt,
    "Less": arithmetic.lt,
    "And": lambda a, b: int(a and b),
    "Or": lambda a, b: int(a or b),
}


def _calculated(
    op_type: str, given: Sequence[TensorInfo], shape: Dims | None
) -> list[Element] | None:
    """The elements of the result, of lists and single numbers."""
    function = _CALCULATED.get(op_type)
    count = TensorInfo(shape=shape).elements
    if function is None or len(given) != 2 or count is None or count > MOST_ELEMENTS:
        return None
    first, second = (_repeated(info.numbers, count) for info in given)
    return [
        function(a, b) if isinstance(a, Number) and isinstance(b, Number) else None
        for a, b in zip(first, second, strict=True)
    ]


def _repeated(numbers: Sequence[Element] | None, count: int) -> Sequence[Element]:
    """So many elements, of a list or a single one."""
    if numbers is None or len(numbers) not in (1, count):
        return (None,) * count
    return numbers if len(numbers) == count else (*numbers,) * count


_CALCULATED_OF_ONE: dict[str, Callable[[Number], Number]] = {
    "Abs": abs,
    "Ceil": math.ceil,
    "Floor": math.floor,
    "Neg": arithmetic.neg,
}


def _unary(node: Node) -> list[TensorInfo]:
    first, function = node.input(0), _CALCULATED_OF_ONE.get(node.op_type)
    numbers = None
    if first.numbers is not None and function is not None:
        numbers = [function(n) if isinstance(n, Number) else None for n in first.numbers]
    dtype = BOOL if node.op_type in _PREDICATES else first.dtype
    return [tensor(dtype, first.shape, numbers)]


def _identity(node: Node) -> list[TensorInfo]:
    return [node.input(0)] * node.outputs


def _cast(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    dtype = node.attributes.dtype("to") if node.op_type == "Cast" else node.input(1).dtype
    return [tensor(dtype, first.shape, first.numbers)]


def _where(node: Node) -> list[TensorInfo]:
    condition, yes, no = given = [node.input(index) for index in range(3)]
    shape = broadcast(*(info.shape for info in given))
    count = TensorInfo(shape=shape).elements
    numbers = None
    if condition.numbers is not None and count is not None and count <= MOST_ELEMENTS:
        columns = [_repeated(info.numbers, count) for info in given]
        numbers = [None if c is None else a if c else b for c, a, b in zip(*columns, strict=True)]
    return [tensor(yes.dtype if yes.dtype else no.dtype, shape, numbers)]


def _dropout(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    return [tensor(first.dtype, first.shape), tensor(BOOL, first.shape)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY | _PREDICATES, _unary),
    **dict.fromkeys(BINARY, _elementwise),
    **dict.fromkeys(_LIKE_FIRST, same),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "Dropout": _dropout,
    "Identity": _identity,
    "Where": _where,
}
