"""How much memory a file may ask for, which is checked before any is taken.

The environment variable ``GRAPHOPT_MEMORY_LIMIT``, in bytes, raises or lowers all limits.
"""

import os

from graphopt._words import size

_VARIABLE = "GRAPHOPT_MEMORY_LIMIT"


def check_memory(needed: int, what: str) -> None:
    """Refuse what takes more memory than the machine has.

    Args:
        needed: How many bytes it takes.
        what: What does, for the error.

    Raises:
        ValueError: It is more.
    """
    if needed > (allowed := memory_limit()):
        raise ValueError(f"{what} has {size(needed)}, and {too_large(allowed)}")


def too_large(allowed: int) -> str:
    """What to say of something that takes more bytes than are allowed."""
    return (
        f"takes more memory than the {size(allowed)} that are allowed; if it is as it should be, "
        f"set the environment variable {_VARIABLE} to more bytes"
    )


def memory_limit(limit: int | None = None) -> int:
    """How many bytes may be taken.

    Args:
        limit: Where the user has set nothing; by default the memory of the machine.

    Raises:
        ValueError: The environment variable holds no number.
    """
    text = os.environ.get(_VARIABLE)
    if text is None:
        return _of_machine() if limit is None else limit
    if not text.isdecimal():
        raise ValueError(f"{_VARIABLE}: got '{text}', expected a number of bytes")
    return int(text)


def _of_machine() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**40
