"""Errors that name the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def naming(model: Any) -> Iterator[None]:
    """Let errors about a model say which file it is, if it is one."""
    try:
        yield
    except ValueError as error:
        if isinstance(model, str | os.PathLike):
            raise ValueError(f"'{os.fspath(model)}': {error}") from None
        raise
