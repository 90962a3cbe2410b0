"""Floating-point operations of operators, from the shapes of what they read and give.

A multiplication with an addition counts two; an elementwise function counts one for each element,
however hard it is. Moving data and arithmetic with integers count nothing.
"""

from collections.abc import Callable, Sequence

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, known, product
from graphopt.shapes.values import TensorInfo

Outputs = Sequence[TensorInfo]
Count = Callable[[Node, Outputs], int | None]
"""The number; None where a shape is not known that it depends on."""


def times(*factors: Dim) -> int | None:
    """The product of numbers; None where it is not known."""
    return known(product(*factors))


def plus(*terms: int | None) -> int | None:
    """The sum of numbers; None where it is not known."""
    return None if None in terms else sum(term for term in terms if term is not None)


def per_element(count: int, index: int = 0) -> Count:
    """So many for each element of an input."""
    return lambda node, _outputs: times(node.input(index).elements, count)


def elementwise(node: Node, outputs: Outputs) -> int | None:
    """One for each element of the result."""
    return 0 if node.input(0).is_integer else times(outputs[0].elements, 1)


def joining(node: Node, outputs: Outputs, more: int = 0) -> int | None:
    """One for each element of the result and each input that is joined to the first, and more."""
    count = len(node.inputs) - 1 + more
    return 0 if node.input(0).is_integer else times(outputs[0].elements, count)


def reducing(inside: int = 1, outside: int = 0) -> Count:
    """So many for each element that is reduced, and for each of the result."""

    def count(node: Node, outputs: Outputs) -> int | None:
        first = node.input(0)
        if first.is_integer:
            return 0
        return plus(times(first.elements, inside), times(outputs[0].elements, outside))

    return count


def matmul(node: Node, outputs: Outputs) -> int | None:
    """Of a product of matrices."""
    shape = node.shape()
    transposed = node.attributes.integer("transA") and len(shape) > 1
    return times(2, outputs[0].elements, shape[-2] if transposed else shape[-1])
