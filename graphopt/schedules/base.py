"""What every learning rate is: a value at a step, in NumPy and in ONNX."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import local_functions
from graphopt.versions import IR_VERSION, MIN_OPSET


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

    def checked_emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """What `emit` returns; a plain number becomes a constant.

        Raises:
            TypeError: It is neither a value of the graph nor a number.
        """
        value = self.emit(op, step)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return op.constant(np.float64(value))
        if not isinstance(value, ir.Value):
            raise TypeError(
                f"{type(self).__name__}.emit returned {type(value).__name__}, expected the value "
                "of the graph that op.Mul(...) or the like returns"
            )
        return value

    def value(self, step: int) -> float:
        """The value at a step; by default what the nodes of `emit` give in NumPy."""
        from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

        graph = ir.Graph([], [], nodes=[], opset_imports={"": MIN_OPSET}, name="schedule")
        op = GraphBuilder(graph)
        op.output(self.checked_emit(op, op.input("step", np.float64, [])), "value")
        model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
        model.functions.extend(local_functions(graph))
        (value,) = ReferenceEvaluator(model).run(None, {"step": np.float64(step)})
        array = np.asarray(value)
        if array.size != 1 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{type(self).__name__}: its value is {array.dtype.name}{list(array.shape)}, "
                "expected a floating-point scalar"
            )
        return float(array.reshape(()))

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
        return op.constant(op.number(self.constant), name="learning_rate")

    def value(self, step: int) -> float:  # noqa: ARG002
        """The value, whatever the step."""
        return self.constant


def described_list(values: np.ndarray) -> dict[str, Any]:
    """What the metadata says about the values of a list.

    Example:
        >>> described_list(np.array([0.1, 0.2]))
        {'schedule': 'list', 'length': 2, 'digest': '31989ed5'}
    """
    digest = zlib.crc32(values.astype("<f4").tobytes())
    return {"schedule": "list", "length": len(values), "digest": f"{digest:08x}"}


@dataclass(frozen=True)
class Listed(LearningRateSchedule):
    """One value for each step; there is no step after the last."""

    values: tuple[float, ...]

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """Gather; past the end a Reshape to more elements than there are, which fails."""
        values = op.constant(np.array(self.values, op.real.numpy()), name="learning_rates")
        last = len(self.values) - 1
        index = op.Reshape(op.Cast(step, to=ir.DataType.INT64), [1])
        value = op.Gather(values, op.Min(index, last), axis=0)
        beyond = op.Max(op.Sub(index, last), 0)
        return op.Squeeze(op.Reshape(value, op.Add(beyond, 1)))

    def value(self, step: int) -> float:
        """The value of a step.

        Raises:
            IndexError: The list has no value for it.
        """
        if not 0 <= step < len(self.values):
            raise IndexError(f"step {step}: the learning rate has {len(self.values)} values")
        return self.values[step]

    def describe(self) -> Mapping[str, Any]:
        """The number of values, and their digest; the values stand in the graph."""
        return described_list(np.array(self.values))
