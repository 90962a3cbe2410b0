"""Constants, shapes as values, and what is filled by a shape."""

import math

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Number, broadcast
from graphopt.shapes.values import FLOAT, INT64, MOST_ELEMENTS, UNKNOWN, TensorInfo, tensor


def constant(node: Node) -> list[TensorInfo]:
    """A constant, in whichever attribute it is."""
    attributes = node.attributes
    if (found := attributes.tensor("value")) is not None:
        return [found]
    if "value_int" in attributes:
        return [tensor(INT64, (), [attributes.integer("value_int")])]
    if (integers := attributes.integers("value_ints")) is not None:
        return [tensor(INT64, (len(integers),), integers)]
    if "value_float" in attributes:
        return [tensor(FLOAT, ())]
    if "value_floats" in attributes:
        return [tensor(FLOAT, (attributes.count("value_floats"),))]
    return [UNKNOWN]


def shape(node: Node) -> list[TensorInfo]:
    """The sizes of the first input, or some of them."""
    shape = node.shape()
    start, end = node.attributes.integer("start"), node.attributes.integer("end", len(shape))
    part = shape[start:end]
    return [tensor(INT64, (len(part),), part)]


def size(node: Node) -> list[TensorInfo]:
    """The number of elements."""
    return [tensor(INT64, (), [node.input(0).elements])]


def constant_of_shape(node: Node) -> list[TensorInfo]:
    """One element everywhere, in the shape that the first input is."""
    filling = node.attributes.tensor("value") or tensor(FLOAT, ())
    return [_filled(tensor(filling.dtype, node.dims(0)), filling)]


def _filled(info: TensorInfo, filling: TensorInfo) -> TensorInfo:
    """The same element everywhere, if there are few."""
    count = info.elements
    if not filling.numbers or len(filling.numbers) != 1 or count is None or count > MOST_ELEMENTS:
        return info
    return tensor(info.dtype, info.shape, filling.numbers * count)


def arithmetic_sequence(node: Node) -> list[TensorInfo]:
    """From a number to another in equal steps; from 0 to an open size there are as many."""
    dtype = node.input(0).dtype
    ends = [(node.input(index).numbers or (None,))[0] for index in range(3)]
    if isinstance(ends[1], str) and (ends[0], ends[2]) == (0, 1):
        return [tensor(dtype, (ends[1],))]
    start, limit, delta = (end if isinstance(end, Number) else None for end in ends)
    if start is None or limit is None or delta is None:
        return [tensor(dtype, (None,))]
    if any(float(end) % 1 for end in (start, limit, delta)):
        return [tensor(dtype, (None,))]  # rounding decides
    count = max(math.ceil((limit - start) / delta), 0)
    numbers = [start + delta * at for at in range(count)] if count <= MOST_ELEMENTS else None
    return [tensor(dtype, (count,), numbers)]


def expand(node: Node) -> list[TensorInfo]:
    """The first input, broadcast with the shape that the second is."""
    first = node.input(0)
    return [_filled(tensor(first.dtype, broadcast(first.shape, node.dims(1))), first)]


def of_dtype(node: Node) -> list[TensorInfo]:
    """The shape of the first input, in the dtype ``dtype``."""
    first = node.input(0)
    return [tensor(node.attributes.dtype("dtype", first.dtype), first.shape)]


def random(node: Node) -> list[TensorInfo]:
    """The shape and dtype that attributes say."""
    return [tensor(node.attributes.dtype("dtype", FLOAT), node.attributes.integers("shape"))]
