"""Making a learning rate of what the user gives as one."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from graphopt import _checks
from graphopt._slips import is_of_torch
from graphopt.builder import GraphBuilder
from graphopt.schedules.base import Fixed, LearningRateSchedule, Listed

_EXPECTED = "a number, a list of numbers, a 0-D or 1-D array, or a LearningRateSchedule"


def learning_rate(name: str, value: Any) -> LearningRateSchedule:
    """A number, an array, an iterable or a schedule as a schedule; an iterable is read once.

    Raises:
        TypeError: None of these.
        ValueError: A value is negative, infinite or NaN; there is none; or the array has more than
            one dimension.
    """
    if isinstance(value, LearningRateSchedule):
        return checked_schedule(name, value)
    if isinstance(value, str | bytes):
        raise ValueError(f"{name}: got {value!r}, expected {_EXPECTED}")
    if isinstance(value, int | float):
        return Fixed(_checks.at_least_zero(name, value))
    array = _array(value)
    if array is not None:
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: got an array of {array.dtype.name}, expected {_EXPECTED}")
        if array.ndim > 1:
            raise ValueError(f"{name}: got shape {list(array.shape)}, expected {_EXPECTED}")
        if array.ndim == 0:
            return Fixed(_checks.at_least_zero(name, float(array)))
        value = array.tolist()
    if isinstance(value, np.generic) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected {_EXPECTED}")
    return Listed(_checked_list(name, list(value)))


def checked_schedule(name: str, schedule: LearningRateSchedule) -> LearningRateSchedule:
    """A schedule, which must be hashable and, if a user wrote it, have a value.

    Raises:
        TypeError: It is not hashable, or `emit` does not return a value.
        ValueError: Its value at step 0 cannot be computed.
    """
    kind = type(schedule)
    try:
        hash(schedule)
    except TypeError:
        raise TypeError(
            f"{name}: {kind.__name__} is not hashable; make it a frozen dataclass of numbers, "
            "text and tuples"
        ) from None
    if kind.value is LearningRateSchedule.value:
        try:
            schedule.value(0)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever a user's operators raise in NumPy
            raise ValueError(f"{name}: {kind.__name__} has no value at step 0: {error}") from None
    return schedule


def emit(schedule: LearningRateSchedule, op: GraphBuilder, global_step: ir.Value) -> ir.Value:
    """The value of a schedule at the global step, an int64 scalar, as a scalar of ``op.real``."""
    if isinstance(schedule, Fixed):
        return schedule.emit(op, global_step)
    step = op.Cast(global_step, to=ir.DataType.DOUBLE)
    value = schedule.checked_emit(op, step)
    cast = step.producer()
    if cast is not None and not step.uses():
        op.graph.remove(cast, safe=True)
    if value.dtype != op.real:
        value = op.Cast(value, to=op.real)
    # Whatever a schedule of a user's own returns is a scalar from here on, or the step fails.
    return value if value.is_graph_input() else op.Reshape(value, np.zeros(0, np.int64))


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, ir.TensorProtocol):
        return value.numpy()
    if is_of_torch(value) and hasattr(value, "__array__"):
        return np.asarray(value)
    return value if isinstance(value, np.ndarray) else None


def _checked_list(name: str, values: list[Any]) -> tuple[float, ...]:
    if not values:
        raise ValueError(f"{name}: got no value, expected one for each step")
    checked = []
    for index, value in enumerate(values):
        where = f"{name}[{index}]"
        if not isinstance(value, int | float | np.number | np.bool_):
            kind = ValueError if isinstance(value, str | Iterable) else TypeError
            raise kind(f"{where}: got {value!r}, expected a number")
        number = value.item() if isinstance(value, np.generic) else value
        checked.append(_checks.at_least_zero(where, number))
    return tuple(checked)
