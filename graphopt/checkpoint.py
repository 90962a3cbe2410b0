"""Checkpoints: the state of a session in a safetensors file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from graphopt._files import PathLike, existing_file, write_atomically

_FORMAT = {"format": "graphopt", "version": "1"}


def save(path: PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Write a state to a file, atomically.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    tensors = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in state.items()
    }
    write_atomically(path, lambda part: save_file(tensors, part, metadata=_FORMAT))


def read(path: PathLike) -> dict[str, np.ndarray]:
    """Read a state.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, or has a tensor that NumPy cannot hold.
    """
    with opened(path) as tensors:
        return dict(tensors)


@contextmanager
def opened(path: PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """Open a checkpoint whose tensors are read one by one, each when it is asked for.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint. Asking for a tensor that NumPy cannot hold, of
            float8 for example, raises it too.

    Example:
        >>> save("state.safetensors", {"w": np.zeros(3, np.float32)})
        >>> with opened("state.safetensors") as tensors:
        ...     print(list(tensors), tensors["w"].shape)
        ['w'] (3,)
    """
    path = existing_file(path)
    try:
        file: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is not a readable checkpoint, expected one of a session, a safetensors "
            f"file, or one of on-device training: {error}"
        ) from None
    with file:
        _check_format(path, file.metadata() or {})
        yield _Tensors(path, file)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of an open file, which are not kept."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._names = dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            array: np.ndarray = self._file.get_tensor(name)
        # What NumPy does not know, safetensors finds out in several ways.
        except (SafetensorError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"checkpoint '{self._path}' is damaged: its tensor '{name}' is not one that NumPy "
                f"can hold: {error}"
            ) from None
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT["format"]:
        raise ValueError(f"'{path}' is a safetensors file, but not a checkpoint of graphopt")
    if metadata.get("version") != _FORMAT["version"]:
        raise ValueError(
            f"checkpoint '{path}' has version {metadata.get('version')!r}, "
            f"expected {_FORMAT['version']!r}; a newer graphopt wrote it"
        )


def misfits(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[tuple[int, ...], str]]
) -> str:
    """How a state differs from the names, shapes and dtypes that it should have; empty if not."""
    problems = [f"it lacks '{name}'" for name in expected if name not in state]
    problems += [
        f"it has '{name}', which the graph does not" for name in state if name not in expected
    ]
    for name, array in state.items():
        if name in expected:
            shape, dtype = expected[name]
            if array.shape != shape or array.dtype.name != dtype:
                problems.append(
                    f"'{name}' is {array.dtype.name}{list(array.shape)} in it, "
                    f"but {dtype}{list(shape)} in the graph"
                )
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
