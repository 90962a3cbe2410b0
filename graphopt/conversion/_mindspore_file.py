"""Checkpoint files of MindSpore, read and written without it.

A ``.ckpt`` is a message of protobuf, of one field 1 for each value::

    message Value { string tag = 1; TensorProto tensor = 2; }
    message TensorProto {
        repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3;
    }

A large tensor has several values of the same tag, whose contents follow each other. At the end may
stand ``crc_num`` and, in ten bytes, the CRC-32 of all before it. The messages are read here one by
one, because a file may be larger than protobuf's limit of 2 GiB.
"""

import mmap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from graphopt._files import PathLike, existing_file, write_atomically
from graphopt.carried import Array
from graphopt.checkpoint.safetensors_file import UNREADABLE, TensorFile

_DTYPES = {
    "Float16": np.float16,
    "Float32": np.float32,
    "Float64": np.float64,
    "BFloat16": ml_dtypes.bfloat16,
    "Int8": np.int8,
    "Int16": np.int16,
    "Int32": np.int32,
    "Int64": np.int64,
    "UInt8": np.uint8,
    "UInt16": np.uint16,
    "UInt32": np.uint32,
    "UInt64": np.uint64,
    "Bool": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_TEXT = "str"  # of append_dict
_CHECKSUM = b"crc_num"
_SLICE = 2**29  # bytes of a tensor in one value, as MindSpore writes at most
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class _Value:
    """A tensor, as far as its values have been read."""

    dims: tuple[int, ...]
    dtype: str
    contents: list[memoryview] = field(default_factory=list)


def read(path: PathLike) -> dict[str, Array]:
    """The tensors of a checkpoint, by name; text is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of MindSpore, or damaged, or encrypted.
    """
    path = existing_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"'{path}' is empty, expected a checkpoint of MindSpore")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # ends with its last slice
    try:
        return _arrays(_values(_checked(memoryview(data))))
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is not a checkpoint of MindSpore, or is damaged or encrypted: {error}"
        ) from None


def read_safetensors(path: PathLike) -> dict[str, Array]:
    """The tensors of a safetensors file, by name, which MindSpore and others write too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none, or damaged.
    """
    path = existing_file(path)
    try:
        with TensorFile(path) as file:
            return {name: file.read(name) for name in file.names}
    except UNREADABLE as error:
        raise ValueError(f"'{path}' is not a readable safetensors file: {error}") from None


def write(path: PathLike, tensors: Mapping[str, Array]) -> None:
    """Write tensors, so that ``mindspore.load_checkpoint`` reads them, atomically.

    Raises:
        FileNotFoundError: The folder does not exist.
    """

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            for name, array in tensors.items():
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                dims = b"".join(b"\x08" + _varint(size) for size in array.shape)
                said = dims + _field(2, _NAMES[array.dtype].encode())
                for begin in range(0, max(1, len(content)), _SLICE):
                    piece = content[begin : begin + _SLICE]
                    head = said + b"\x1a" + _varint(len(piece))
                    tag = _field(1, name.encode())
                    inner = tag + b"\x12" + _varint(len(head) + len(piece)) + head
                    file.write(b"\x0a" + _varint(len(inner) + len(piece)) + inner)
                    file.write(piece)

    write_atomically(path, fill)


def _checked(data: memoryview) -> memoryview:
    """The messages, without the checksum, which is compared if there is one."""
    length = len(_CHECKSUM) + 10
    if bytes(data[-length:-10]) != _CHECKSUM:
        return data
    said = int.from_bytes(data[-10:], "big")
    data = data[:-length]
    if zlib.crc32(data) != said:
        raise ValueError("its CRC-32 is another one")
    return data


def _values(data: memoryview) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for number, inner in _fields(data):
        if number != 1 or not isinstance(inner, memoryview):
            raise ValueError(f"it has a field {number}, expected 1")
        parts = dict(_fields(inner))
        tag, tensor = parts.get(1), parts.get(2)
        if not isinstance(tag, memoryview) or not isinstance(tensor, memoryview):
            raise ValueError("a value has no name, or is no tensor")
        name, value = str(tag, "utf-8"), _tensor(tensor)
        before = found.setdefault(name, value)
        if before is not value:
            if (before.dims, before.dtype) != (value.dims, value.dtype):
                raise ValueError(f"'{name}' has parts of several shapes or dtypes")
            before.contents += value.contents
    return found


def _tensor(data: memoryview) -> _Value:
    dims: list[int] = []
    value = _Value((), "")
    for number, part in _fields(data):
        if number == 1 and isinstance(part, int):
            dims.append(part)
        elif number == 1 and isinstance(part, memoryview):
            dims += _packed(part)
        elif number == 2 and isinstance(part, memoryview):
            value.dtype = str(part, "ascii")
        elif number == 3 and isinstance(part, memoryview):
            value.contents.append(part)
    value.dims = tuple(dims)
    return value


def _arrays(values: Mapping[str, _Value]) -> dict[str, Array]:
    arrays = {}
    for name, value in values.items():
        if value.dtype == _TEXT:
            continue
        if value.dtype not in _DTYPES:
            raise ValueError(f"'{name}' has the dtype '{value.dtype}'")
        flat = np.frombuffer(b"".join(value.contents), _DTYPES[value.dtype])
        # Older releases write the size 0 for a scalar.
        dims = () if value.dims == (0,) and flat.size == 1 else value.dims
        arrays[name] = flat.reshape(dims)
    return arrays


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: their numbers, and what they hold."""
    while data:
        key, data = _number(data)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, data = _number(data)
            yield number, value
            continue
        if kind == _BYTES:
            size, data = _number(data)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"it has a field of the kind {kind}")
        if size > len(data):
            raise ValueError("it is truncated")
        yield number, data[:size]
        data = data[size:]


def _number(data: memoryview) -> tuple[int, memoryview]:
    """A varint, and what follows it."""
    value = 0
    for index in range(10):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, data[index + 1 :]
    raise ValueError("a number has more than ten bytes")


def _packed(data: memoryview) -> Iterator[int]:
    while data:
        value, data = _number(data)
        yield value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content
