"""What every learning rate is: a value at a step, in NumPy and in ONNX."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import reference

from graphopt.builder import GraphBuilder


class LearningRateSchedule(ABC):
    """A learning rate as a function of the step, which counts from 0.

    Subclass it for a schedule of one's own: `emit` writes the value with ONNX operators, and
    everything else follows from that. Instances that compare equal share one computation in the
    graph, so a frozen dataclass is a good choice.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Halving(LearningRateSchedule):
        ...     start: float
        ...     every: int
        ...     def emit(self, op, step):
        ...         return op.Mul(op.Pow(0.5, op.Floor(op.Div(step, self.every))), self.start)
        >>> [Halving(0.1, 10).value(step) for step in (0, 9, 10, 25)]
        [0.1, 0.1, 0.05, 0.025]
    """

    @abstractmethod
    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """Append the nodes that compute the value.

        Args:
            op: Appends nodes.
            step: The step as a float64 scalar.

        Returns:
            The value at that step, a floating-point scalar.
        """

    def value(self, step: int) -> float:
        """The value at a step; by default what the nodes of `emit` give in NumPy."""
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="schedule")
        op = GraphBuilder(graph)
        op.output(self.emit(op, op.input("step", np.float64, [])), "value")
        model = ir.to_proto(ir.Model(graph, ir_version=8))
        (value,) = reference.ReferenceEvaluator(model).run(None, {"step": np.float64(step)})
        return float(np.asarray(value))

    def describe(self) -> Mapping[str, Any]:
        """What the metadata of a graph says about it: its kind and its arguments."""
        return {"schedule": type(self).__name__} | {
            key: value for key, value in vars(self).items() if isinstance(value, int | float)
        }


@dataclass(frozen=True)
class Fixed(LearningRateSchedule):
    """The same value at every step."""

    constant: float

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:  # noqa: ARG002
        """An initializer."""
        return op.constant(np.float32(self.constant), name="learning_rate")

    def value(self, step: int) -> float:  # noqa: ARG002
        """The value, whatever the step."""
        return self.constant


@dataclass(frozen=True)
class Listed(LearningRateSchedule):
    """One value for each step; there is no step after the last."""

    values: tuple[float, ...]

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """Gather, which the runtime refuses past the end."""
        values = op.constant(np.array(self.values, np.float32), name="learning_rates")
        return op.Gather(values, op.Cast(step, to=ir.DataType.INT64), axis=0)

    def value(self, step: int) -> float:
        """The value of a step.

        Raises:
            IndexError: The list has no value for it.
        """
        if not 0 <= step < len(self.values):
            raise IndexError(f"step {step}: the learning rate has {len(self.values)} values")
        return self.values[step]

    def describe(self) -> Mapping[str, Any]:
        """The number of values; the values stand in the graph."""
        return {"schedule": "list", "length": len(self.values)}
