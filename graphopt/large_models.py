"""Writing models of any size: what one file cannot hold has its values in another beside it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import EncodeError, Message
from onnx import TensorProto

from graphopt._file_sets import write_together
from graphopt._files import PathLike, about, check_target, write_atomically
from graphopt._seal import Piece, sealed
from graphopt._words import size
from graphopt.dtypes import BITS, bytes_of
from graphopt.graphs import TO_INITIALIZERS, proto_initializers
from graphopt.mapped_values import (
    Array,
    array_of,
    can_be_left_in_memory,
    give_back,
    is_left,
    leave_in_memory,
    loaded,
    notes_of,
)
from graphopt.soundness.wire import length_tag, written

MOST = 2**31
"""Bytes that protobuf can write: one file holds less."""

DATA = ".data"
"""The end of the name of the file with the values, after that of the model."""

_LEAST = 1024  # bytes of a tensor that is worth a place in the other file
_ALIGNMENT = 4096  # of the tensors in that file, so that they can be mapped into memory
_WHOLE = 2**20  # bytes of values up to which a model is written at once


def save_model(model: onnx.ModelProto, path: PathLike, *, seal: bool = False) -> None:
    """Write a model atomically; where it has 2 GiB or more, with its values in ``<path>.data``.

    Both files are replaced together, or neither. They must stay in one folder.

    Args:
        model: The model, of which values may be left elsewhere.
        path: Of the file.
        seal: End a file that has all values with its digest.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: It cannot be written; the old files are as they were.
        ValueError: It has 2 GiB or more without its initializers.
    """
    with about(path):
        if values_of(model) < MOST and (parts := _parts_of(model)) is not None:
            pieces = (piece for part in parts for piece in _pieces(part))
            write_atomically(path, lambda part: _write(part, sealed(pieces) if seal else pieces))
            return
        target = check_target(path)
        names = [f"{target.name}{DATA}", target.name]
        write_together(
            target.parent,
            lambda folder: write_beside(model, folder / target.name),
            names,
            target.name,
        )


def _write(path: Path, pieces: Iterable[Piece]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def write_beside(model: onnx.ModelProto, path: Path) -> None:
    """Write a model and, tensor by tensor, its values to the file beside it.

    Raises:
        ValueError: It has 2 GiB or more without its initializers.
    """
    with Path(f"{path}{DATA}").open("wb") as file:

        def moved(tensor: TensorProto) -> TensorProto:
            begin = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.seek(begin)
            length = sum(map(file.write, _pieces(_Values(tensor))))
            other = without_values(tensor)
            other.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.name}{DATA}", "offset": begin, "length": length}
            for key, value in entries.items():
                other.external_data.add(key=key, value=str(value))
            return other

        data = _serialized(mapped(model, moved))
    if data is None:
        raise ValueError(
            f"cannot write '{path}': it has {size(MOST)} or more without its initializers, and an "
            "ONNX file holds less"
        )
    path.write_bytes(data)


def values_of(model: onnx.ModelProto) -> int:
    """The bytes of the initializers that have them as raw data, or were left elsewhere."""
    return sum(map(_bytes, proto_initializers(model)))


def size_of(model: onnx.ModelProto) -> int:
    """The bytes of a model, about so many where protobuf cannot count them."""
    values = values_of(model)
    if values < MOST and (parts := _parts_of(model)) is not None:
        return sum(map(len, parts))
    return values + len(_serialized(mapped(model, without_values)) or b"")


def without_values(tensor: TensorProto) -> TensorProto:
    """The name, shape and dtype of a tensor."""
    copy = TensorProto(dims=tensor.dims)
    copy.metadata_props.extend(notes_of(tensor))
    for field in ("name", "data_type", "doc_string"):
        if tensor.HasField(field):
            setattr(copy, field, getattr(tensor, field))
    return copy


def with_values_aside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Array]]:
    """A copy of a model that is copied at no cost: its large values are left in memory, once.

    Args:
        model: The model, whose values are sound.

    Returns:
        The copy, and what must be held as long as it or a copy of it; see `mapped_values`.
    """
    held: list[Array] = []

    def moved(tensor: TensorProto) -> TensorProto:
        if not can_be_left_in_memory(tensor):
            return tensor
        other = without_values(tensor)
        held.append(leave_in_memory(other, tensor.raw_data))
        return other

    return mapped(model, moved, least=0), held


def mapped(
    model: onnx.ModelProto, move: Callable[[TensorProto], TensorProto], least: int = _LEAST
) -> onnx.ModelProto:
    """A copy of a model with other tensors in place of its large initializers.

    Args:
        model: The model, of which no value is copied that is replaced.
        move: Gives the tensor in place of one.
        least: The bytes of raw data from which on an initializer is replaced.
    """
    copy = onnx.ModelProto()
    _copy(model, copy, {"graph", "training_info"})
    _copy_graph(model.graph, copy.graph, move, least)
    for info in model.training_info:
        own = copy.training_info.add()
        _copy(info, own, {"initialization"})
        if info.HasField("initialization"):
            _copy_graph(info.initialization, own.initialization, move, least)
    return copy


def _copy_graph(
    graph: onnx.GraphProto,
    copy: onnx.GraphProto,
    move: Callable[[TensorProto], TensorProto],
    least: int,
) -> None:
    _copy(graph, copy, {"initializer"})
    for tensor in graph.initializer:
        copy.initializer.append(move(tensor) if _is_large(tensor, least) else tensor)


def _copy(message: Message, copy: Message, left_out: set[str]) -> None:
    """Copy the fields of a message, but for some."""
    for field, value in message.ListFields():
        if field.name in left_out:
            continue
        _set(copy, field, value)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Give a message a field of another."""
    if isinstance(value, str | bytes | int | float):
        setattr(message, field.name, value)
    else:  # a message, or several values
        getattr(message, field.name).MergeFrom(value)


