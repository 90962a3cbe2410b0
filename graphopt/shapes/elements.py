"""Shapes of what works on each element."""

import math
import operator as arithmetic
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx_ir as ir

from graphopt.shapes.node import Node, Rule
from graphopt.shapes.sizes import Dims, Element, Number, broadcast
from graphopt.shapes.values import BOOL, FLOAT, MOST_ELEMENTS, NO_DTYPE, UNKNOWN, TensorInfo, tensor


def same(node: Node) -> list[TensorInfo]:
    """Every output has the shape of the first input."""
    first = node.input(0)
    return [tensor(first.dtype, first.shape)] * node.outputs


def _quotient(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_OF_ONE: dict[str, Callable[[Number], Number]] = {
    "Abs": abs,
    "Ceil": math.ceil,
    "Floor": math.floor,
    "Neg": arithmetic.neg,
}
_OF_TWO: dict[str, Callable[[Number, Number], Number]] = {
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


def joined(node: Node, dtype: ir.DataType | None = None) -> list[TensorInfo]:
    """What all inputs are broadcast to; of the dtype of the first, or this one."""
    given = [info or UNKNOWN for info in node.inputs]
    shape = broadcast(*(info.shape for info in given))
    numbers = _calculated(node.op_type, given, shape)
    return [tensor(given[0].dtype if dtype is None else dtype, shape, numbers)]


compared = partial(joined, dtype=BOOL)
"""True or false of what all inputs are broadcast to."""


def _calculated(
    op_type: str, given: Sequence[TensorInfo], shape: Dims | None
) -> list[Element] | None:
    """The elements of the result, of lists and single numbers."""
    functions: Mapping[str, Callable[..., Number]] = _OF_ONE if len(given) == 1 else _OF_TWO
    function, count = functions.get(op_type), TensorInfo(shape=shape).elements
    if function is None or count is None or count > MOST_ELEMENTS:
        return None
    if len(given) > 2 and op_type not in ("Max", "Min"):
        return None
    if all(info.numbers is None for info in given):
        return None
    columns = zip(*(_repeated(info.numbers, count) for info in given), strict=True)
    return [
        function(*column) if all(isinstance(number, Number) for number in column) else None
        for column in columns
    ]


def _repeated(numbers: Sequence[Element] | None, count: int) -> Sequence[Element]:
    """So many elements, of a list or a single one."""
    if numbers is None or len(numbers) not in (1, count):
        return (None,) * count
    return numbers if len(numbers) == count else (*numbers,) * count


def identity(node: Node) -> list[TensorInfo]:
    """All that is known of the first input."""
    return [node.input(0)] * node.outputs


def cast(node: Node) -> list[TensorInfo]:
    """The first input in the dtype ``to``, or in that of the second."""
    first = node.input(0)
    dtype = node.input(1).dtype if node.has(1) else node.attributes.dtype("to")
    return [tensor(dtype, first.shape, first.numbers)]


def where(node: Node) -> list[TensorInfo]:
    """One of two, whichever a condition says."""
    condition, yes, no = given = [node.input(index) for index in range(3)]
    shape = broadcast(*(info.shape for info in given))
    count = TensorInfo(shape=shape).elements
    numbers = None
    if condition.numbers is not None and count is not None and count <= MOST_ELEMENTS:
        columns = zip(*(_repeated(info.numbers, count) for info in given), strict=True)
        numbers = [None if c is None else a if c else b for c, a, b in columns]
    return [tensor(yes.dtype or no.dtype, shape, numbers)]


def dropout(node: Node) -> list[TensorInfo]:
    """The first input, and a mask of it."""
    first = node.input(0)
    return [tensor(first.dtype, first.shape), tensor(BOOL, first.shape)]


def quantized(node: Node) -> list[TensorInfo]:
    """The first input, in the dtype of the zero, or in that which is asked for."""
    dtype = node.attributes.dtype("output_dtype")
    if dtype == NO_DTYPE:
        dtype = node.input(2).dtype if node.has(2) else ir.DataType.UINT8
    return [tensor(dtype, node.input(0).shape)]


def dynamically_quantized(node: Node) -> list[TensorInfo]:
    """The first input as bytes, its scale and its zero."""
    byte = ir.DataType.UINT8
    return [tensor(byte, node.input(0).shape), tensor(FLOAT, ()), tensor(byte, ())]


def dequantized(node: Node) -> list[TensorInfo]:
    """The first input, in the dtype of the scale, or in that which is asked for."""
    dtype = node.attributes.dtype("output_dtype", node.input(1).dtype)
    return [tensor(dtype or node.input(1).dtype, node.input(0).shape)]


def like(*indices: int) -> Rule:
    """Each output has the shape and dtype of one input."""

    def rule(node: Node) -> list[TensorInfo]:
        given = [node.input(index) for index in indices[: node.outputs]]
        return [tensor(info.dtype, info.shape) for info in given]

    return rule
