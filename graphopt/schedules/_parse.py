"""Making a learning rate of what the user gives as one."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.schedules._base import Fixed, LearningRateSchedule, Listed

_EXPECTED = "a number, a list of numbers, a 0-D or 1-D array, or a LearningRateSchedule"


def learning_rate(name: str, value: Any) -> LearningRateSchedule:
    """A number, an array, an iterable or a schedule as a schedule; an iterable is read once.

    Raises:
        TypeError: None of these.
        ValueError: A value is negative, infinite or NaN; there is none; or the array has more than
            one dimension.
    """
    if isinstance(value, LearningRateSchedule):
        return value
    if isinstance(value, str | bytes):
        raise ValueError(f"{name}: got {value!r}, expected {_EXPECTED}")
    if isinstance(value, int | float):
        return Fixed(_checks.at_least_zero(name, _checks.number(name, value)))
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


def emit(schedule: LearningRateSchedule, op: GraphBuilder, global_step: ir.Value) -> ir.Value:
    """The value of a schedule at the global step, an int64 scalar, as a float32 scalar."""
    if isinstance(schedule, Fixed):
        return schedule.emit(op, global_step)
    value = schedule.emit(op, op.Cast(global_step, to=ir.DataType.DOUBLE))
    return value if value.dtype == ir.DataType.FLOAT else op.Cast(value, to=ir.DataType.FLOAT)


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, ir.TensorProtocol):
        return value.numpy()
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
        checked.append(
            _checks.at_least_zero(
                where,
                _checks.number(where, value.item() if isinstance(value, np.generic) else value),
            )
        )
    return tuple(checked)
