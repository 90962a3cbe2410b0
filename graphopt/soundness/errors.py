"""One kind of error about a model: a ValueError that names its file and says what is wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from graphopt.limits import exhausted
from graphopt.soundness.file import read_model
from graphopt.soundness.model import check_model


@contextmanager
def about(model: Any) -> Iterator[None]:
    """Let errors about a model name its file, and be a ValueError whatever a damage has led to.

    Files that cannot be read or written, and packages that are missing, are other errors, and stay
    as they are.

    Args:
        model: A path, a model in memory, or what has paths as its ``files``.

    Example:
        >>> with about("net.onnx"):
        ...     {}["x"]
        Traceback (most recent call last):
        ...
        ValueError: 'net.onnx': the model is damaged, or does not fit: KeyError: 'x'
    """
    name = _name(model)
    try:
        with naming(model), taking_memory(model):
            yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:
        cause = _diagnosis(model) or (
            f"the model is damaged, or does not fit: {type(error).__name__}: {error}"
        )
        raise ValueError(f"{name}: {cause}" if name else cause) from error


@contextmanager
def taking_memory(model: Any) -> Iterator[None]:
    """Refuse a model where there is no memory for what it asks for.

    Args:
        model: As for `about`.

    Raises:
        TooLargeError: There is none.
    """
    try:
        yield
    except MemoryError as error:
        raise exhausted(_name(model) or "the model", error) from error


@contextmanager
def naming(model: Any) -> Iterator[None]:
    """Let each ValueError about a model name its file; what else is raised stays as it is.

    Args:
        model: As for `about`.
    """
    name = _name(model)
    try:
        yield
    except ValueError as error:
        if not name or name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error.__cause__


def _name(model: Any) -> str:
    file = _file(model)
    return f"'{file}'" if file else ""


def _file(model: Any) -> str | None:
    file = next(iter(getattr(model, "files", ())), model)
    return os.fspath(file) if isinstance(file, str | os.PathLike) else None


def _diagnosis(model: Any) -> str | None:
    """What is wrong with a model, looked for where something has failed."""
    proto = getattr(model, "model", model)
    try:
        if (file := _file(model)) is not None:
            proto = read_model(Path(file))
        if isinstance(proto, onnx.ModelProto):
            check_model(proto)
            onnx.checker.check_model(proto)
    except OSError:
        return None
    except Exception as error:  # noqa: BLE001 - onnx's and protobuf's have no common base
        return f"the model is damaged: {error}"
    return None
