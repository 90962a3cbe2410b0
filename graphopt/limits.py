"""How much memory a file may ask for, which is checked before any is taken.

The environment variable ``GRAPHOPT_MEMORY_LIMIT``, in bytes, raises or lowers all limits. What
cannot be known before is refused when there is no memory for it, by the same kind of error.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt._words import size

try:
    import resource
except ImportError:  # there are no such limits on Windows
    resource = None  # type: ignore[assignment]

_VARIABLE = "GRAPHOPT_MEMORY_LIMIT"
_OF_CONTAINERS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class TooLargeError(ValueError):
    """A file asks for more memory than there is, which is no reason to think that it is damaged."""


def check_memory(needed: int, what: str) -> None:
    """Refuse what takes more memory than the machine has.

    Args:
        needed: How many bytes it takes.
        what: What does, for the error.

    Raises:
        TooLargeError: It is more.
    """
    if needed > (allowed := memory_limit()):
        raise TooLargeError(f"{what} has {size(needed)}, and {too_large(allowed)}")


@contextmanager
def asked_for_by(path: str | os.PathLike[str]) -> Iterator[None]:
    """Refuse a file that is being read where there is no memory for what it asks for.

    Raises:
        TooLargeError: There is none.

    Example:
        >>> with asked_for_by("net.onnx"):  # doctest: +ELLIPSIS
        ...     raise MemoryError
        Traceback (most recent call last):
        ...
        graphopt.limits.TooLargeError: 'net.onnx' asks for more memory than there is; ...
    """
    try:
        yield
    except MemoryError as error:
        raise exhausted(f"'{os.fspath(path)}'", error) from error
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise exhausted(f"'{os.fspath(path)}'", error) from error


def exhausted(what: str, error: Exception) -> TooLargeError:
    """The error about something for which there is no memory.

    Args:
        what: Asks for it.
        error: What was raised then.
    """
    why = f" ({error})" if str(error) else ""
    return TooLargeError(
        f"{what} asks for more memory than there is{why}; if it is as it should be, run this "
        "where there is more"
    )


def too_large(allowed: int) -> str:
    """What to say of something that takes more bytes than are allowed."""
    return (
        f"takes more memory than the {size(allowed)} that are allowed; if it is as it should be, "
        f"set the environment variable {_VARIABLE} to more bytes"
    )


def memory_limit(limit: int | None = None) -> int:
    """How many bytes may be taken.

    Args:
        limit: Where the user has set nothing; by default what the process may have of the memory
            of the machine.

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
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        most = 2**40
    limits = [_of_container(path) for path in _OF_CONTAINERS]
    if resource is not None:
        limits += [
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        ]
    return min([most, *(limit for limit in limits if limit is not None and limit >= 0)])


def _of_container(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is none
