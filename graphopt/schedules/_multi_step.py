"""The schedule of PyTorch that is none of MindSpore's."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.schedules.base import LearningRateSchedule


@dataclass(frozen=True)
class MultiStepLR(LearningRateSchedule):
    """``learning_rate * r^n``, with n the number of milestones that are not after the step.

    What PyTorch calls ``StepLR`` is ``ExponentialDecayLR(..., is_stair=True)``.

    Args:
        learning_rate: The value at step 0, a float > 0.
        decay_rate: r, a float > 0; PyTorch calls it gamma.
        milestones: The steps at which the value changes; one or more ints >= 1, growing.

    Raises:
        TypeError: An argument has the wrong type; an int is no float.
        ValueError: An argument is out of range, or the milestones do not grow.

    Source:
        ``torch.optim.lr_scheduler.MultiStepLR``.

    Example:
        >>> schedule = MultiStepLR(0.5, 0.5, milestones=[30, 80])
        >>> [schedule.value(step) for step in (0, 29, 30, 79, 80)]
        [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    learning_rate: float
    decay_rate: float
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        _checks.rate("learning_rate", self.learning_rate)
        _checks.rate("decay_rate", self.decay_rate)
        _checks.growing_steps("milestones", self.milestones)
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """The factors that are 1 before their milestone, multiplied one by one as in `value`."""
        value: float | ir.Value = self.learning_rate
        before, after = (op.constant(np.float64(factor)) for factor in (1.0, self.decay_rate))
        for milestone in self.milestones:
            value = op.Mul(op.Where(op.Less(step, milestone), before, after), value)
        assert isinstance(value, ir.Value)  # there is a milestone
        return value

    def value(self, step: int) -> float:
        """See the class; multiplied one by one, as PyTorch does."""
        value = self.learning_rate
        for _ in range(bisect_right(self.milestones, step)):
            value *= self.decay_rate
        return value

    def describe(self) -> Mapping[str, Any]:
        """The arguments."""
        return {**super().describe(), "milestones": list(self.milestones)}
