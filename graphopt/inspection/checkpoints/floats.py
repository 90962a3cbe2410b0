"""Computing with many numbers, a piece at a time, and at the ends of float64."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.carried import Array

Floats = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

PIECE = 2**16
"""The number of elements that are looked at together."""


def pieces(*arrays: Array) -> Iterator[tuple[Float64, ...]]:
    """The elements of arrays of one size in float64, a piece at a time."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, PIECE):
        yield tuple(array[start : start + PIECE].astype(np.float64) for array in flat)


def unit_of(array: Array, largest: float) -> float:
    """A power of two such that squares of multiples of it do not leave float64."""
    if array.dtype != np.float64 or not largest:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)


def scaled(values: Float64, unit: float) -> Float64:
    """The values as multiples of a unit."""
    return values if unit == 1.0 else values / unit


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None
