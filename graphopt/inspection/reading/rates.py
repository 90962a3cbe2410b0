"""Learning rates and weight decays: what they are, and their value at a step, from their nodes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any as AnyType

import numpy as np

from graphopt.inspection.facts import Schedule
from graphopt.inspection.reading.dataflow import Operation, Value
from graphopt.inspection.reading.pattern import (
    Any,
    Equals,
    Found,
    Marked,
    Number,
    OneOf,
    Op,
    Pattern,
    match,
)
from graphopt.inspection.reading.scalars import evaluated, expression, operations_of
from graphopt.schedules.base import described_list

_POINTS = 200
_HALF_PI = 1.5707963267948966


@dataclass(frozen=True)
class _Step:
    """The step that is looked for; any input, where nothing is."""

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        source = value.source
        if found.get("step", source) is source and ("step" in found or source.is_input):
            yield found | {"step": source}


@dataclass(frozen=True)
class _LeftOut:
    """What fits a pattern, where a number that changes nothing is left out."""

    name: str
    neutral: float
    pattern: Pattern

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        for inner in self.pattern(value, found):
            if inner.get(self.name, self.neutral) == self.neutral:
                yield inner | {self.name: self.neutral}


def _with(op_type: str, pattern: Pattern, name: str) -> Pattern:
    """A sum, product or quotient with a number, which optimizers leave out if it is neutral."""
    neutral = 0.0 if op_type == "Add" else 1.0
    return OneOf(Op(op_type, pattern, Number(name)), _LeftOut(name, neutral, pattern))


_STEP = _Step()
_STAIRS = Marked("is_stair", Op("Floor", _with("Div", _STEP, "decay_steps")))
_PERIODS = OneOf(_STAIRS, _with("Div", _STEP, "decay_steps"))
_PART = _with("Div", Op("Min", _STEP, Number("decay_steps")), "decay_steps")
_SINE = Op("Sin", Op("Mul", Op("Sub", Equals(1.0), _PART), Equals(_HALF_PI)))
_GROWING = Op("Max", Op("Ceil", _with("Div", _STEP, "decay_steps")), Equals(1.0))
_GROWING_PART = Marked(
    "update_decay_steps", Op("Div", _STEP, _with("Mul", _GROWING, "decay_steps"))
)
_LEFT = Op("Sub", Equals(1.0), OneOf(_GROWING_PART, _PART))

_PATTERNS: Mapping[str, Pattern] = {
    "ExponentialDecayLR": _with("Mul", Op("Pow", Number("decay_rate"), _PERIODS), "learning_rate"),
    "NaturalExpDecayLR": _with(
        "Mul",
        Op("Exp", _with("Mul", OneOf(_with("Mul", _STAIRS, "decay_steps"), _STEP), "negative")),
        "learning_rate",
    ),
    "InverseDecayLR": Op(
        "Div",
        Number("learning_rate"),
        Op("Add", _with("Mul", _PERIODS, "decay_rate"), Equals(1.0)),
    ),
    "CosineDecayLR": _with("Add", _with("Mul", Op("Mul", _SINE, _SINE), "span"), "min_lr"),
    "PolynomialDecayLR": _with(
        "Add",
        _with("Mul", _with("Pow", _LEFT, "power"), "span"),
        "end_learning_rate",
    ),
    "WarmUpLR": _with("Mul", _PART, "learning_rate"),
}
RECOGNISED = frozenset({*_PATTERNS, "MultiStepLR", "SequentialLR", "list", "FromCaller"})
"""The schedules that are known by their nodes."""

_LATER = Op("Where", Op("Less", _STEP, Number("milestone")), Any("before"), Any("later"))
_LATER_STEP = Op("Max", Op("Sub", _STEP, Number("milestone")), Equals(0.0))
_FACTOR = Op("Where", Op("Less", _STEP, Number("milestone")), Equals(1.0), Number("decay_rate"))
_DECAYED = OneOf(Op("Mul", _FACTOR, Any("before")), _FACTOR)
_LISTED = Op("Gather", Any("values"), Op("Min", Any("index"), Number("last")))


def schedule_of(value: Value, step: Value | None) -> Schedule:
    """What a learning rate is: a number, one of graphopt's schedules, or an expression.

    Args:
        value: The learning rate, a scalar.
        step: The input that counts the steps, if there is one.
    """
    value = value.source
    number = value.number
    if number is not None:
        return number
    if value.is_input:
        return {"schedule": "FromCaller", "input": value.name}
    length = _listed_length(value)
    if length is not None:
        listed = match(_LISTED, value)
        values = None if listed is None else listed.value("values").constant
        lengths = {"schedule": "list", "length": length}
        return lengths if values is None else described_list(values)
    found = _multi_step(value, step) or _sequential(value, step) or _single(value, step)
    return found or {"schedule": "expression", "formula": expression(value)}


def _single(value: Value, step: Value | None) -> dict[str, AnyType] | None:
    for name, pattern in _PATTERNS.items():
        found = _found(pattern, value, step)
        if found is not None:
            return {"schedule": name} | _arguments(name, found)
    return None


def _found(pattern: Pattern, value: Value, step: Value | None) -> Found | None:
    """What a pattern finds of this step."""
    known = Found() if step is None else Found() | {"step": step.source}
    return match(pattern, value, known)


def _arguments(name: str, found: Found) -> dict[str, AnyType]:
    """The arguments of a schedule, from the numbers in its nodes."""
    numbers = {key: value for key, value in found.items() if isinstance(value, float)}
    stair = bool(numbers.pop("is_stair", 0.0))
    again = bool(numbers.pop("update_decay_steps", 0.0))
    arguments: dict[str, AnyType] = dict(numbers)
    if "decay_steps" in numbers:
        arguments["decay_steps"] = int(numbers["decay_steps"])
    if name in ("ExponentialDecayLR", "NaturalExpDecayLR", "InverseDecayLR"):
        arguments["is_stair"] = stair
    if name == "NaturalExpDecayLR":
        arguments["decay_rate"] = -arguments.pop("negative")
    elif name == "CosineDecayLR":
        arguments["max_lr"] = _decimal(arguments.pop("span") + arguments["min_lr"])
    elif name == "PolynomialDecayLR":
        start = arguments.pop("span") + arguments["end_learning_rate"]
        arguments |= {"learning_rate": _decimal(start), "update_decay_steps": again}
    elif name == "WarmUpLR":
        arguments["warmup_steps"] = arguments.pop("decay_steps")
    return arguments


def _multi_step(value: Value, step: Value | None) -> dict[str, AnyType] | None:
    """A number that is multiplied by the same factor from each milestone on."""
    factors: list[tuple[AnyType, AnyType]] = []
    before: AnyType = value
    while before is not None and (found := _found(_DECAYED, before, step)):
        factors.append((found["milestone"], found["decay_rate"]))
        before = found.get("before")
    first = 1.0 if before is None else before.source.number
    if first is None or len({factor for _, factor in factors}) != 1:
        return None
    return {
        "schedule": "MultiStepLR",
        "learning_rate": first,
        "decay_rate": factors[0][1],
        "milestones": [int(milestone) for milestone, _ in reversed(factors)],
    }


def _sequential(value: Value, step: Value | None) -> dict[str, AnyType] | None:
    """One schedule after another: the last of them, and what comes before it."""
    found = _found(_LATER, value, step)
    if found is None:
        return None
    before, later = found.value("before"), found.value("later")
    milestone = found.number("milestone")
    shifted = _shifted_step(later, milestone, step)
    earlier = _sequential(before, step)
    parts, milestones = (
        (earlier["schedules"], earlier["milestones"]) if earlier else ([_part(before, step)], [])
    )
    return {
        "schedule": "SequentialLR",
        "schedules": [*parts, _part(later, shifted)],
        "milestones": [*milestones, int(milestone)],
    }


def _part(value: Value, step: Value | None) -> AnyType:
    found = schedule_of(value, step)
    return {"schedule": "Fixed", "constant": found} if isinstance(found, float) else found


def _shifted_step(value: Value, milestone: float, step: Value | None) -> Value | None:
    """The step of a schedule that begins at a milestone."""
    for operation in operations_of(value):
        for output in operation.outputs:
            found = _found(_LATER_STEP, output, step)
            if found is not None and found["milestone"] == milestone:
                return output.source
    return None


def _decimal(value: float) -> float:
    """A sum of decimals without the error of the addition."""
    return float(f"{value:.15g}")


def curve(value: Value, step: Value | None, steps: int | None) -> tuple[tuple[int, float], ...]:
    """A learning rate at some steps, computed in NumPy from its nodes.

    Args:
        value: The learning rate.
        step: The input that counts the steps.
        steps: For how many; None for as many as the numbers in the schedule suggest.

    Returns:
        Pairs of step and value: one where it is fixed, none where it cannot be computed.
    """
    number = value.source.number
    if number is not None:
        return ((0, number),)
    if step is None:
        return ()
    operations = operations_of(value)
    if not operations:
        return ()
    length = _listed_length(value)
    last = min(filter(None, (length, steps or _horizon(operations))))
    at = np.unique(np.linspace(0, last - 1, min(_POINTS, last)).astype(np.int64))
    result = evaluated(value, step, at)
    if result is None:
        return ()
    result = np.broadcast_to(result, at.shape)
    pairs = zip(at.tolist(), result.astype(np.float64).tolist(), strict=True)
    return tuple((place, float(f"{rate:.9g}")) for place, rate in pairs if np.isfinite(rate))


def rate_at(value: Value, step: Value | None, number: int) -> float | None:
    """The learning rate at one step; None where it cannot be computed, or a list has ended.

    Args:
        value: The learning rate.
        step: The input that counts the steps.
        number: The step, counted from 0.
    """
    fixed = value.source.number
    if fixed is not None or step is None:
        return fixed
    length = _listed_length(value)
    if length is not None and number >= length:
        return None
    found = evaluated(value, step, np.array([number]))
    rate = np.nan if found is None else np.broadcast_to(found, (1,)).astype(np.float64)[0]
    return float(f"{rate:.9g}") if np.isfinite(rate) else None


def _listed_length(value: Value) -> int | None:
    listed = match(_LISTED, value)
    shape = None if listed is None else listed.value("values").static_shape
    return shape[0] if shape is not None and len(shape) == 1 else None


def _horizon(operations: Sequence[Operation]) -> int:
    """Steps in which something happens: a tenth more than the numbers in it add up to."""
    total = 0.0
    for number in {
        operand.number
        for operation in operations
        for operand in operation.inputs
        if operand is not None and operation.op_type in {"Div", "Min", "Less", "Sub"}
    }:
        if number is not None and number >= 2 and number == int(number):
            total += number
    return int(min(max(1.1 * total, 100), 10_000_000))


def schedule_steps(schedule: Schedule) -> int | None:
    """After how many steps a schedule does not change any more, or ends; None if never."""
    if not isinstance(schedule, Mapping):
        return None
    kind = schedule.get("schedule")
    if kind == "list":
        return _int(schedule.get("length"))
    if kind in ("CosineDecayLR", "PolynomialDecayLR"):
        return None if schedule.get("update_decay_steps") else _int(schedule.get("decay_steps"))
    if kind == "WarmUpLR":
        return _int(schedule.get("warmup_steps"))
    if kind == "SequentialLR":
        parts, milestones = schedule.get("schedules"), schedule.get("milestones")
        if (
            isinstance(parts, Sequence)
            and isinstance(milestones, Sequence)
            and parts
            and milestones
        ):
            last, begins = schedule_steps(parts[-1]), _int(milestones[-1])
            return None if last is None or begins is None else begins + last
    return None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
