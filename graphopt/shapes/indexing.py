"""Operators that pick elements."""

from graphopt.shapes.node import Node, Rule
from graphopt.shapes.sizes import Element, needed, whole
from graphopt.shapes.values import INT64, TensorInfo, tensor


def gather(node: Node) -> list[TensorInfo]:
    """The elements of an axis at indices."""
    data, indices = node.input(0), node.input(1)
    shape = node.shape()
    axis = node.axis(0, len(shape))
    numbers: list[Element] | None = None
    picked = None if indices.numbers is None else whole(node.sizes(1) or ())
    if data.numbers is not None and picked is not None and len(shape) == 1:
        numbers = [data.numbers[index] for index in picked]
    return [tensor(data.dtype, [*shape[:axis], *node.shape(1), *shape[axis + 1 :]], numbers)]


def gather_elements(node: Node) -> list[TensorInfo]:
    """Of the shape of the indices."""
    return [tensor(node.input(0).dtype, node.input(1).shape)]


def gather_nd(node: Node) -> list[TensorInfo]:
    """What stands at tuples of indices."""
    shape, picked = node.shape(), node.shape(1)
    depth = picked[-1]
    if not isinstance(depth, int):
        return [tensor(node.input(0).dtype, None)]
    rest = shape[node.attributes.integer("batch_dims") + depth :]
    return [tensor(node.input(0).dtype, [*picked[:-1], *rest])]


def one_hot(node: Node) -> list[TensorInfo]:
    """An axis more, as long as the second input says."""
    indices, depth = node.shape(), node.sizes(1)
    axis = node.axis(-1, len(indices) + 1)
    size = depth[0] if depth else None
    return [tensor(node.input(2).dtype, [*indices[:axis], size, *indices[axis:]])]


def top_k(node: Node) -> list[TensorInfo]:
    """Some of the elements of an axis, and where they stood."""
    sizes, count = list(node.shape()), node.sizes(1)
    sizes[node.axis(-1, len(sizes))] = count[0] if count else None
    return [tensor(node.input(0).dtype, sizes), tensor(INT64, sizes)]


def of_shape_input(index: int, data: int) -> Rule:
    """In the shape that an input is, and of the dtype of another."""

    def rule(node: Node) -> list[TensorInfo]:
        return [tensor(node.input(data).dtype, needed(node.integers(index)))]

    return rule
