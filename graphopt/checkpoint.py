"""Checkpoints: the state of a session in a safetensors file, which knows whether it is whole.

The metadata of the file has a checksum of each tensor, of its name, dtype and shape too, and one of
itself; the fingerprint of the graph; and the versions of what wrote it.
"""

import json
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from graphopt import mapped_values
from graphopt._files import PathLike, about, existing_file, write_atomically
from graphopt.fingerprint import shortened
from graphopt.finite import lost_in
from graphopt.loss_scale import SMALLEST
from graphopt.states import COUNTERS, LOSS_SCALE, NOT_NEGATIVE, split
from graphopt.versions import GRAPHOPT

_FORMAT, _VERSION = "graphopt", "2"
_WITHOUT_CHECKSUMS = "1"
_ALIGNMENT = 8
_NAME = re.compile(r"step-(\d{10,})\.safetensors")
_LARGEST_COUNT = 2**53  # schedules compute in float64, which counts to there

_CODES = {
    dtype: code + bits
    for kind, code in (("float", "F"), ("int", "I"), ("uint", "U"))
    for bits in ("8", "16", "32", "64")
    if (dtype := kind + bits) != "float8"
} | {"bfloat16": "BF16", "bool": "BOOL", "complex64": "C64"}

_DTYPES = {code: np.dtype(name) for name, code in _CODES.items() if name != "bfloat16"}
_LENGTH = 8  # bytes of a safetensors file that say how long its header is

State = Mapping[str, np.ndarray]


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


@dataclass(frozen=True)
class LoadReport:
    """What was loaded of a checkpoint.

    Attributes:
        loaded: The names of the values that were loaded.
        kept: Those that the session kept, because the checkpoint has none that fits.
        ignored: Those of the checkpoint that the session does not have.
        differences: What is different about the graph and its hyperparameters, in words.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


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
        header = _header(arrays, _metadata(arrays, graph, note or {}))

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            file.write(header)
            for array in arrays.values():
                file.write(_content(array))

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


def name_at(step: int) -> str:
    """What a checkpoint is called in a folder of them."""
    return f"step-{step:010}.safetensors"


def step_of(path: Path) -> int:
    """The step of one that is called so; -1 of any other file."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return sorted((path for path in folder.iterdir() if step_of(path) >= 0), key=step_of)


