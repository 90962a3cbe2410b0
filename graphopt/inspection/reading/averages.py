"""The moving averages of parameters, and of running statistics, that a graph carries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.average import ParameterAverage
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import Any, Equals, Fed, Found, Number, OneOf, Op, match
from graphopt.inspection.reading.writes import Write
from graphopt.states import MEAN_SQUARE

_OLD, _DECAY = Fed("old"), Any("decay")
_KEPT = Op("Mul", _OLD, _DECAY)
_UNLESS_NONE = Op("Where", Op("Equal", _DECAY, Equals(0.0)), Equals(0.0), _KEPT)
_MOVED = Op(
    "Add", OneOf(_UNLESS_NONE, _KEPT), Op("Mul", Any("value"), Op("Sub", Equals(1.0), _DECAY))
)
_MASKED = OneOf(Op("Where", Any("on"), _MOVED, _OLD), _MOVED)
_STEP = Any("step")
_CONSTANT = Op("Mul", Op("Cast", Op("Greater", _STEP, Equals(0.0))), Number("decay"))
_SHARE = Op(
    "Div",
    Op("Add", Op("Cast", _STEP), Equals(1.0)),
    Op("Add", Op("Cast", _STEP), Equals(10.0)),
)
_WARM_UP = Op("Min", _SHARE, Number("decay"))


@dataclass(frozen=True)
class Averages:
    """What was recognised.

    Attributes:
        rule: How they move; None where there are none.
        writes: That of each bucket, by the name of its input.
        of_others: The inputs that hold those of running statistics.
    """

    rule: ParameterAverage | None = None
    writes: Mapping[str, Write] = field(default_factory=dict)
    of_others: tuple[Value, ...] = ()


def averages(carried: Sequence[Write], parameters: Sequence[str], step: Value | None) -> Averages:
    """The averages of what is carried, after the update.

    Args:
        carried: What is handed from step to step.
        parameters: The inputs that hold parameters.
        step: What counts the updates.
    """
    names = {write.input.name for write in carried}
    by_value = {id(write.new.source): write for write in carried}
    found: dict[str, Write] = {}
    others: list[Value] = []
    rules: set[tuple[float, bool]] = set()
    for write in carried:
        moved = match(_MASKED, write.new)
        if moved is None or moved["old"] is not write.input:
            continue
        of, rule = by_value.get(id(_before_rounding(moved["value"]))), _rule(moved, step)
        if of is None or of is write or rule is None:
            continue
        rules.add(rule)
        if of.input.name in parameters:
            found[of.input.name] = write
        elif MEAN_SQUARE.of(of.input.name) not in names:
            others.append(write.input)
    if len(rules) != 1 or not found:
        return Averages()
    ((decay, warm_up),) = rules
    return Averages(ParameterAverage(decay, warm_up, bool(others)), found, tuple(others))


def _before_rounding(value: Value | float) -> Value | float:
    """The value, or what is handed on in half precision, of which the average is moved."""
    operation = value.operation if isinstance(value, Value) else None
    operand = operation.inputs[0] if operation and operation.op_type == "Cast" else None
    return value if operand is None else operand.source


def _rule(moved: Found, step: Value | None) -> tuple[float, bool] | None:
    """The decay, and whether it grows."""
    for pattern, warm_up in ((_CONSTANT, False), (_WARM_UP, True)):
        rule = match(pattern, moved.value("decay"))
        if rule is not None and step is not None and rule["step"] is step.source:
            decay = rule.number("decay")
            return (decay, warm_up) if 0 <= decay < 1 else None
    return None
