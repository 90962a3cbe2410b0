"""DeformConv, a convolution in which each element of each window has an offset of its own.

It is written out as what it computes: what is read between the elements of the image, times the
weight. So it runs where the operator is not known, and all parts have a gradient.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators._sampling import INTERPOLATIONS, Sampling, taps_at
from graphopt.operators.flops import Outputs, plus, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import (
    concat,
    describe,
    known_rank,
    numbers_to,
    product,
    replace,
    size_of,
)
from graphopt.shapes import sampling
from graphopt.shapes.node import Node

_REST = np.array([-1])


def _flops(node: Node, outputs: Outputs) -> int | None:
    """Of the product with the weight, and of the elements that it reads."""
    weight, result = node.shape(1), outputs[0].shape
    if result is None:
        return None
    read = times(2 ** (len(weight) - 1), result[0], node.shape()[1], *weight[2:], *result[2:])
    return plus(times(2, outputs[0].elements, *weight[1:]), read)


def rewrite_deform_conv(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Write out what is read, and the product of that with the weight.

    What lies between two elements is interpolated linearly; what lies outside is 0. At the center
    of an element, an offset has the slope towards the next one.

    Raises:
        ValueError: The shape of the weight, or the rank of the image or the offset, is not known.
    """
    del trained
    with op.named(node.name or str(node.outputs[0].name)):
        replace(op, node, _Layer(op, node).result())


class _Layer:
    """One node. In shapes: N images of C channels, K elements in a window, at P places."""

    def __init__(self, op: GraphBuilder, node: ir.Node) -> None:
        x, weight, offset, self._bias, self._mask = [*node.inputs, None, None][:5]
        rank = known_rank(node, x) - 2
        known_rank(node, offset)
        assert x is not None
        assert weight is not None
        assert offset is not None
        known = weight.const_value.shape if weight.const_value is not None else weight.shape
        shape = [size for size in known or () if isinstance(size, int)]
        if len(shape) != rank + 2:
            raise ValueError(
                f"{describe(node)}: the shape of its weight '{weight.name}' is not known; "
                "declare the shapes of the model's inputs"
            )
        attributes = node.attributes
        self._op, self._x, self._weight, self._offset = op, x, weight, offset
        self._outputs, channels, *self._kernel = shape
        self._elements = int(np.prod(self._kernel))
        self._group = attributes.get_int("group", 1)
        self._offset_group = attributes.get_int("offset_group", 1)
        self._channels = channels * self._group
        self._strides = attributes.get_ints("strides", [1] * rank)
        self._dilations = attributes.get_ints("dilations", [1] * rank)
        self._begin = list(attributes.get_ints("pads", [0] * rank))[:rank]
        self._images = size_of(op, x, 0)
        self._sizes = [size_of(op, x, 2 + axis) for axis in range(rank)]
        self._places = [size_of(op, offset, 2 + axis) for axis in range(rank)]

    def result(self) -> ir.Value:
        """The product of the weight, by groups, with the columns; and the bias."""
        op, group = self._op, self._group
        rows = self._channels // group * self._elements
        columns = op.Reshape(self._columns(), [0, group, rows, -1])
        weight = op.Reshape(self._weight, [group, self._outputs // group, rows])
        product = op.MatMul(weight, columns)
        shape = [self._images, np.array([self._outputs]), *self._places]
        y = op.Reshape(product, concat(op, shape))
        if self._bias is None:
            return y
        return op.Add(y, op.Reshape(self._bias, [-1] + [1] * len(self._places)))

    def _columns(self) -> ir.Value:
        """What each window holds: N, groups of offsets, the channels of one, K, P."""
        op = self._op
        channels = self._channels // self._offset_group
        read = self._read()
        table = op.Reshape(self._x, [0, self._offset_group, channels, -1])
        table = op.Reshape(op.Transpose(table, perm=[0, 1, 3, 2]), [-1, channels])
        elements = op.Reshape(op.Gather(table, read.rows, axis=0), [-1, read.count, channels])
        weights = read.weights()
        if self._mask is not None:
            weights = op.Mul(weights, op.Reshape(self._mask, [-1, 1]))
        values = op.MatMul(op.Unsqueeze(weights, [1]), elements)
        parts = [self._offset_group, self._elements, -1, channels]
        split = op.Reshape(values, concat(op, [self._images, np.array(parts)]))
        return op.Transpose(split, perm=[0, 1, 4, 2, 3])

    def _read(self) -> Sampling:
        """The elements of the image that are read for each group, element of a window and place."""
        op, rank = self._op, len(self._places)
        parts = np.array([self._offset_group, self._elements, rank])
        offset = op.Reshape(self._offset, concat(op, [self._images, parts, *self._places]))
        taps = []
        for axis, size in enumerate(self._sizes):
            place = op.Gather(offset, np.array(axis), axis=3)
            place = op.Reshape(self._moved(place, axis), [-1, 1])
            taps.append(taps_at(op, place, size, INTERPOLATIONS["linear"]))
        images = product(op, [self._images, np.array([self._offset_group])])
        return Sampling(op, taps, self._sizes, images)

    def _moved(self, offset: ir.Value, axis: int) -> ir.Value:
        """Offsets along an axis, from where the windows and their elements are without them."""
        op, rank = self._op, len(self._places)
        steps = np.arange(self._kernel[axis]) * self._dilations[axis] - self._begin[axis]
        steps = steps.reshape([-1 if at == axis else 1 for at in range(rank)])
        steps = np.broadcast_to(steps, self._kernel).reshape([-1] + [1] * rank)
        places = self._along(axis)
        kind = (offset.dtype or ir.DataType.FLOAT).numpy()
        if isinstance(places, np.ndarray):
            return op.Add(offset, (steps + places).astype(kind))
        return op.Add(offset, op.CastLike(op.Add(places, steps), offset))

    def _along(self, axis: int) -> Operand:
        """Where the windows along an axis begin."""
        op, shape = self._op, [-1 if at == axis else 1 for at in range(len(self._places))]
        numbers, stride = numbers_to(op, self._places[axis]), self._strides[axis]
        if isinstance(numbers, np.ndarray):
            return numbers.reshape(shape) * stride
        return op.Mul(op.Reshape(numbers, shape), stride)


operator(
    "DeformConv",
    rewrite=rewrite_deform_conv,
    weights=(1,),
    bias=3,
    flops=_flops,
    shape=sampling.deform_conv,
)
