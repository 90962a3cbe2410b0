"""The six schedules of MindSpore.

With t the step from 0, D ``decay_steps``, r ``decay_rate``. All arithmetic is float64; the graph
rounds the result to float32.
"""

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.schedules.base import LearningRateSchedule


@dataclass(frozen=True)
class _Decay(LearningRateSchedule):
    """What the first three have in common."""

    learning_rate: float
    decay_rate: float
    decay_steps: int
    is_stair: bool = False

    def __post_init__(self) -> None:
        _checks.rate("learning_rate", self.learning_rate)
        _checks.rate("decay_rate", self.decay_rate)
        _checks.steps("decay_steps", self.decay_steps)
        _checks.boolean("is_stair", self.is_stair)

    def _emit_periods(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        periods = op.Div(step, self.decay_steps)
        return op.Floor(periods) if self.is_stair else periods

    def _periods(self, step: int) -> float:
        return step // self.decay_steps if self.is_stair else step / self.decay_steps


@dataclass(frozen=True)
class ExponentialDecayLR(_Decay):
    """``learning_rate * r^(t/D)``; with ``is_stair`` the exponent is floored.

    Args:
        learning_rate: The value at step 0, a float > 0.
        decay_rate: r, a float > 0.
        decay_steps: D, an int >= 1.
        is_stair: Change every D steps instead of at each.

    Raises:
        TypeError: An argument has the wrong type; an int is no float.
        ValueError: An argument is out of range.

    Example:
        >>> ExponentialDecayLR(0.1, 0.5, 4).value(8)
        0.025
    """

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class."""
        power = op.Pow(self.decay_rate, self._emit_periods(op, step))
        return op.Mul(power, self.learning_rate)

    def value(self, step: int) -> float:
        """See the class."""
        return float(self.learning_rate * self.decay_rate ** self._periods(step))


@dataclass(frozen=True)
class NaturalExpDecayLR(_Decay):
    """``learning_rate * e^(-r*t)``; with ``is_stair`` ``learning_rate * e^(-r*floor(t/D)*D)``.

    Arguments and errors are those of `ExponentialDecayLR`; without ``is_stair`` D has no influence.

    Example:
        >>> NaturalExpDecayLR(0.1, 0.9, 4, is_stair=True).value(3)
        0.1
    """

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class."""
        if self.is_stair:
            step = op.Mul(self._emit_periods(op, step), self.decay_steps)
        return op.Mul(op.Exp(op.Mul(step, -self.decay_rate)), self.learning_rate)

    def value(self, step: int) -> float:
        """See the class."""
        if self.is_stair:
            step = step // self.decay_steps * self.decay_steps
        return self.learning_rate * math.exp(-self.decay_rate * step)


@dataclass(frozen=True)
class InverseDecayLR(_Decay):
    """``learning_rate / (1 + r*t/D)``; with ``is_stair`` t/D is floored.

    Arguments and errors are those of `ExponentialDecayLR`.

    Example:
        >>> InverseDecayLR(0.1, 1.0, 4).value(4)
        0.05
    """

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class."""
        divisor = op.Add(op.Mul(self._emit_periods(op, step), self.decay_rate), 1.0)
        return op.Div(self.learning_rate, divisor)

    def value(self, step: int) -> float:
        """See the class."""
        return self.learning_rate / (1 + self.decay_rate * self._periods(step))


@dataclass(frozen=True)
class CosineDecayLR(LearningRateSchedule):
    """``min_lr + (max_lr - min_lr)/2 * (1 + cos(pi * min(t,D)/D))``.

    Args:
        min_lr: The value from step D on, a float >= 0.
        max_lr: The value at step 0, a float > ``min_lr``.
        decay_steps: D, an int >= 1.

    Errors are those of `ExponentialDecayLR`; a ``min_lr`` that is not less is a ValueError too.

    Example:
        >>> CosineDecayLR(0.0, 0.1, 100).value(100)
        0.0
    """

    min_lr: float
    max_lr: float
    decay_steps: int

    def __post_init__(self) -> None:
        _checks.rate("min_lr", self.min_lr, allow_zero=True)
        _checks.rate("max_lr", self.max_lr)
        _checks.steps("decay_steps", self.decay_steps)
        if self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr: got {self.min_lr}, expected less than max_lr={self.max_lr}")

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class; (1 + cos x)/2 is written as sin((pi - x)/2)^2, which runtimes have."""
        left = op.Sub(1.0, op.Div(op.Min(step, self.decay_steps), self.decay_steps))
        sine = op.Sin(op.Mul(left, math.pi / 2))
        return op.Add(op.Mul(op.Mul(sine, sine), self.max_lr - self.min_lr), self.min_lr)

    def value(self, step: int) -> float:
        """See the class; written as in `emit`, because 1 + cos x loses digits near its end."""
        left = 1 - min(step, self.decay_steps) / self.decay_steps
        return self.min_lr + (self.max_lr - self.min_lr) * math.sin(math.pi / 2 * left) ** 2


@dataclass(frozen=True)
class PolynomialDecayLR(LearningRateSchedule):
    """``(learning_rate - end_learning_rate) * (1 - min(t,D)/D)^power + end_learning_rate``.

    With ``update_decay_steps`` D grows to ``D * max(ceil(t/D), 1)`` and t is not clipped.

    Args:
        learning_rate: The value at step 0, a float > 0.
        end_learning_rate: The value at the end, a float >= 0.
        decay_steps: D, an int >= 1.
        power: A float > 0.
        update_decay_steps: Start anew from a lower value each time that D is reached.

    Errors are those of `ExponentialDecayLR`.

    Example:
        >>> PolynomialDecayLR(0.1, 0.0, 10, power=1.0).value(5)
        0.05
    """

    learning_rate: float
    end_learning_rate: float
    decay_steps: int
    power: float
    update_decay_steps: bool = False

    def __post_init__(self) -> None:
        _checks.rate("learning_rate", self.learning_rate)
        _checks.rate("end_learning_rate", self.end_learning_rate, allow_zero=True)
        _checks.steps("decay_steps", self.decay_steps)
        _checks.rate("power", self.power)
        _checks.boolean("update_decay_steps", self.update_decay_steps)

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class."""
        if self.update_decay_steps:
            periods = op.Max(op.Ceil(op.Div(step, self.decay_steps)), 1.0)
            part = op.Div(step, op.Mul(periods, self.decay_steps))
        else:
            part = op.Div(op.Min(step, self.decay_steps), self.decay_steps)
        power = op.Pow(op.Sub(1.0, part), self.power)
        span = self.learning_rate - self.end_learning_rate
        return op.Add(op.Mul(power, span), self.end_learning_rate)

    def value(self, step: int) -> float:
        """See the class."""
        steps = self.decay_steps
        if self.update_decay_steps:
            steps *= max(math.ceil(step / steps), 1)
        span = self.learning_rate - self.end_learning_rate
        return float(span * (1 - min(step, steps) / steps) ** self.power + self.end_learning_rate)


@dataclass(frozen=True)
class WarmUpLR(LearningRateSchedule):
    """``learning_rate * min(t,W)/W``, with W ``warmup_steps``.

    Args:
        learning_rate: The value from step W on, a float >= 0.
        warmup_steps: W, an int >= 1.

    Errors are those of `ExponentialDecayLR`.

    Example:
        >>> WarmUpLR(0.1, 10).value(5)
        0.05
    """

    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        _checks.rate("learning_rate", self.learning_rate, allow_zero=True)
        _checks.steps("warmup_steps", self.warmup_steps)

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """See the class."""
        part = op.Div(op.Min(step, self.warmup_steps), self.warmup_steps)
        return op.Mul(part, self.learning_rate)

    def value(self, step: int) -> float:
        """See the class."""
        return self.learning_rate * min(step, self.warmup_steps) / self.warmup_steps
