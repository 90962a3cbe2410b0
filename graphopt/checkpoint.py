"""Checkpoints: the state of a session in a safetensors file."""

from collections.abc import Mapping

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
        ValueError: The file is not a checkpoint.
    """
    path = existing_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"'{path}' is not a checkpoint: {error}") from None
    if metadata.get("format") != _FORMAT["format"]:
        raise ValueError(f"'{path}' is a safetensors file, but not a checkpoint of graphopt")
    if metadata.get("version") != _FORMAT["version"]:
        raise ValueError(
            f"checkpoint '{path}' has version {metadata.get('version')}, "
            f"expected {_FORMAT['version']}; a newer graphopt wrote it"
        )
    return state


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
