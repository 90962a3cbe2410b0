"""Values of the section for training: they become what the options of the command take."""

import json
from typing import Any

from graphopt.configuration.kinds import Kind, above_zero, as_table, shown, text, texts

_OF_FEEDS = "a table, { FEED = ... }"


def at_least(least: int) -> Kind:
    """A whole number that is not lower."""

    def check(where: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{where}: got {shown(value)}, expected an int >= {least}")
        if value < least:
            raise ValueError(f"{where}: got {value}, expected an int >= {least}")
        return value

    return check


def text_or_texts(where: str, value: Any) -> list[str]:
    """A string, or a list of strings."""
    return [text(where, value)] if isinstance(value, str) else texts(where, value)


def columns(where: str, value: Any) -> list[str]:
    """A table from feeds to names, as ``FEED=NAME``."""
    return [
        f"{feed}={text(f'{where}.{feed}', name)}"
        for feed, name in as_table(where, value, _OF_FEEDS).items()
    ]


def constants(where: str, value: Any) -> list[str]:
    """A table from feeds to values, as ``FEED=JSON``."""
    found = []
    for feed, entry in as_table(where, value, _OF_FEEDS).items():
        try:
            found.append(f"{feed}={json.dumps(entry)}")
        except TypeError:
            raise TypeError(
                f"{where}.{feed}: got {entry!r}, expected a number, a boolean, or a list of them"
            ) from None
    return found


def image_size(where: str, value: Any) -> str:
    """Height and width, or one number for both, as ``HEIGHTxWIDTH``."""
    sizes = value if isinstance(value, list) else [value]
    if len(sizes) > 2:
        raise ValueError(f"{where}: got {value!r}, expected [HEIGHT, WIDTH]")
    return "x".join(str(at_least(1)(where, size)) for size in sizes)


def numbers(where: str, value: Any) -> str:
    """A number, or a list of one for each channel, with commas between."""
    given = value if isinstance(value, list) else [value]
    for entry in given:
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise TypeError(f"{where}: got {value!r}, expected a number, or one for each channel")
    return ",".join(map(repr, given))


def divisors(where: str, value: Any) -> str:
    """The same of numbers > 0."""
    written = numbers(where, value)
    for entry in value if isinstance(value, list) else [value]:
        above_zero(where, float(entry))
    return written