def file_of(path: PathLike) -> PathLike:
    """A path; of a folder of checkpoints, that of the newest.

    Raises:
        FileNotFoundError: The folder has none.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    found = in_folder(folder)
    if not found:
        raise FileNotFoundError(f"the folder '{folder}' has no checkpoint, such as {name_at(1)}")
    return found[-1]


@contextmanager
def opened(path: PathLike, *, leaving: bool = False) -> Iterator["Tensors"]:
    """Open a checkpoint whose tensors are read one by one, each when it is asked for.

    Args:
        path: Of the file.
        leaving: See `read_stored`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint. Asking for a tensor that NumPy cannot hold, of
            float8 for example, or that is damaged, raises it too.

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
        yield Tensors(path, file, _places(path) if leaving else {})


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of an open file, which are not kept.

    Attributes:
        graph: The entry of the fingerprint of the graph, which may be any JSON.
        note: What was noted.
    """

    def __init__(self, path: Path, file: Any, places: "Mapping[str, _Place]") -> None:
        """Read what the file says of itself.

        Raises:
            ValueError: It is damaged, or no checkpoint of graphopt.
        """
        self._path, self._file, self._places = path, file, places
        self._names = dict.fromkeys(file.keys())
        metadata = file.metadata() or {}
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
            array: np.ndarray = (
                mapped_values.array_in(self._path, *self._places[name])
                if name in self._places
                else self._file.get_tensor(name)
            )
        # What NumPy does not know, safetensors finds out in several ways.
        except (SafetensorError, AttributeError, TypeError, ValueError, OverflowError) as error:
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


def checksum(name: str, array: np.ndarray) -> str:
    """The CRC-32 of a tensor with its name, dtype and shape, in hexadecimal digits.

    Example:
        >>> checksum("w", np.zeros(3, np.float32))
        '7e805b6b'
    """
    described = f"{name}\n{_code(name, array)}\n{','.join(map(str, array.shape))}\n"
    return f"{zlib.crc32(_content(array), zlib.crc32(described.encode())):08x}"


def impossible(state: State) -> list[str]:
    """What no training leaves behind: numbers that are none, negative squares, wild counters."""
    problems = []
    for name, array in state.items():
        kind = split(name)[0] or name
        if count := lost_in(array):
            verb = "is" if count == 1 else "are"
            problems.append(f"{count} of {array.size} numbers of '{name}' {verb} NaN or infinite")
        elif kind in NOT_NEGATIVE and array.size and array.min() < 0:
            problems.append(f"'{name}' has the value {array.min()}, expected 0 or more")
        elif name == LOSS_SCALE.name and array.size and array.min() < SMALLEST:
            problems.append(f"'{name}' is {array.min()}, expected {SMALLEST} or more")
        elif name in COUNTERS and array.size and array.max() > _LARGEST_COUNT:
            problems.append(f"'{name}' is {array.max()}, expected {_LARGEST_COUNT} at most")
        mapped_values.give_back(array)
    return problems


def misfits(state: State, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """How a state differs from the names, shapes and dtypes that it should have."""
    problems = [f"it lacks '{name}'" for name in expected if name not in state]
    problems += [
        f"it has '{name}', which the graph does not" for name in state if name not in expected
    ]
    for name, array in state.items():
        if name in expected and not fits(array, expected[name]):
            shape, dtype = expected[name]
            problems.append(
                f"'{name}' is {array.dtype.name}{list(array.shape)} in it, "
                f"but {dtype}{list(shape)} in the graph"
            )
    return problems


def check_given(
    state: State, expected: Mapping[str, tuple[tuple[int, ...], str]], argument: str = "state"
) -> None:
    """Refuse values of one's own, of which there may be some only.

    Raises:
        ValueError: One does not fit, or no training leaves it behind.
    """
    given = {name: expected[name] for name in expected if name in state}
    if problems := misfits(state, given) + impossible(state):
        raise ValueError(f"{argument}: {shortened(problems)}")


def fits(array: np.ndarray, expected: tuple[tuple[int, ...], str]) -> bool:
    """Whether an array has this shape and dtype."""
    return (array.shape, array.dtype.name) == expected


def refuse(path: PathLike, whose: str, problems: list[str]) -> None:
    """Raise ValueError if there are problems with a checkpoint."""
    if problems:
        raise ValueError(f"checkpoint '{path}' {whose}: {shortened(problems)}")


def note_without_checksums(path: PathLike) -> None:
    """Warn that nobody can tell whether a checkpoint is damaged."""
    warnings.warn(
        f"checkpoint '{path}' has no checksums, because an older graphopt wrote it: whether it is "
        "damaged cannot be told; save it again to have them",
        stacklevel=4,
    )


_Place = tuple[int, tuple[int, ...], np.dtype[Any]]


def _places(path: Path) -> dict[str, _Place]:
    """Where the large tensors of a safetensors file begin, with their shapes and dtypes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        entries = json.loads(file.read(length))
    found = {}
    for name, entry in entries.items():
        dtype = _DTYPES.get(entry.get("dtype"))
        if dtype is None or not mapped_values.CAN_BE:
            continue
        begin, end = (_LENGTH + length + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        is_aligned = begin % dtype.itemsize == 0
        if is_aligned and end - begin >= mapped_values.LEAST:
            found[name] = begin, shape, dtype
    return found


def _checked_version(path: Path, metadata: Mapping[str, str]) -> str:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"'{path}' is a safetensors file, but not a checkpoint of graphopt")
    version = metadata.get("version", "")
    if version not in (_WITHOUT_CHECKSUMS, _VERSION):
        raise ValueError(
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


def checksum_of(metadata: Mapping[str, str]) -> str:
    """The CRC-32 of the entries of the metadata, but for its own, in hexadecimal digits."""
    lines = [f"{key}={metadata[key]}\n" for key in sorted(metadata) if key != "checksum"]
    return f"{zlib.crc32(''.join(lines).encode()):08x}"


def _header(arrays: State, metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        code, shape = _code(name, array), list(array.shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _code(name: str, array: np.ndarray) -> str:
    try:
        return code_of(array.dtype.name)
    except KeyError:
        raise TypeError(
            f"'{name}' has dtype {array.dtype.name}, which a checkpoint cannot hold"
        ) from None


def code_of(dtype: str) -> str:
    """What safetensors calls a dtype of NumPy.

    Raises:
        KeyError: It has none.
    """
    return _CODES[dtype]


def _content(array: np.ndarray) -> memoryview:
    """The bytes of an array as a file has them."""
    if sys.byteorder == "big":
        array = array.byteswap()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
