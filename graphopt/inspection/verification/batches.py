"""Parameters with the same rule, so that their elements can be computed together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading.dataflow import Value

PARAMETER = ""
"""The kind of a parameter itself, beside those of its states."""

# So many elements are different, then they are repeated; a prime, as no shape is.
_MOST_ELEMENTS = 65_521
_FEWEST_ROWS = 3

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Updated(ParameterFacts):
    """A parameter whose update is run.

    Attributes:
        gradient_dtype: NumPy's name of the element type of its gradient.
        rate: What computes its learning rate.
        factor: What computes the factor of its weight decay.
        enabled_by: The entry of the mask that says whether it is updated; None without a mask.
        limited_with: What it has in common with those whose norm limits its gradient.
    """

    gradient_dtype: str
    rate: Value | None = None
    factor: Value | None = None
    enabled_by: int | None = None
    limited_with: object = None

    @property
    def row(self) -> int:
        """How many elements have to be known for the update of one of them."""
        return math.prod(self.shape[1:]) if self.grad_centralization else 1

    @property
    def rule(self) -> object:
        """What is the same for all parameters of a batch."""
        return (
            *(repr(schedule) for schedule in (self.learning_rate, self.weight_decay)),
            *(_identity(value) for value in (self.rate, self.factor)),
            *(self.dtype, self.gradient_dtype, self.states, self.row, self.enabled_by),
            *(self.grad_centralization, self.limited_with),
        )


@dataclass(frozen=True)
class Batch:
    """Parameters with the same rule, one after another in rows.

    Attributes:
        parameters: The parameters.
        starts: The row in which each begins.
        shape: The number of rows that are different, and their length.
    """

    parameters: Sequence[Updated]
    starts: Sequence[int]
    shape: tuple[int, int]

    @property
    def rule(self) -> Updated:
        """A parameter that has the rule of all."""
        return self.parameters[0]

    @property
    def values(self) -> tuple[str, ...]:
        """The kinds of values that are carried: the parameter itself, and its states."""
        return (PARAMETER, *self.rule.states)

    def spread(self, array: Array) -> Iterator[tuple[Updated, Array]]:
        """The part of an array of rows that each parameter has, in its shape."""
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            part = array[self._place(start) :][: parameter.size // self.shape[1]]
            if part.size < parameter.size:
                rest = array[: self._place(start)]
                part = np.resize(np.concatenate((part, rest)), parameter.shape)
            yield parameter, part.reshape(parameter.shape)

    def pieces(self) -> Iterator[tuple[Updated, slice, slice]]:
        """The elements of each parameter, and the rows they are in: pieces that are not large."""
        rows, length = self.shape
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            first, count = 0, parameter.size // length
            while first < count:
                place = self._place(start + first)
                last = first + min(count - first, rows - place)
                part = slice(first * length, last * length)
                yield parameter, part, slice(place, place + last - first)
                first = last

    def _place(self, row: int) -> int:
        """The row that this one repeats."""
        return row % self.shape[0]


def batches(parameters: Iterable[Updated]) -> list[Batch]:
    """Parameters, by rule."""
    by_rule: dict[object, list[Updated]] = {}
    for parameter in parameters:
        by_rule.setdefault(parameter.rule, []).append(parameter)
    return [_batch(alike) for alike in by_rule.values()]


def _batch(parameters: Sequence[Updated]) -> Batch:
    length = parameters[0].row
    counts = [parameter.size // length for parameter in parameters]
    starts = [sum_ - count for sum_, count in zip(np.cumsum(counts).tolist(), counts, strict=True)]
    most = max(_MOST_ELEMENTS // length, _FEWEST_ROWS)
    return Batch(parameters, starts, (min(sum(counts), most), length))


def _identity(value: Value | None) -> object:
    """Constants are the same if they have the same value."""
    if value is None or value.source.number is not None:
        return None
    return id(value.source)
