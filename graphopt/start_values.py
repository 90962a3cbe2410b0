"""What training starts from, in a plain file beside the graph, for programs without Python.

``training_info`` has it too, but ONNX Runtime shows that to no program. The file has one tensor for
each carried input of the graph, under its name, as the graph carries it: parameters and states,
small ones one after another in a bucket. A program feeds them in the first step, and in the next
one feeds each with the output ``<name>.next``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from graphopt.carried import Carried, filled, parts
from graphopt.checkpoint import code_of

ENDING = ".start.safetensors"
"""What takes the place of the ending of the graph's file."""

_METADATA = {"format": "graphopt", "version": "1"}
"""That of a checkpoint without checksums: what a program writes in this form is one."""
_ALIGNMENT = 8


def start_file(path: Path) -> Path:
    """The file that belongs to that of a graph."""
    return path.with_name(f"{path.stem}{ENDING}")


def check_starts(carried: Sequence[Carried]) -> None:
    """Refuse a graph that does not know what it starts from.

    Raises:
        ValueError: It does not, because it is an update alone, or one of a session.
    """
    unknown = [value.input for value in carried if value.initial is None]
    if unknown:
        raise ValueError(
            f"start: the graph has no value that '{unknown[0]}' starts from, because it is an "
            "update alone, or that of a session; save the graph that training_graph returned"
        )


def write_start(path: Path, carried: Sequence[Carried]) -> None:
    """Write the values, one by one: they may be as large as the memory."""
    # The widest first, so that each lies where its numbers may be read in place.
    ordered = sorted(carried, key=lambda value: -np.dtype(value.dtype).itemsize)
    with path.open("wb") as file:
        file.write(_header(ordered))
        for value in ordered:
            _write(file, value, carried)


def by_names(state: Mapping[str, np.ndarray], carried: Iterable[Carried]) -> dict[str, np.ndarray]:
    """A state that has the inputs of a graph, as one of parameters and states by their names.

    What has another name than an input, or another shape, stays as it is.
    """
    found = dict(state)
    for value in carried:
        array = state.get(value.input)
        if array is not None and array.shape == value.shape:
            del found[value.input]
            found |= {view.name: part for view, part in parts(value, array)}
    return found


def _header(carried: Sequence[Carried]) -> bytes:
    entries: dict[str, object] = {"__metadata__": _METADATA}
    end = 0
    for value in carried:
        begin, end = end, end + value.bytes
        entries[value.input] = {
            "dtype": code_of(value.dtype),
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, value: Carried, carried: Sequence[Carried]) -> None:
    array = value.initial
    if isinstance(array, str):
        (other,) = (c.initial for c in carried if c.input == array)
        assert isinstance(other, np.ndarray)
        array = other.reshape(value.shape).astype(value.dtype)
    elif not isinstance(array, np.ndarray):
        array = filled(value)
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
