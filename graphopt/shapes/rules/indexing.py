"""Operators that pick elements."""

from graphopt.shapes.values import (
    INT64,
    Element,
    Node,
    Rule,
    TensorInfo,
    needed,
    tensor,
    whole,
)


def _gather(node: Node) -> list[TensorInfo]:
    data, indices = node.input(0), node.input(1)
    shape = node.shape()
    axis = node.axis(0, len(shape))
    numbers: list[Element] | None = None
    picked = None if indices.numbers is None else whole(node.sizes(1) or ())
    if data.numbers is not None and picked is not None and len(shape) == 1:
        numbers = [data.numbers[index] for index in picked]
    return [tensor(data.dtype, [*shape[:axis], *node.shape(1), *shape[axis + 1 :]], numbers)]


def _gather_elements(node: Node) -> list[TensorInfo]:
    return [tensor(node.input(0).dtype, node.input(1).shape)]


def _gather_nd(node: Node) -> list[TensorInfo]:
    shape, picked = node.shape(), node.shape(1)
    depth = picked[-1]
    if not isinstance(depth, int):
        return [tensor(node.input(0).dtype, None)]
    rest = shape[node.attributes.integer("batch_dims") + depth :]
    return [tensor(node.input(0).dtype, [*picked[:-1], *rest])]


def _one_hot(node: Node) -> list[TensorInfo]:
    indices, depth = node.shape(), node.sizes(1)
    axis = node.axis(-1, len(indices) + 1)
    size = depth[0] if depth else None
    return [tensor(node.input(2).dtype, [*indices[:axis], size, *indices[axis:]])]


def _top_k(node: Node) -> list[TensorInfo]:
    sizes, count = list(node.shape()), node.sizes(1)
    sizes[node.axis(-1, len(sizes))] = count[0] if count else None
    return [tensor(node.input(0).dtype, sizes), tensor(INT64, sizes)]


def _of_shape_input(index: int, data: int) -> Rule:
    """The shape is an input."""

    def rule(node: Node) -> list[TensorInfo]:
        return [tensor(node.input(data).dtype, needed(node.integers(index)))]

    return rule


RULES: dict[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "TopK": _top_k,
    "com.microsoft::GatherElementsGrad": _of_shape_input(1, 0),
    "com.microsoft::GatherGrad": _of_shape_input(0, 2),
    "com.microsoft::SliceGrad": _of_shape_input(1, 0),
}
