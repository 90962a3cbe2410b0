"""How the averages of parameters, and of running statistics, move with each update."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.average import ParameterAverage
from graphopt.builder import GraphBuilder
from graphopt.update import functions


class Averages:
    """The averages of a step.

    Args:
        op: Appends the nodes.
        rule: How they move; None where there are none.
        global_step: The number of updates before this step, an int64 scalar.

    Attributes:
        rule: The same.
        weights: What the old value and the new one are multiplied by, float32 scalars.
    """

    def __init__(
        self, op: GraphBuilder, rule: ParameterAverage | None, global_step: ir.Value
    ) -> None:
        """Append what the averages have in common."""
        self._op = op
        self.rule = rule
        self.weights: Sequence[ir.Value] = ()
        if rule is not None:
            decay = rule.emit(op, global_step)
            self.weights = (decay, op.Sub(op.number(1), decay))

    def moved(self, average: ir.Value, value: ir.Value, on: ir.Value | None) -> ir.Value:
        """The new average.

        Args:
            average: The old one, float32.
            value: What it is of, after the update, float32 and of the same shape.
            on: Whether there is an update; None where there always is.
        """
        if on is None:
            return functions.call(self._op, "WeightedSum", average, value, *self.weights)
        return functions.call(self._op, "WeightedSumMask", average, value, *self.weights, on)
