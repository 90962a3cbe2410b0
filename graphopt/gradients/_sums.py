"""The sum of the gradients of a value, one from each node that reads it.

Parts that were taken from a value along one axis, as slices, are put side by side: no zeros are
written around each, and none are added.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._padded import padded


class _Part(NamedTuple):
    """A gradient with zeros before and after it, along one axis.

    Attributes:
        number: Which gradient it is.
        begin: Where what is between the zeros begins.
        end: Where the zeros after it begin.
        between: The gradient without the zeros.
    """

    number: int
    begin: int
    end: int
    between: ir.Value


def summed(op: GraphBuilder, gradients: Sequence[ir.Value], value: ir.Value) -> ir.Value:
    """The sum of some gradients of a value."""
    first, *others = _side_by_side(op, gradients, value)
    for other in others:
        first = _like(value, op.Add(first, other))
    return first


def _like(value: ir.Value, gradient: ir.Value) -> ir.Value:
    gradient.type, gradient.shape = value.type, value.shape
    return gradient


def _side_by_side(
    op: GraphBuilder, gradients: Sequence[ir.Value], value: ir.Value
) -> list[ir.Value]:
    """The same, with one gradient in place of parts that are the whole together."""
    if len(gradients) == 1 or value.shape is None:
        return list(gradients)
    by_axis: defaultdict[int, list[_Part]] = defaultdict(list)
    for index, gradient in enumerate(gradients):
        if found := _part(index, gradient, value.shape):
            axis, part = found
            by_axis[axis].append(part)
    for axis, parts in by_axis.items():
        parts.sort(key=lambda part: part.begin)
        if [part.begin for part in parts] + [value.shape[axis]] == [0, *(p.end for p in parts)]:
            whole = _like(value, op.Concat(*(part.between for part in parts), axis=axis))
            numbers = {part.number for part in parts}
            return [whole, *(g for i, g in enumerate(gradients) if i not in numbers)]
    return list(gradients)


def _part(number: int, gradient: ir.Value, shape: ir.Shape) -> tuple[int, _Part] | None:
    """The only axis along which there are zeros around a gradient, and what is between them."""
    node = gradient.producer()
    found = None if node is None else padded(node)
    size = None if found is None else shape[found.axis]
    if found is None or not isinstance(size, int):
        return None
    return found.axis, _Part(number, found.before, size - found.after, found.value)
