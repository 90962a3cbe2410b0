"""The arithmetic of an optimizer, whatever carries the tensors that it works on."""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import DOMAIN
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.base import Fixed
from graphopt.schedules.parse import emit as emit_schedule
from graphopt.update import functions
from graphopt.update.core import Variant


class Arithmetic:
    """Appends what an optimizer computes: the scalars of a step, and the functions of the update.

    Args:
        op: Appends the scalars, which all parameters share.
        optimizer: What to apply.
        global_step: Returns the number of steps before this one, an int64 scalar of the graph.
            Called where a schedule needs it.
    """

    def __init__(
        self, op: GraphBuilder, optimizer: RMSProp, global_step: Callable[[], ir.Value]
    ) -> None:
        self._op = op
        self._optimizer = optimizer
        self._global_step = global_step
        self._values: dict[tuple[LearningRateSchedule, float], ir.Value] = {}

    def value(self, schedule: LearningRateSchedule, times: float = 1.0) -> ir.Value:
        """The value of a schedule at this step times a number, a float32 scalar, computed once."""
        key = (schedule, times)
        if key not in self._values:
            self._values[key] = (
                emit_schedule(schedule, self._op, self._global_step())
                if times == 1
                else self._op.Mul(self.value(schedule), times)
            )
        return self._values[key]

    def decay_factor(self, rule: Rule) -> ir.Value:
        """What multiplies the parameter in weight decay.

        Where it is added to the gradient, it carries the loss scale as the gradient does.
        """
        decay = rule.weight_decay
        scale = (
            1.0 if self._optimizer.decoupled_weight_decay else self._optimizer.carried_loss_scale
        )
        if isinstance(decay, Fixed):
            return self._op.constant(self._op.number(decay.constant * scale), name="weight_decay")
        return self.value(decay, scale)

    def adds_decay(self, rule: Rule) -> bool:
        """Whether weight decay is added to the gradient."""
        return rule.decays and not self._optimizer.decoupled_weight_decay

    def centralized(
        self,
        op: GraphBuilder,
        rule: Rule,
        parameter: ir.Value | None,
        gradient: ir.Value,
        as_rows: Callable[[ir.Value], ir.Value],
        factor: ir.Value | None = None,
    ) -> ir.Value:
        """The gradient less the mean of each row, after weight decay where that is added to it.

        What comes before weight decay, comes before that here too.

        Args:
            op: Appends to the graph or to a branch of it.
            rule: How the parameter is updated.
            parameter: Its value; may be None where no weight decay is added.
            gradient: Its gradient.
            as_rows: Makes float32 matrices of both, a row for each index of the first axis.
            factor: What the gradient is multiplied by first.
        """
        g = as_rows(gradient)
        if factor is not None:
            g = functions.call(op, "Scale", g, factor)
        if (limit := self._optimizer.clip_value) is not None:
            g = functions.call(op, "ClipValue", g, clip_value=limit)
        if self.adds_decay(rule):
            assert parameter is not None
            g = functions.call(op, "WeightDecay", as_rows(parameter), g, self.decay_factor(rule))
        return functions.call(op, "Centralize", g)

    def update(
        self,
        op: GraphBuilder,
        variant: Variant,
        tensors: Sequence[ir.Value],
        scalars: Sequence[ir.Value],
    ) -> tuple[ir.Value, ...]:
        """Call the function of the update; returns the new parameters and states.

        Args:
            op: Appends to the graph or to a branch of it.
            variant: Which function.
            tensors: Parameters, gradients and states.
            scalars: Its other inputs.
        """
        attributes = {name: getattr(self._optimizer, name) for name in variant.attributes}
        return op.node(
            variant.name,
            [*tensors, *scalars],
            domain=DOMAIN,
            outputs=len(variant.outputs),
            **functions.attributes(op, attributes),
        )
