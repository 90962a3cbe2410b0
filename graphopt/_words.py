"""Names, numbers, sizes and counts, as messages and tables write them."""

import math
from collections.abc import Sequence

UNKNOWN = "?"
"""What stands for something that is not known."""

_LONGEST_NAME = 80


def shown(name: object, longest: int = _LONGEST_NAME) -> str:
    r"""A name from a file, safe to print: one line, no control characters, not too long.

    Args:
        name: The name; what is no text is written as Python writes it.
        longest: The most characters; of a longer name its middle is left out.

    Example:
        >>> shown("conv1.weight"), shown("red\x1b[31m")
        ('conv1.weight', 'red\\x1b[31m')
        >>> shown("a" * 100, longest=11)
        'aaa...aaaaa'
    """
    text = name if isinstance(name, str) else repr(name)
    if len(text) > longest:
        tail = (longest - 3) * 2 // 3
        text = f"{text[: longest - 3 - tail]}...{text[len(text) - tail :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: object) -> str:
    """A number, with six digits at most.

    Example:
        >>> number(0.002), number(1e-10), number(1024.0), number(None)
        ('0.002', '1e-10', '1024', '?')
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    if isinstance(value, int) and abs(value) < 10**15:
        return str(value)
    try:
        return f"{value:.6g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def size(count: int | None) -> str:
    """A number of bytes.

    Example:
        >>> size(12), size(1536), size(5 * 2**20), size(None)
        ('12 B', '1.5 KiB', '5.0 MiB', '?')
    """
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))


def count(amount: int | None) -> str:
    """A number of operations or elements.

    Example:
        >>> count(999), count(1234567), count(None)
        ('999', '1.2 M', '?')
    """
    return _scaled(amount, 1000, ("", "k", "M", "G", "T", "P", "E")).rstrip()


def _scaled(amount: float | None, base: int, units: Sequence[str]) -> str:
    """The amount in the largest unit of which there is at least one."""
    if amount is None:
        return UNKNOWN
    if abs(amount) < base:
        return f"{amount} {units[0]}"
    for power, unit in enumerate(units):
        scaled = amount / base**power
        if math.floor(abs(scaled) * 10 + 0.5) < base * 10:
            return f"{scaled:.1f} {unit}"
    return f"{number(amount)} {units[0]}"
