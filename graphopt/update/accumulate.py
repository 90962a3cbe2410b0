"""Adding gradients up over several steps, inside the graph."""

import numpy as np
import onnx_ir as ir

from graphopt.accumulation import UPDATE_INPUT, Accumulation
from graphopt.builder import GraphBuilder
from graphopt.states import ACCUMULATION_COUNT
from graphopt.update import functions


class Accumulator:
    """The scalars of a step that adds its gradients to those before.

    Args:
        op: Appends the nodes, and inputs.
        rule: How many steps make an update.

    Attributes:
        is_last: Whether the step is the last before an update, a bool scalar.
        is_sound: Whether the sums of finite gradients are finite too; None where nobody asks.
        share: What the sum is multiplied by in an update, a float32 scalar.
    """

    def __init__(self, op: GraphBuilder, rule: Accumulation) -> None:
        """Append the scalars."""
        self._op = op
        self.is_sound: ir.Value | None = None
        self._steps = op.input(ACCUMULATION_COUNT.name, ACCUMULATION_COUNT.dtype, [])
        self._counted = op.Add(self._steps, 1)
        self._keeps = op.Cast(op.Greater(self._steps, 0), to=op.real)
        if rule.steps is None:
            self.is_last = op.input(UPDATE_INPUT, np.bool_, [])
        else:
            self.is_last = op.GreaterOrEqual(self._counted, rule.steps)
        if rule.reduction == "sum":
            self.share = op.constant(op.number(1))
        elif rule.steps is None:
            self.share = op.Reciprocal(op.Cast(self._counted, to=op.real))
        else:
            self.share = op.constant(op.number(1 / rule.steps), name="share")

    @property
    def scalars(self) -> list[ir.Value]:
        """What reads the number of steps, which the step changes."""
        return [self._keeps, self._counted, self.is_last]

    def added(
        self, total: ir.Value, gradient: ir.Value, unscales: ir.Value, finite: ir.Value | None
    ) -> ir.Value:
        """The sum with another gradient, float32; a sum of none begins anew.

        Args:
            total: The sum of the steps before.
            gradient: That of this step, of the same shape.
            unscales: What it is multiplied by.
            finite: Whether it counts; None where it always does.
        """
        operands = [total, gradient, self._keeps, unscales]
        if finite is None:
            return functions.call(self._op, "WeightedSum", *operands)
        return functions.call(self._op, "WeightedSumMask", *operands, finite)

    @property
    def applies(self) -> ir.Value:
        """Whether the sums are applied, if the step counts."""
        if self.is_sound is None:
            return self.is_last
        return self._op.And(self.is_last, self.is_sound)

    def count(self, seen: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The number of steps that have been added up, before and after this one.

        Args:
            seen: Whether its gradients count, which is not known before the gate opens.
        """
        op = self._op
        added = op.Where(self.is_last, np.int64(0), self._counted)
        return self._steps, op.Where(seen, added, self._steps)
