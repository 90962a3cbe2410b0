"""How a safetensors file is laid out: its header, the bytes of its tensors, and their checksums."""

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from graphopt import mapped_values

_ALIGNMENT = 8
_LENGTH = 8  # bytes of a file that say how long its header is

_CODES = {
    dtype: code + bits
    for kind, code in (("float", "F"), ("int", "I"), ("uint", "U"))
    for bits in ("8", "16", "32", "64")
    if (dtype := kind + bits) != "float8"
} | {"bfloat16": "BF16", "bool": "BOOL", "complex64": "C64"}

_DTYPES = {code: np.dtype(name) for name, code in _CODES.items() if name != "bfloat16"}

State = Mapping[str, np.ndarray]

# What NumPy does not know, safetensors finds out in several ways.
UNREADABLE = (SafetensorError, AttributeError, TypeError, ValueError, OverflowError)
"""What opening such a file raises, and reading a tensor of it."""

_Place = tuple[int, tuple[int, ...], np.dtype[Any]]  # where it begins, its shape and its dtype


def header(arrays: State, metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        code, shape = _code(name, array), list(array.shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


class TensorFile:
    """A file, which is open until the block ends that it is used in.

    Args:
        path: Of the file.
        leaving: See `graphopt.checkpoint.read_stored`.

    Attributes:
        metadata: What it says of itself.
        names: The tensors.

    Raises:
        Exception: One of `UNREADABLE`, where it is no such file.
    """

    def __init__(self, path: Path, *, leaving: bool = False) -> None:
        """See the class."""
        self._file = _opened(path)
        self._path, self._leaving = path, leaving and mapped_values.CAN_BE
        self.metadata: Mapping[str, str] = self._file.metadata() or {}
        self.names = tuple(self._file.keys())
        # Where there is no memory, safetensors itself ends in a panic of Rust.
        self._places = _places(path) if sys.byteorder == "little" else {}

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
            MemoryError: There is not enough.
            Exception: One of `UNREADABLE`, where NumPy cannot hold it.
        """
        place = self._places.get(name)
        if place is None:
            array: np.ndarray = self._file.get_tensor(name)
            return array
        begin, shape, dtype = place
        if self._leaving and begin % dtype.itemsize == 0:
            return mapped_values.array_in(self._path, *place)
        array = np.empty(shape, dtype)
        with self._path.open("rb") as file:
            file.seek(begin)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise ValueError("it is truncated")
        return array


def _opened(path: Path) -> Any:  # which has no type information
    return safe_open(path, framework="numpy")


def _places(path: Path) -> dict[str, _Place]:
    """Where the large tensors of a file begin, with their shapes and dtypes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        entries = json.loads(file.read(length))
    found = {}
    for name, entry in entries.items():
        dtype = _DTYPES.get(entry.get("dtype"))
        if dtype is None:
            continue
        begin, end = (_LENGTH + length + offset for offset in entry["data_offsets"])
        if end - begin >= mapped_values.LEAST:
            found[name] = begin, tuple(entry["shape"]), dtype
    return found


def content(array: np.ndarray) -> memoryview:
    """The bytes of an array as a file has them."""
    if sys.byteorder == "big":
        array = array.byteswap()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


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


def checksum(name: str, array: np.ndarray) -> str:
    """The CRC-32 of a tensor with its name, dtype and shape, in hexadecimal digits.

    Example:
        >>> checksum("w", np.zeros(3, np.float32))
        '7e805b6b'
    """
    described = f"{name}\n{_code(name, array)}\n{','.join(map(str, array.shape))}\n"
    return f"{zlib.crc32(content(array), zlib.crc32(described.encode())):08x}"


def checksum_of(metadata: Mapping[str, str]) -> str:
    """The CRC-32 of the entries of the metadata, but for its own, in hexadecimal digits."""
    lines = [f"{key}={metadata[key]}\n" for key in sorted(metadata) if key != "checksum"]
    return f"{zlib.crc32(''.join(lines).encode()):08x}"
