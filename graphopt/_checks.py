"""Checks of arguments: the type first (TypeError), then the value (ValueError)."""

import math
from collections.abc import Collection
from typing import Any

_FLOAT32_MAX = 3.4028234663852886e38
_SHOWN = 60  # characters of a value in a message


def number(name: str, value: Any) -> float:
    """An int, float or bool, as a float."""
    if not isinstance(value, int | float):
        raise TypeError(_expected(name, value, "an int or a float"))
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got an int that no float can hold") from None


def floating(name: str, value: Any) -> float:
    """A float (``numpy.float64`` is one); an int is refused, as the specification asks."""
    if not isinstance(value, float):
        hint = f", for example {float(value)!r}" if isinstance(value, int) else ""
        raise TypeError(_expected(name, value, f"a float{hint}"))
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """True or False themselves, not something that is merely truthy."""
    if not isinstance(value, bool):
        raise TypeError(_expected(name, value, "True or False"))
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of these strings."""
    expected = " or ".join(f"'{choice}'" for choice in allowed)
    if not isinstance(value, str):
        raise TypeError(_expected(name, value, expected))
    if value not in allowed:
        raise ValueError(_expected(name, value, expected))
    return value


def renamed(name: str, value: Any, older: str, older_value: Any) -> Any:
    """The value of an argument that has an older name too; None under both is None."""
    if value is not None and older_value is not None:
        raise TypeError(f"{name}: {older} is the older name of the same; leave one of them out")
    return older_value if value is None else value


def in_float32(name: str, value: float) -> float:
    """A number that float32, in which the graph computes, can hold."""
    if math.isfinite(value) and abs(value) > _FLOAT32_MAX:
        raise ValueError(_expected(name, value, f"at most {_FLOAT32_MAX:.1e}, as float32 holds"))
    return value


def at_least_zero(name: str, value: Any) -> float:
    """A finite number >= 0 that float32 can hold, as a float."""
    checked = in_float32(name, number(name, value))
    if not (math.isfinite(checked) and checked >= 0):
        raise ValueError(_expected(name, checked, "a finite number >= 0"))
    return checked


def above_zero(name: str, value: Any) -> float:
    """A finite number > 0 that float32 can hold, as a float."""
    checked = in_float32(name, number(name, value))
    if not (math.isfinite(checked) and checked > 0):
        raise ValueError(_expected(name, checked, "a finite number > 0"))
    return checked


def rate(name: str, value: Any, *, allow_zero: bool = False) -> float:
    """A finite float > 0, or >= 0."""
    check = at_least_zero if allow_zero else above_zero
    return check(name, floating(name, value))


def steps(name: str, value: Any) -> None:
    """An int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_expected(name, value, "an int"))
    if value < 1:
        raise ValueError(_expected(name, value, "an int >= 1"))


def growing_steps(name: str, values: Any) -> None:
    """A list of growing ints >= 1, and of one at least."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name}: got {type(values).__name__}, expected a list")
    for value in values:
        steps(name, value)
    if not values or list(values) != sorted(set(values)):
        raise ValueError(f"{name}: got {list(values)}, expected growing steps")


def unused(beside: str, **given: bool) -> None:
    """Refuse arguments that would have no effect."""
    for name, unused in given.items():
        if unused:
            raise ValueError(f"{name}: has no effect beside {beside}; leave it out")


def _expected(name: str, value: Any, expected: str) -> str:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return f"{name}: got {shown} ({type(value).__name__}), expected {expected}"
