"""Reductions and products of matrices."""

import math
from collections.abc import Callable, Sequence

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, Dims, axis_of, broadcast, broadcast_size
from graphopt.shapes.values import INT64, LARGEST_EXACT, TensorInfo, tensor

_LONGEST_EQUATION = 256
_ELLIPSIS = "..."
# The indices of an ellipsis in an equation, from the last.
_HIDDEN = [chr(0x3B1 + at) for at in range(64)]


def reduce(node: Node) -> list[TensorInfo]:
    """Without axes, or with size 1 there."""
    first, axes, shape = node.input(0), node.axes(), node.shape()
    keeps = node.attributes.integer("keepdims", 1)
    if axes is None:
        return [tensor(first.dtype, (None,) * len(shape) if keeps else None)]
    if not axes and node.attributes.integer("noop_with_empty_axes"):
        return [tensor(first.dtype, shape)]
    over = {axis_of(axis, len(shape)) for axis in axes} or set(range(len(shape)))
    return [tensor(first.dtype, _without(shape, over, keeps), _folded(node, over))]


_FOLDED: dict[str, Callable[[Sequence[int]], int]] = {
    "ReduceMax": max,
    "ReduceMin": min,
    "ReduceProd": math.prod,
    "ReduceSum": sum,
}


def _folded(node: Node, over: set[int]) -> list[int] | None:
    """The result of a reduction of a list, from which sizes are computed."""
    function, numbers = _FOLDED.get(node.op_type), node.integers(0)
    if not node.input(0).is_integer or over != {0} or len(node.shape()) != 1:
        return None
    if numbers is None or function is None:
        return None
    if sum(map(abs, numbers)) > LARGEST_EXACT:
        return None  # ONNX Runtime adds integers as floating-point numbers
    result = function(numbers)
    return [result] if abs(result) <= LARGEST_EXACT else None


def _without(shape: Dims, axes: set[int], keeps: int) -> list[Dim]:
    if keeps:
        return [1 if at in axes else size for at, size in enumerate(shape)]
    return [size for at, size in enumerate(shape) if at not in axes]


def arg(node: Node) -> list[TensorInfo]:
    """Indices, without an axis or with size 1 there."""
    shape = node.shape()
    axis = node.axis(0, len(shape))
    return [tensor(INT64, _without(shape, {axis}, node.attributes.integer("keepdims", 1)))]


def matmul(node: Node) -> list[TensorInfo]:
    """The product of matrices, whose other axes are broadcast."""
    left, right = list(node.shape()), list(node.shape(1))
    if node.attributes.integer("transBatchA") or node.attributes.integer("transBatchB"):
        return [tensor(node.input(0).dtype, None)]  # of ONNX Runtime's FusedMatMul
    if node.attributes.integer("transA") and len(left) > 1:
        left[-2:] = left[:-3:-1]
    if node.attributes.integer("transB") and len(right) > 1:
        right[-2:] = right[:-3:-1]
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else []
    batch = broadcast(tuple(left[:-2]), tuple(right[:-2])) or ()
    return [tensor(node.input(0).dtype, [*batch, *rows, *columns])]


def gemm(node: Node) -> list[TensorInfo]:
    """The product of two matrices."""
    (rows, depth), (other, columns) = node.shape(), node.shape(1)
    if node.attributes.integer("transA"):
        rows = depth
    if node.attributes.integer("transB"):
        columns = other
    return [tensor(node.input(0).dtype, (rows, columns))]


def einsum_sizes(node: Node) -> tuple[dict[str, Dim], list[str], str]:
    """The size of each index, the indices of each operand and those of the result.

    Raises:
        ValueError: The equation does not fit the operands.
    """
    equation = node.attributes.text("equation").replace(" ", "")
    if len(equation) > _LONGEST_EQUATION:
        raise ValueError(f"equation: got {len(equation)} characters")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        raise ValueError(f"equation '{equation[:60]}' has {len(terms)} operands")
    if not arrow:
        once = {index for index in set(left) - {",", "."} if left.count(index) == 1}
        result = _ELLIPSIS * (_ELLIPSIS in left) + "".join(sorted(once))
    widest = 0
    for at, term in enumerate(terms):
        hidden = len(node.shape(at)) - len(term.replace(_ELLIPSIS, ""))
        terms[at] = _written_out(term, hidden)
        widest = max(widest, hidden)
    result = _written_out(result, widest)
    sizes: dict[str, Dim] = {}
    for at, term in enumerate(terms):
        for index, size in zip(term, node.shape(at), strict=True):
            sizes[index] = broadcast_size((sizes.get(index, 1), size))
    if not set(result) <= set(sizes):
        raise ValueError(f"equation '{equation[:60]}' has results that it does not read")
    return sizes, terms, result


def _written_out(term: str, hidden: int) -> str:
    return term.replace(_ELLIPSIS, "".join(_HIDDEN[: max(hidden, 0)][::-1]))


def einsum(node: Node) -> list[TensorInfo]:
    """What the equation says."""
    sizes, _, result = einsum_sizes(node)
    return [tensor(node.input(0).dtype, [sizes[index] for index in result])]
