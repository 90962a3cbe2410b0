"""The average of the parameters, which is often better than the last of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import _checks
from graphopt.builder import GraphBuilder


@dataclass(frozen=True)
class ParameterAverage:
    """An exponential moving average of each parameter, state of the graph.

    In the update that follows t others, ``average.<parameter>`` becomes::

        e ← d · e + (1 - d) · w

    in float32, where d is ``decay``, but 0 in the first update; or, with ``warm_up``,
    min(decay, (1 + t) / (10 + t)). It starts at the parameter.

    Args:
        decay: A number >= 0 and < 1.
        warm_up: Let the decay grow, so that the first values count less.
        statistics: Average the running statistics of batch normalization too; otherwise what is
            exported with the average has the last ones.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``decay`` is out of range.

    Source:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
        ``torch.optim.swa_utils.AveragedModel`` (without warm-up),
        ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (with it).

    Example:
        >>> [round(ParameterAverage(0.9, warm_up=True).decay_at(t), 2) for t in (0, 1, 10, 100)]
        [0.1, 0.18, 0.55, 0.9]
    """

    decay: float = 0.999
    warm_up: bool = False
    statistics: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if _checks.at_least_zero("decay", self.decay) >= 1:
            raise ValueError(f"decay: got {self.decay}, expected a number >= 0 and < 1")
        _checks.boolean("warm_up", self.warm_up)
        _checks.boolean("statistics", self.statistics)

    def decay_at(self, step: int) -> float:
        """The decay of the update that follows ``step`` others."""
        if self.warm_up:
            return min(self.decay, (1 + step) / (10 + step))
        return self.decay if step else 0.0

    def emit(self, op: GraphBuilder, global_step: ir.Value) -> ir.Value:
        """Append what `decay_at` computes, a scalar of ``op.real``.

        Args:
            op: Appends the nodes.
            global_step: The number of updates before, an int64 scalar.
        """
        if self.warm_up:
            step = op.Cast(global_step, to=ir.DataType.DOUBLE)
            share = op.Div(op.Add(step, 1.0), op.Add(step, 10.0))
            return op.Cast(op.Min(share, np.float64(self.decay)), to=op.real)
        counts = op.Cast(op.Greater(global_step, 0), to=op.real)
        return op.Mul(counts, op.number(self.decay))


def checked_average(value: Any) -> ParameterAverage | None:
    """The average that an optimizer is given: None, a `ParameterAverage`, or its decay.

    Raises:
        TypeError: It is none of them.
        ValueError: The decay is out of range.
    """
    if value is None or isinstance(value, ParameterAverage):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"average: got {value!r} ({type(value).__name__}), "
            "expected a ParameterAverage, its decay or None"
        )
    return ParameterAverage(float(value))