def _bytes(tensor: TensorProto) -> int:
    """Those of raw data, which are not looked at."""
    if not (tensor.HasField("raw_data") or is_left(tensor)) or tensor.data_type not in BITS:
        return 0
    return bytes_of(tensor)


def _is_large(tensor: TensorProto, least: int) -> bool:
    return is_left(tensor) or _bytes(tensor) >= least


def _serialized(model: onnx.ModelProto) -> bytes | None:
    """The bytes of a model, or None where they are too many."""
    try:
        data: bytes = model.SerializeToString()
    except EncodeError:
        return None
    return data if len(data) < MOST else None


@dataclass(frozen=True)
class _Values:
    """Those of a large tensor, which are not looked at before they are written."""

    tensor: TensorProto

    def __len__(self) -> int:
        return _bytes(self.tensor)


_Part = bytes | _Values


def _pieces(part: _Part) -> Iterator[Piece]:
    """What is written for a part of a model; memory that is not needed any more is given back."""
    if isinstance(part, bytes):
        yield part
    elif is_left(part.tensor):
        array = array_of(part.tensor)
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        give_back(array)
    else:
        yield part.tensor.raw_data


def _parts_of(model: onnx.ModelProto) -> list[_Part] | None:
    """The bytes of a model, without a copy of its values if they are many; None if too many."""
    if values_of(model) < _WHOLE:
        data = _serialized(loaded(model))
        return None if data is None else [data]
    parts = list(_encoded(model))
    return parts if sum(map(len, parts)) < MOST else None


def _encoded(message: Message) -> Iterator[_Part]:
    """The encoding of a message, field by field where there may be large tensors in one."""
    if isinstance(message, TensorProto) and _is_large(message, _LEAST):
        before, after = type(message)(), type(message)()
        other = without_values(message)
        number = TensorProto.RAW_DATA_FIELD_NUMBER
        for field, value in other.ListFields():
            _set(before if field.number < number else after, field, value)
        yield before.SerializeToString()
        yield length_tag(number) + written(_bytes(message))
        yield _Values(message)
        yield after.SerializeToString()
        return
    if isinstance(message, TensorProto):
        yield message.SerializeToString()
        return
    others = type(message)()
    for field, value in message.ListFields():
        if field.name not in TO_INITIALIZERS:
            _set(others, field, value)
            continue
        yield others.SerializeToString()
        others = type(message)()
        for inner in [value] if isinstance(value, Message) else value:
            parts = list(_encoded(inner))
            yield length_tag(field.number) + written(sum(map(len, parts)))
            yield from parts
    yield others.SerializeToString()
