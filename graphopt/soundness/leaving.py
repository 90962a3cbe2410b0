"""Reading a large file without its large initializers, which stay in it."""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor
from onnx import ModelProto, TensorProto

from graphopt import mapped_values
from graphopt.dtypes import bytes_of
from graphopt.graphs import TO_INITIALIZERS
from graphopt.soundness.wire import Buffer, length_tag, read_number, written

LEAST = 2**26
"""The bytes of a file that is worth it."""

_MOST_BESIDE = 2**16  # bytes of any other field of a tensor
_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER


def without_values(data: Buffer, path: Path) -> bytes:
    """A model as bytes, in which large initializers say where in the file they are.

    Args:
        data: The content of the file, which is known to be sound.
        path: The file.
    """
    return b"".join(_cut(data, 0, len(data), ModelProto.DESCRIPTOR, path))


def _cut(data: Buffer, begin: int, end: int, kind: Descriptor, path: Path) -> Iterator[bytes]:
    """The bytes of a message, piece by piece."""
    kept = position = begin
    while position < end:
        start, (number, inner, stop) = position, _field(data, position, end)
        position = stop
        field = kind.fields_by_number.get(number)
        if field is None or field.name not in TO_INITIALIZERS:
            continue
        yield data[kept:start]
        kept = stop
        if field.message_type is TensorProto.DESCRIPTOR:
            content = _tensor(data, inner, stop, path)
        else:
            content = b"".join(_cut(data, inner, stop, field.message_type, path))
        yield length_tag(number) + written(len(content)) + content
    yield data[kept:end]


def _tensor(data: Buffer, begin: int, end: int, path: Path) -> bytes:
    """The bytes of a tensor; where it is large, of one that says where its values are."""
    if end - begin < mapped_values.LEAST:
        return data[begin:end]
    rest, values, position = [], [], begin
    while position < end:
        start, (number, inner, stop) = position, _field(data, position, end)
        position = stop
        if number == _RAW_DATA:
            values.append((inner, stop - inner))
        elif stop - start >= _MOST_BESIDE:
            return data[begin:end]
        else:
            rest.append(data[start:stop])
    tensor = TensorProto.FromString(b"".join(rest))
    if (
        len(values) != 1
        or tensor.data_location != TensorProto.DEFAULT
        or not mapped_values.can_be_left(tensor)
        or bytes_of(tensor) != values[0][1]
    ):
        return data[begin:end]
    mapped_values.leave(tensor, path, *values[0])
    return bytes(tensor.SerializeToString())


def _field(data: Buffer, position: int, end: int) -> tuple[int, int, int]:
    """The number of a field, where its content begins, and where it ends."""
    tag, position = read_number(data, position, end)
    match tag & 7:
        case 0:
            return tag >> 3, position, read_number(data, position, end)[1]
        case 1:
            return tag >> 3, position, position + 8
        case 5:
            return tag >> 3, position, position + 4
        case _:
            length, position = read_number(data, position, end)
            return tag >> 3, position, position + length
