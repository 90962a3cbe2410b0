"""A file with the state of a session: writing it, reading it, and whether it is what was written.

Its metadata has a checksum of each tensor, of its name, dtype and shape too, and one of itself; the
fingerprint of the graph; and the versions of what wrote it.
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import mapped_values
from graphopt._files import PathLike, about, existing_file, write_atomically
from graphopt.checkpoint.safetensors_file import (
    UNREADABLE,
    State,
    TensorFile,
    checksum,
    checksum_of,
    content,
    header,
)
from graphopt.limits import asked_for_by
from graphopt.versions import GRAPHOPT

_FORMAT, _VERSION = "graphopt", "2"
_WITHOUT_CHECKSUMS = "1"


class OtherFileError(ValueError):
    """A file is not known to be damaged, but no checkpoint that this graphopt reads."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds.

    Attributes:
        state: The arrays, by name.
        graph: The entry of the fingerprint of its graph, which may be any JSON; None where there
            is none.
        note: What the one who saved it has noted.
        has_checksums: Whether it is known to be whole, as far as it can be.
    """

    state: dict[str, np.ndarray]
    graph: Any = None
    note: Mapping[str, Any] = field(default_factory=dict)
    has_checksums: bool = True


def save(
    path: PathLike,
    state: State,
    graph: Mapping[str, Any] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a state to a file, atomically.

    Args:
        path: Of the file.
        state: The arrays, by name.
        graph: The entry of the fingerprint of its graph.
        note: What is to be noted with it, as JSON has it.

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError: An array has a dtype that such a file does not know.
    """
    tensors = dict(sorted(state.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    with about(path):
        arrays = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in tensors.items()}
        beginning = header(arrays, _metadata(arrays, graph, note or {}))

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            file.write(beginning)
            for array in arrays.values():
                file.write(content(array))

    write_atomically(path, fill)


def read(path: PathLike) -> dict[str, np.ndarray]:
    """Read a state.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is damaged, or has a tensor that NumPy cannot
            hold.
    """
    return read_stored(path).state


def read_stored(path: PathLike, *, leaving: bool = False) -> Stored:
    """Read a checkpoint, with what it says of itself.

    Args:
        path: Of the file.
        leaving: Look at large tensors in the file, which must not be written to, instead of
            reading them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As in `read`.
    """
    with opened(path, leaving=leaving) as tensors:
        return Stored(dict(tensors), tensors.graph, tensors.note, tensors.has_checksums)


def note_of(path: PathLike) -> Mapping[str, Any]:
    """What was noted with a checkpoint, of which no tensor is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint.
    """
    with opened(path) as tensors:
        return tensors.note


@contextmanager
def opened(path: PathLike, *, leaving: bool = False) -> Iterator["Tensors"]:
    """Open a checkpoint whose tensors are read one by one, each when it is asked for.

    Args:
        path: Of the file.
        leaving: See `read_stored`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint. Asking for a tensor that NumPy cannot hold, of
            float8 for example, or that is damaged, raises it too, and so does what takes more
            memory than there is.

    Example:
        >>> save("state.safetensors", {"w": np.zeros(3, np.float32)})
        >>> with opened("state.safetensors") as tensors:
        ...     print(list(tensors), tensors["w"].shape)
        ['w'] (3,)
    """
    path = existing_file(path)
    with asked_for_by(path):
        try:
            file = TensorFile(path, leaving=leaving)
        except UNREADABLE as error:
            raise ValueError(
                f"'{path}' is not a readable checkpoint, expected one of a session, a safetensors "
                f"file, or one of on-device training: {error}"
            ) from None
        with file:
            yield Tensors(path, file)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of an open file, which are not kept.

    Attributes:
        graph: The entry of the fingerprint of the graph, which may be any JSON.
        note: What was noted.
    """

    def __init__(self, path: Path, file: TensorFile) -> None:
        """Read what the file says of itself.

        Raises:
            ValueError: It is damaged, or no checkpoint of graphopt.
        """
        self._path, self._file = path, file
        self._names = dict.fromkeys(file.names)
        metadata = file.metadata
        version = _checked_version(path, metadata)
        self._checksums: Mapping[str, Any] | None = None
        self.graph: Any = None
        self.note: Mapping[str, Any] = {}
        if version == _WITHOUT_CHECKSUMS:
            return
        try:
            if metadata["checksum"] != checksum_of(metadata):
                raise ValueError("its metadata is not what was written")
            said = {key: json.loads(metadata[key]) for key in ("checksums", "graph", "note")}
            if said["checksums"].keys() != self._names.keys():
                raise ValueError("it does not have the tensors that were written")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint '{path}' is damaged: {error}") from None
        self._checksums, self.graph, self.note = said["checksums"], said["graph"], said["note"]

    @property
    def has_checksums(self) -> bool:
        """Whether what is read can be compared with what was written."""
        return self._checksums is not None

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            array = self._file.read(name)
        except UNREADABLE as error:
            raise ValueError(
                f"checkpoint '{self._path}' is damaged: its tensor '{name}' is not one that NumPy "
                f"can hold: {error}"
            ) from None
        if self._checksums is not None and self._checksums[name] != checksum(name, array):
            raise ValueError(
                f"checkpoint '{self._path}' is damaged: its tensor '{name}' is not what was "
                "written; take another copy, or an earlier checkpoint"
            )
        mapped_values.give_back(array)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def note_without_checksums(path: PathLike) -> None:
    """Warn that nobody can tell whether a checkpoint is damaged."""
    warnings.warn(
        f"checkpoint '{path}' has no checksums, because an older graphopt wrote it: whether it is "
        "damaged cannot be told; save it again to have them",
        stacklevel=4,
    )


def _checked_version(path: Path, metadata: Mapping[str, str]) -> str:
    if metadata.get("format") != _FORMAT:
        raise OtherFileError(f"'{path}' is a safetensors file, but not a checkpoint of graphopt")
    version = metadata.get("version", "")
    if version not in (_WITHOUT_CHECKSUMS, _VERSION):
        raise OtherFileError(
            f"checkpoint '{path}' has version {version!r}, "
            f"expected {_VERSION!r} at most; a newer graphopt wrote it"
        )
    return version


def _metadata(arrays: State, graph: Any, note: Mapping[str, Any]) -> dict[str, str]:
    runtime = sys.modules.get("onnxruntime")
    versions = {"graphopt": GRAPHOPT, "numpy": np.__version__}
    versions |= {"onnxruntime": runtime.__version__} if runtime else {}
    said = {
        "checksums": {name: checksum(name, array) for name, array in arrays.items()},
        "graph": graph,
        "note": note,
        "versions": versions,
    }
    metadata = {key: json.dumps(value) for key, value in said.items()}
    metadata |= {"format": _FORMAT, "version": _VERSION}
    return metadata | {"checksum": checksum_of(metadata)}
