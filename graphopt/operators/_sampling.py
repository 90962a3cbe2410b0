"""Values between the elements of an image, by interpolation along each axis.

An image is a table here, with a row for each of its elements and a column for each channel: all
channels share the places at which they are read. A place on an axis is a number: 0 is the center
of its first element, 1 that of the next.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators.rewriting import concat, numbers_to, product

_INT64 = int(ir.DataType.INT64)


@dataclass(frozen=True)
class Interpolation:
    """How the value at a place is made of the elements around it.

    Attributes:
        steps: Where these are, counted from the last element at or before the place.
        weights: For each a polynomial of the distance t from there, 0 <= t < 1: the coefficients
            of 1, t, t², ...
    """

    steps: Sequence[int]
    weights: Sequence[Sequence[float]]

    @property
    def slopes(self) -> list[list[float]]:
        """The derivatives of the weights."""
        return [[n * c for n, c in enumerate(weight)][1:] for weight in self.weights]


INTERPOLATIONS: Mapping[str, Interpolation] = {
    "nearest": Interpolation((0,), [[1]]),
    "linear": Interpolation((0, 1), [[1, -1], [0, 1]]),
    "cubic": Interpolation(  # the convolution of Keys, with a = -0.75
        (-1, 0, 1, 2),
        [[0, -0.75, 1.5, -0.75], [1, 0, -2.25, 1.25], [0, 0.75, 1.5, -1.25], [0, 0, -0.75, 0.75]],
    ),
}


class Taps:
    """The elements of an axis that are read, K of them for each of Q places.

    Attributes:
        indices: int64, Q x K; 0 for an element that lies outside the axis.
        count: The number K.
    """

    def __init__(
        self,
        op: GraphBuilder,
        elements: ir.Value,
        distance: ir.Value,
        size: Operand,
        how: Interpolation,
    ) -> None:
        """What is read of an axis.

        Args:
            op: Appends the nodes.
            elements: Which elements, as floats: Q x K.
            distance: How far from the element before it each place is: Q x 1.
            size: That of the axis, as a vector of one.
            how: The interpolation.
        """
        is_inside = op.And(
            op.GreaterOrEqual(elements, 0.0),
            op.LessOrEqual(elements, last_of(op, size, elements)),
        )
        self.indices = op.Cast(op.Where(is_inside, elements, 0.0), to=_INT64)
        self.count = len(how.steps)
        self._op, self._is_inside, self._distance, self._how = op, is_inside, distance, how

    def weights(self) -> ir.Value:
        """How much each element counts, Q x K; nothing if it lies outside."""
        return self._polynomials(self._how.weights)

    def slopes(self) -> ir.Value:
        """The derivatives of the weights by the place."""
        return self._polynomials(self._how.slopes)

    def _polynomials(self, table: Sequence[Sequence[float]]) -> ir.Value:
        op, distance = self._op, self._distance
        is_inside = op.CastLike(self._is_inside, distance)
        kind = (distance.dtype or ir.DataType.FLOAT).numpy()
        *lower, highest = np.array(table, kind).T
        total: Operand = highest
        for column in reversed(lower):
            total = op.Add(op.Mul(distance, total), column)
        return op.Mul(is_inside, total)


def last_of(op: GraphBuilder, size: Operand, like: ir.Value) -> ir.Value:
    """The number of the last element of an axis, in the dtype of a value.

    Args:
        op: Appends the nodes.
        size: That of the axis, as a vector of one.
        like: The value.
    """
    if isinstance(size, np.ndarray):
        return op.constant(np.array(size[0] - 1, (like.dtype or ir.DataType.FLOAT).numpy()))
    return op.Sub(op.CastLike(op.Squeeze(size, [0]), like), 1.0)


def taps_at(op: GraphBuilder, places: ir.Value, size: Operand, how: Interpolation) -> Taps:
    """What is read of an axis for Q places.

    Args:
        op: Appends the nodes.
        places: Q x 1; they need not lie on the axis.
        size: That of the axis, as a vector of one.
        how: The interpolation, any but "nearest".
    """
    before = op.Floor(places)
    return Taps(op, elements_around(op, before, how), op.Sub(places, before), size, how)


def elements_around(op: GraphBuilder, before: ir.Value, how: Interpolation) -> ir.Value:
    """The elements that are read, Q x K, from those at or before Q places, Q x 1."""
    steps = np.array(how.steps, (before.dtype or ir.DataType.FLOAT).numpy())
    return op.Add(before, steps)


class Sampling:
    """The elements of images that are read for Q places: T for each, the choices of all axes' taps.

    Attributes:
        rows: The rows of the table that are read: Q * T.
        count: The number T.
    """

    def __init__(
        self, op: GraphBuilder, taps: Sequence[Taps], sizes: Sequence[Operand], images: Operand
    ) -> None:
        """What is read of a table that has a row for each element of the first image, and so on.

        Args:
            op: Appends the nodes.
            taps: Those of each axis. Each image has equally many places, the first the first.
            sizes: Those of each axis, as vectors of one.
            images: How many there are, as a vector of one.
        """
        self._op, self._taps = op, taps
        self._strides = [product(op, sizes[axis + 1 :]) for axis in range(len(sizes))]
        self.count = math.prod(tap.count for tap in taps)
        self.rows = self._rows(product(op, sizes), images)

    def weights(self) -> ir.Value:
        """How much each element counts, Q x T."""
        return self._joined(self._op.Mul, [tap.weights() for tap in self._taps])

    def slopes(self, axis: int) -> ir.Value:
        """The derivatives of the weights by the place on one of the axes, Q x T."""
        factors = [t.slopes() if a == axis else t.weights() for a, t in enumerate(self._taps)]
        return self._joined(self._op.Mul, factors)

    def _rows(self, size: Operand, images: Operand) -> ir.Value:
        op = self._op
        indices = [
            op.Mul(tap.indices, stride)
            for tap, stride in zip(self._taps, self._strides, strict=True)
        ]
        each = op.Reshape(self._joined(op.Add, indices), concat(op, [images, np.array([-1])]))
        first = op.Unsqueeze(op.Mul(numbers_to(op, images), size), [1])
        return op.Reshape(op.Add(each, first), [-1])

    def _joined(
        self, join: Callable[[ir.Value, ir.Value], ir.Value], factors: Sequence[ir.Value]
    ) -> ir.Value:
        """Of Q x K for each axis, Q x T."""
        joined, count = factors[0], self._taps[0].count
        for factor, tap in zip(factors[1:], self._taps[1:], strict=True):
            count *= tap.count
            pair = join(self._op.Unsqueeze(joined, [2]), self._op.Unsqueeze(factor, [1]))
            joined = self._op.Reshape(pair, [-1, count])
        return joined
