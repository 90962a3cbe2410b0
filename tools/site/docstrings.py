"""Docstrings as they are written here, for a reader that takes words before a colon for a type."""

import re

_RETURNS = re.compile(r"^(Returns|Yields):$")


def in_fields(lines: list[str], is_value: bool) -> list[str]:
    """What is returned as a field, because its type stands in the signature.

    Args:
        lines: Of a docstring.
        is_value: It is that of an attribute or a property, whose first line has no type either.

    Example:
        >>> in_fields(["Returns:", "    Rows: as many as columns."], is_value=False)
        ['', ':returns: Rows: as many as columns.']
    """
    lines = ["", *lines] if is_value else list(lines)
    for index, line in enumerate(lines[:-1]):
        if found := _RETURNS.match(line):
            lines[index] = ""
            lines[index + 1] = f":{found[1].lower()}: {lines[index + 1].strip()}"
    return lines
