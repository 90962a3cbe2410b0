"""Learning rates: the value at a step in NumPy, and the same value in ONNX."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt import _checks
from graphopt.builder import GraphBuilder


class LearningRate(Protocol):
    """A learning rate as a function of the global step, which counts from 0."""

    def value(self, step: int) -> float:
        """The learning rate of a step."""

    def emit(self, op: GraphBuilder, global_step: ir.Value) -> ir.Value:
        """The same as a float32 scalar of the graph; ``global_step`` is an int64 scalar."""


@dataclass(frozen=True)
class Fixed:
    """The same learning rate at every step."""

    learning_rate: float

    def value(self, step: int) -> float:  # noqa: ARG002
        """The learning rate, whatever the step."""
        return self.learning_rate

    def emit(self, op: GraphBuilder, global_step: ir.Value) -> ir.Value:  # noqa: ARG002
        """A scalar initializer."""
        return op.constant(np.float32(self.learning_rate), name="learning_rate")


def learning_rate(name: str, value: Any) -> LearningRate:
    """What a user gives as a learning rate, checked.

    Raises:
        TypeError: Not a number.
        ValueError: Negative, infinite or NaN.
    """
    if isinstance(value, str | bytes):
        raise ValueError(f"{name}: got {value!r}, expected a number, not text")
    return Fixed(_checks.at_least_zero(name, _checks.number(name, value)))
