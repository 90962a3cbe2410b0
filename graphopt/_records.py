"""Records and JSON: dataclasses are objects, named tuples are lists.

What is read may have been written by anybody: every type is checked, and nothing is executed.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

Schedule = float | Mapping[str, Any]
"""A number where it is fixed. Otherwise a dict, whose ``schedule`` is the name of the schedule, and
the other keys are its arguments.
"""

_DEEPEST = 20  # schedules in schedules


def plain(value: Any) -> Any:
    """A record as JSON has it."""
    if isinstance(value, str | int | float):  # most values are, and this is quick
        return value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


@cache
def reader(kind: Any) -> Callable[[Any, str], Any]:
    """What makes a value of a type of one of JSON, given with the name by which errors call it.

    Args:
        kind: A dataclass or named tuple of such types; ``bool``, ``int``, ``float``, ``str`` or
            `Schedule`; a list, a tuple or a dict of one type; or one of them or None. A tuple of
            ints is a shape.

    Returns:
        A function, which raises TypeError or KeyError where the value is another one.

    Example:
        >>> reader(tuple[float, ...])([1, 2.5], "rates")
        (1.0, 2.5)
    """
    if kind in _READERS:
        return _READERS[kind]
    if kind in (bool, int, str):
        return lambda value, where: _checked(value, kind, where)
    origin, inner = get_origin(kind), get_args(kind)
    if not inner:
        return _object_reader(kind) if is_dataclass(kind) else _list_reader(kind)
    read = reader(inner[1] if origin is dict else inner[0])
    if NoneType in inner:
        return lambda value, where: None if value is None else read(value, where)
    if origin is dict:
        return lambda value, where: {
            key: read(item, where) for key, item in _checked(value, dict, where).items()
        }
    return lambda value, where: origin(read(item, where) for item in _checked(value, list, where))


def _object_reader(kind: Any) -> Callable[[Any, str], Any]:
    hints = get_type_hints(kind)
    readers = [(f.name, reader(hints[f.name]), f.default is MISSING) for f in fields(kind)]

    def read(value: Any, where: str) -> Any:
        entry = _checked(value, dict, where)
        return kind(
            **{n: r(entry[n], n) for n, r, is_required in readers if is_required or n in entry}
        )

    return read


def _list_reader(kind: Any) -> Callable[[Any, str], Any]:
    readers = [(name, reader(hint)) for name, hint in get_type_hints(kind).items()]

    def read(value: Any, where: str) -> Any:
        items = _checked(value, list, where)
        if len(items) != len(readers):
            raise TypeError(f"'{where}' has {len(items)} items, expected {len(readers)}")
        return kind(*(r(item, name) for item, (name, r) in zip(items, readers, strict=True)))

    return read


def _checked(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"'{where}' is {type(value).__name__}, expected {kind.__name__}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"'{where}' is {type(value).__name__}, expected a number")
    return float(value)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    shape = tuple(_checked(size, int, where) for size in _checked(value, list, where))
    if any(size < 0 for size in shape):
        raise TypeError(f"'{where}' is {list(shape)}, expected sizes >= 0")
    return shape


def _schedule(value: Any, where: str) -> Schedule:
    if not isinstance(value, dict):
        return _number(value, where)
    _checked(value["schedule"], str, "schedule")
    _check_depth(value, _DEEPEST)
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise TypeError(f"a schedule has more than {_DEEPEST} levels")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for entry in inner:
        _check_depth(entry, left - 1)


_READERS: dict[Any, Callable[[Any, str], Any]] = {
    float: _number,
    tuple[int, ...]: _shape,
    Schedule: _schedule,
}
