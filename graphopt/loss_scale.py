"""The factor of the loss: a number, an input of the graph, or a state that follows overflows."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.schedules import FromCaller
from graphopt.state_inputs import input_of_state
from graphopt.states import LOSS_SCALE

SMALLEST = 1.1754943508222875e-38
"""The smallest normal float32, of which 1 / SMALLEST is finite."""


@dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that shrinks when a gradient overflows, and grows when none has for a while.

    It is state of the graph (``loss_scale`` and ``loss_scale_steps``, the steps since it last
    changed). With the scale c and the counter n, after each step::

        c, n ← max(c · backoff_factor, floor), 0      where a gradient is infinite or NaN
        c, n ← min(c · growth_factor, ceiling), 0     where n + 1 is growth_interval
        c, n ← c, n + 1                               otherwise

    in float32. A scale that would become infinite stays what it is.

    The class methods give the sequences of other frameworks.

    Args:
        initial: The scale of the first step, a number > 0.
        growth_factor: A number > 1.
        backoff_factor: A number > 0 and < 1.
        growth_interval: An int >= 1.
        floor: A number >= 0: the scale never becomes smaller, nor than the smallest normal float32,
            below which one divided by it is infinite.
        ceiling: A number >= ``initial``: it never becomes larger; None: there is none.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Source:
        Micikevicius et al., "Mixed precision training", 2018; ``torch.amp.GradScaler``.

    Example:
        >>> rule = DynamicLossScale(initial=8.0, growth_interval=2)
        >>> rule.after(8.0, 0, finite=True), rule.after(8.0, 1, finite=True)
        ((8.0, 1), (16.0, 0))
        >>> rule.after(8.0, 1, finite=False)
        (4.0, 0)
    """

    initial: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    floor: float = SMALLEST
    ceiling: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        _checked("initial", self.initial)
        _checks.above_zero("growth_factor", self.growth_factor)
        _checks.above_zero("backoff_factor", self.backoff_factor)
        _checks.at_least_zero("floor", self.floor)
        _checks.steps("growth_interval", self.growth_interval)
        if self.growth_factor <= 1:
            raise ValueError(f"growth_factor: got {self.growth_factor}, expected a number > 1")
        if self.backoff_factor >= 1:
            raise ValueError(f"backoff_factor: got {self.backoff_factor}, expected a number < 1")
        object.__setattr__(self, "floor", max(float(self.floor), SMALLEST))
        if self.floor > self.initial:
            raise ValueError(
                f"floor: got {self.floor}, expected at most initial, which is {self.initial}"
            )
        if self.ceiling is not None:
            _checks.above_zero("ceiling", self.ceiling)
            if self.ceiling < self.initial:
                raise ValueError(
                    f"ceiling: got {self.ceiling}, expected at least initial, which is "
                    f"{self.initial}"
                )

    @classmethod
    def pytorch(cls) -> "DynamicLossScale":
        """That of ``torch.amp.GradScaler``."""
        return cls()

    @classmethod
    def mindspore_update_cell(
        cls, loss_scale_value: float, scale_factor: float, scale_window: int
    ) -> "DynamicLossScale":
        """That of ``mindspore.nn.DynamicLossScaleUpdateCell``."""
        return cls(loss_scale_value, scale_factor, 1 / scale_factor, scale_window, floor=1.0)

    @classmethod
    def mindspore_manager(
        cls, init_loss_scale: float = 2.0**24, scale_factor: float = 2, scale_window: int = 2000
    ) -> "DynamicLossScale":
        """That of ``mindspore.amp.DynamicLossScaleManager``.

        It grows where the steps since the last overflow are a multiple of the window, which is
        the same.
        """
        return cls.mindspore_update_cell(init_loss_scale, scale_factor, scale_window)

    @classmethod
    def mindspore_scaler(
        cls, scale_value: float, scale_factor: float, scale_window: int
    ) -> "DynamicLossScale":
        """That of ``mindspore.amp.DynamicLossScaler``."""
        return cls.mindspore_update_cell(scale_value, scale_factor, scale_window)

    @classmethod
    def keras(cls) -> "DynamicLossScale":
        """That of ``keras.optimizers.LossScaleOptimizer``."""
        return cls(initial=2.0**15)

    @classmethod
    def flax(cls, growth_interval: int = 2000) -> "DynamicLossScale":
        """That of ``flax.training.dynamic_scale.DynamicScale``.

        It tests its counter before it counts, and so grows one step later.
        """
        highest = float(np.finfo(np.float32).max)
        return cls(growth_interval=growth_interval + 1, ceiling=highest)

    def after(self, scale: float, steps: int, *, finite: bool) -> tuple[float, int]:
        """The scale and the steps since it last changed, after a step.

        Args:
            scale: That of the step.
            steps: The steps since it last changed, before this one.
            finite: Whether all gradients of the step were finite.
        """
        scale32 = np.float32(scale)
        if not finite:
            backed = scale32 * np.float32(self.backoff_factor)
            return float(max(backed, np.float32(self.floor))), 0
        if steps + 1 < self.growth_interval:
            return float(scale32), steps + 1
        with np.errstate(over="ignore"):
            grown = scale32 * np.float32(self.growth_factor)
        if self.ceiling is not None:
            grown = min(grown, np.float32(self.ceiling))
        return float(grown if np.isfinite(grown) else scale32), 0

    def emit(
        self, op: GraphBuilder, scale: ir.Value, steps: ir.Value, finite: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Append what `after` computes.

        Args:
            op: Appends the nodes.
            scale: A float32 scalar.
            steps: An int64 scalar.
            finite: A bool scalar.
        """
        smaller = op.Mul(scale, np.float32(self.backoff_factor))
        backed = op.Max(smaller, np.float32(self.floor))
        counted = op.Add(steps, 1)
        full = op.GreaterOrEqual(counted, self.growth_interval)
        grown = op.Mul(scale, np.float32(self.growth_factor))
        if self.ceiling is not None:
            grown = op.Min(grown, np.float32(self.ceiling))
        grows = op.And(full, op.Not(op.IsInf(grown)))
        new_scale = op.Where(finite, op.Where(grows, grown, scale), backed)
        goes_on = op.And(finite, op.Not(full))
        return new_scale, op.Where(goes_on, counted, np.int64(0))

    def describe(self) -> dict[str, Any]:
        """Its name and its arguments, for the metadata of a graph."""
        return {"schedule": type(self).__name__, **asdict(self)}


LossScale = float | DynamicLossScale | FromCaller
"""What an optimizer divides gradients by."""


def checked_loss_scale(value: Any) -> LossScale:
    """The loss scale, if it is one.

    Raises:
        TypeError: It has the wrong type.
        ValueError: It is no number > 0 that float32 holds with all digits.
    """
    if isinstance(value, DynamicLossScale):
        return value
    if isinstance(value, FromCaller):
        if value.name == FromCaller().name:
            raise ValueError(
                f"loss_scale: got FromCaller('{value.name}'), the name of the input of a learning "
                "rate; name it, for example schedules.FromCaller('loss_scale')"
            )
        return value
    return _checked("loss_scale", value)


def _checked(name: str, value: Any) -> float:
    checked = _checks.above_zero(name, value)
    if checked < SMALLEST:
        raise ValueError(
            f"{name}: got {checked}, expected at least {SMALLEST}, below which float32 loses digits"
        )
    return checked


def input_of(op: GraphBuilder, scale: DynamicLossScale | FromCaller) -> ir.Value:
    """The input of the graph that holds a loss scale, the same wherever it is read."""
    if isinstance(scale, FromCaller):
        return scale.input_of(op)
    return input_of_state(op, LOSS_SCALE)


def scaled(op: GraphBuilder, loss: ir.Value, scale: LossScale) -> ir.Value:
    """The loss times the loss scale.

    Args:
        op: Appends the nodes, and the input that holds a scale that is not constant.
        loss: A floating-point scalar.
        scale: The loss scale.

    Raises:
        ValueError: The loss's dtype cannot hold the scale.
    """
    if scale == 1:
        return loss
    if not isinstance(scale, FromCaller):
        dtype = loss.dtype.numpy() if loss.dtype is not None else np.dtype(np.float32)
        first = scale.initial if isinstance(scale, DynamicLossScale) else scale
        with np.errstate(over="ignore"):
            number = np.array(first, dtype)
        if not np.isfinite(number):
            raise ValueError(
                f"loss_scale: got {first}, which is infinite in {dtype.name}, "
                "the dtype of the loss; expected a smaller one, or a loss in float32"
            )
        if not isinstance(scale, DynamicLossScale):
            return op.Mul(loss, number)
    held = input_of(op, scale)
    if loss.dtype is None:
        return op.Mul(loss, op.CastLike(held, loss))
    return op.Mul(loss, held if loss.dtype == ir.DataType.FLOAT else op.Cast(held, to=loss.dtype))
