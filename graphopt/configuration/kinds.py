"""Values that a configuration file may have: what each kind of key takes, and what it becomes.

A kind is a function of the name under which errors say it and of the value as TOML has it. It
returns what Python's functions take.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from graphopt import _checks, schedules
from graphopt._slips import nearest
from graphopt.accumulation import REDUCTIONS, Accumulation
from graphopt.average import ParameterAverage
from graphopt.loss_scale import DynamicLossScale
from graphopt.schedules.parse import learning_rate

Kind = Callable[[str, Any], Any]

_SCHEDULES = [name for name in schedules.__all__ if name != "LearningRateSchedule"]
_DYNAMIC = {
    "pytorch": DynamicLossScale.pytorch,
    "keras": DynamicLossScale.keras,
    "flax": DynamicLossScale.flax,
    "mindspore": DynamicLossScale.mindspore_manager,
}


def boolean(where: str, value: Any) -> bool:
    """True or false."""
    return _checks.boolean(where, value)


def at_least_zero(where: str, value: Any) -> float:
    """A number >= 0; whole ones need no point."""
    return _checks.at_least_zero(where, _number(where, value))


def above_zero(where: str, value: Any) -> float:
    """A number > 0."""
    return _checks.above_zero(where, _number(where, value))


def text(where: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{where}: got {shown(value)}, expected a string")
    if not value:
        raise ValueError(f"{where}: got an empty string, expected a name")
    return value


def texts(where: str, value: Any) -> list[str]:
    """A list of strings."""
    if not isinstance(value, list):
        like = f", such as ['{value}']" if isinstance(value, str) else ""
        raise TypeError(f"{where}: got {shown(value)}, expected a list of strings{like}")
    return [text(f"{where}[{index}]", entry) for index, entry in enumerate(value)]


def whole_numbers(where: str, value: Any) -> list[int]:
    """A list of whole numbers >= 0."""
    if not isinstance(value, list):
        raise TypeError(f"{where}: got {shown(value)}, expected a list of whole numbers")
    for index, entry in enumerate(value):
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise ValueError(f"{where}[{index}]: got {shown(entry)}, expected a whole number >= 0")
    return value


def one_of(*choices: str) -> Kind:
    """One of some strings."""

    def check(where: str, value: Any) -> str:
        return _checks.one_of(where, value, choices)

    return check


def seed(where: str, value: Any) -> int | None:
    """A whole number, or "runtime", with which the runtime draws random numbers."""
    if value == "runtime":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: got {shown(value)}, expected an int >= 0, or 'runtime'")
    return value


def names_or_all(where: str, value: Any) -> bool | list[str]:
    """True, false or a list of names."""
    return value if isinstance(value, bool) else texts(where, value)


def rate(where: str, value: Any) -> Any:
    """A number, a list of numbers, or a table with a schedule."""
    if isinstance(value, Mapping):
        return schedule(where, value)
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        raise TypeError(
            f"{where}: got {shown(value)}, expected a number, a list of numbers, or a schedule "
            "such as {schedule = 'WarmUpLR', learning_rate = 0.1, warmup_steps = 100}"
        )
    learning_rate(where, value)
    return value


def rate_not_listed(where: str, value: Any) -> Any:
    """A number, or a table with a schedule."""
    return schedule(where, value) if isinstance(value, Mapping) else at_least_zero(where, value)


def schedule(where: str, table: Mapping[str, Any]) -> Any:
    """A schedule of `graphopt.schedules`, or what one of its functions that make lists returns."""
    name = table.get("schedule")
    if name not in _SCHEDULES:
        got = "no 'schedule'" if name is None else shown(name)
        meant = nearest(name, _SCHEDULES) if isinstance(name, str) else None
        remedy = f"did you mean '{meant}'?" if meant else f"expected {', '.join(_SCHEDULES)}"
        raise ValueError(f"{where}.schedule: got {got}, {remedy}")
    arguments = {key: value for key, value in table.items() if key != "schedule"}
    if name == "SequentialLR" and isinstance(arguments.get("schedules"), list):
        arguments["schedules"] = [
            _part(f"{where}.schedules[{index}]", part)
            for index, part in enumerate(arguments["schedules"])
        ]
    return called(where, getattr(schedules, str(name)), arguments, f"schedule '{name}'")


def loss_scale(where: str, value: Any) -> Any:
    """A number; "dynamic"; or a table of a `DynamicLossScale`, or with the name of an input."""
    if value == "dynamic":
        return DynamicLossScale()
    if isinstance(value, str):
        raise ValueError(
            f"{where}: got '{value}', expected a number > 0, 'dynamic' or a table, such as "
            "{initial = 1024.0, growth_interval = 500}"
        )
    if not isinstance(value, Mapping):
        return above_zero(where, value)
    if "input" in value:
        return called(where, _from_caller, dict(value), "a loss scale that is fed")
    if "like" in value:
        like = one_of(*_DYNAMIC)(f"{where}.like", value["like"])
        rest = {key: entry for key, entry in value.items() if key != "like"}
        return called(where, _DYNAMIC[like], rest, f"the dynamic loss scale of {like}")
    return called(where, DynamicLossScale, dict(value), "a dynamic loss scale")


def average(where: str, value: Any) -> Any:
    """A decay, or a table of a `ParameterAverage`."""
    if isinstance(value, Mapping):
        return called(where, ParameterAverage, dict(value), "an average")
    return called(where, ParameterAverage, {"decay": _number(where, value)}, "an average")


def accumulation(where: str, value: Any) -> Accumulation:
    """A number of steps, or a table of an `Accumulation`; without steps, the caller says."""
    if isinstance(value, Mapping):
        if "reduction" in value:
            one_of(*REDUCTIONS)(f"{where}.reduction", value["reduction"])
        made = called(where, Accumulation, {"steps": None} | dict(value), "an accumulation")
        assert isinstance(made, Accumulation)
        return made
    _checks.steps(where, value)
    return Accumulation(value)


def called(
    where: str, function: Callable[..., Any], arguments: Mapping[str, Any], what: str
) -> Any:
    """What a function returns for the entries of a table, whose names are its arguments.

    Raises:
        TypeError: An entry has the wrong type.
        ValueError: An entry is unknown, missing or out of range; the error has its dotted name.
    """
    known = inspect.signature(function).parameters
    for key in arguments:
        if key not in known:
            meant = nearest(key, known)
            remedy = f"did you mean '{meant}'?" if meant else f"expected {', '.join(known)}"
            raise ValueError(f"{where}.{key}: {what} has no such entry; {remedy}")
    for key, parameter in known.items():
        if key not in arguments and parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{where}.{key}: is missing, {what} needs it")
    given = {
        key: float(value) if known[key].annotation is float and type(value) is int else value
        for key, value in arguments.items()
    }
    try:
        return function(**given)
    except (TypeError, ValueError) as error:
        dot = "." if str(error).partition(":")[0].partition("[")[0] in known else ": "
        raise type(error)(f"{where}{dot}{error}") from None


def _from_caller(input: str) -> schedules.FromCaller:  # noqa: A002 - the word in the file
    return schedules.FromCaller(input)


def _part(where: str, value: Any) -> Any:
    return schedule(where, as_table(where, value, "a table with a schedule"))


def as_table(where: str, value: Any, expected: str) -> Mapping[str, Any]:
    """A table; ``expected`` says in an error what it should be."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: got {shown(value)}, expected {expected}")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{where}: got {shown(value)}, expected a number")
    return float(value)


def shown(value: Any) -> str:
    """A value as an error shows it."""
    return f"{value!r} ({type(value).__name__})"
